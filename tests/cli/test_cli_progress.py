"""How commands say how far they are: a line on a terminal, JSON on request, silence in scripts."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kachery_p2p.wire.codec import FrameDecoder, encode_frame

if TYPE_CHECKING:
    from tests.cli.conftest import Shell

# The command, with a second that is over at once.
AT_ONCE = """
import sys
from kachery_p2p.client import progress
progress.QUIET_S = progress.SHOWN_EVERY_S = 0
from kachery_p2p.cli.main import main
sys.exit(main())
"""
SIZE = 20 << 20
WIPE = "\r\x1b[K"


def start(shell: Shell, arguments: list[str], stderr: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", AT_ONCE, *arguments],
        cwd=shell.directory,
        env=shell.environment,
        stdout=subprocess.PIPE,
        stderr=stderr,
    )


def read_until_closed(terminal: int, until: bytes = b"\0never") -> bytes:
    """What is written to the terminal until the other side closes it, or it says `until`."""
    shown, give_up_at = b"", time.monotonic() + 60
    try:
        while until not in shown and time.monotonic() < give_up_at:
            if select.select([terminal], [], [], 1)[0]:
                piece = os.read(terminal, 4096)
                if not piece:
                    break
                shown += piece
    except OSError:  # EIO: how Linux says that the other side is closed
        pass
    return shown


def on_a_terminal(shell: Shell, arguments: list[str], columns: int = 0) -> tuple[str, str]:
    """What stdout and the terminal of stderr were told."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    process = start(shell, arguments, theirs)
    os.close(theirs)
    shown = read_until_closed(ours)
    out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0, shown
    return out.decode(), shown.decode()


def lines_of(shown: str) -> list[str]:
    return [line for line in shown.split(WIPE) if line]


def test_a_long_store_shows_bytes_rate_and_time_left_on_a_terminal(shell: Shell) -> None:
    (shell.directory / "big.bin").write_bytes(os.urandom(SIZE))
    out, shown = on_a_terminal(shell, ["store", "big.bin"])
    assert out.startswith("sha1://") and out.count("\n") == 1
    lines = lines_of(shown)
    pattern = r"\[#*-*\] \d+(\.\d)? k?M?B of 21\.0 MB, [\d.]+ [kMG]?B/s(, \d+ s left)?"
    assert len(lines) >= 2 and all(re.fullmatch(pattern, line) for line in lines), shown
    assert "21.0 MB of 21.0 MB" in lines[-1]
    # Nothing of it stays on the screen.
    assert shown.endswith(WIPE)


@pytest.mark.parametrize("columns", [10, 25, 40])
def test_a_narrow_terminal_is_never_wrapped(shell: Shell, columns: int) -> None:
    (shell.directory / "big.bin").write_bytes(os.urandom(SIZE))
    _, shown = on_a_terminal(shell, ["store", "big.bin"], columns)
    assert lines_of(shown) and all(len(line) < columns for line in lines_of(shown)), shown


def test_many_files_are_one_progress(shell: Shell) -> None:
    names = [f"{number}.bin" for number in range(70)]
    for name in names:
        (shell.directory / name).write_bytes(os.urandom(50_000))
    out, shown = on_a_terminal(shell, ["store", *names], columns=120)
    assert out.count("sha1://") == 70
    assert "50.0 kB of 3.5 MB" in shown and "3.5 MB of 3.5 MB, 70 of 70 files" in shown


def test_in_a_script_nothing_is_shown(shell: Shell) -> None:
    (shell.directory / "big.bin").write_bytes(os.urandom(SIZE))
    process = start(shell, ["store", "big.bin"], subprocess.PIPE)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, b"")
    assert out.startswith(b"sha1://")


def test_off_shows_nothing_on_a_terminal_either(shell: Shell) -> None:
    (shell.directory / "big.bin").write_bytes(os.urandom(SIZE))
    assert on_a_terminal(shell, ["store", "big.bin", "--progress", "off"])[1] == ""


def test_a_bar_can_be_had_where_there_is_no_terminal(shell: Shell) -> None:
    (shell.directory / "a.bin").write_bytes(os.urandom(SIZE))
    done = shell.run("store", "a.bin", "--progress", "bar")
    assert done.stdout.startswith("sha1://") and "of 21.0 MB" in done.stderr
    assert "\x1b" not in done.stderr and done.stderr.endswith("\n")


def test_json_is_a_line_for_each_event_beside_the_answer(shell: Shell) -> None:
    (shell.directory / "a.bin").write_bytes(os.urandom(SIZE))
    done = shell.run("store", "a.bin", "--progress", "json")
    assert done.returncode == 0 and done.stdout.count("\n") == 1
    events = [json.loads(line)["progress"] for line in done.stderr.splitlines()]
    assert [events[0]["phase"], events[-1]["phase"]] == ["storing", "done"]
    assert events[-1]["bytes"] == events[-1]["size"] == SIZE
    loaded = shell.run("load", done.stdout.strip(), "--progress", "json")
    assert json.loads(loaded.stderr.splitlines()[-1])["progress"]["phase"] == "done"


def test_whoever_stops_reading_the_events_does_not_stop_the_work(shell: Shell) -> None:
    (shell.directory / "a.bin").write_bytes(os.urandom(SIZE))
    ours, theirs = os.pipe()
    process = start(shell, ["store", "a.bin", "--progress", "json"], theirs)
    os.close(theirs)
    os.close(ours)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out[:7]) == (0, b"sha1://")


# --- a load that lasts ------------------------------------------------------------------------


@pytest.fixture
def daemon(shell: Shell) -> Iterator[socket.socket]:
    """Where the command connects; the test is the daemon."""
    config = Path(shell.environment["KACHERY_P2P_CONFIG_DIR"])
    config.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.settimeout(30)
        listening.bind(str(config / "daemon.sock"))
        listening.listen()
        yield listening


def request_of(connection: socket.socket) -> dict[str, Any]:
    decoder = FrameDecoder()
    while not (frames := decoder.feed(connection.recv(1 << 16))):
        pass
    return frames[0]


def source(name: str) -> dict[str, Any]:
    rates = {"state": "serving", "rate": 1e6, "bytes": 1, "wasted": 0}
    return {"name": name, "node_id": "ab" * 32, "channel": "lab", **rates}


UPDATE: dict[str, Any] = {
    "phase": "fetching",
    "bytes": 5_000_000,
    "size": 10_000_000,
    "rate": 1e6,
    "eta_s": 5.0,
    "by_source": [source("lab-pc\x1b]0;owned\x07 (abababab)")],
}


def test_ctrl_c_leaves_a_clean_line_and_says_that_a_repeat_resumes(
    shell: Shell, daemon: socket.socket
) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))
    process = start(shell, ["load", "sha1://" + "0" * 40], theirs)
    os.close(theirs)
    try:
        connection, _ = daemon.accept()
        with connection:
            connection.settimeout(30)
            assert request_of(connection)["op"] == "load"
            connection.sendall(encode_frame({"progress": UPDATE}))
            shown = read_until_closed(ours, until=b"owned")
            process.send_signal(signal.SIGINT)
            shown += read_until_closed(ours)
            assert connection.recv(1) == b"", "the daemon is told by the connection's end"
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.communicate()
        os.close(ours)
    text = shown.decode()
    said = "[##########----------] 5.0 MB of 10.0 MB, 1.0 MB/s, 5 s left, from lab-pc\\x1b]0;owned"
    assert said in text
    assert text.endswith(f"{WIPE}kachery-p2p: hint: run it again to resume\r\n")
