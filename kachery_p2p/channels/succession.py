"""When a channel goes on under another key, and what its members believe of it.

The new history begins with its creation and with *Succeeds*: the successor's signature over
both channels' ids and the last head of the old one. Members follow if their own old history

- ends with HandedOver, which the old key signed: the keeper wanted it so; or
- names the signer as successor, and its last head, the same that the successor signed, is
  older than SUCCESSION_AFTER_S: the keeper re-signs daily, so its key is lost.

A successor who knows less of the old history than a member is not followed: it could bring
back somebody who was removed.
"""

from __future__ import annotations

from kachery_p2p.channels.change_kinds import SUCCESSION_TAG
from kachery_p2p.channels.changes import Change, Created, MemberSet, SettingsSet, Succeeds
from kachery_p2p.channels.history import LOG_TAG, History
from kachery_p2p.channels.keeper import self_member
from kachery_p2p.errors import LogError, SuccessionError
from kachery_p2p.identity.keys import NodeId, NodeKey
from kachery_p2p.limits import CLOCK_SLACK_S, SUCCESSION_AFTER_S
from kachery_p2p.log.heads import SignedHead


def succession(
    old: History, new_id: NodeId, key: NodeKey, label: str, secret_check: bytes, now: int
) -> list[Change]:
    """The first changes of the channel `new_id`, by which the node with `key` continues `old`."""
    roster, head = old.roster, old.head
    assert head is not None
    unsigned = Succeeds(old.channel_id, head.encode(), key.node_id, b"")
    signature = key.sign(SUCCESSION_TAG, unsigned.statement(new_id))
    others = [member for node, member in roster.members.items() if node != key.node_id]
    not_after = max(roster.not_after, now)
    return [
        Created(roster.name, secret_check, not_after),
        unsigned._replace(signature=signature),
        MemberSet(self_member(key, label)),
        *(MemberSet(member) for member in others),
        SettingsSet(roster.bootstrap, not_after, roster.bucket),
    ]


def check_may_succeed(old: History, node: NodeId, now_ms: int) -> None:
    """SuccessionError unless `node` may go on with the channel now."""
    if old.roster.successor != node:
        raise SuccessionError(
            "the channel's history does not name this node as its successor",
            hint="only the keeper could have: `kachery-p2p channel successor NAME NODE`",
        )
    if not _is_silent(old, now_ms, slack_s=0):
        days = SUCCESSION_AFTER_S // 86_400
        raise SuccessionError(
            f"the channel's keeper has signed within the last {days} days",
            hint="ask the keeper to hand the channel over",
        )


def check_succession(old: History, new: History, now_ms: int) -> None:
    """SuccessionError unless `new` may continue the channel `old`, as far as is known here."""
    said = new.roster.succeeds
    if said is None or said.old_id != old.channel_id or new.fork is not None:
        raise SuccessionError("the other channel does not say that it continues this one")
    if not said.is_signed(new.channel_id) or new.roster.keeper is None:
        raise SuccessionError("what the other channel says of this one is not signed")
    if old.roster.handed_over is not None:
        if old.roster.handed_over != new.channel_id:
            raise SuccessionError("the channel's keeper handed it over to another one")
        return
    if said.node != old.roster.successor:
        raise SuccessionError("the channel's history names nobody, or another node, as successor")
    if not _is_last_head(old, said.old_head):
        raise SuccessionError(
            "the successor knows another history of the channel than this node",
            hint="connect both, so that the one that knows less can learn",
        )
    if not _is_silent(old, now_ms, slack_s=CLOCK_SLACK_S):
        raise SuccessionError("the channel's keeper is alive: it has signed lately")


def _is_last_head(old: History, head_bytes: bytes) -> bool:
    try:
        head = SignedHead.decode(head_bytes, LOG_TAG)
        head.verify(old.log)
    except LogError:
        return False
    known = old.head
    return known is not None and (head.size, head.root) == (known.size, known.root)


def _is_silent(old: History, now_ms: int, slack_s: int) -> bool:
    return old.head is not None and old.age_s(now_ms) > SUCCESSION_AFTER_S - slack_s
