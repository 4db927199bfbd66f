"""Letting nodes into access groups and putting them out: the vectors, and everything forged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.channels import access_groups
from kachery_p2p.channels.access_groups import accept, add, card, create, groups, invite, leave
from kachery_p2p.channels.access_groups import remove as put_out
from kachery_p2p.channels.changes import MemberSet
from kachery_p2p.channels.group_invites import Card, GroupInvite
from kachery_p2p.channels.keeper import Keeper, self_member
from kachery_p2p.channels.owned import create_owned, load_history, save_history
from kachery_p2p.channels.permissions import READ
from kachery_p2p.errors import AccessGroupError, GroupInviteError, InvalidNameError
from kachery_p2p.identity import backup, channel_keys, group_files, keyring
from kachery_p2p.identity.access_groups import Group
from kachery_p2p.identity.keys import NodeId, NodeKey
from kachery_p2p.limits import GROUP_INVITE_CHARS_MAX, GROUP_MEMBERS_MAX

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors/groups.json").read_text()
)
NODES = {
    name: NodeKey(bytes.fromhex(one["seed"]), bytes.fromhex(one["exchange_secret"]))
    for name, one in VECTORS["nodes"].items()
}
KEYS = {one["epoch"]: bytes.fromhex(one["key"]) for one in VECTORS["keys"]}
NOW = 1_760_000_000


# --- vectors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NODES)
def test_the_recorded_cards_are_made_and_read(name: str) -> None:
    text = VECTORS["nodes"][name]["card"]
    assert Card.text_of(NODES[name]) == text
    assert Card.parse(text) == (NODES[name].node_id, NODES[name].exchange_public)


@pytest.mark.parametrize("vector", VECTORS["bad_cards"], ids=lambda v: v["why"])
def test_a_card_that_its_node_did_not_sign_is_refused(vector: dict[str, str]) -> None:
    with pytest.raises(GroupInviteError):
        Card.parse(vector["text"])


@pytest.mark.parametrize("vector", VECTORS["invites"], ids=lambda v: f"epoch {v['epoch']}")
def test_the_recorded_invitations_are_for_those_that_they_are_for(vector: dict[str, Any]) -> None:
    invited = GroupInvite.parse(vector["text"])
    assert invited.text == vector["text"]
    assert invited.group_id == VECTORS["group"]
    for name in vector["for"]:
        group = invited.opened_by(NODES[name])
        assert (group.epoch, group.key) == (vector["epoch"], KEYS[vector["epoch"]])
    for name in vector["not_for"]:
        with pytest.raises(GroupInviteError, match="not for this node"):
            invited.opened_by(NODES[name])


@pytest.mark.parametrize("vector", VECTORS["bad_invites"], ids=lambda v: v["why"])
def test_a_forged_or_damaged_invitation_is_refused(vector: dict[str, str]) -> None:
    with pytest.raises(GroupInviteError):
        GroupInvite.parse(vector["text"])


@pytest.mark.parametrize("vector", VECTORS["unusable_invites"], ids=lambda v: v["why"])
def test_a_key_wrapped_for_anything_else_is_not_opened(vector: dict[str, str]) -> None:
    with pytest.raises(GroupInviteError):
        GroupInvite.parse(vector["text"]).opened_by(NODES[vector["for"]])


def test_white_space_of_mail_programs_does_not_matter() -> None:
    text = VECTORS["invites"][0]["text"]
    folded = "\r\n ".join(text[at : at + 60] for at in range(0, len(text), 60))
    assert GroupInvite.parse(folded) == GroupInvite.parse(text)


def test_an_invitation_names_none_of_its_members() -> None:
    group = Group.new(NODES["owner"].node_id, bytes(16), bytes(32))
    members = {NODES[name].node_id: NODES[name].exchange_public for name in ("anna", "ben")}
    made = GroupInvite.signed(group, "lab", members, NODES["owner"], NOW)
    written = made._signed_bytes()
    for node, exchange in members.items():
        assert node.raw not in written
        assert exchange not in written


def test_the_invitation_of_the_largest_group_can_be_read() -> None:
    group = Group.new(NODES["owner"].node_id, bytes(16), bytes(32))
    exchange = NODES["anna"].exchange_public
    members = {NodeId(f"{number:064x}"): exchange for number in range(GROUP_MEMBERS_MAX - 1)}
    members[NODES["anna"].node_id] = exchange
    text = GroupInvite.signed(group, "n" * 64, members, NODES["owner"], NOW).text
    assert len(text) <= GROUP_INVITE_CHARS_MAX
    assert GroupInvite.parse(text).opened_by(NODES["anna"]).key == group.key_of(1)


def test_a_key_that_everybody_knows_the_secret_of_is_refused() -> None:
    group = Group.new(NODES["owner"].node_id, bytes(16), bytes(32))
    with pytest.raises(GroupInviteError, match="nothing can be encrypted"):
        GroupInvite.signed(group, "lab", {NODES["eve"].node_id: bytes(32)}, NODES["owner"], NOW)


# --- on the disk ------------------------------------------------------------------------------


class Node:
    """A configuration directory, and what is done in it."""

    def __init__(self, directory: Path) -> None:
        self.config = str(directory)
        self.id = keyring.load_or_create(self.config).node_id
        self.card = card(self.config)

    def key_of(self, name: str, epoch: int) -> bytes:
        return access_groups.held(self.config, name).group.key_of(epoch)


@pytest.fixture
def owner(tmp_path: Path) -> Node:
    return Node(tmp_path / "owner")


@pytest.fixture
def anna(tmp_path: Path) -> Node:
    return Node(tmp_path / "anna")


@pytest.fixture
def ben(tmp_path: Path) -> Node:
    return Node(tmp_path / "ben")


def let_in(owner: Node, node: Node, name: str = "wet-lab") -> str:
    text = add(owner.config, name, [node.card], NOW).text
    assert text is not None
    accept(node.config, text)
    return text


def test_who_is_let_in_has_the_key_and_who_is_not_has_none(
    owner: Node, anna: Node, ben: Node
) -> None:
    made = create(owner.config, "wet-lab")
    text = let_in(owner, anna)
    (seen,) = groups(anna.config)
    assert (seen.id, seen.owner, seen.is_own, seen.members) == (made.id, owner.id, False, None)
    assert anna.key_of("wet-lab", 1) == owner.key_of("wet-lab", 1)
    with pytest.raises(GroupInviteError, match="not for this node"):
        accept(ben.config, text)
    assert groups(ben.config) == []
    assert groups(owner.config)[0].members == (anna.id,)


def test_a_member_has_no_later_key_and_lets_nobody_in(owner: Node, anna: Node, ben: Node) -> None:
    create(owner.config, "wet-lab")
    let_in(owner, anna)
    held = access_groups.held(anna.config, "wet-lab").group
    assert held.top == held.epoch == 1
    changes: tuple[Callable[[], object], ...] = (
        lambda: add(anna.config, "wet-lab", [ben.card], NOW),
        lambda: put_out(anna.config, "wet-lab", owner.id, NOW),
        lambda: invite(anna.config, "wet-lab", NOW),
    )
    for change in changes:
        with pytest.raises(AccessGroupError, match=f"belongs to node {owner.id}"):
            change()


def test_removal_gives_the_others_a_key_that_the_removed_does_not_get(
    owner: Node, anna: Node, ben: Node
) -> None:
    create(owner.config, "wet-lab")
    let_in(owner, anna)
    let_in(owner, ben)
    removed = put_out(owner.config, "wet-lab", ben.id, NOW)
    assert removed.group.epoch == 2
    assert removed.group.members == (anna.id,)
    assert removed.text is not None
    assert accept(anna.config, removed.text).epoch == 2
    with pytest.raises(GroupInviteError):
        accept(ben.config, removed.text)
    assert anna.key_of("wet-lab", 2) == owner.key_of("wet-lab", 2)
    assert anna.key_of("wet-lab", 1) == ben.key_of("wet-lab", 1)
    with pytest.raises(AccessGroupError, match="is not in the access group"):
        put_out(owner.config, "wet-lab", ben.id, NOW)


def test_an_old_invitation_does_not_bring_an_old_key_back(
    owner: Node, anna: Node, ben: Node
) -> None:
    create(owner.config, "wet-lab")
    old = let_in(owner, anna)
    let_in(owner, ben)
    new = put_out(owner.config, "wet-lab", ben.id, NOW).text
    assert new is not None
    accept(anna.config, new)
    with pytest.raises(GroupInviteError, match="an old one"):
        accept(anna.config, old)
    assert groups(anna.config)[0].epoch == 2
    assert accept(anna.config, new).epoch == 2  # once more changes nothing


def test_two_different_keys_signed_for_one_group_are_noticed(tmp_path: Path) -> None:
    config = str(tmp_path / "anna")
    with group_files.changing(config):
        pass
    anna = NODES["anna"]
    path = Path(keyring.key_path(config))
    path.write_text(
        f"kachery-p2p-node-key 1\nnode {anna.node_id}\ned25519 {anna.seed.hex()}\n"
        f"x25519 {anna.exchange_secret.hex()}\n"
    )
    path.chmod(0o600)
    accept(config, VECTORS["invites"][0]["text"])
    with pytest.raises(GroupInviteError, match="does not follow"):
        accept(config, VECTORS["other_key"]["text"])
    assert groups(config)[0].epoch == 2


def test_an_invitation_can_be_made_again_for_all_members(
    owner: Node, anna: Node, ben: Node
) -> None:
    create(owner.config, "wet-lab")
    with pytest.raises(AccessGroupError, match="no members"):
        invite(owner.config, "wet-lab", NOW)
    add(owner.config, "wet-lab", [anna.card, ben.card], NOW)
    text = invite(owner.config, "wet-lab", NOW).text
    assert text is not None
    assert accept(anna.config, text).id == accept(ben.config, text, "mine").id
    assert groups(ben.config)[0].name == "mine"


def test_groups_of_one_name_by_two_owners_do_not_take_each_others_place(
    owner: Node, anna: Node, ben: Node
) -> None:
    create(owner.config, "wet-lab")
    create(ben.config, "wet-lab")
    let_in(owner, anna)
    text = add(ben.config, "wet-lab", [anna.card], NOW).text
    assert text is not None
    with pytest.raises(AccessGroupError, match="another access group") as caught:
        accept(anna.config, text)
    assert "--as" in (caught.value.hint or "")
    accept(anna.config, text, "bens")
    assert [one.name for one in groups(anna.config)] == ["bens", "wet-lab"]


def test_a_member_of_an_owned_channel_is_let_in_by_its_id(owner: Node, anna: Node) -> None:
    create(owner.config, "wet-lab")
    with pytest.raises(GroupInviteError, match="not known here") as caught:
        add(owner.config, "wet-lab", [anna.id], NOW)
    assert "group card" in (caught.value.hint or "")
    key = keyring.load(owner.config)
    known = create_owned(owner.config, "lab", key, "pc", NOW)
    channel_key = channel_keys.load(owner.config, known.id)
    assert channel_key is not None
    keeper = Keeper(load_history(owner.config, "lab"), channel_key)
    member = self_member(keyring.load(anna.config), "annas-pc", frozenset({READ}))
    asked = (MemberSet(member), key.node_id, bytes(16))
    save_history(owner.config, "lab", keeper.recorded([asked], NOW * 1000))
    text = add(owner.config, "wet-lab", [anna.id], NOW).text
    assert text is not None
    assert accept(anna.config, text).owner == owner.id


@pytest.mark.parametrize("node", ["", "nonsense", "ab" * 31, "kp2p-node-1-", "kp2p-group-1-AAAA"])
def test_what_is_neither_a_node_nor_a_card_is_refused(owner: Node, node: str) -> None:
    create(owner.config, "wet-lab")
    with pytest.raises(GroupInviteError):
        add(owner.config, "wet-lab", [node], NOW)
    assert groups(owner.config)[0].members == ()


def test_the_owner_neither_adds_nor_invites_itself(owner: Node, anna: Node) -> None:
    create(owner.config, "wet-lab")
    with pytest.raises(AccessGroupError, match="it owns it"):
        add(owner.config, "wet-lab", [owner.card], NOW)
    text = add(owner.config, "wet-lab", [anna.card], NOW).text
    assert text is not None
    with pytest.raises(GroupInviteError, match="owns the group"):
        accept(owner.config, text)
    assert access_groups.held(owner.config, "wet-lab").group.is_own


def test_who_leaves_has_no_key_any_more(owner: Node, anna: Node) -> None:
    create(owner.config, "wet-lab")
    let_in(owner, anna)
    leave(anna.config, "wet-lab")
    assert groups(anna.config) == []
    with pytest.raises(AccessGroupError, match="holds no access group"):
        leave(anna.config, "wet-lab")


def test_a_backup_of_the_keys_has_those_of_groups(owner: Node, tmp_path: Path) -> None:
    made = create(owner.config, "wet-lab")
    text = backup.backup(owner.config, "a long passphrase")
    elsewhere = str(tmp_path / "elsewhere")
    backup.restore(elsewhere, text, "a long passphrase")
    assert groups(elsewhere) == [made]
    assert os.stat(group_files.group_path(elsewhere, made.id)).st_mode & 0o777 == 0o600


def test_names_are_checked_and_may_be_used_once(owner: Node) -> None:
    create(owner.config, "wet-lab")
    with pytest.raises(AccessGroupError):
        create(owner.config, "wet-lab")
    with pytest.raises(InvalidNameError):
        create(owner.config, "../wet-lab")
    assert NodeId(groups(owner.config)[0].owner) == owner.id
