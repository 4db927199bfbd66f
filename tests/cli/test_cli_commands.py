"""The command line as a person or a script meets it: processes, exit codes, stdout, stderr."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kachery_p2p.channels.channel import Channel, parse_secret
from kachery_p2p.channels.files import join_shared
from kachery_p2p.content.uris import parse_uri
from kachery_p2p.node.config import grants_path
from kachery_p2p.node.lock import only_daemon
from kachery_p2p.store.grants import Grants
from kachery_p2p.version import __version__

if TYPE_CHECKING:
    from tests.cli.conftest import Shell

MISSING = "sha1://" + "0" * 40


# --- answers ---------------------------------------------------------------------------


def test_store_prints_one_uri_for_each_file(shell: Shell) -> None:
    for name in ("a.txt", "b ä.txt"):
        (shell.directory / name).write_text(name)
    first, second = shell.answer("store", "a.txt", "b ä.txt").splitlines()
    assert first == f"sha1://{hashlib.sha1(b'a.txt').hexdigest()}/a.txt"
    assert second.endswith("/b%20%C3%A4.txt")


def test_load_prints_the_path_or_the_destination(shell: Shell, stored: str) -> None:
    assert Path(shell.answer("load", stored)).read_bytes() == b"0123456789\n"
    assert shell.answer("load", stored, "--dest", "copy") == "copy"
    assert shell.answer("load", "--dest=copy2", stored) == "copy2"
    assert (shell.directory / "copy2").read_bytes() == b"0123456789\n"


def test_cat_writes_the_bytes_or_a_range_of_them(shell: Shell, stored: str) -> None:
    assert shell.run("cat", stored).stdout == "0123456789\n"
    assert shell.run("cat", stored, "--start", "2", "--end", "5").stdout == "234"
    assert shell.run("cat", stored, "--start", "8").stdout == "89\n"
    assert shell.run("cat", stored, "--start", "5", "--end", "5").stdout == ""


def test_info_tells_people_and_scripts(shell: Shell, stored: str) -> None:
    assert "11 bytes" in shell.run("info", stored).stdout
    told = json.loads(shell.run("info", "--json", stored).stdout)
    assert (told["uri"], told["size"], told["providers"]) == (stored, 11, None)


def test_version_and_help_need_nothing(shell: Shell) -> None:
    assert shell.answer("version") == shell.answer("--version") == __version__
    for arguments in (["--help"], ["load", "--help"], ["channel", "create", "-h"]):
        assert shell.answer(*arguments).startswith("Usage: kachery-p2p")
    assert os.listdir(shell.directory) == []


def test_every_command_can_be_helped(shell: Shell) -> None:
    from kachery_p2p.cli.commands import COMMANDS, cli

    for name in COMMANDS:
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None and command.name == name and command.help


# --- channels --------------------------------------------------------------------------


def test_a_new_secret_is_the_only_answer_and_is_not_saved(shell: Shell) -> None:
    done = shell.run("channel", "create", "lab", "--shared")
    assert done.returncode == 0
    secret = done.stdout.removesuffix("\n")
    assert secret.startswith("kp2p-secret-1-") and "\n" not in secret
    assert secret not in done.stderr
    assert os.listdir(shell.directory) == []
    assert shell.run("channel", "create", "lab", "--shared").stdout != done.stdout


def test_channels_are_listed_rekeyed_and_left(shell: Shell) -> None:
    secrets = [shell.run("channel", "create", "lab", "--shared").stdout.strip() for _ in "12"]
    old = join_shared(str(shell.directory / "config"), "lab", secrets[0])
    assert "lab" in shell.answer("channel", "list")
    assert shell.run("channel", "rekey", "lab", KACHERY_CHANNEL_SECRET=secrets[1]).returncode == 0
    rows = json.loads(shell.answer("channel", "list", "--json"))
    assert [row["name"] for row in rows] == ["lab"] and rows[0]["id"] != old.id
    assert shell.run("channel", "leave", "lab").returncode == 0
    assert json.loads(shell.answer("channel", "list", "--json")) == []


def test_share_without_a_daemon_is_noted(shell: Shell, stored: str) -> None:
    done = shell.run("share", stored)
    assert (done.returncode, done.stdout) == (0, "")
    assert "when it next starts" in done.stderr


def test_a_corrupt_file_is_not_shared(shell: Shell, stored: str) -> None:
    path = Path(shell.answer("load", stored))
    path.chmod(0o644)
    path.write_bytes(b"9876543210\n")
    log = shell.directory / "config" / "shares.log"
    noted = log.read_bytes()
    assert "quarantine" in shell.fails(7, "share", stored)
    assert log.read_bytes() == noted
    assert not path.exists()


# --- bad input ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "arguments", "said"),
    [
        (2, ["load", "md5://" + "0" * 32], "md5"),
        (2, ["load", "plain.txt"], "not a URI"),
        (2, ["load", "sha1://abc"], ""),
        (2, ["load"], "missing argument"),
        (2, ["load", "--nope", "x"], "no such option"),
        (2, ["nope"], "no such command"),
        (2, ["cat", MISSING, "--start", "x"], "--start"),
        (2, ["cat", MISSING, "--start", "5", "--end", "4"], "not a range"),
        (2, ["store", "missing"], "missing"),
        (2, ["link", "."], "directory"),
        (2, ["store", "--private", "--channel", "c", "x"], "exclude"),
        (2, ["share"], "--pending"),
        (2, ["channel", "create", "a b"], "name"),
        (2, ["channel", "create", "../x", "--shared"], "name"),
        (2, ["start", "--listen", "nonsense"], "HOST:PORT"),
        (2, ["start", "--http", "127.0.0.1:99999"], "HOST:PORT"),
        (3, ["load", MISSING], "no daemon is running"),
        (3, ["cat", MISSING], "not stored here"),
        (3, ["cat", MISSING, "--start", "1", "--end", "2"], "not stored here"),
        (3, ["info", MISSING], "not stored here"),
        (3, ["share", MISSING], "not stored here"),
        (4, ["status"], "no daemon"),
        (4, ["status", "--json"], "no daemon"),
        (4, ["status", "--wait", "0.01"], "waited 0.01 s"),
        (4, ["stop"], "no daemon"),
        (4, ["share", "--pending"], "no daemon"),
        (10, ["node-id"], "key"),
        (10, ["channel", "leave", "lab"], "lab"),
        (10, ["channel", "rekey", "lab"], "secret"),
        (10, ["start", "--bootstrap", "@missing"], "missing"),
    ],
)
def test_bad_input_is_two_lines_and_a_code(
    shell: Shell, code: int, arguments: list[str], said: str
) -> None:
    assert said in shell.fails(code, *arguments)
    left = {path.name for path in shell.directory.rglob("*") if path.is_file()}
    assert left <= {".lock", "daemon.lock"}, left


def test_settings_that_cannot_be_are_named(shell: Shell) -> None:
    assert "KACHERY_DAEMON_PORT" in shell.fails(10, "load", MISSING, KACHERY_DAEMON_PORT="x")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    assert port in shell.fails(3, "load", MISSING, KACHERY_DAEMON_PORT=port)
    assert port in shell.fails(4, "status", KACHERY_DAEMON_PORT=port)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_said(shell: Shell) -> None:
    (shell.directory / "secret").touch(mode=0o000)
    assert "secret" in shell.fails(2, "store", "secret")


def test_what_others_wrote_cannot_steer_the_terminal(shell: Shell) -> None:
    said = shell.fails(2, "load", "sha1://\x1b[2Jboo\nkachery-p2p: error: fake")
    assert "\x1b" not in said


def test_an_answer_that_cannot_be_written_is_an_error(shell: Shell, stored: str) -> None:
    for arguments in (["load", stored], ["cat", stored], ["store", "a.txt"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "kachery_p2p", *arguments],
                cwd=shell.directory,
                env=shell.environment,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
            )
        assert done.returncode == 1
        assert done.stderr.startswith("kachery-p2p: error: the answer could not be written")
        assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_has_had_enough_is_no_error(shell: Shell) -> None:
    (shell.directory / "big").write_bytes(b"x" * (8 << 20))
    uri = shell.answer("store", "big")
    process = subprocess.Popen(
        [sys.executable, "-m", "kachery_p2p", "cat", uri],
        env=shell.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) == 141


@pytest.fixture
def mute(shell: Shell) -> Iterator[socket.socket]:
    """A stopped daemon: it accepts (the kernel does) and says nothing."""
    (shell.directory / "config").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(shell.directory / "config" / "daemon.sock"))
        listening.listen()
        listening.settimeout(30)
        yield listening


def test_ctrl_c_during_a_load_is_quiet_and_says_how_to_resume(
    shell: Shell, mute: socket.socket
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "kachery_p2p", "load", MISSING],
        env=shell.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    connection, _ = mute.accept()
    with connection:
        assert connection.recv(4)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err == "kachery-p2p: hint: run it again to resume\n"


def test_waiting_for_a_silent_daemon_ends_in_time(shell: Shell, mute: socket.socket) -> None:
    begun = time.monotonic()
    shell.fails(4, "status", "--wait", "0.2")
    assert time.monotonic() - begun < 20


def test_a_bug_is_one_line_unless_debugging(shell: Shell) -> None:
    code = (
        "from kachery_p2p.cli import answers, main\n"
        "def boom(): raise KeyError('x')\n"
        "answers.version = boom\n"
        "raise SystemExit(main.run(['version']))\n"
    )
    for debug, traced in (("0", False), ("1", True)):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**shell.environment, "KACHERY_P2P_DEBUG": debug},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert "this is a bug" in done.stderr
        assert ("Traceback" in done.stderr) is traced


def test_a_load_of_a_stored_file_imports_nothing_heavy(shell: Shell, stored: str) -> None:
    code = (
        "import sys\n"
        "from kachery_p2p.cli.main import run\n"
        "assert run(['load', sys.argv[1]]) == 0\n"
        "heavy = {'trio', 'libp2p', 'numpy', 'cryptography', 'msgpack', 'click', 'sqlite3',\n"
        "         'blake3', 'h11', 'json', 'http.client', 'asyncio', 'logging', 'dataclasses'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, stored], env=shell.environment, check=True)


def test_rekeying_moves_what_is_shared_to_the_new_secret(shell: Shell) -> None:
    first, second = (shell.run("channel", "create", "lab", "--shared").stdout for _ in "12")
    config_dir = str(shell.directory / "config")
    join_shared(config_dir, "lab", first.strip())
    (shell.directory / "x.txt").write_text("spikes")
    uri = shell.run("store", "x.txt").stdout.strip()

    rekeyed = shell.run("channel", "rekey", "lab", KACHERY_CHANNEL_SECRET=second.strip())

    assert rekeyed.returncode == 0, rekeyed.stderr
    new = Channel.shared(parse_secret(second), "lab")
    grants = Grants(grants_path(config_dir))
    assert grants.channels_of(parse_uri(uri).content) == (new.id,)
    grants.close()


def test_a_channel_is_not_left_under_a_running_daemon(shell: Shell) -> None:
    config_dir = str(shell.directory / "config")
    secret = shell.run("channel", "create", "lab", "--shared").stdout.strip()
    join_shared(config_dir, "lab", secret)
    with only_daemon(config_dir, "stop it"):
        assert "already running" in shell.fails(9, "channel", "leave", "lab")
    assert shell.run("channel", "leave", "lab").returncode == 0


def test_a_full_disk_is_two_lines_and_a_code_and_leaves_nothing(shell: Shell) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare, to mount a small disk")
    (shell.directory / "big").write_bytes(os.urandom(12 << 20))
    (shell.directory / "store").mkdir()
    script = (
        "mount -t tmpfs -o size=8m tmpfs store && "
        f"{sys.executable} -m kachery_p2p store big; code=$?; find store -type f; exit $code"
    )
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", script],
        cwd=shell.directory,
        env=shell.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (6, ""), done.stderr
    assert lines[0].startswith("kachery-p2p: error: ")
    assert all(line.startswith("kachery-p2p: hint: ") for line in lines[1:])
