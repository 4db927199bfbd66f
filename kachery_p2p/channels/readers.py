"""Who may open what is encrypted for an owned channel, and in which epoch its keys are.

Both follow from the history alone, so that a member knows, of keys that somebody shows it,
whether they are from before somebody lost them.
"""

from __future__ import annotations

from kachery_p2p.channels.changes import MemberRemoved, MemberSet, decode_change
from kachery_p2p.channels.history import History
from kachery_p2p.channels.permissions import READ
from kachery_p2p.channels.roster import Roster
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import HISTORY_BYTES_MAX
from kachery_p2p.log.entries import Entry


def readers(roster: Roster) -> dict[NodeId, bytes]:
    """The X25519 key of each member that may read; the history has seen the members' own word."""
    return {
        node: member.exchange for node, member in roster.members.items() if READ in member.roles
    }


def epoch_of(history: History) -> int:
    """1, and one more for each entry by which a node, or an X25519 key of it, lost its access."""
    epoch, known = 1, dict[NodeId, bytes]()
    for entry in history.entries(0, HISTORY_BYTES_MAX):
        change = decode_change(Entry.decode(entry)).change
        if isinstance(change, MemberRemoved):
            epoch += known.pop(change.node, None) is not None
        elif isinstance(change, MemberSet):
            member = change.member
            before = known.pop(member.node, None)
            if READ in member.roles:
                known[member.node] = member.exchange
            epoch += before is not None and before != known.get(member.node)
    return epoch
