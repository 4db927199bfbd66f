"""Storing on this computer, and finding what is stored: no daemon runs, but in one row."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from processes import NodeProcess, child, environment, run
from settings import MIB, Settings, settle
from table import Row, at_least, at_most, figure, median_text, sample

from kachery_p2p.channels.channel import generate_secret

STORE_RATIO_MAX = 1.5
PEAK_MIB_MAX = 100
TEXTS_RATIO_MIN = 0.8
SHARED_TEXTS_PER_S_MIN = 1000
FIND_US_MAX = 20
RANGE_US_MAX = 50
ROUNDS = 7
COPY = 'cp "$1" "$2" && sync "$2"'


def measure(settings: Settings) -> list[Row]:
    """Big files, many texts, and lookups."""
    room = settings.room("store")
    rows, uri, env = _big_files(settings, room)
    rows += _lookups(settings, uri, env)
    shutil.rmtree(room)
    room.mkdir()
    return rows + _texts(settings, room) + _group(settings, room) + _shared(settings, room)


def _big_files(settings: Settings, room: Path) -> tuple[list[Row], str, dict[str, str]]:
    stored: list[dict[str, Any]] = []
    copied, copy_cpu = [], []
    env = environment(room / "0")
    for number in settings.times(3):
        source = settings.random_file(f"store-source-{number}")
        copy = room / "copy"
        settle()
        done = run(["sh", "-c", COPY, "sh", str(source), str(copy)], env)
        copied.append(done.seconds)
        copy_cpu.append(done.cpu_s)
        copy.unlink()
        settle()
        shutil.rmtree(room / str(number - 1), ignore_errors=True)
        (room / str(number)).mkdir()
        env = environment(room / str(number))
        stored.append(child(env, "clients.store_file", str(source)))
        source.unlink()
    return _big_rows(settings, stored, copied, copy_cpu), stored[-1]["uri"], env


def _big_rows(
    settings: Settings, stored: list[dict[str, Any]], copied: list[float], copy_cpu: list[float]
) -> list[Row]:
    size = f"{settings.big_bytes // MIB:,} MiB"
    seconds = sample([one["seconds"] for one in stored], "s")
    again = sample([one["again_s"] for one in stored], "ms", 1e3)
    copy = sample(copied, "s")
    ratio = seconds.median / copy.median
    peaks = [one["peak_mib"] for one in stored if one["peak_mib"] is not None]
    peak = max(peaks, default=0.0)
    return [
        Row(f"`cp` + `sync` of {size}", copy, cpu=median_text(copy_cpu)),
        Row(
            f"`store_file` of {size}, durable",
            seconds,
            f"{figure(ratio)}x the time of cp + sync",
            median_text([one["cpu_s"] for one in stored]),
            figure(peak) if peaks else "",
            f"{at_most(STORE_RATIO_MAX, ratio, 'x')}; {at_most(PEAK_MIB_MAX, peak, 'MiB')}",
        ),
        Row(f"`store_file` of {size} again, unchanged", again, budget="instant"),
    ]


def _lookups(settings: Settings, uri: str, env: dict[str, str]) -> list[Row]:
    calls = settings.calls(2000)
    found = sample(child(env, "clients.find_stored", uri, calls)["seconds"], "us", 1e6)
    ranges = child(env, "clients.read_ranges", uri, settings.big_bytes, calls)
    read = sample(ranges["seconds"], "us", 1e6)
    return [
        Row(
            "`load_file` of a stored file, a call",
            found,
            budget=at_most(FIND_US_MAX, found.median, "us"),
        ),
        Row(
            "`load_bytes` of 4 KiB of a stored file, a call",
            read,
            budget=at_most(RANGE_US_MAX, read.median, "us"),
        ),
    ]


def _texts(settings: Settings, room: Path) -> list[Row]:
    return _against_bare(
        settings.times(ROUNDS),
        room / "one-by-one",
        settings.texts,
        ("bare.store_texts", "bare loop, {} texts, the same system calls"),
        ("clients.store_texts", "`store_text`, {} texts one by one, durable"),
    )


def _group(settings: Settings, room: Path) -> list[Row]:
    return _against_bare(
        settings.times(ROUNDS),
        room / "group",
        settings.group,
        ("bare.store_group", "bare loop, {} texts as a group, the same system calls"),
        ("clients.store_group", "`put_many`, {} texts as a group, durable"),
    )


def _shared(settings: Settings, room: Path) -> list[Row]:
    """Texts stored while the daemon runs: on disk, and granted, when each call returns."""
    node = NodeProcess(room / "node", generate_secret(os.urandom(20)))
    rates, cpu, of_node = [], [], []
    try:
        node.start()
        for number in settings.times(3):
            texts = [f"shared {number} {index}" * 20 for index in range(settings.texts)]
            settle()
            before = node.cpu_s()
            done = child(node.environment, "clients.store_texts", texts)
            rates.append(len(texts) / done["seconds"])
            cpu.append(done["cpu_s"])
            of_node.append(node.cpu_s() - before)
    finally:
        node.stop()
    rate = sample(rates, "texts/s")
    return [
        Row(
            f"`store_text`, {settings.texts:,} texts one by one, shared by a daemon that runs",
            rate,
            cpu=f"{median_text(cpu)}, node {median_text(of_node)}",
            budget=at_least(SHARED_TEXTS_PER_S_MIN, rate.median, "texts/s"),
        )
    ]


def _against_bare(
    times: range, room: Path, count: int, bare: tuple[str, str], ours: tuple[str, str]
) -> list[Row]:
    """Texts a second of two functions, each with its name in the table, turn by turn.

    Each round has a ratio of its own, and the other of the two goes first in the next: how
    fast a disk syncs changes by the minute.
    """
    rates: dict[str, list[float]] = {bare[0]: [], ours[0]: []}
    cpu: dict[str, list[float]] = {bare[0]: [], ours[0]: []}
    for number in times:
        texts = [f"text {room.name} {number} {index}" * 20 for index in range(count)]
        for function in list(rates)[:: -1 if number % 2 else 1]:
            directory = room / f"{function}-{number}"
            directory.parent.mkdir(exist_ok=True)
            env = environment(directory)
            more = [str(directory)] if function == bare[0] else []
            if not more:
                directory.mkdir()
            settle()
            done = child(env, function, texts, *more)
            rates[function].append(count / done["seconds"])
            cpu[function].append(done["cpu_s"])
    ratio = sample([a / b for a, b in zip(rates[ours[0]], rates[bare[0]], strict=True)], "")
    return [
        Row(
            bare[1].format(f"{count:,}"),
            sample(rates[bare[0]], "texts/s"),
            cpu=median_text(cpu[bare[0]]),
        ),
        Row(
            ours[1].format(f"{count:,}"),
            sample(rates[ours[0]], "texts/s"),
            f"{ratio} of the bare loop",
            median_text(cpu[ours[0]]),
            budget=at_least(TEXTS_RATIO_MIN, ratio.median, "x"),
        ),
    ]
