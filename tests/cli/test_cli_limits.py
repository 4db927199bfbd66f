"""Limits on the command line of a node, and in its report."""

from __future__ import annotations

from typing import Any

from click.testing import CliRunner

from kachery_p2p.cli import background
from kachery_p2p.cli import node as node_commands
from kachery_p2p.cli.report import report
from kachery_p2p.node.config import NodeConfig

TOLD: dict[str, Any] = {
    "node_id": "ab" * 32,
    "label": "lab-pc",
    "addresses": [],
    "channels": [],
    "http": None,
    "store": "/store",
    "version": "1",
    "uptime_s": 1.0,
    "peers": [],
    "loads": [],
    "problems": [],
}


def test_the_limits_reach_the_node_and_the_node_in_the_background(monkeypatch: Any) -> None:
    started: list[NodeConfig] = []
    monkeypatch.setattr(background, "start_in_background", started.append)
    for given in (
        ["--max-upload", "20MB/s", "--max-download", "500 KiB/s"],
        ["--max-upload=0"],
        [],
    ):
        done = CliRunner().invoke(node_commands.start, ["--background", *given])
        assert done.exit_code == 0, done.output
    assert [(one.max_upload, one.max_download) for one in started] == [
        (20_000_000, 512_000),
        (None, None),
        (None, None),
    ]
    # What the foreground process of each is started with means the same.
    for config in started[:]:
        again = ["--background", *list(background.arguments(config))[1:]]
        assert CliRunner().invoke(node_commands.start, again).exit_code == 0
        assert started[-1] == config


def test_status_says_how_fast_it_goes_and_how_fast_it_may() -> None:
    pace = {
        "max_upload": 20_000_000,
        "max_download": None,
        "upload": 3_100_000.4,
        "download": 0.0,
        "uploaded": 1,
        "downloaded": 2,
    }
    lines = list(report({**TOLD, "pace": pace}))
    assert "upload   3.1 MB/s, at most 20.0 MB/s" in lines
    assert "download 0 B/s, no limit" in lines
    # An older daemon does not say, nor is a guest told.
    assert not any("load" in line for line in report({**TOLD, "pace": None}))
    assert not any("load" in line for line in report(TOLD))
