"""The bulk plane beside what this computer could do at best, in interleaved rounds.

Every round moves one big file once in each way: the limits (`bulk_pipes`), two bulk planes
(`bulk_nodes`), two whole nodes (`bulk_daemons`), and the tools that people have (`bulk_tools`).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bulk_daemons import FIRST_FILE_BYTES, Nodes, nodes
from bulk_line import measure_line
from bulk_nodes import write_manifest
from bulk_tools import Cp, Curl, Rsync, Tool, Transfer
from processes import CLIENT_S_MAX, HERE, ended, environment
from settings import MIB, Settings, settle
from table import Row, at_least, at_most, figure, median_text, sample

ROUNDS = 5
FIRST_FILES = 20
LIMIT_PART_MIN = 0.9
DURABLE_PART_MIN = 0.8
CURL_PART_MIN = 1.0
CPU_S_PER_GIB_MAX = 2.5
PEAK_MIB_MAX = 143.0  # 150 MB

Way = Callable[[], Transfer]
Found = dict[str, list[Transfer]]


def measure(settings: Settings) -> list[Row]:
    """A big file between two processes, in every way that there is here."""
    room = settings.room("bulk")
    source, target = settings.random_file("bulk-source"), room / "target"
    manifest = room / "manifest"
    content = write_manifest(source, manifest)
    tools = {name: tool(room / name, source, target) for name, tool in _TOOLS.items()}
    with contextlib.ExitStack() as stack:
        for tool in tools.values():
            stack.enter_context(tool.serving())
        pair = stack.enter_context(nodes(settings, source))
        ways: dict[str, Way] = {
            **_pairs(settings, content, source, target, manifest),
            "nodes": lambda: pair.transfer(content),
            **{name: tool.transfer for name, tool in tools.items() if not tool.why_not},
        }
        found = _rounds(settings, ways, target)
        first = _first_row(settings, pair)
    source.unlink()
    rows = [*_rows(settings, found), *_tool_rows(settings, found, tools), first]
    return rows + measure_line(settings)


_TOOLS: dict[str, type[Tool]] = {"cp": Cp, "curl": Curl, "rsync": Rsync}


def _rounds(settings: Settings, ways: dict[str, Way], target: Path) -> Found:
    found: Found = {name: [] for name in ways}
    for _ in settings.times(ROUNDS):
        for name, way in ways.items():
            settle()
            found[name].append(way())
            target.unlink(missing_ok=True)
    return found


# --- two processes of our own ---------------------------------------------------------------


def _pairs(
    settings: Settings, content: str, source: Path, target: Path, manifest: Path
) -> dict[str, Way]:
    room, size = str(target.parent), settings.big_bytes

    def way(send: str, sent: list[Any], receive: str, received: list[Any]) -> Way:
        return lambda: _transfer(settings, content, (send, sent), (receive, received))

    file, receiving = str(source), [str(target), size]
    return {
        "sealed": way("bulk_pipes.send_sealed", [file], "bulk_pipes.receive_sealed", receiving),
        "tls": way("bulk_pipes.send_tls", [file, room], "bulk_pipes.receive_tls", receiving),
        "planes": way("bulk_nodes.serve", [file], "bulk_nodes.fetch", [room, str(manifest)]),
    }


def _transfer(
    settings: Settings, content: str, send: tuple[str, list[Any]], receive: tuple[str, list[Any]]
) -> Transfer:
    env = environment(settings.directory)
    with ended(_start(env, *send)) as sender:
        assert sender.stdout is not None
        port = int(sender.stdout.readline())
        with ended(_start(env, receive[0], [port, *receive[1]])) as receiver:
            told, _ = receiver.communicate(timeout=CLIENT_S_MAX)
        said, _ = sender.communicate(timeout=CLIENT_S_MAX)
    done, gave = json.loads(told), json.loads(said)
    assert done["sha1"] == content, "the file that arrived is another one"
    return Transfer(
        done["seconds"],
        done["durable_s"],
        gave["transfer_cpu_s"],
        done["transfer_cpu_s"],
        gave["peak_mib"] or 0.0,
        done["peak_mib"] or 0.0,
    )


def _start(env: dict[str, str], function: str, arguments: list[Any]) -> subprocess.Popen[str]:
    with tempfile.TemporaryFile("w+") as file:
        json.dump(arguments, file)
        file.seek(0)
        command = [sys.executable, str(HERE / "child.py"), function]
        return subprocess.Popen(command, env=env, stdin=file, stdout=subprocess.PIPE, text=True)


# --- rows -------------------------------------------------------------------------------------


def _rows(settings: Settings, found: Found) -> list[Row]:
    size = f"{settings.big_bytes // MIB:,} MiB"
    limit = found["sealed"]
    return [
        _row(settings, f"limit: {size}, AES-256-GCM frames, verified, written", limit),
        _durable_row(settings, "limit + fsync", limit),
        _row(settings, "limit over TLS 1.3 by `ssl`", found["tls"], _cpu_text(found["tls"], limit)),
        _planes_row(settings, f"two bulk planes: {size}, verified, written", found),
        _durable_row(settings, "two bulk planes + fsync", found["planes"], limit),
        _nodes_row(settings, f"two nodes: {size}, request to durable file", found),
    ]


def _planes_row(settings: Settings, what: str, found: Found) -> Row:
    planes, limit, tls = found["planes"], found["sealed"], found["tls"]
    part = _part(planes, limit, "verified_s")
    against = [f"{figure(part)}x limit", f"{figure(_part(planes, tls, 'verified_s'))}x TLS"]
    budgets = [at_least(LIMIT_PART_MIN, part, "x limit")]
    if "curl" in found:
        part_curl = _part(planes, found["curl"], "verified_s")
        against.append(f"{figure(part_curl)}x nginx + curl")
        budgets.append(at_least(CURL_PART_MIN, part_curl, "x nginx + curl"))
    against.append(_cpu_text(planes, limit))
    return _row(settings, what, planes, ", ".join(against), "; ".join(budgets))


def _nodes_row(settings: Settings, what: str, found: Found) -> Row:
    both, limit = found["nodes"], found["sealed"]
    part = _part(both, limit, "durable_s")
    cpu = sample([one.cpu_s for one in both], "s").median * 1024 * MIB / settings.big_bytes
    peak = max(max(one.sender_peak_mib, one.receiver_peak_mib) for one in both)
    budgets = [
        at_least(DURABLE_PART_MIN, part, "x limit + fsync"),
        at_most(CPU_S_PER_GIB_MAX, cpu, "CPU s per GiB"),
        at_most(PEAK_MIB_MAX, peak, "MiB"),
    ]
    against = f"{figure(part)}x limit + fsync, {_cpu_text(both, limit)}"
    return _row(settings, what, both, against, "; ".join(budgets))


def _tool_rows(settings: Settings, found: Found, tools: dict[str, Tool]) -> list[Row]:
    what = {
        "cp": "`cp`, written",
        "curl": "`curl` from nginx over TLS 1.3, written, not verified",
        "rsync": "`rsync` from its daemon, not encrypted, written",
    }
    return [
        Row(what[name], sample([], ""), tool.why_not)
        if tool.why_not
        else _row(settings, what[name], found[name], _cpu_text(found[name], found["sealed"]))
        for name, tool in tools.items()
    ]


def _first_row(settings: Settings, pair: Nodes) -> Row:
    times = pair.first_bytes_s(settings, len(settings.times(FIRST_FILES)))
    what = f"request to first verified byte of {FIRST_FILE_BYTES // MIB} MiB, warm connection"
    return Row(what, sample(times, "ms", 1e3))


def _part(ours: list[Transfer], others: list[Transfer], which: str) -> float:
    """The median over rounds of how fast ours is, against the other in the same round."""
    parts = [getattr(b, which) / getattr(a, which) for a, b in zip(ours, others, strict=True)]
    return sample(parts, "x").median


def _cpu_text(ours: list[Transfer], limit: list[Transfer]) -> str:
    """How much processor time it takes, against the limit in the same round."""
    parts = [one.cpu_s / other.cpu_s for one, other in zip(ours, limit, strict=True)]
    return f"{figure(sample(parts, 'x').median)}x its CPU"


def _row(
    settings: Settings, what: str, runs: list[Transfer], against: str = "", budget: str = ""
) -> Row:
    sent = median_text([one.sender_cpu_s for one in runs])
    received = median_text([one.receiver_cpu_s for one in runs])
    peaks = [max(one.sender_peak_mib for one in runs), max(one.receiver_peak_mib for one in runs)]
    mib = settings.big_bytes / MIB
    return Row(
        what,
        sample([mib / one.verified_s for one in runs], "MiB/s"),
        against,
        cpu=f"{sent} sending + {received} receiving",
        peak=" / ".join(figure(peak) if peak else "-" for peak in peaks),
        budget=budget,
    )


def _durable_row(
    settings: Settings, what: str, runs: list[Transfer], limit: list[Transfer] | None = None
) -> Row:
    mib = settings.big_bytes / MIB
    row = Row(what, sample([mib / one.durable_s for one in runs], "MiB/s"))
    if limit is None:
        return row
    part = _part(runs, limit, "durable_s")
    return row._replace(
        against=f"{figure(part)}x limit + fsync",
        budget=at_least(DURABLE_PART_MIN, part, "x limit + fsync"),
    )
