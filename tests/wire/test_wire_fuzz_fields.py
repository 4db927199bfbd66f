"""Well-formed messages with wrong values, by the hundred thousand: refused, or within the table.

`test_wire_fuzz` breaks the bytes of frames; here the frames are sound msgpack, so that every
round gets past the codec and reaches the checks of the fields behind it. What is accepted has
to be what the table allows: it passes again, nothing is added, and we could have sent it.
`make fuzz` runs the same with FUZZ_ROUNDS rounds and other seeds.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import msgpack
import pytest

from kachery_p2p.errors import PeerError, ProtocolError, ProtocolVersionError
from kachery_p2p.wire import admission, bulk_messages, rendezvous
from kachery_p2p.wire.codec import FrameDecoder, Message, encode_frame
from kachery_p2p.wire.handshake import Hello, read_hello, read_proofs
from kachery_p2p.wire.messages import OPERATIONS, check_answer, check_failure, check_request
from kachery_p2p.wire.ranges import read_range_request
from tests.wire.test_wire_messages import ANSWERS, REQUESTS

SEED = 20_433
FUZZ_ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "1000000"))
# Values that somebody might forget to check: of each type, at each edge.
WRONG: list[Any] = [None, True, False, -1, 0, 1, 4, 5, 1 << 31, 1 << 32, 1 << 53, 1 << 63]
WRONG += [(1 << 64) - 1, -(1 << 63), 0.5, 1e300, "", "x", "x" * 64, "0f" * 32, "\x1b[2J", "\u202e"]
WRONG += ["/ip4/1", "lab", "read", b"", b"x", bytes(16), bytes(20), bytes(32), bytes(33), bytes(64)]
WRONG += [bytes(1024), [], [[]], [None], [b"x" * 32], ["read"] * 40, {}, {"channel": {}}]
KEYS = ["channel", "id", "op", "body", "ok", "error", "text", "first", "count", "later", ""]
# What keeps a round from costing more than the checks that it is about.
LARGE_BYTES = 2_000


def mutated(value: Any, rng: random.Random) -> Any:
    """`value` with one change somewhere inside."""
    dice = rng.random()
    if isinstance(value, dict) and value and dice < 0.92:
        return _mutated_map(value, rng)
    if isinstance(value, list) and value and dice < 0.8:
        place = rng.randrange(len(value))
        if dice < 0.2:
            return value[:place] + value[place + 1 :]
        return [*value[:place], mutated(value[place], rng), *value[place + (dice < 0.6) :]]
    if isinstance(value, bytes) and value and dice < 0.6:
        return _mutated_bytes(value, rng)
    if isinstance(value, str) and value and dice < 0.6:
        place = rng.randrange(len(value))
        return value[:place] + rng.choice(("", "x", "\n", "µ", "0")) + value[place + 1 :]
    if isinstance(value, int) and dice < 0.6:
        moved = rng.choice((value - 1, value + 1, -value, value << 8, value << 32))
        return moved if -(1 << 63) <= moved < 1 << 64 else -1
    return rng.choice(WRONG)


def _mutated_map(value: Message, rng: random.Random) -> Message:
    changed = dict(value)
    key = rng.choice(list(value))
    dice = rng.random()
    if dice < 0.1:
        del changed[key]
    elif dice < 0.2:
        changed[rng.choice(KEYS)] = changed[key] if dice < 0.15 else changed.pop(key)
    else:
        changed[key] = mutated(value[key], rng)
    return changed


def _mutated_bytes(value: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(value))
    dice = rng.random()
    if dice < 0.4:
        return value[:place] + bytes([value[place] ^ 1 << rng.randrange(8)]) + value[place + 1 :]
    if dice < 0.7:
        return value[:place] + value[place + rng.randint(1, 9) :]
    if dice < 0.85:
        return value[:place] + rng.choice((b"\xff" * 4, b"\x80\0\0\0", bytes(8))) + value[place:]
    return value[:place] + b"\xff\xff\xff\xff" + value[place + 4 :]


def arrived(message: Any) -> Message:
    """The message as the other side reads it."""
    body = msgpack.packb(message, use_bin_type=True)
    (found,) = FrameDecoder().feed(len(body).to_bytes(4, "big") + body)
    return found


Check = Callable[[Message], Message]


def fuzz(rounds: int, samples: list[tuple[Message, Check]], seed: int) -> int:
    """How many of `rounds` mutated messages were refused; any error but ProtocolError fails."""
    rng, refused = random.Random(seed), 0
    for number in range(rounds):
        sample, check = rng.choice(samples)
        message = mutated(sample, rng)
        if rng.random() < 0.3:
            message = mutated(message, rng)
        try:
            accepted = check(arrived(message))
        except (ProtocolError, ProtocolVersionError):
            refused += 1
            continue
        except Exception as error:
            raise AssertionError(f"seed {seed}, round {number}: {message!r}") from error
        assert check(accepted) == accepted, (seed, number, message)
        assert encode_frame(accepted), (seed, number, message)
    return refused


# --- the streams ------------------------------------------------------------------------------


def is_small(message: Message) -> bool:
    return len(msgpack.packb(message)) < LARGE_BYTES


def _request(message: Message) -> Message:
    op = message.get("op")
    stream = OPERATIONS[op].stream if isinstance(op, str) and op in OPERATIONS else "control"
    return {"op": op, "body": check_request(op, message.get("body"), stream)}


def _answer(op: str) -> Check:
    return lambda message: check_answer(op, message)


def _failure(message: Message) -> Message:
    return dict(zip(("error", "text"), check_failure(message), strict=True))


def control_samples() -> list[tuple[Message, Check]]:
    samples: list[tuple[Message, Check]] = []
    samples += [({"op": op, "body": body}, _request) for op, body in REQUESTS.items()]
    samples += [(answer, _answer(op)) for op, answer in ANSWERS.items()]
    samples.append(({"error": "failed", "text": "no disk"}, _failure))
    return [(message, check) for message, check in samples if is_small(message)]


def _hello(message: Message) -> Message:
    return read_hello(message).message()


def _proofs(count: int | None) -> Check:
    return lambda message: {"proofs": list(read_proofs(message, count))}


HANDSHAKE: list[tuple[Message, Check]] = [
    (Hello(b"n" * 32, b"e" * 32, b"s" * 64).message(), _hello),
    ({"proofs": [b"p" * 32] * 16}, _proofs(None)),
    ({"proofs": [b"p" * 32] * 16}, _proofs(16)),
]


def _range_request(message: Message) -> Message:
    found = read_range_request(message)
    body = asdict(found)
    return {"id": body.pop("id"), "op": "range", "body": body}


RANGES: list[tuple[Message, Check]] = [
    ({"id": 1, "op": "range", "body": REQUESTS["range"]}, _range_request)
]

ADMISSION: list[tuple[Message, Check]] = [
    ({"invite": bytes(16), "nonce": bytes(32)}, admission.check_opening),
    ({"proof": b"p" * 90, "nonce": bytes(32)}, admission.check_challenge),
    (
        {"mac": bytes(32), "exchange": bytes(32), "exchange_signature": bytes(64), "label": "x"},
        admission.check_application,
    ),
    (
        {"mac": bytes(32), "entry_secret": bytes(20), "name": "lab", "roles": ["read", "x"]},
        admission.check_outcome,
    ),
    ({"wait": "asleep"}, admission.check_outcome),
    ({"error": "refused", "text": "no"}, admission.check_outcome),
    ({"error": "refused", "text": "no"}, admission.check_challenge),
]


def _rendezvous_request(message: Message) -> Message:
    op, body = rendezvous.read_request(message)
    return {"op": op, "body": body}


def _rendezvous_answer(message: Message) -> Message:
    try:
        return {"ok": rendezvous.read_answer("lookup", message)}
    except ProtocolError:
        raise
    except PeerError:
        # It said why it does not answer: that is no fault.
        return {"error": "failed", "text": ""}


def _again(check: Check) -> Check:
    """An answer that says why there is none is not the same when it is read again."""
    return lambda message: message if message == {"error": "failed", "text": ""} else check(message)


ENTRY = bytes(rendezvous.ENTRY_BYTES)
RENDEZVOUS: list[tuple[Message, Check]] = [
    (
        {"op": "register", "body": {"tag": bytes(32), "entry": ENTRY, "ttl": 3_600}},
        _rendezvous_request,
    ),
    ({"op": "lookup", "body": {"tag": bytes(32)}}, _rendezvous_request),
    ({"ok": {"entries": [ENTRY, ENTRY]}}, _again(_rendezvous_answer)),
    ({"error": "failed", "text": ""}, _again(_rendezvous_answer)),
]

# By what is read: the samples, how many rounds in `make test`, and which part is refused at least.
STREAMS: dict[str, tuple[list[tuple[Message, Check]], int, float]] = {
    "control": (control_samples(), 120_000, 0.5),
    "handshake": (HANDSHAKE, 30_000, 0.6),
    "ranges": (RANGES, 30_000, 0.5),
    "admission": (ADMISSION, 40_000, 0.5),
    "rendezvous": (RENDEZVOUS, 30_000, 0.5),
}


def test_every_sample_is_right_before_it_is_made_wrong() -> None:
    for samples, _, _ in STREAMS.values():
        for sample, check in samples:
            assert check(arrived(sample)) == sample
    known = {sample["op"] for sample, check in STREAMS["control"][0] if check is _request}
    too_large = {op for op, body in REQUESTS.items() if not is_small({"op": op, "body": body})}
    assert known | too_large == OPERATIONS.keys()


@pytest.mark.parametrize("stream", STREAMS)
def test_a_quarter_of_a_million_wrong_messages_are_refused_or_within_the_table(stream: str) -> None:
    samples, rounds, part = STREAMS[stream]
    assert rounds * part < fuzz(rounds, samples, SEED) < rounds


@pytest.mark.fuzz
@pytest.mark.parametrize("stream", STREAMS)
def test_many_more_wrong_messages_are_refused_or_within_the_table(stream: str) -> None:
    samples, _, part = STREAMS[stream]
    seed = random.SystemRandom().randrange(1 << 32)
    assert fuzz(FUZZ_ROUNDS, samples, seed) > FUZZ_ROUNDS * part


# --- fixed layouts of the bulk plane ----------------------------------------------------------

BULK_RANGE = bulk_messages.BulkRange("0f" * 32, b"c" * 20, b"r" * 32, 7, 3).encode()
BULK: list[tuple[bytes, Callable[[bytes], object]]] = [
    (BULK_RANGE, bulk_messages.read_request),
    (bulk_messages.encode_hello(), bulk_messages.read_hello),
    (bulk_messages.encode_failure("failed", "no disk"), bulk_messages.read_failure),
    (
        (7).to_bytes(4, "big") + (90).to_bytes(4, "big") + bytes(90),
        lambda payload: bulk_messages.read_piece_header(memoryview(payload)),
    ),
]


def fuzz_bulk(rounds: int, seed: int) -> int:
    rng, refused = random.Random(seed), 0
    for number in range(rounds):
        sample, read = rng.choice(BULK)
        payload = _mutated_bytes(sample, rng)
        if payload and rng.random() < 0.3:
            payload = _mutated_bytes(payload, rng)
        try:
            found = read(payload)
        except ProtocolError:
            refused += 1
            continue
        except Exception as error:
            raise AssertionError(f"seed {seed}, round {number}: {payload.hex()}") from error
        if isinstance(found, bulk_messages.BulkRange):
            assert found.encode() == payload
    return refused


def test_a_hundred_and_twenty_thousand_mutated_bulk_messages_are_refused_or_well_formed() -> None:
    assert 40_000 < fuzz_bulk(120_000, SEED) < 110_000


@pytest.mark.fuzz
def test_many_more_mutated_bulk_messages_are_refused_or_well_formed() -> None:
    assert fuzz_bulk(FUZZ_ROUNDS, random.SystemRandom().randrange(1 << 32)) > FUZZ_ROUNDS // 4
