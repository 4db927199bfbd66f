"""What nodes cost that have nothing to do: one alone, and fifty that all know each other."""

from __future__ import annotations

import resource
import time
from contextlib import ExitStack

import psutil
from node import new_secret
from processes import NodeProcess
from settings import MIB, Settings
from table import Row, at_most, figure, sample

from kachery_p2p.client.daemon import UnixDaemon
from kachery_p2p.errors import DaemonError

IDLE_CPU_MAX = 1.0
IDLE_MIB_MAX = 130
MEMBER_CPU_MAX = 5.0
MEMBERS = 50
# Nodes that start at once: more than a few would only wait for the processor.
STARTED_AT_ONCE = 4
MEET_S_MAX = 180.0


def measure_idle(settings: Settings) -> list[Row]:
    """A node in a channel with one other member, half a minute after it has settled."""
    secret = new_secret()
    room = settings.room("idle")
    with ExitStack() as stack:
        nodes = [NodeProcess(room / name, secret) for name in ("alice", "bob")]
        for node in nodes:
            stack.callback(node.stop)
        nodes[0].start()
        nodes[1].start("--bootstrap", nodes[0].address)
        _wait_until_all_have_met(nodes)
        time.sleep(0 if settings.quick else 5)
        used = _cpu_percents(nodes, 1 if settings.quick else 30)
        memory = [_resident_mib(node) for node in nodes]
    return [
        Row(
            "processor of an idle node",
            sample(used, "%"),
            budget=at_most(IDLE_CPU_MAX, max(used), "%"),
        ),
        Row(
            "memory of an idle node",
            sample(memory, "MiB"),
            budget=at_most(IDLE_MIB_MAX, max(memory), "MiB"),
        ),
    ]


def measure_members(settings: Settings) -> list[Row]:
    """Nodes of one channel on this computer, each of which has met all others."""
    secret = new_secret()
    room = settings.room("members")
    count = 4 if settings.quick else MEMBERS
    _allow_descriptors()
    with ExitStack() as stack:
        nodes = [NodeProcess(room / f"node-{number}", secret) for number in range(count)]
        for node in nodes:
            stack.callback(node.stop)
        began = time.monotonic()
        nodes[0].start()
        for first in range(1, count, STARTED_AT_ONCE):
            group = nodes[first : first + STARTED_AT_ONCE]
            for node in group:
                node.spawn("--bootstrap", nodes[0].address)
            for node in group:
                node.ready_s()
        started = time.monotonic()
        _wait_until_all_have_met(nodes)
        met = time.monotonic()
        time.sleep(0 if settings.quick else 10)
        used = _cpu_percents(nodes, 1 if settings.quick else 20)
        memory = [_resident_mib(node) for node in nodes]
    return [
        Row(f"{count} members started", sample([started - began], "s")),
        Row(f"until each of {count} had met all others, after that", sample([met - started], "s")),
        Row(
            f"processor of each of {count} idle members",
            sample(used, "%"),
            f"{figure(sum(used))} % of one core all together",
            budget=at_most(MEMBER_CPU_MAX, max(used), "%"),
        ),
        Row(f"memory of each of {count} members", sample(memory, "MiB")),
    ]


def _allow_descriptors() -> None:
    """The pipes of all the nodes are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))


def _wait_until_all_have_met(nodes: list[NodeProcess]) -> None:
    deadline = time.monotonic() + MEET_S_MAX
    for node in nodes:
        daemon = UnixDaemon(str(node.config_dir))
        try:
            while _peers(daemon) < len(nodes) - 1:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"a node has met {_peers(daemon)} of {len(nodes) - 1}")
                time.sleep(0.2)
        finally:
            daemon.close()


def _peers(daemon: UnixDaemon) -> int:
    try:
        return len(daemon.call("status", {})[0]["peers"])
    except DaemonError:
        return 0


def _cpu_percents(nodes: list[NodeProcess], seconds: float) -> list[float]:
    """The part of one core that each node used for so long, by its own processor time."""
    before = [node.cpu_s() for node in nodes]
    began = time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - began
    return [100 * (node.cpu_s() - used) / passed for node, used in zip(nodes, before, strict=True)]


def _resident_mib(node: NodeProcess) -> float:
    return float(psutil.Process(node.pid).memory_info().rss) / MIB
