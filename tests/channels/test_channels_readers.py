"""Epochs of a channel's bucket keys, as its history says them."""

from __future__ import annotations

import os

from kachery_p2p.channels.changes import Change, Created, MemberRemoved, MemberSet
from kachery_p2p.channels.history import History
from kachery_p2p.channels.keeper import Keeper, self_member
from kachery_p2p.channels.permissions import ACTIONS, PROVIDE, READ
from kachery_p2p.channels.readers import epoch_of, readers
from kachery_p2p.identity.channel_keys import ChannelKey
from kachery_p2p.identity.keys import NodeKey

CHIEF, ANN, BOB = (NodeKey.generate(bytes([number]) * 64) for number in (1, 2, 3))
ROLES = {"r": frozenset({READ}), "p": frozenset({PROVIDE}), "*": ACTIONS}
NODES = {"ann": ANN, "bob": BOB}


def history(*story: str) -> History:
    """After `ann r` (set with these roles), `ann !` (with another key) and `ann -` (removed)."""
    keeper = Keeper(History.empty(ChannelKey(bytes(32)).node_id), ChannelKey(bytes(32)))
    asked: list[Change] = [
        Created("lab", bytes(32), 2_000_000_000),
        MemberSet(self_member(CHIEF, "chief")),
    ]
    keeper.founded([(change, CHIEF.node_id, os.urandom(16)) for change in asked], 1_000)
    for line in story:
        name, word = line.split()
        key = NODES[name]
        change: Change = MemberRemoved(key.node_id)
        if word != "-":
            shown = NodeKey(key.seed, bytes(range(32))) if word == "!" else key
            change = MemberSet(self_member(shown, name, ROLES.get(word, ROLES["r"])))
        keeper.recorded([(change, CHIEF.node_id, os.urandom(16))], 2_000)
    return keeper.history


def test_letting_in_is_no_new_epoch_and_every_loss_of_access_is() -> None:
    assert epoch_of(history()) == 1
    assert epoch_of(history("ann r", "bob *", "ann *")) == 1
    assert epoch_of(history("ann r", "ann -")) == 2
    assert epoch_of(history("ann r", "ann p")) == 2
    assert epoch_of(history("ann r", "ann !")) == 2
    assert epoch_of(history("ann r", "ann -", "ann r", "bob r", "ann -", "bob p", "bob -")) == 4
    assert epoch_of(history("ann p", "ann -")) == 1, "who could not read loses nothing"
    assert epoch_of(History.empty("1a" * 32)) == 1


def test_readers_are_those_with_the_role_to_read() -> None:
    roster = history("ann r", "bob p").roster
    assert readers(roster) == {
        CHIEF.node_id: CHIEF.exchange_public,
        ANN.node_id: ANN.exchange_public,
    }
