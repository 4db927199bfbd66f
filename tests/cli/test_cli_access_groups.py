"""Access groups as a person types them: what is printed, and where."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest


@pytest.fixture
def lab(shell: Any) -> Any:
    shell.group = shell.run("group", "create", "wet-lab").stdout.strip()
    (shell.directory / "a.txt").write_bytes(b"0123456789\n")
    return shell


@pytest.fixture
def anna(lab: Any) -> dict[str, str]:
    """The environment of another user with the same store."""
    return {"KACHERY_P2P_CONFIG_DIR": str(lab.directory / "anna")}


def test_only_the_answer_is_on_stdout(lab: Any, anna: dict[str, str]) -> None:
    assert len(lab.group) == 26
    card = lab.run("group", "card", **anna).stdout.strip()
    done = lab.run("group", "add", "wet-lab", card)
    assert done.stdout.startswith("kp2p-group-1-")
    assert done.stdout.count("\n") == 1
    assert "group accept" in done.stderr
    accepted = lab.run("group", "accept", done.stdout.strip(), "--as", "theirs", **anna)
    assert (accepted.returncode, accepted.stdout) == (0, "theirs\n")
    assert lab.answer("group", "invite", "wet-lab").startswith("kp2p-group-1-")


def test_a_member_is_listed_removed_and_told_apart_from_an_owner(
    lab: Any, anna: dict[str, str]
) -> None:
    node = lab.run("group", "card", **anna).stdout.strip()
    text = lab.run("group", "add", "wet-lab", node).stdout.strip()
    lab.run("group", "accept", text, **anna)
    rows = json.loads(lab.answer("group", "list", "--json"))
    (member,) = rows[0]["members"]
    assert lab.answer("group", "list") == f"wet-lab  {lab.group}  own, 1 other member, epoch 1"
    assert lab.answer("group", "list", "wet-lab").splitlines()[1] == member
    theirs = lab.run("group", "list", "wet-lab", **anna)
    assert theirs.stdout.endswith("(owner)\n")
    assert "only the owner's node knows" in theirs.stderr
    done = lab.run("group", "remove", "wet-lab", member)
    assert (done.returncode, done.stdout) == (0, "")
    assert "can be read with the old key still" in done.stderr
    assert "no other members" in done.stderr
    assert "is not in the access group" in lab.fails(10, "group", "remove", "wet-lab", member)


def test_a_stored_file_is_read_by_every_command(lab: Any) -> None:
    uri = lab.answer("store", "--access-group", "wet-lab", "a.txt")
    assert uri.endswith(f".ag_{lab.group}")
    assert lab.run("cat", uri).stdout == "0123456789\n"
    assert lab.run("cat", uri, "--start", "2", "--end", "5").stdout == "234"
    assert lab.run("cat", uri, "--start", "9").stdout == "9\n"
    assert "does not lie inside the 11 bytes" in lab.fails(2, "cat", uri, "--end", "12")
    assert lab.run("cat", lab.answer("load", uri)).returncode == 2
    assert lab.answer("load", uri, "--dest", "out.txt") == "out.txt"
    assert (lab.directory / "out.txt").read_bytes() == b"0123456789\n"
    told = json.loads(lab.run("info", "--json", uri).stdout)
    assert (told["name"], told["size"], told["encrypted"]) == ("a.txt", 11, True)
    assert told["encrypted_size"] == 80 + 11 + 16
    assert "name       a.txt" in lab.run("info", uri).stdout
    assert lab.run("find", uri).stdout == "this computer\n"


def test_to_remove_a_file_removes_what_it_was_opened_to(lab: Any) -> None:
    uri = lab.answer("store", "--access-group", "wet-lab", "a.txt")
    path = lab.answer("load", uri)
    assert "removed" in lab.run("rm", uri).stderr
    assert not os.path.exists(path)
    assert "not stored here" in lab.fails(3, "load", uri)


def test_uris_are_encrypted_and_decrypted(lab: Any) -> None:
    clear = lab.answer("store", "a.txt")
    uri = lab.answer("encrypt-uri", clear, "--access-group", "wet-lab")
    assert lab.answer("decrypt-uri", uri) == clear
    assert lab.answer("load", uri) == lab.answer("load", clear)
    sealed = lab.run("decrypt-uri", lab.answer("store", "--access-group", "wet-lab", "a.txt"))
    assert sealed.stdout.endswith("/a.txt.sealed\n")
    assert "load it with the encrypted URI" in sealed.stderr


def test_who_is_not_in_the_group_is_told_what_to_do(lab: Any, anna: dict[str, str]) -> None:
    uri = lab.answer("store", "--access-group", "wet-lab", "a.txt")
    for command in ("load", "cat", "info"):
        error = lab.fails(5, command, uri, **anna)
        assert f"the access group {lab.group}, whose key this node does not hold" in error
        assert "hint: " in error and "group card" in error


def test_several_files_are_stored_and_a_directory_is_refused(lab: Any) -> None:
    (lab.directory / "b.txt").write_bytes(b"b")
    uris = lab.answer("store", "--access-group", "wet-lab", "a.txt", "b.txt").splitlines()
    assert lab.run("cat", uris[1]).stdout == "b"
    (lab.directory / "dir").mkdir()
    assert "not a regular file" in lab.fails(2, "store", "--access-group", "wet-lab", "dir")


def test_nothing_is_forgotten_by_mistake(lab: Any) -> None:
    assert "--yes" in lab.fails(2, "group", "leave", "wet-lab")
    assert lab.run("group", "leave", "wet-lab", "--yes").stdout == ""
    assert "holds no access group" in lab.fails(10, "group", "list", "wet-lab")


def test_the_doctor_notices_a_damaged_key(lab: Any) -> None:
    def keys() -> dict[str, Any]:
        rows = json.loads(lab.run("doctor", "--json").stdout)["checks"]
        return next(row for row in rows if row["name"] == "keys")

    assert keys()["what"].endswith(", 1 access group")
    path = lab.directory / "config" / "keys" / f"group-{lab.group}.key"
    path.write_bytes(path.read_bytes()[:-9])
    assert keys()["state"] == "bad"
    assert path.name in keys()["what"]
