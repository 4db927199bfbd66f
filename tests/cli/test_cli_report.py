"""What `status` and progress show, and that nothing in it steers the terminal."""

from __future__ import annotations

from typing import Any

from kachery_p2p.cli.background import arguments
from kachery_p2p.cli.node import is_ready
from kachery_p2p.cli.report import report, started
from kachery_p2p.client.wording import human_bytes, human_seconds, printable
from kachery_p2p.node.config import NodeConfig

STATUS: dict[str, Any] = {
    "node_id": "ab" * 32,
    "addresses": ["/ip4/10.0.0.1/tcp/20432/p2p/x"],
    "http": None,
    "channels": [{"name": "lab", "id": "cd" * 32, "members": 2, "peers": 1, "tried": True}],
    "peers": [
        {"node_id": "ef" * 32, "label": "evil\x1b[2J\n", "channels": ["lab"], "address": None}
    ],
    "loads": [
        {"content": "0" * 40, "bytes": 5_000_000, "size": 10_000_000, "rate": 1e6, "sources": []}
    ],
    "label": "desk",
    "version": "1",
    "store": "/store",
    "uptime_s": 100.0,
    "pending_shares": 0,
    "problems": ["bootstrap node ab is not reached: no answer"],
}


def test_a_report_is_aligned_and_escaped() -> None:
    lines = list(report(STATUS))
    assert all(line[8] == " " and line[9] != " " for line in lines)
    text = "\n".join(lines)
    assert "\x1b" not in text and "evil\\x1b[2J\\n" in text
    assert "lab, 1 peer connected" in text
    assert "5.0 MB of 10.0 MB, 1.0 MB/s, from nobody yet" in text
    assert "problem  bootstrap node" in text


def source(name: str, rate: float, state: str = "serving") -> dict[str, Any]:
    return {"name": name, "rate": rate, "state": state, "bytes": 0, "wasted": 0}


def test_a_transfer_is_reported_with_who_brings_how_much_of_it() -> None:
    sources = [source("a\x1b", 6e5), source("gone", 0.0, "left"), source("b", 4e5, "late")]
    load = {
        **STATUS["loads"][0],
        "eta_s": 5.0,
        "wasted": 2_000_000,
        "phase": "fetching",
        "sources": ["a\x1b", "b"],
        "by_source": sources,
    }
    lines = list(report({**STATUS, "loads": [load, {**load, "phase": "finishing"}]}))
    loading = [line for line in lines if line.startswith("loading")]
    start = f"loading  sha1://{'0' * 40}  5.0 MB of 10.0 MB, 1.0 MB/s, 5 s left, "
    assert loading[0] == start + "from a\\x1b 600.0 kB/s, b 400.0 kB/s, 2.0 MB in vain"
    assert loading[1] == start + "finishing, 2.0 MB in vain"


def test_who_is_served_is_reported() -> None:
    serving = [
        {"node_id": "ef" * 32, "label": "evil\x07", "bytes": 7_000_000, "rate": 2e6},
        {"node_id": "01" * 32, "label": None, "bytes": 1, "rate": 0.0},
    ]
    lines = list(report({**STATUS, "serving": serving}))
    assert f"serving  {'ef' * 8}  evil\\x07  7.0 MB, 2.0 MB/s" in lines
    assert f"serving  {'01' * 8}  no label  1 B, 0 B/s" in lines


def test_a_node_without_channels_is_told_what_to_do() -> None:
    assert "mend     kachery-p2p start --channel NAME" in report({**STATUS, "channels": []})


def test_a_started_node_says_who_and_where_it_is() -> None:
    assert list(started(STATUS)) == [
        "node     " + "ab" * 32,
        "address  /ip4/10.0.0.1/tcp/20432/p2p/x",
        "channel  lab (cdcdcdcdcdcdcdcd)",
    ]


def test_a_node_is_ready_when_each_channel_was_tried() -> None:
    assert is_ready(STATUS)
    assert not is_ready({**STATUS, "addresses": []})
    assert not is_ready({**STATUS, "channels": [{"tried": False}]})


def test_the_background_process_gets_the_same_configuration() -> None:
    config = NodeConfig("/c", "/s", "-odd label", ("::", 0), None, ("lab",), ("/ip4/x",), ("h:1",))
    given = list(arguments(config))
    assert "--label=-odd label" in given and "--listen=[::]:0" in given and "--http=off" in given
    from kachery_p2p.cli.node import start

    parsed = start.make_context("start", given[1:]).params
    assert (parsed["listen"], parsed["http"], parsed["channels"]) == (("::", 0), "off", ("lab",))
    assert (parsed["label"], parsed["advertise"]) == ("-odd label", ("h:1",))


def test_numbers_are_for_people() -> None:
    assert [human_bytes(n) for n in (999, 1000, 2.5e9, 3e15)] == [
        "999 B",
        "1.0 kB",
        "2.5 GB",
        "3000.0 TB",
    ]
    assert [human_seconds(s) for s in (5, 600, 9000)] == ["5 s", "10 min", "2.5 h"]
    assert printable("ok ä") == "ok ä" and printable("\u202ex") == "\\u202ex"
