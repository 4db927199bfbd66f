"""Storing many, linking, verifying, removing, keys and completion, as a person meets them."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kachery_p2p.channels.channel import generate_secret
from kachery_p2p.channels.files import join_shared
from kachery_p2p.content.uris import parse_uri
from kachery_p2p.identity.keyring import load, load_or_create
from kachery_p2p.node.config import grants_path
from kachery_p2p.node.lock import only_daemon
from kachery_p2p.store.grants import Grants

if TYPE_CHECKING:
    from tests.cli.conftest import Shell

MISSING = "sha1://" + "0" * 40
PASSPHRASE = {"KACHERY_P2P_PASSPHRASE": "correct horse battery"}


def make(shell: Shell, count: int) -> list[str]:
    names = [f"{number}.txt" for number in range(count)]
    for name in names:
        (shell.directory / name).write_text(name * 100)
    return names


def flip_a_bit(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.chmod(0o644)
    path.write_bytes(data)


# --- store, link ---------------------------------------------------------------------------


def test_many_files_are_stored_as_one_group(shell: Shell) -> None:
    names = make(shell, 70)
    uris = shell.answer("store", *names).splitlines()
    assert [uri.rpartition("/")[2] for uri in uris] == names
    lines = (shell.directory / "config" / "shares.log").read_text().splitlines()
    assert len({json.loads(line)["time"] for line in lines}) == 1


def test_files_that_cannot_be_stored_do_not_stop_the_others(shell: Shell) -> None:
    first, second = make(shell, 2)
    done = shell.run("store", first, "missing", second)
    assert done.returncode == 2
    assert [line.rpartition("/")[2] for line in done.stdout.splitlines()] == [first, second]
    assert "1 file was not stored (of 3): missing: " in done.stderr


def test_a_label_replaces_the_name_of_one_file(shell: Shell) -> None:
    first, second = make(shell, 2)
    assert shell.answer("store", "--label", "my notes", first).endswith("/my%20notes")
    assert shell.answer("link", "--label", "mine", second).endswith("/mine")
    assert "one FILE" in shell.fails(2, "store", "--label", "x", first, second)


def test_a_linked_file_is_loaded_from_where_it_lies(shell: Shell) -> None:
    make(shell, 1)
    uri = shell.answer("link", "0.txt")
    assert shell.answer("load", uri) == str(shell.directory / "0.txt")
    assert shell.run("cat", uri).stdout == "0.txt" * 100
    (shell.directory / "0.txt").write_text("other")
    assert "has other content now" in shell.fails(3, "load", uri)


def test_what_stores_can_keep_it_from_others(shell: Shell) -> None:
    make(shell, 2)
    shell.answer("link", "--private", "0.txt")
    assert not (shell.directory / "config" / "shares.log").exists()
    assert "exclude" in shell.fails(2, "link", "--private", "--channel", "c", "1.txt")


# --- verify --------------------------------------------------------------------------------


def test_a_whole_store_is_said_to_be_whole(shell: Shell) -> None:
    assert shell.answer("verify") == "checked  0 files, 0 B; 0 bad"
    shell.answer("store", *make(shell, 3))
    assert shell.answer("verify") == "checked  3 files, 1.5 kB; 0 bad"
    assert json.loads(shell.answer("verify", "--json")) == {"checked": 3, "bytes": 1500, "bad": []}


def test_every_flipped_bit_is_found_and_quarantined(shell: Shell) -> None:
    rng = random.Random(3)
    uris = shell.answer("store", *make(shell, 40)).splitlines()
    paths = [Path(shell.answer("load", uri)) for uri in rng.sample(uris, 5)]
    for path in paths:
        flip_a_bit(path, rng)
    done = shell.run("verify", "--json")
    assert done.returncode == 7
    told = json.loads(done.stdout)
    assert told["checked"] == 40
    assert sorted(one["uri"][7:] for one in told["bad"]) == sorted(path.name for path in paths)
    assert all(one["corrupt"] and ".quarantine" in one["message"] for one in told["bad"])
    assert "5 files did not have the bytes of the name" in done.stderr
    assert not any(path.exists() for path in paths)
    assert len(os.listdir(shell.directory / "store" / ".quarantine")) == 5
    shell.answer("verify")


def test_for_people_each_corrupt_file_is_a_line(shell: Shell) -> None:
    path = Path(shell.answer("load", shell.answer("store", *make(shell, 1))))
    flip_a_bit(path, random.Random(1))
    done = shell.run("verify")
    assert done.returncode == 7
    assert len(done.stderr.splitlines()) == 2
    first, last = done.stdout.splitlines()
    assert first.startswith(f"corrupt  sha1://{path.name}  ")
    assert ".quarantine" in first
    assert last.endswith("; 1 bad")


def test_a_load_may_verify_first(shell: Shell) -> None:
    uri = shell.answer("store", *make(shell, 1))
    path = Path(shell.answer("load", "--verify", uri))
    flip_a_bit(path, random.Random(2))
    assert ".quarantine" in shell.fails(7, "load", "--verify", uri)


def test_links_that_were_lost_are_said(shell: Shell) -> None:
    make(shell, 1)
    shell.answer("link", "0.txt")
    for path in (shell.directory / "config" / "state").glob("links.db*"):
        path.write_bytes(b"damaged" * 1000)
    done = shell.run("verify")
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("kachery-p2p: the links in ")
    assert line.endswith("link your files again")


def test_a_linked_file_that_changed_or_is_away_is_not_called_corrupt(shell: Shell) -> None:
    for name in make(shell, 2):
        shell.answer("link", name)
    (shell.directory / "0.txt").write_text("changed")
    (shell.directory / "1.txt").unlink()
    done = shell.run("verify", "--json")
    assert done.returncode == 1
    bad = json.loads(done.stdout)["bad"]
    assert {one["error"] for one in bad} == {"LinkChangedError", "NotFoundError"}
    assert not any(one["corrupt"] for one in bad)
    assert all(one["linked"] for one in bad)


def test_a_sample_reads_a_part(shell: Shell) -> None:
    shell.answer("store", *make(shell, 64))
    checked = json.loads(shell.answer("verify", "--sample", "50%", "--json"))["checked"]
    assert 5 < checked < 59  # all others have a probability below 1e-11


@pytest.mark.parametrize("sample", ["5", "0%", "101%", "-1%", "nan%", "x%", "%", ""])
def test_what_is_no_percentage_is_refused(shell: Shell, sample: str) -> None:
    assert "not a percentage" in shell.fails(2, "verify", f"--sample={sample}")


# --- rm ------------------------------------------------------------------------------------


def grants_of(shell: Shell, uri: str) -> tuple[tuple[str, ...], int]:
    grants = Grants(grants_path(str(shell.directory / "config")))
    try:
        return grants.channels_of(parse_uri(uri).content), grants.pending_count()
    finally:
        grants.close()


def test_what_is_removed_is_gone_and_shared_no_more(shell: Shell) -> None:
    config_dir = str(shell.directory / "config")
    join_shared(config_dir, "lab", generate_secret(bytes(range(20))))
    first, second = shell.answer("store", *make(shell, 2)).splitlines()
    done = shell.run("rm", first)
    assert (done.returncode, done.stdout) == (0, "")
    assert "500 B freed" in done.stderr
    shell.fails(3, "load", first)
    assert grants_of(shell, first)[0] == ()
    assert len(grants_of(shell, second)[0]) == 1
    assert shell.answer("load", second)


def test_what_was_pending_is_pending_no_more(shell: Shell) -> None:
    first, second = shell.answer("store", *make(shell, 2)).splitlines()
    assert shell.run("rm", first, second).returncode == 0
    assert grants_of(shell, first) == ((), 0)


def test_a_link_is_ended_and_the_file_stays(shell: Shell) -> None:
    make(shell, 1)
    uri = shell.answer("link", "0.txt")
    assert shell.run("rm", uri).returncode == 0
    assert (shell.directory / "0.txt").exists()
    shell.fails(3, "load", uri)


@pytest.mark.parametrize(
    ("code", "uri"), [(3, MISSING), (2, "sha1://abc"), (2, "md5://" + "0" * 32), (2, "a.txt")]
)
def test_what_is_not_there_cannot_be_removed(shell: Shell, code: int, uri: str) -> None:
    shell.fails(code, "rm", uri)


# --- keys ----------------------------------------------------------------------------------


def test_keys_come_back_from_a_backup(shell: Shell) -> None:
    config = shell.directory / "config"
    node = load_or_create(str(config)).node_id
    assert shell.run("keys", "backup", "saved", **PASSPHRASE).returncode == 0
    assert (shell.directory / "saved").stat().st_mode & 0o777 == 0o600
    shutil.rmtree(config)
    done = shell.run("keys", "restore", "saved", **PASSPHRASE)
    assert (done.returncode, done.stdout) == (0, "")
    assert load(str(config)).node_id == node
    again = shell.run("keys", "restore", "saved", **PASSPHRASE)
    assert again.returncode == 0
    assert "are there" in again.stderr


def test_other_keys_are_replaced_only_by_force(shell: Shell) -> None:
    config = shell.directory / "config"
    node = load_or_create(str(config)).node_id
    shell.run("keys", "backup", "saved", **PASSPHRASE)
    shutil.rmtree(config / "keys")
    other = load_or_create(str(config)).node_id
    shell.fails(10, "keys", "restore", "saved", **PASSPHRASE)
    assert load(str(config)).node_id == other
    assert shell.run("keys", "restore", "--force", "saved", **PASSPHRASE).returncode == 0
    assert load(str(config)).node_id == node


def test_bad_backups_and_passphrases_are_said(shell: Shell) -> None:
    assert "there are no keys" in shell.fails(10, "keys", "backup", "x", **PASSPHRASE)
    load_or_create(str(shell.directory / "config"))
    assert "no passphrase" in shell.fails(10, "keys", "backup", "x")
    shell.fails(10, "keys", "backup", "x", KACHERY_P2P_PASSPHRASE="short")
    assert not (shell.directory / "x").exists()
    shell.run("keys", "backup", "saved", **PASSPHRASE)
    assert "exists already" in shell.fails(2, "keys", "backup", "saved", **PASSPHRASE)
    assert "cannot be written" in shell.fails(2, "keys", "backup", "no/such", **PASSPHRASE)
    shell.fails(10, "keys", "restore", "saved", KACHERY_P2P_PASSPHRASE="another passphrase")
    assert "cannot be read" in shell.fails(10, "keys", "restore", "missing", **PASSPHRASE)
    for junk in (b"", b"junk", b"\xff\xfe", b"x" * (5 << 20)):
        (shell.directory / "junk").write_bytes(junk)
        shell.fails(10, "keys", "restore", "junk", **PASSPHRASE)


def test_keys_are_not_restored_under_a_running_daemon(shell: Shell) -> None:
    config_dir = str(shell.directory / "config")
    load_or_create(config_dir)
    shell.run("keys", "backup", "saved", **PASSPHRASE)
    with only_daemon(config_dir, "stop it"):
        assert "already running" in shell.fails(9, "keys", "restore", "saved", **PASSPHRASE)


def test_a_passphrase_is_asked_for_twice_and_not_shown(shell: Shell) -> None:
    node = load_or_create(str(shell.directory / "config")).node_id
    assert type_in(shell, ["keys", "backup", "saved"], "correct horse\ncorrect horse\n") == 0
    shutil.rmtree(shell.directory / "config")
    assert type_in(shell, ["keys", "restore", "saved"], "correct horse\n") == 0
    assert load(str(shell.directory / "config")).node_id == node


def type_in(shell: Shell, arguments: list[str], typed: str) -> int:
    """Run a command at a terminal; its exit code. What was typed must not be shown."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "kachery_p2p", *arguments],
        cwd=shell.directory,
        env=shell.environment,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    for line in typed.splitlines(keepends=True):
        prompt = b""
        # The space comes when the terminal is ready: what was typed before it is thrown away.
        while not prompt.endswith(b": "):
            prompt += os.read(ours, 1024)
        os.write(ours, line.encode())
        shown += prompt
    out, _ = process.communicate(timeout=30)
    os.close(ours)
    assert out == b""
    assert b"horse" not in shown
    return process.returncode


# --- completion ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(shell: Shell, name: str) -> None:
    script = shell.answer("completion", name)
    assert f"_KACHERY_P2P_COMPLETE={name}_complete" in script
    if shutil.which(name):
        checked = subprocess.run([name, "-n"], input=script, text=True, capture_output=True)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_other_shells_are_refused(shell: Shell) -> None:
    assert "tcsh" in shell.fails(2, "completion", "tcsh")


@pytest.mark.parametrize(
    ("words", "offered"),
    [("kachery-p2p ver", ["verify", "version"]), ("kachery-p2p keys ", ["backup", "restore"])],
)
def test_the_script_is_answered(shell: Shell, words: str, offered: list[str]) -> None:
    asked = {"_KACHERY_P2P_COMPLETE": "bash_complete", "COMP_WORDS": words}
    done = shell.run(**asked, COMP_CWORD=str(words.count(" ")))
    assert [line.partition(",")[2] for line in done.stdout.splitlines()] == offered


@pytest.mark.parametrize("words", ["store ", "link ", "keys backup ", "load x --dest "])
def test_the_shell_completes_the_names_of_files_itself(shell: Shell, words: str) -> None:
    asked = {"_KACHERY_P2P_COMPLETE": "bash_complete", "COMP_WORDS": f"kachery-p2p {words}"}
    done = shell.run(**asked, COMP_CWORD=str(1 + words.count(" ")))
    assert done.stdout.startswith("file,")


# --- offline -------------------------------------------------------------------------------


def test_offline_the_commands_use_the_offline_directory(shell: Shell) -> None:
    shell.environment["KACHERY_OFFLINE_STORAGE_DIR"] = str(shell.directory / "offline")
    uri = shell.answer("store", *make(shell, 1))
    content = hashlib.sha1(b"0.txt" * 100).hexdigest()
    assert shell.answer("load", uri).endswith(content)
    assert shell.answer("load", uri).startswith(str(shell.directory / "offline"))
    assert "1 file," in shell.answer("verify")
    assert "nothing can be shared" in shell.fails(10, "share", uri)
    assert "KACHERY_OFFLINE_STORAGE_DIR is set" in shell.fails(3, "load", MISSING)
    assert "KACHERY_OFFLINE_STORAGE_DIR is set" in shell.fails(4, "status")
    assert shell.run("rm", uri).returncode == 0
    assert not (shell.directory / "store").exists()
