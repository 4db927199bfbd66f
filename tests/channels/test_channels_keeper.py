"""What a keeper signs for whom, and when it signs nothing any more."""

from __future__ import annotations

from typing import Any

import pytest

from kachery_p2p.channels.changes import (
    HandedOver,
    KeeperMoved,
    MemberRemoved,
    MemberSet,
    SettingsSet,
    SignedRequest,
    SuccessorNamed,
)
from kachery_p2p.channels.keeper import Keeper, self_member
from kachery_p2p.channels.permissions import ADMIN, READ
from kachery_p2p.errors import (
    ChannelClosedError,
    ChannelError,
    ChannelForkedError,
    LogBehindError,
    LogFormatError,
    LogStoppedError,
    NotAllowedError,
)
from kachery_p2p.limits import MEMBERS_MAX

READER = frozenset({READ})
ADMINS = frozenset({READ, ADMIN})
NOT_AFTER_MS = (1_760_000_000 + 1_000_000) * 1000


def ask(lab: Any, change: Any, by: Any, request: bytes | None = None) -> SignedRequest:
    return SignedRequest.signed(lab.id, change, by, request or lab.random(16), lab.tick())


def changes_of(lab: Any, actor: str) -> dict[str, Any]:
    """Everything that can be asked for, and the nodes that it is about."""
    target, admin, new = lab.member(READER), lab.member(ADMINS), lab.node()
    return {
        "set new": MemberSet(self_member(new, "", READER)),
        "set reader": MemberSet(self_member(target, "", READER | {"write"})),
        "remove reader": MemberRemoved(target.node_id),
        "make admin": MemberSet(self_member(target, "", ADMINS)),
        "demote admin": MemberSet(self_member(admin, "", READER)),
        "remove admin": MemberRemoved(admin.node_id),
        "remove keeper": MemberRemoved(lab.chief.node_id),
        "demote keeper": MemberSet(self_member(lab.chief, "", READER)),
        "settings": SettingsSet((), 0, ""),
        "successor": SuccessorNamed(target.node_id),
        "move keeper": KeeperMoved(target.node_id),
        "hand over": HandedOver(new.node_id),
    }


AN_ADMIN_MAY = {"set new", "set reader", "remove reader"}
THE_KEEPER_MAY = AN_ADMIN_MAY | {"make admin", "demote admin", "remove admin"}
NAMES = [
    "set new", "set reader", "remove reader", "make admin", "demote admin", "remove admin",
    "remove keeper", "demote keeper", "settings", "successor", "move keeper", "hand over",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("actor", ["outsider", "removed", "reader", "admin", "keeper"])
def test_who_may_ask_the_keeper_for_what(lab: Any, actor: str, name: str) -> None:
    change = changes_of(lab, actor)[name]
    by = lab.chief if actor == "keeper" else lab.node()
    if actor in ("removed", "reader", "admin"):
        lab.member(ADMINS if actor == "admin" else READER, node=by)
    if actor == "removed":
        lab.record(MemberRemoved(by.node_id))
    before = lab.history
    may = {"admin": AN_ADMIN_MAY, "keeper": THE_KEEPER_MAY}.get(actor, set())
    if name in may:
        assert lab.keeper.fulfilled(ask(lab, change, by), lab.tick()).size == before.size + 1
        return
    with pytest.raises(NotAllowedError):
        lab.keeper.fulfilled(ask(lab, change, by), lab.tick())
    assert lab.history is before


@pytest.mark.parametrize("name", ["settings", "successor", "hand over"])
def test_on_its_own_node_the_keeper_may_do_the_rest_too(lab: Any, name: str) -> None:
    change = changes_of(lab, "keeper")[name]
    size = lab.history.size
    assert lab.record(change).size == size + 1


def test_anybody_may_leave_but_the_keeper(lab: Any) -> None:
    node = lab.member(READER)
    lab.keeper.fulfilled(ask(lab, MemberRemoved(node.node_id), node), lab.tick())
    assert node.node_id not in lab.history.roster.members
    with pytest.raises(NotAllowedError, match="stays"):
        lab.record(MemberRemoved(lab.chief.node_id))


def test_a_request_played_back_changes_nothing(lab: Any) -> None:
    admin, node = lab.member(ADMINS), lab.node()
    asked = ask(lab, MemberSet(self_member(node, "", READER)), admin)
    lab.keeper.fulfilled(asked, lab.tick())
    lab.record(MemberRemoved(node.node_id))
    before = lab.history
    assert lab.keeper.fulfilled(asked, lab.tick()) is before
    other = ask(lab, MemberSet(self_member(node, "", READER)), admin, asked.request)
    assert lab.keeper.fulfilled(other, lab.tick()) is before
    with pytest.raises(LogFormatError, match="second time"):
        lab.keeper.recorded(
            [(MemberRemoved(admin.node_id), lab.chief.node_id, asked.request)], lab.tick()
        )
    assert lab.history is before


def test_a_request_in_anothers_name_is_refused(lab: Any) -> None:
    reader = lab.member(READER)
    forged = ask(lab, MemberRemoved(lab.member().node_id), reader)._replace(by=lab.chief.node_id)
    with pytest.raises(LogFormatError, match="not signed"):
        lab.keeper.fulfilled(forged, lab.tick())


def test_of_several_changes_all_are_made_or_none(lab: Any) -> None:
    node, before = lab.node(), lab.history
    changes = [MemberSet(self_member(node, "", READER)), MemberRemoved(lab.chief.node_id)]
    with pytest.raises(NotAllowedError):
        lab.record(*changes)
    with pytest.raises(ChannelError, match="not a member"):
        lab.record(MemberRemoved(node.node_id))
    assert lab.history is before
    both = lab.record(changes[0], MemberRemoved(node.node_id))
    assert both.size == before.size + 2


def test_a_foreign_exchange_key_is_not_recorded(lab: Any) -> None:
    node, other = lab.node(), lab.node()
    foreign = self_member(node, "")._replace(exchange=other.exchange_public)
    with pytest.raises(ChannelError, match="exchange key"):
        lab.record(MemberSet(foreign))


def test_past_its_end_the_channel_takes_nobody_new_but_still_changes(lab: Any) -> None:
    node = lab.member(READER)
    new = [lab.asked(MemberSet(self_member(lab.node(), "", READER)))]
    with pytest.raises(ChannelClosedError, match="past the end"):
        lab.keeper.recorded(new, NOT_AFTER_MS + 1)
    lab.keeper.recorded([lab.asked(MemberSet(self_member(node, "x", READER)))], NOT_AFTER_MS + 1)
    lab.keeper.recorded([lab.asked(MemberRemoved(node.node_id))], NOT_AFTER_MS + 2)


def test_a_full_channel_takes_nobody_new(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kachery_p2p.channels.keeper.MEMBERS_MAX", 3)
    lab.member()
    last = lab.member()
    with pytest.raises(ChannelClosedError, match="full"):
        lab.member()
    lab.record(MemberRemoved(last.node_id))
    lab.member()
    assert MEMBERS_MAX == 4_096


def test_members_cannot_take_the_room_that_removals_need(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kachery_p2p.channels.history.CHANNEL_ENTRIES_MAX", 4_096 + 4)
    members = [lab.member() for _ in range(3)]
    with pytest.raises(ChannelClosedError, match="full"):
        lab.member()
    for member in members:
        lab.record(MemberRemoved(member.node_id))


# --- copies of the key ---------------------------------------------------------------------------


def test_a_keeper_that_is_behind_a_copy_of_its_key_signs_nothing(lab: Any) -> None:
    other = lab.copy()
    other.member()
    with pytest.raises(LogBehindError):
        lab.keeper.heard(other.head)
    for attempt in (lab.member, lambda: lab.keeper.renewed(lab.tick())):
        with pytest.raises(LogBehindError):
            attempt()
    lab.keeper = Keeper(other.learnt(lab.history), lab.key)
    lab.member()


def test_a_keeper_that_hears_of_a_fork_signs_nothing_ever_after(lab: Any) -> None:
    other = lab.copy()
    other.member()
    lab.member()
    with pytest.raises(ChannelForkedError) as caught:
        lab.keeper.heard(other.head)
    assert caught.value.evidence
    with pytest.raises(ChannelForkedError):
        lab.member()
    proof = lab.history.diverged(other.head, other.entries())
    convicted = Keeper(lab.history.convicted(proof), lab.key)
    with pytest.raises(ChannelForkedError):
        convicted.renewed(lab.tick())


def test_its_own_older_heads_do_not_disturb_a_keeper(lab: Any) -> None:
    old = lab.head
    lab.member()
    lab.keeper.heard(old)
    lab.keeper.heard(lab.head)
    lab.member()


def test_after_a_failed_write_nothing_more_is_signed(lab: Any) -> None:
    lab.member()
    lab.keeper.failed()
    with pytest.raises(LogStoppedError):
        lab.member()


def test_the_key_moves_to_another_node_which_is_then_the_keeper(lab: Any) -> None:
    second = lab.member(READER)
    lab.keeper.taken_over(second, "second", lab.random(32), lab.tick())
    roster = lab.history.roster
    assert roster.keeper == second.node_id
    assert ADMIN in roster.roles_of(second.node_id)
    with pytest.raises(NotAllowedError):
        lab.record(SuccessorNamed(None), by=lab.chief)
    lab.record(MemberRemoved(lab.chief.node_id), by=second)


def test_a_keeper_renews_once_a_day_and_its_time_never_goes_back(lab: Any) -> None:
    time_ms = lab.history.head.time_ms
    assert not lab.keeper.renewal_due(time_ms + 86_399_000)
    assert lab.keeper.renewal_due(time_ms + 86_400_000)
    renewed = lab.keeper.renewed(time_ms - 1_000)
    assert renewed.head.time_ms == time_ms
    assert renewed.size == lab.history.size


def test_a_channel_that_was_handed_over_changes_no_more(lab: Any) -> None:
    lab.record(HandedOver(lab.node().node_id))
    with pytest.raises(NotAllowedError, match="handed over"):
        lab.member()
