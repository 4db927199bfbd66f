"""Invites as people paste them: cut, mistyped, expired, for somebody else."""

from __future__ import annotations

import random
from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kachery_p2p.channels.invites import INVITE_PREFIX, Invite, invite_id, is_invite
from kachery_p2p.errors import InviteError, InviteExpiredError
from kachery_p2p.identity.keys import NodeId, is_sound_key
from kachery_p2p.limits import INVITE_CHARS_MAX

ADDRESS = "/ip4/192.0.2.1/tcp/20432/p2p/12D3KooWA"
NODES = [NodeId(f"{number:02x}" * 32) for number in range(2, 12)]
INVITE = Invite(NODES[0], "lab", bytes(range(16)), 1_760_000_000, ((NODES[1], (ADDRESS,)),))

_nodes = st.sampled_from(NODES)
_addresses = st.from_regex(r"/[0-9a-z/.:-]{0,40}", fullmatch=True)
INVITES = st.builds(
    Invite,
    _nodes,
    st.from_regex(r"[0-9A-Za-z_-]{1,64}", fullmatch=True),
    st.binary(min_size=16, max_size=16),
    st.integers(0, 2**50),
    st.lists(
        st.tuples(_nodes, st.lists(_addresses, max_size=4).map(tuple)), min_size=1, max_size=8
    ).map(tuple),
    st.none() | _nodes,
)


@given(INVITES)
@settings(max_examples=150, deadline=None)
def test_an_invite_is_read_as_it_was_written_with_white_space_anywhere(invite: Invite) -> None:
    text = invite.text
    assert Invite.parse(text) == invite
    assert Invite.parse(f"  {text[:40]}\n {text[40:]}\r\n") == invite


def test_no_invite_that_was_mistyped_or_cut_is_accepted() -> None:
    text, rng = INVITE.text, random.Random(3)
    for at in range(len(text)):
        with pytest.raises(InviteError):
            Invite.parse(text[:at])
    letters = "ABCabc019-_=+/"
    for _ in range(100_000):
        at = rng.randrange(len(text))
        mistyped = text[:at] + rng.choice(letters) + text[at + rng.randrange(2) :]
        if mistyped != text:
            with pytest.raises(InviteError):
                Invite.parse(mistyped)


def made_up(body: bytes) -> str:
    checksum = sha256(b"kp2p-invite-1\0" + body).digest()[:4]
    return INVITE_PREFIX + urlsafe_b64encode(body + checksum).decode().rstrip("=")


def body_of(invite: Invite) -> bytes:
    from base64 import urlsafe_b64decode

    encoded = invite.text.removeprefix(INVITE_PREFIX)
    return urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))[:-4]


def test_an_invite_with_a_right_checksum_is_still_read_with_care() -> None:
    whole, rng = body_of(INVITE), random.Random(4)
    assert Invite.parse(made_up(whole)) == INVITE
    for _ in range(5_000):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        text = made_up(bytes(data))
        try:
            found = Invite.parse(text)
        except InviteError:
            continue
        assert found.text == text
        assert is_sound_key(bytes.fromhex(found.channel_id))


@pytest.mark.parametrize(
    "change",
    [
        {"channel_id": "00" * 32},
        {"channel_id": "01" + "00" * 31},
        {"admitters": ((NodeId("00" * 32), ()),)},
        {"for_node": NodeId("00" * 32)},
        {"admitters": ()},
        {"admitters": tuple((node, ()) for node in NODES[:9])},
    ],
)
def test_keys_that_nobody_has_and_too_many_or_few_admitters_are_refused(change: Any) -> None:
    with pytest.raises(InviteError):
        Invite.parse(INVITE._replace(**change).text)


@pytest.mark.parametrize("name", ["../x", "a/b", ".."])
def test_a_name_that_is_a_path_is_refused(name: str) -> None:
    body = body_of(INVITE).replace(b"\0\x03lab", len(name).to_bytes(2, "big") + name.encode())
    with pytest.raises(InviteError):
        Invite.parse(made_up(body))


@pytest.mark.parametrize("text", ["", "lab", "kp2p-secret-1-abc", INVITE_PREFIX, "x" * 10**6])
def test_what_is_no_invite_is_told_so(text: str) -> None:
    with pytest.raises(InviteError) as caught:
        Invite.parse(text)
    assert str(caught.value).isprintable()
    assert text[20:60] not in str(caught.value) or not text[20:60]


def test_an_invite_expires_with_some_slack_for_clocks() -> None:
    INVITE.check_time(INVITE.expires + 600)
    with pytest.raises(InviteExpiredError) as caught:
        INVITE.check_time(INVITE.expires + 601)
    assert "channel invite" in str(caught.value.hint)


def test_an_invite_for_one_node_is_for_no_other() -> None:
    INVITE.check_node(NODES[5])
    bound = INVITE._replace(for_node=NODES[4])
    bound.check_node(NODES[4])
    with pytest.raises(InviteError, match="not for this one"):
        bound.check_node(NODES[5])


def test_neither_repr_nor_id_tells_the_secret() -> None:
    assert INVITE.secret.hex() not in repr(INVITE)
    assert repr(INVITE.secret) not in f"{INVITE!r} {INVITE}"
    assert len(INVITE.invite_id) == 16
    assert INVITE.invite_id == invite_id(INVITE.secret) != INVITE.secret
    assert is_invite(" " + INVITE.text)
    assert not is_invite("lab")


def test_an_invite_fits_a_terminals_line() -> None:
    many = tuple((node, tuple(f"/dns4/{'x' * 200}{i}" for i in range(16))) for node in NODES)
    long = INVITE._replace(admitters=many)
    with pytest.raises(InviteError, match="characters"):
        _ = long.text
    fitting = long.fitting()
    assert Invite.parse(fitting.text) == fitting
    assert len(fitting.text) <= INVITE_CHARS_MAX
    assert fitting.admitters[0][1]
    assert INVITE.fitting() == INVITE
