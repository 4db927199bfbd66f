"""The keys of access groups, and what is encrypted with them: the vectors, and what was touched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kachery_p2p.errors import (
    AccessGroupError,
    InvalidNameError,
    KeyFileError,
    NotInAccessGroupError,
    SealError,
    StateVersionError,
    UnknownSchemeError,
)
from kachery_p2p.identity.access_groups import Group, GroupId, code_epoch, older_key
from kachery_p2p.identity.group_files import (
    HeldGroup,
    changing,
    check_group_name,
    find,
    group_path,
    held_groups,
    remove,
    save,
)
from kachery_p2p.identity.keyring import keys_dir
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import GROUP_EPOCHS_MAX, GROUP_MEMBERS_MAX, KEY_FILE_BYTES_MAX

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors/groups.json").read_text()
)
OWNER = NodeId(VECTORS["nodes"]["owner"]["id"])
RANDOM = bytes.fromhex(VECTORS["random"])
OWN = Group.new(OWNER, RANDOM, bytes.fromhex(VECTORS["last_key"]))
KEYS = {one["epoch"]: bytes.fromhex(one["key"]) for one in VECTORS["keys"]}


def code_of(uri: str) -> str:
    return uri.removeprefix("sha1-enc://").partition(".ag_")[0]


def member(epoch: int) -> Group:
    return Group(OWNER, RANDOM, epoch, epoch, KEYS[epoch])


# --- vectors ----------------------------------------------------------------------------------


def test_the_group_has_the_id_of_the_vectors() -> None:
    assert OWN.id == VECTORS["group"]
    assert len(OWN.id.raw) == 16


def test_the_keys_are_those_of_the_vectors() -> None:
    assert VECTORS["last_epoch"] == GROUP_EPOCHS_MAX
    for epoch, key in KEYS.items():
        assert OWN.key_of(epoch) == key
    assert older_key(KEYS[3], 2) == KEYS[1]


@pytest.mark.parametrize("vector", VECTORS["uris"], ids=lambda v: v["clear"][-20:])
def test_the_recorded_codes_are_made_and_read(vector: dict[str, Any]) -> None:
    code, text = code_of(vector["uri"]), bytes.fromhex(vector["text"])
    assert OWN._replace(epoch=vector["epoch"]).encrypt(text) == code
    assert code_epoch(code) == vector["epoch"]
    assert member(3).decrypt(code) == text


@pytest.mark.parametrize("vector", VECTORS["bad_codes"], ids=lambda v: v["why"])
def test_a_code_that_was_touched_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(SealError):
        member(3).decrypt(vector["code"])


# --- who can read what ------------------------------------------------------------------------


def test_a_newer_key_reads_what_was_encrypted_with_all_older_ones() -> None:
    for epoch in (1, 2, 3):
        assert member(3).decrypt(OWN._replace(epoch=epoch).encrypt(b"text")) == b"text"


def test_an_older_key_reads_nothing_newer_and_the_error_says_whom_to_ask() -> None:
    with pytest.raises(NotInAccessGroupError, match="epoch 3; this node holds those up to 2") as no:
        member(2).decrypt(OWN._replace(epoch=3).encrypt(b"text"))
    assert no.value.hint is not None
    assert OWNER in no.value.hint


def test_a_member_that_claims_a_later_epoch_has_no_key_for_it() -> None:
    code = OWN._replace(epoch=3).encrypt(b"text")
    pretending = member(2)._replace(epoch=3, top=3)
    with pytest.raises(SealError):
        pretending.decrypt(code)


def test_one_text_has_one_code_and_another_text_shares_nothing_with_it() -> None:
    first, again, other = OWN.encrypt(b"text"), OWN.encrypt(b"text"), OWN.encrypt(b"next")
    assert first == again
    assert first[10:30] != other[10:30]
    assert OWN.next_epoch().encrypt(b"text")[10:30] != first[10:30]


def test_a_code_of_a_later_version_asks_for_an_upgrade() -> None:
    with pytest.raises(UnknownSchemeError) as caught:
        OWN.decrypt("kpe2" + OWN.encrypt(b"text")[4:])
    assert "upgrade" in (caught.value.hint or "")


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_no_character_of_a_code_can_be_changed_unnoticed(data: st.DataObject) -> None:
    code = member(2).encrypt(b"some text")
    at = data.draw(st.integers(4, len(code) - 1))
    changed = code[:at] + data.draw(st.sampled_from("ABCxyz019-_").filter(lambda c: c != code[at]))
    with pytest.raises((SealError, NotInAccessGroupError)):
        member(2).decrypt(changed + code[at + 1 :])


def test_a_group_ends_when_no_epoch_is_left() -> None:
    last = OWN._replace(epoch=GROUP_EPOCHS_MAX - 1)
    with pytest.raises(AccessGroupError, match="1022 members"):
        last.next_epoch()


def test_no_repr_shows_a_key() -> None:
    assert OWN.key.hex() not in repr(OWN)
    assert OWN.key.hex()[:16] not in repr(HeldGroup("lab", OWN))


# --- key files --------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> str:
    return str(tmp_path / "config")


def kept(config: str, name: str = "wet-lab", group: Group = OWN, **more: Any) -> HeldGroup:
    held = HeldGroup(name, group, **more)
    with changing(config):
        save(config, held)
    return held


def test_a_group_is_found_again_by_its_name_and_by_its_id(config: str) -> None:
    assert held_groups(config) == []
    held = kept(config, members={NodeId("ab" * 32): bytes(32)})
    assert find(config, "wet-lab") == find(config, OWN.id) == held
    assert find(config, "dry-lab") is find(config, "../x") is None
    path = group_path(config, OWN.id)
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.stat(keys_dir(config)).st_mode & 0o777 == 0o700


def test_a_file_of_as_many_members_as_there_may_be_can_be_read(config: str) -> None:
    members = {NodeId(f"{number:064x}"): bytes(32) for number in range(GROUP_MEMBERS_MAX)}
    held = kept(config, "n" * 64, members=members)
    assert os.path.getsize(group_path(config, OWN.id)) <= KEY_FILE_BYTES_MAX
    assert find(config, OWN.id) == held


def test_two_groups_of_one_name_are_refused(config: str) -> None:
    kept(config)
    other = Group.new(OWNER, bytes(16), bytes(32))
    with changing(config), pytest.raises(AccessGroupError, match="another access group"):
        save(config, HeldGroup("wet-lab", other))
    # Nor may a name pose as the id of another group.
    with changing(config), pytest.raises(AccessGroupError):
        save(config, HeldGroup(OWN.id, other))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_may_touch_is_refused(config: str, mode: int) -> None:
    kept(config)
    os.chmod(group_path(config, OWN.id), mode)
    with pytest.raises(KeyFileError, match=f"mode {mode:o}") as caught:
        find(config, "wet-lab")
    assert caught.value.hint == f"chmod 600 {group_path(config, OWN.id)}"


def test_a_directory_of_keys_that_others_may_enter_is_refused(config: str) -> None:
    kept(config)
    os.chmod(keys_dir(config), 0o750)
    with pytest.raises(KeyFileError):
        find(config, "wet-lab")
    with pytest.raises(KeyFileError), changing(config):
        raise AssertionError("not to be reached")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data + b"\n",
        lambda data: data.replace(b"epoch 1\n", b"epoch 2\n"),
        lambda data: data.replace(b"epoch 1\n", b"epoch 9999999\n"),
        lambda data: data.replace(b"wet-lab", b"dry-lab"),
        lambda data: data.replace(b"key ", b"key 0"),
        lambda data: bytes(len(data)),
        lambda data: data + bytes(KEY_FILE_BYTES_MAX),
    ],
)
def test_damage_of_any_kind_is_told_and_shows_no_secret(
    config: str, damage: Callable[[bytes], bytes]
) -> None:
    kept(config)
    path = Path(group_path(config, OWN.id))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(KeyFileError) as caught:
        find(config, "wet-lab")
    assert path.name in str(caught.value)
    assert OWN.key.hex()[:8] not in str(caught.value)


def test_the_file_of_another_group_under_this_name_is_refused(config: str) -> None:
    kept(config)
    os.rename(group_path(config, OWN.id), group_path(config, "a" * 26))
    with pytest.raises(KeyFileError):
        held_groups(config)


def test_a_newer_format_asks_for_an_upgrade(config: str) -> None:
    kept(config)
    path = Path(group_path(config, OWN.id))
    path.write_bytes(path.read_bytes().replace(b"group-key 1\n", b"group-key 2\n"))
    with pytest.raises(StateVersionError) as caught:
        find(config, "wet-lab")
    assert caught.value.hint == "upgrade kachery_p2p"


def test_what_a_killed_process_left_is_swept_and_a_link_is_not_followed(config: str) -> None:
    kept(config)
    left = Path(keys_dir(config)) / ".group.key.0011"
    left.write_bytes(b"half")
    with changing(config):
        assert not left.exists()
    path = Path(group_path(config, OWN.id))
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(KeyFileError, match="symbolic link"):
        find(config, OWN.id)


def test_a_group_that_was_left_is_gone(config: str) -> None:
    kept(config)
    with changing(config):
        remove(config, OWN.id)
    assert find(config, "wet-lab") is None


@pytest.mark.parametrize("name", ["", ".x", "../x", "a/b", "a b", "n" * 65, "\x1b[2J", "é", "a\n"])
def test_a_name_that_could_do_harm_is_refused(name: str) -> None:
    with pytest.raises(InvalidNameError):
        check_group_name(name)


def test_ids_are_spelled_with_letters_and_digits_only() -> None:
    for number in range(50):
        found = GroupId.of(OWNER, number.to_bytes(16, "big"))
        assert len(found) == 26
        assert found.isascii() and found.isalnum() and found == found.lower()
