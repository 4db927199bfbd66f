"""Feeds through the Python API: clients, their daemons, and a disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from load import wait_for_peer
from node import new_secret
from processes import HERE, NodeProcess, child
from settings import Settings, settle
from table import Row, at_least, at_most, figure, sample

CLIENTS = 32
ONE_SHARE_MIN = 0.6
TOGETHER_A_SECOND_MIN = 5_000
BATCHED_A_SECOND_MIN = 50_000
HEARD_MS_MAX, HEARD_LATE_MS_MAX = 2.0, 10.0


def measure_clients(settings: Settings) -> list[Row]:
    """Appending by one, by many, in batches; and how soon a reader on another node has it."""
    room, secret = settings.room("clients"), new_secret()
    alice, bob = (NodeProcess(room / name, secret) for name in ("alice", "bob"))
    try:
        alice.start()
        bob.start("--bootstrap", alice.address)
        wait_for_peer(bob)
        uri = child(alice.environment, "feeds_clients.create_feed")["uri"]
        rows = [*_alone(settings, alice, uri), _together(settings, alice, uri)]
        return [*rows, _heard(settings, alice, bob, uri.replace("main", "live"))]
    finally:
        alice.stop()
        bob.stop()


def _alone(settings: Settings, node: NodeProcess, uri: str) -> list[Row]:
    bare = str(settings.directory / "bare-client")
    one = child(node.environment, "feeds_clients.append_one_by_one", uri, bare, settings.calls(500))
    shares = sample(one["shares"], "x")
    appended, read = [], []
    for number in settings.times(5):
        subfeed = uri.replace("main", f"batches{number}")
        done = child(node.environment, "feeds_clients.append_batches", subfeed, settings.calls(50))
        appended.append(done["appended"])
        read.append(done["read"])
    batches = sample(appended, "/s")
    return [
        Row(
            "messages appended one by one by a client",
            sample(one["rates"], "/s"),
            f"{figure(shares.median)}x the bare loop beside it",
            budget=at_least(ONE_SHARE_MIN, shares.median, "x"),
        ),
        Row(
            "messages appended in batches of 1,000 by a client",
            batches,
            budget=at_least(BATCHED_A_SECOND_MIN, batches.median, "/s"),
        ),
        Row("messages read back by a client", sample(read, "/s")),
    ]


def _together(settings: Settings, node: NodeProcess, uri: str) -> Row:
    """Processes, not threads of one: these would wait for each other's interpreter."""
    calls, rates = settings.calls(600), []
    for number in settings.times(5):
        subfeed = uri.replace("main", f"together{number}")
        gates = [settings.directory / name for name in ("gate", "way-out")]
        for gate in gates:
            os.mkfifo(gate)
        shut = [os.open(gate, os.O_RDWR) for gate in gates]
        names = [str(gate) for gate in gates]
        begun = [
            _begin(node, "feeds_clients.append_when_told", subfeed, *names, calls)
            for _ in range(CLIENTS)
        ]
        for process in begun:
            _line(process)
        os.close(shut[0])
        spans = [json.loads(_line(process)) for process in begun]
        os.close(shut[1])
        for process in begun:
            _answer(process)
        for gate in gates:
            gate.unlink()
        seconds = max(one["ended"] for one in spans) - min(one["began"] for one in spans)
        rates.append(CLIENTS * calls / seconds)
    rate = sample(rates, "/s")
    return Row(
        f"messages appended by {CLIENTS} clients at once",
        rate,
        budget=at_least(TOGETHER_A_SECOND_MIN, rate.median, "/s"),
    )


def _heard(settings: Settings, alice: NodeProcess, bob: NodeProcess, uri: str) -> Row:
    calls = settings.calls(500)
    settle()
    hearing = _begin(bob, "feeds_clients.hear_times", uri, calls)
    _line(hearing)
    child(alice.environment, "feeds_clients.append_times", uri, calls)
    waits = sorted(_answer(hearing)["waits_ms"])
    late = waits[int(0.99 * len(waits))]
    heard = sample(waits, "ms")
    return Row(
        "from append to another node's `get_next_messages` returning",
        heard,
        f"99 % within {figure(late)} ms, <= {figure(HEARD_LATE_MS_MAX)}",
        budget=at_most(HEARD_MS_MAX, heard.median, "ms"),
    )


def _begin(node: NodeProcess, function: str, *arguments: Any) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, str(HERE / "child.py"), function],
        env=node.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    json.dump(arguments, process.stdin)
    process.stdin.close()
    return process


def _line(process: subprocess.Popen[str]) -> str:
    """The next line that it says."""
    assert process.stdout is not None
    return process.stdout.readline()


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    with process:
        assert process.stdout is not None
        answer: dict[str, Any] = json.loads(process.stdout.read())
    return answer
