"""`doctor`: what is wrong, and what mends it."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kachery_p2p.channels.channel import generate_secret
from kachery_p2p.channels.files import join_shared
from kachery_p2p.cli import checks
from kachery_p2p.identity.keyring import key_path, load_or_create
from kachery_p2p.version import __version__

if TYPE_CHECKING:
    from tests.cli.conftest import Shell

NAMES = "python packages config keys store disk state daemon ports channels shares leftovers"


def told(shell: Shell, code: int = 0) -> dict[str, dict[str, Any]]:
    """The last check of each name, of a `doctor` that ends with this code."""
    done = shell.run("doctor", "--json")
    assert (done.returncode, done.stderr) == (code, ""), done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert answer["bad"] == sum(check["state"] == "bad" for check in answer["checks"])
    assert (answer["bad"] > 0) == (code == 1)
    # What is wrong comes before the summary of what is right.
    found: dict[str, dict[str, Any]] = {}
    for check in answer["checks"]:
        found.setdefault(check["name"], check)
    return found


def state_file(shell: Shell, name: str) -> Path:
    return shell.directory / "config" / "state" / f"{name}.db"


def test_nothing_is_bad_before_the_first_use_and_nothing_is_made(shell: Shell) -> None:
    found = told(shell)
    assert " ".join(found) == NAMES
    assert found["daemon"]["state"] == found["channels"]["state"] == "warn"
    assert found["daemon"]["mend"] == "kachery-p2p start --channel NAME"
    assert os.listdir(shell.directory) == []


def test_people_get_a_line_for_each_check(shell: Shell) -> None:
    lines = shell.answer("doctor").splitlines()
    assert " ".join(line.split()[1] for line in lines) == NAMES
    assert {line.split()[0] for line in lines} == {"ok", "warn"}
    assert any(line.endswith("; mend: kachery-p2p start --channel NAME") for line in lines)


def test_what_is_used_is_found_and_what_waits_is_said(shell: Shell) -> None:
    node = load_or_create(str(shell.directory / "config")).node_id
    join_shared(str(shell.directory / "config"), "lab", generate_secret(bytes(range(20))))
    (shell.directory / "a.txt").write_text("x")
    uri = shell.answer("store", "a.txt")
    shell.answer("link", "--private", "a.txt")
    shell.run("rm", uri)
    found = told(shell)
    assert node in found["keys"]["what"]
    assert found["channels"]["what"] == "lab"
    assert found["state"]["what"] == "can be read: index, links, grants"


def test_pending_shares_are_said(shell: Shell) -> None:
    (shell.directory / "a.txt").write_text("x")
    shell.answer("store", "a.txt")
    (shell.directory / "b.txt").write_text("y")
    shell.run("rm", shell.answer("store", "b.txt"))  # takes shares.log into the grants
    found = told(shell)
    assert found["shares"] == {
        "name": "shares",
        "state": "warn",
        "what": "1 file not shared anywhere yet",
        "mend": "kachery-p2p share --pending --channel NAME",
    }


def test_a_key_that_others_may_read_is_bad(shell: Shell) -> None:
    config = str(shell.directory / "config")
    load_or_create(config)
    os.chmod(key_path(config), 0o644)
    found = told(shell, 1)
    assert found["keys"]["state"] == "bad"
    assert found["keys"]["mend"] == f"chmod 600 {key_path(config)}"


def test_a_configuration_that_others_may_change_is_bad(shell: Shell) -> None:
    (shell.directory / "config").mkdir()
    (shell.directory / "config").chmod(0o777)
    found = told(shell, 1)
    assert found["config"]["mend"] == f"chmod 700 {shell.directory / 'config'}"


@pytest.mark.parametrize(
    ("name", "code", "state"),
    [("index", 0, "warn"), ("links", 0, "warn"), ("grants", 1, "bad"), ("mutables", 1, "bad")],
)
def test_damaged_state_is_named_and_left_as_it_is(
    shell: Shell, name: str, code: int, state: str
) -> None:
    path = state_file(shell, name)
    path.parent.mkdir(parents=True, mode=0o700)
    path.write_bytes(b"not a database" * 100)
    found = told(shell, code)
    assert found["state"]["state"] == state
    assert str(path) in found["state"]["what"]
    assert found["state"]["mend"]
    assert path.read_bytes() == b"not a database" * 100


def test_state_of_a_newer_version_is_bad(shell: Shell) -> None:
    path = state_file(shell, "index")
    path.parent.mkdir(parents=True, mode=0o700)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    found = told(shell, 1)
    assert "newer version (schema 99" in found["state"]["what"]
    assert found["state"]["mend"] == "upgrade kachery-p2p"


def test_quarantined_files_and_unfinished_downloads_are_counted(shell: Shell) -> None:
    quarantine = shell.directory / "store" / ".quarantine"
    quarantine.mkdir(parents=True)
    (quarantine / "x").touch()
    (shell.directory / "store" / ".partial" / "node" / "one").mkdir(parents=True)
    killed = shell.directory / "store" / ".tmp" / "killed"
    killed.parent.mkdir()
    killed.touch()
    os.utime(killed, (0, 0))
    lines = shell.answer("doctor").splitlines()
    assert f"warn  leftovers  1 corrupt file in {quarantine}; mend: rm -r {quarantine}" in lines
    assert lines[-1].startswith("ok    leftovers  1 unfinished download, 1 file of killed programs")
    assert killed.exists()


def test_a_store_that_cannot_be_written_is_bad(shell: Shell) -> None:
    (shell.directory / "store").symlink_to("/proc")
    found = told(shell, 1)
    assert found["store"]["state"] == "bad"
    assert "KACHERY_STORAGE_DIR" in found["store"]["mend"]


@pytest.mark.parametrize(
    ("free", "state"), [(0, "bad"), ((1 << 30) - 1, "bad"), (2 << 30, "warn"), (1 << 40, "ok")]
)
def test_the_space_that_is_left_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str
) -> None:
    monkeypatch.setattr(checks, "_free", lambda path: free)
    patient = checks.Patient(str(tmp_path / "config"), str(tmp_path / "store"), None)
    *_, disk = checks._store(patient)
    assert (disk.name, disk.state) == ("disk", state)
    assert (disk.mend is None) == (state == "ok")


@pytest.mark.parametrize(
    ("found", "wanted", "older"),
    [
        ("0.30", "0.30", False),
        ("0.29.9", "0.30", True),
        ("1.0.10", "1.0.9", False),
        ("50", "45", False),
    ],
)
def test_versions_are_compared_as_numbers(found: str, wanted: str, older: bool) -> None:
    assert checks._older(found, wanted) is older


def test_requirements_are_read_without_extras() -> None:
    lines = ["libp2p==0.8.1", "trio>=0.30", 'tqdm>=4.67; extra == "progress"', "odd ~= 1"]
    assert checks._requirements(lines) == {"libp2p": ("==", "0.8.1"), "trio": (">=", "0.30")}


def test_settings_that_cannot_be_are_a_line_too(shell: Shell) -> None:
    shell.environment["KACHERY_DAEMON_PORT"] = "x"
    found = told(shell, 1)
    assert "KACHERY_DAEMON_PORT" in found["daemon"]["what"]


@pytest.mark.processes
def test_a_running_daemon_is_asked(shell: Shell) -> None:
    secret = generate_secret(bytes(range(20)))
    started = shell.run(
        *("start", "--background", "--channel", "lab", "--listen", "127.0.0.1:0", "--http", "off"),
        KACHERY_CHANNEL_SECRET=secret,
    )
    assert started.returncode == 0, started.stderr
    try:
        found = told(shell)
        assert found["daemon"]["what"].startswith(f"runs, version {__version__}, store ")
        assert "/ip4/127.0.0.1/tcp/" in found["ports"]["what"]
        assert (found["peers"]["state"], found["peers"]["what"]) == ("warn", "0 connected")
    finally:
        assert shell.run("stop").returncode == 0
