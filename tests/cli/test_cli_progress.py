"""Progress of storing: a line on a terminal, a bar in a notebook, silence in scripts."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kachery_p2p.client import progress
from kachery_p2p.client.progress import Reporter, StoreReporter

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


def store(shell: Shell, names: list[str], stderr: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", AT_ONCE, "store", *names],
        cwd=shell.directory,
        env=shell.environment,
        stdout=subprocess.PIPE,
        stderr=stderr,
    )


def on_a_terminal(shell: Shell, names: list[str]) -> tuple[str, str]:
    """What stdout and the terminal of stderr were told."""
    ours, theirs = pty.openpty()
    process = store(shell, names, theirs)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # EIO: how Linux says that the other side is closed
        pass
    out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0, shown
    return out.decode(), shown.decode()


def test_a_long_store_shows_bytes_rate_and_time_left_on_a_terminal(shell: Shell) -> None:
    (shell.directory / "big.bin").write_bytes(os.urandom(SIZE))
    out, shown = on_a_terminal(shell, ["big.bin"])
    assert out.startswith("sha1://") and out.count("\n") == 1
    lines = [line for line in shown.split("\r\x1b[K") if line]
    pattern = r"\d+\.\d MB of 21\.0 MB, [\d.]+ [kMG]B/s, \d+ s left"
    assert len(lines) >= 2 and all(re.fullmatch(pattern, line) for line in lines), shown
    assert lines[-1].startswith("21.0 MB of")
    # Nothing of it stays on the screen.
    assert shown.endswith("\r\x1b[K")


def test_many_files_are_one_progress(shell: Shell) -> None:
    names = [f"{number}.bin" for number in range(70)]
    for name in names:
        (shell.directory / name).write_bytes(os.urandom(50_000))
    out, shown = on_a_terminal(shell, names)
    assert out.count("sha1://") == 70
    assert "50.0 kB of 3.5 MB" in shown and "3.5 MB of 3.5 MB" in shown


def test_in_a_script_nothing_is_shown(shell: Shell) -> None:
    (shell.directory / "big.bin").write_bytes(os.urandom(SIZE))
    process = store(shell, ["big.bin"], subprocess.PIPE)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, b"")
    assert out.startswith(b"sha1://")


class Bar:
    """Stands for tqdm's."""

    made: list[Bar]

    def __init__(self, **_: Any) -> None:
        self.n = 0
        self.total: int | None = None
        self.closed = False
        self.made.append(self)

    def update(self, count: int) -> None:
        self.n += count

    def close(self) -> None:
        self.closed = True


def test_in_a_notebook_there_is_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Bar.made = []
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    auto = types.ModuleType("tqdm.auto")
    auto.tqdm = Bar  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tqdm.auto", auto)
    monkeypatch.setattr(progress, "QUIET_S", 0)
    with StoreReporter(30) as reporter:
        reporter(10)
    assert [(bar.n, bar.total, bar.closed) for bar in Bar.made] == [(10, 30, True)]


def test_without_tqdm_a_notebook_stores_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(progress, "QUIET_S", 0)
    with StoreReporter(30) as reporter:
        reporter(10)
        reporter(10)


class Shown:
    """Stands for a line or a bar."""

    def __init__(self) -> None:
        self.updates: list[dict[str, Any]] = []

    def show(self, update: dict[str, Any], elapsed_s: float) -> None:
        self.updates.append(update)

    def close(self) -> None:
        pass


def test_the_first_second_is_silent_and_then_little_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown, now = Shown(), 50.0
    monkeypatch.setattr(progress, "_choose", lambda: shown)
    monkeypatch.setattr("time.monotonic", lambda: now)
    reporter = Reporter()
    for _ in range(300):
        now += 0.01
        reporter.tell({"bytes": round((now - 50) * 100)})
    told = [update["bytes"] for update in shown.updates]
    assert told[0] in (100, 101)
    assert 18 <= len(told) <= 21
