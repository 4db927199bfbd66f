"""The bulk plane beside what this computer could do at best, in interleaved rounds."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from processes import CLIENT_S_MAX, HERE, ended, environment
from settings import MIB, Settings, settle
from table import Row, at_least, at_most, figure, median_text, sample

from kachery_p2p.content.manifests import chunk_hash

ROUNDS = 5
LIMIT_PART_MIN = 0.9
DURABLE_PART_MIN = 0.8
CPU_S_PER_GIB_MAX = 2.5


class Transfer(NamedTuple):
    """One file from one process to another: seconds, processor seconds and memory of both."""

    verified_s: float
    durable_s: float
    sender_cpu_s: float
    receiver_cpu_s: float
    sender_peak_mib: float
    receiver_peak_mib: float


def measure(settings: Settings) -> list[Row]:
    """A big file between two processes: the limits, and the bulk plane."""
    room = settings.room("bulk")
    source = settings.random_file("bulk-source")
    content, hashes = _hashes(source, room / "hashes")
    target = str(room / "target")
    size = settings.big_bytes
    pairs = {
        "sealed": (("bulk_pipes.send_sealed", [str(source)]), ("bulk_pipes.receive_sealed", [])),
        "tls": (("bulk_pipes.send_tls", [str(source), str(room)]), ("bulk_pipes.receive_tls", [])),
        "ours": (("bulk_nodes.serve", [str(source)]), ("bulk_nodes.fetch", [hashes])),
    }
    found: dict[str, list[Transfer]] = {name: [] for name in pairs}
    for _ in settings.times(ROUNDS):
        for name, ((send, sent), (receive, received)) in pairs.items():
            settle()
            arguments = [target, size, *received]
            found[name].append(_transfer(settings, content, (send, sent), (receive, arguments)))
            os.unlink(target)
    source.unlink()
    return _rows(settings, found["sealed"], found["tls"], found["ours"])


def _hashes(source: Path, table: Path) -> tuple[str, str]:
    """The SHA-1 of the file, and where the BLAKE3 of each of its chunks is."""
    whole = hashlib.sha1(usedforsecurity=False)
    with source.open("rb") as file, table.open("wb") as hashes:
        while chunk := file.read(MIB):
            whole.update(chunk)
            hashes.write(chunk_hash(chunk))
    return whole.hexdigest(), str(table)


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


def _rows(
    settings: Settings, sealed: list[Transfer], tls: list[Transfer], ours: list[Transfer]
) -> list[Row]:
    mib = settings.big_bytes / MIB
    part, part_tls = _part(ours, sealed, "verified_s"), _part(ours, tls, "verified_s")
    durable = _part(ours, sealed, "durable_s")
    cpu = sorted(one.sender_cpu_s + one.receiver_cpu_s for one in ours)[len(ours) // 2]
    per_gib = cpu * 1024 / mib
    return [
        _row(f"limit: {mib:,.0f} MiB, AES-256-GCM frames, verified, written", sealed, mib, ""),
        _durable_row("limit + fsync", sealed, mib),
        _row("limit over TLS 1.3 by `ssl`", tls, mib, ""),
        _row(
            f"bulk plane: {mib:,.0f} MiB, verified, written",
            ours,
            mib,
            f"{figure(part)}x limit, {figure(part_tls)}x TLS",
            f"{at_least(LIMIT_PART_MIN, part, 'x limit')}; "
            f"{at_most(CPU_S_PER_GIB_MAX, per_gib, 'CPU s per GiB')}",
        ),
        _durable_row("bulk plane + fsync", ours, mib)._replace(
            against=f"{figure(durable)}x limit + fsync",
            budget=at_least(DURABLE_PART_MIN, durable, "x limit + fsync"),
        ),
    ]


def _part(ours: list[Transfer], others: list[Transfer], which: str) -> float:
    """The median over rounds of how fast ours is, against the other in the same round."""
    parts = [getattr(b, which) / getattr(a, which) for a, b in zip(ours, others, strict=True)]
    return sample(parts, "x").median


def _row(what: str, runs: list[Transfer], mib: float, against: str, budget: str = "") -> Row:
    sent = median_text([one.sender_cpu_s for one in runs])
    received = median_text([one.receiver_cpu_s for one in runs])
    peaks = [max(getattr(one, name) for one in runs) for name in Transfer._fields[4:]]
    return Row(
        what,
        sample([mib / one.verified_s for one in runs], "MiB/s"),
        against,
        cpu=f"{sent} sending + {received} receiving",
        peak=" / ".join(figure(peak) for peak in peaks),
        budget=budget,
    )


def _durable_row(what: str, runs: list[Transfer], mib: float) -> Row:
    return Row(what, sample([mib / one.durable_s for one in runs], "MiB/s"))
