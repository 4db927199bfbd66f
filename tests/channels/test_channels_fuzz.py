"""What strangers and members write about owned channels, broken: refused with one kind of error.

Entries, signed requests, proofs, histories, invites and rendezvous entries are changed a little
from sound ones. What can be checked (a signature, a checksum, a seal) never passes afterwards;
what is only read says, once written again, what was read.
"""

from __future__ import annotations

import json
import os
import random
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.channels.changes import SignedRequest, Unknown, decode_change, encode_change
from kachery_p2p.channels.history import History, check_membership, check_notice
from kachery_p2p.channels.invites import INVITE_PREFIX, Invite
from kachery_p2p.errors import (
    ConfigError,
    InviteError,
    KacheryError,
    LogError,
    ProtocolError,
)
from kachery_p2p.identity.keys import NodeId, NodeKey
from kachery_p2p.log.entries import Entry
from kachery_p2p.wire.rendezvous import open_entry, seal_entry

SEED = 20_434
FUZZ_ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "1000000"))
VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors/channels.json").read_text()
)
CHANNEL = VECTORS["keys"]["channel"]["id"]
ENTRIES = [bytes.fromhex(vector["entry"]) for vector in VECTORS["entries"]]
HEAD = bytes.fromhex(VECTORS["head"])
# Lengths and counts that somebody might forget to check.
SPICE = [b"", b"\0", b"\xff", b"\0\0", b"\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x80\0\0\0"]
SPICE += [bytes(8), b"\x7f" + b"\xff" * 7, b"\xff" * 8, bytes(32), b"\xc3\x28", b"\0\1x", b"/ip4"]


def mutated(sound: bytes, rng: random.Random) -> bytes:
    """`sound` with one or two changes."""
    data = sound
    for _ in range(1 + (rng.random() < 0.4)):
        place, dice = rng.randrange(len(data) + 1), rng.random()
        if dice < 0.4 and place < len(data):
            flipped = data[place] ^ 1 << rng.randrange(8)
            data = data[:place] + bytes([flipped]) + data[place + 1 :]
        elif dice < 0.55:
            data = data[:place] + data[place + rng.randint(1, 40) :]
        else:
            spice = rng.choice(SPICE)
            data = data[:place] + spice + data[place + (len(spice) if dice < 0.8 else 0) :]
    return data


def fuzz(
    rounds: int,
    sounds: list[bytes],
    read: Callable[[bytes], None],
    kinds: tuple[type[KacheryError], ...],
    seed: int,
) -> int:
    """How many of `rounds` were refused; any error of another kind fails."""
    rng, refused = random.Random(seed), 0
    for number in range(rounds):
        sound = rng.choice(sounds)
        data = mutated(sound, rng)
        if data == sound:
            continue
        try:
            read(data)
        except kinds as error:
            assert str(error).isprintable(), (seed, number, data.hex())
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, round {number}: {data.hex()}") from error
    return refused


# --- what is read -----------------------------------------------------------------------------


def read_change(data: bytes) -> None:
    entry = Entry.decode(data)
    found = decode_change(entry)
    if not isinstance(found.change, Unknown):
        written = encode_change(found.change, found.by, found.request)
        assert written == (entry.type, entry.payload)


REQUEST = bytes.fromhex(VECTORS["request"]["bytes"])
REQUESTED_MS = VECTORS["request"]["time_ms"]
PROOF, NOTICE = VECTORS["membership_proof"], VECTORS["removal_notice"]
HISTORY = History.empty(CHANNEL).extended(HEAD, ENTRIES).encode()
SHORT = History.empty(CHANNEL).extended(bytes.fromhex(VECTORS["head_of_3"]), ENTRIES[:3]).encode()


def never(accepted: object) -> None:
    raise AssertionError(f"accepted: {accepted!r}")


def read_request(data: bytes) -> None:
    found = SignedRequest.decode(data)
    assert found.encode() == data
    never(found.verify(CHANNEL, REQUESTED_MS))


def read_proof(data: bytes) -> None:
    never(check_membership(CHANNEL, NodeId(PROOF["node"]), data))


def read_notice(data: bytes) -> None:
    never(check_notice(CHANNEL, NodeId(NOTICE["node"]), data, 0))


def read_history(data: bytes) -> None:
    """Some bytes of a file may change: a head is signed later with the same entries, never."""
    never(History.decode(data, CHANNEL))


def learn(data: bytes) -> None:
    """A peer's answers: one entry, changed, under a head that the channel's key signed."""
    never(History.empty(CHANNEL).extended(HEAD, [data, *ENTRIES[1:]]))


INVITE_TEXT: str = VECTORS["invite"]["text"]
_ENCODED = INVITE_TEXT.removeprefix(INVITE_PREFIX)
INVITE_BYTES = urlsafe_b64decode(_ENCODED + "=" * (-len(_ENCODED) % 4))


def read_invite(data: bytes) -> None:
    text = INVITE_PREFIX + urlsafe_b64encode(data).decode().rstrip("=")
    never(Invite.parse(text))


def read_invite_text(data: bytes) -> None:
    text = data.decode("latin-1")
    if "".join(text.split()) != INVITE_TEXT:
        never(Invite.parse(text))
    raise InviteError("white space alone, which does not matter")


DISCOVERY, DAY, NOW = b"d" * 32, 20_000, 20_000 * 86_400.0
NODE = NodeKey.generate(b"k" * 64)
PLACE = f"/ip4/192.0.2.1/tcp/20432/p2p/{NODE.node_id.peer_id}"
SEALED = seal_entry(NODE, DISCOVERY, DAY, [PLACE], int(NOW) + 3_600, b"n" * 12)


def read_sealed(data: bytes) -> None:
    never(open_entry(DISCOVERY, DAY, data, NOW))


Case = tuple[list[bytes], Callable[[bytes], None], tuple[type[KacheryError], ...], int, float]
# By what is read: the sound ones, the reader, its errors, how many rounds in `make test`, and
# which part of them is refused at least.
READ: dict[str, Case] = {
    "changes": (ENTRIES, read_change, (LogError,), 40_000, 0.5),
    "requests": ([REQUEST], read_request, (LogError,), 15_000, 0.95),
    "membership proofs": ([bytes.fromhex(PROOF["bytes"])], read_proof, (LogError,), 6_000, 0.95),
    "removal notices": ([bytes.fromhex(NOTICE["bytes"])], read_notice, (LogError,), 6_000, 0.95),
    "histories": ([HISTORY, SHORT], read_history, (ConfigError,), 4_000, 0.95),
    "entries of a peer": (ENTRIES[:1], learn, (LogError,), 2_000, 0.95),
    "invites": ([INVITE_BYTES], read_invite, (InviteError,), 20_000, 0.95),
    "typed invites": ([INVITE_TEXT.encode()], read_invite_text, (InviteError,), 20_000, 0.95),
    "sealed entries": ([SEALED], read_sealed, (ProtocolError,), 10_000, 0.95),
}


@pytest.mark.parametrize("what", READ)
def test_a_hundred_thousand_broken_ones_are_refused(what: str) -> None:
    sounds, read, kinds, rounds, part = READ[what]
    assert fuzz(rounds, sounds, read, kinds, SEED) >= rounds * part


@pytest.mark.fuzz
@pytest.mark.parametrize("what", READ)
def test_many_more_broken_ones_are_refused(what: str) -> None:
    sounds, read, kinds, _, part = READ[what]
    seed = random.SystemRandom().randrange(1 << 32)
    assert fuzz(FUZZ_ROUNDS, sounds, read, kinds, seed) >= FUZZ_ROUNDS * part


def test_sound_ones_are_read() -> None:
    for entry in ENTRIES:
        read_change(entry)
    SignedRequest.decode(REQUEST).verify(CHANNEL, REQUESTED_MS)
    assert History.decode(HISTORY, CHANNEL).size == len(ENTRIES)
    assert Invite.parse(INVITE_TEXT).text == INVITE_TEXT
    assert open_entry(DISCOVERY, DAY, SEALED, NOW).addresses == (PLACE,)
