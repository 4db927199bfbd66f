"""A part that fails is started again, or takes the node down; stopping has an end."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trio.testing import MockClock

from kachery_p2p.errors import DaemonError
from kachery_p2p.limits import RESTARTS_MAX
from kachery_p2p.node.node import _tell_service_manager
from kachery_p2p.node.supervise import supervise


class Part:
    """Fails so many times, then works."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.runs = 0

    async def run(self) -> None:
        self.runs += 1
        if self.runs <= self.failures:
            raise RuntimeError("the disk said no")


async def test_a_part_that_fails_is_started_again_and_status_says_so(
    autojump_clock: MockClock,
) -> None:
    parts: Any = SimpleNamespace(problems={})
    part = Part(failures=2)
    await supervise(parts, "saving", part.run)
    assert part.runs == 3
    assert "saving failed and was started again: the disk said no" in parts.problems["saving"]


async def test_a_part_that_keeps_failing_takes_the_node_down_with_its_reason(
    autojump_clock: MockClock,
) -> None:
    parts: Any = SimpleNamespace(problems={})
    part = Part(failures=1000)
    with pytest.raises(DaemonError, match="saving failed .* last: the disk said no"):
        await supervise(parts, "saving", part.run)
    assert part.runs == RESTARTS_MAX + 1


def test_the_service_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        _tell_service_manager("READY=1")
        assert manager.recv(64) == b"READY=1"


def test_a_node_that_hangs_while_it_stops_is_ended(tmp_path: Path) -> None:
    code = f"""
import trio
from kachery_p2p.node import node
from kachery_p2p.node.config import NodeConfig
async def hang(parts, *arguments):
    with trio.CancelScope(shield=True):
        parts.stop.set()
        await trio.sleep_forever()
node._serve, node.STOP_S_MAX = hang, 0.2
node.run(NodeConfig({str(tmp_path / "config")!r}, {str(tmp_path / "store")!r}), print)
print("stopped by itself")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
