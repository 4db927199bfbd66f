"""Who lied where, and when it is used again."""

from __future__ import annotations

from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.limits import LIAR_DROPPED_S, LIARS_MAX
from kachery_p2p.transfer.liars import Liars, Lie

CONTENT = sha1_of(b"content")


def lie(node: str = "mallory", channel: str = "lab", at: float = 0.0) -> Lie:
    return Lie(node, node, channel, CONTENT, "sent wrong bytes", at)


def test_a_liar_is_dropped_in_its_channel_and_nobody_else_nowhere_else() -> None:
    liars = Liars()
    liars.note(lie())
    assert not liars.may_be_used("mallory", "lab", 1.0)
    assert liars.may_be_used("mallory", "field", 1.0)
    assert liars.may_be_used("alice", "lab", 1.0)


def test_a_liar_is_used_again_in_time_and_not_if_it_lies_again() -> None:
    liars = Liars()
    liars.note(lie(at=5.0))
    assert not liars.may_be_used("mallory", "lab", 4.9 + LIAR_DROPPED_S)
    assert liars.may_be_used("mallory", "lab", 5.0 + LIAR_DROPPED_S)
    liars.note(lie(at=100.0))
    assert not liars.may_be_used("mallory", "lab", 5.0 + LIAR_DROPPED_S)


def test_those_who_are_dropped_are_told_the_latest_last() -> None:
    liars = Liars()
    for node, at in (("a", 0.0), ("b", 1.0), ("a", 2.0)):
        liars.note(lie(node, at=at))
    assert [(one.node, one.at) for one in liars.dropped(3.0)] == [("b", 1.0), ("a", 2.0)]
    assert [one.node for one in liars.dropped(1.5 + LIAR_DROPPED_S)] == ["a"]
    assert liars.dropped(2.0 + LIAR_DROPPED_S) == []


def test_what_is_remembered_of_liars_is_bounded() -> None:
    liars = Liars()
    nodes = [f"node{number}" for number in range(LIARS_MAX + 100)]
    for node in nodes:
        liars.note(lie(node))
        liars.note_claim(CONTENT, node, True)
    assert sum(not liars.may_be_used(node, "lab", 1.0) for node in nodes) == LIARS_MAX
    assert sum(not liars.is_believed(CONTENT, node, True) for node in nodes) == LIARS_MAX
    assert not liars.may_be_used(nodes[-1], "lab", 1.0)
    assert not liars.is_believed(CONTENT, nodes[-1], True)


def test_who_was_misled_while_loading_is_believed_once_it_has_hashed_the_bytes() -> None:
    liars = Liars()
    liars.note_claim(CONTENT, "bob", False)
    assert not liars.is_believed(CONTENT, "bob", False)
    assert liars.is_believed(CONTENT, "bob", True)
