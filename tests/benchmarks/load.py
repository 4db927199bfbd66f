"""Loading from another node over loopback: what one asks for, the other has."""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

from node import new_secret
from processes import NodeProcess, child, child_running, environment, run
from settings import MIB, Settings, settle
from table import Row, at_least, figure, median_text, sample

from kachery_p2p.client.daemon import UnixDaemon

SMALL_FILE_CHARS = 4096
MEET_S_MAX = 30.0
BATCHES_RATIO_MIN = 0.8
# What was stored is announced half a second later.
ANNOUNCED_S = 1.5


class Pair(NamedTuple):
    """Two nodes that know each other."""

    alice: NodeProcess
    bob: NodeProcess

    def cpu_s(self) -> tuple[float, float]:
        return self.alice.cpu_s(), self.bob.cpu_s()

    def stop(self) -> None:
        self.alice.stop()
        self.bob.stop()


def measure(settings: Settings) -> list[Row]:
    """One big file, many small ones, and what the two nodes needed for them."""
    room = settings.room("load")
    secret = new_secret()
    pair = Pair(NodeProcess(room / "alice", secret), NodeProcess(room / "bob", secret))
    try:
        pair.alice.start()
        pair.bob.start("--bootstrap", pair.alice.address)
        wait_for_peer(pair.bob)
        rows = _big_file(settings, pair) + _small_files(settings, pair)
        return rows + _in_batches(settings, pair, secret) + _peaks(pair)
    finally:
        pair.stop()


def wait_for_peer(node: NodeProcess) -> None:
    """Return when the node is connected with another one."""
    deadline = time.monotonic() + MEET_S_MAX
    daemon = UnixDaemon(str(node.config_dir))
    while not daemon.call("status", {})[0]["peers"]:
        if time.monotonic() > deadline:
            raise TimeoutError("the nodes did not find each other")
        time.sleep(0.02)
    daemon.close()


# --- one big file -------------------------------------------------------------------------


def _big_file(settings: Settings, pair: Pair) -> list[Row]:
    source = settings.random_file("load-source")
    with source.open("rb") as file:
        content = hashlib.file_digest(file, "sha1").hexdigest()
    uri = child(pair.alice.environment, "clients.store_file", str(source))["uri"]
    assert content in uri
    loads, bare, copies = [], [], []
    for _ in settings.times(3):
        loads.append(_load_cold(pair, [uri]))
        settle()
        bare.append(_pipeline(settings, source, content))
        settle()
        copies.append(_copy(settings, source))
    source.unlink()
    return _big_rows(settings, loads, bare, copies)


class Load(NamedTuple):
    """A load of files that the receiver did not have, and what it cost all three processes."""

    seconds: float
    giver_cpu_s: float
    taker_cpu_s: float


def _load_cold(pair: Pair, uris: list[str]) -> Load:
    settle()
    before = pair.cpu_s()
    done = child(pair.bob.environment, "clients.load_files", uris)
    after = pair.cpu_s()
    for uri, path in zip(uris, done["paths"], strict=True):
        _check(uri, Path(path))
        Path(path).unlink()
    return Load(done["seconds"], after[0] - before[0], after[1] - before[1] + done["cpu_s"])


def _check(uri: str, path: Path) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha1").hexdigest()
    assert found in uri, "the file that was loaded is another one"


def _pipeline(settings: Settings, source: Path, content: str) -> dict[str, Any]:
    """A bare socket, not encrypted, with the hashes and the writing that a load needs."""
    env = environment(settings.directory)
    target = settings.directory / "pipeline-target"
    with child_running(env, "bare.send", str(source)) as port:
        done = child(env, "bare.receive", int(port), str(target))
    assert done["sha1"] == content
    target.unlink()
    return done


def _copy(settings: Settings, source: Path) -> float:
    target = settings.directory / "copy-target"
    seconds = run(["cp", str(source), str(target)], os.environ).seconds
    target.unlink()
    return seconds


def _big_rows(
    settings: Settings, loads: list[Load], bare: list[dict[str, Any]], copies: list[float]
) -> list[Row]:
    mib = settings.big_bytes / MIB
    loaded = sample([mib / one.seconds for one in loads], "MiB/s")
    limit = sample([mib / one["seconds"] for one in bare], "MiB/s")
    durable = sample([mib / one["durable_s"] for one in bare], "MiB/s")
    copied = sample([mib / seconds for seconds in copies], "MiB/s")
    receiver = f"receiver {median_text([one['cpu_s'] for one in bare])}"
    giver = median_text([one.giver_cpu_s for one in loads])
    taker = median_text([one.taker_cpu_s for one in loads])
    return [
        Row(f"`cp` of {mib:,.0f} MiB, not synced", copied),
        Row("limit pipeline: socket, SHA-1, BLAKE3, write", limit, cpu=receiver),
        Row("limit pipeline + fsync", durable),
        Row(
            f"`load_file` of {mib:,.0f} MiB from another node, durable",
            loaded,
            f"{figure(loaded.median / durable.median)}x limit + fsync, "
            f"{figure(loaded.median / copied.median)}x cp",
            f"{giver} giving + {taker} taking",
        ),
    ]


# --- small files ----------------------------------------------------------------------------


def _small_files(settings: Settings, pair: Pair) -> list[Row]:
    texts = [f"{number:04d}".ljust(SMALL_FILE_CHARS, "x") for number in range(settings.texts)]
    stored = child(pair.alice.environment, "clients.store_texts", texts)
    loads = [_load_cold(pair, stored["uris"]) for _ in settings.times(2)]
    count = settings.texts
    rate = sample([count / load.seconds for load in loads], "files/s")
    giver = median_text([load.giver_cpu_s for load in loads])
    taker = median_text([load.taker_cpu_s for load in loads])
    ms = 1e3 * statistics.median(load.seconds for load in loads) / count
    return [
        Row(
            f"`store_text` of 4 KiB, {count:,} one by one, with a daemon",
            sample([count / stored["seconds"]], "files/s"),
            cpu=figure(stored["cpu_s"]),
        ),
        Row(
            f"`load_file` of 4 KiB from another node, {count:,} one by one, durable",
            rate,
            f"{figure(ms)} ms each",
            f"{giver} giving + {taker} taking",
        ),
    ]


class Batch(NamedTuple):
    """A load of thousands of small files into a store that has nothing."""

    load: Load
    peak_mib: float | None


def _in_batches(settings: Settings, pair: Pair, secret: str) -> list[Row]:
    """`load_files`, turn by turn with a loop that does the same to the disk and nothing else."""
    count = settings.group
    batches, bare, bare_cpu = [], [], []
    # Nothing is removed before the end: ext4 makes no new file in the place of one that was removed
    # in the last minutes, and looks at each of these for every file that it makes.
    room = settings.room("batches")
    for number in settings.times(5):
        texts = [f"{number} {index:05d}".ljust(SMALL_FILE_CHARS, "x") for index in range(count)]
        uris = child(pair.alice.environment, "load_clients.store_shared", texts)["uris"]
        directory = room / f"bare-{number}"
        settle()
        done = child(environment(directory), "bare.store_group", texts, str(directory))
        bare.append(done["seconds"])
        bare_cpu.append(done["cpu_s"])
        taker = NodeProcess(room / f"taker-{number}", secret)
        try:
            taker.start("--bootstrap", pair.alice.address)
            wait_for_peer(taker)
            batches.append(_load_batch(Pair(pair.alice, taker), uris))
        finally:
            taker.stop()
    return _batch_rows(count, batches, bare, bare_cpu)


def _load_batch(pair: Pair, uris: list[str]) -> Batch:
    # So that what was stored last has been announced, as most of what is loaded has.
    time.sleep(ANNOUNCED_S)
    settle()
    before = pair.cpu_s()
    done = child(pair.bob.environment, "load_clients.load_many", uris)
    after = pair.cpu_s()
    for uri, path in zip(uris, done["paths"], strict=True):
        _check(uri, Path(path))
    load = Load(done["seconds"], after[0] - before[0], after[1] - before[1] + done["cpu_s"])
    return Batch(load, pair.bob.peak_mib())


def _batch_rows(
    count: int, batches: list[Batch], bare: list[float], bare_cpu: list[float]
) -> list[Row]:
    loaded = sample([count / one.load.seconds for one in batches], "files/s")
    limit = sample([count / seconds for seconds in bare], "files/s")
    ratio = loaded.median / limit.median
    giver = median_text([one.load.giver_cpu_s for one in batches])
    taker = median_text([one.load.taker_cpu_s for one in batches])
    peaks = [one.peak_mib for one in batches if one.peak_mib is not None]
    return [
        Row(
            f"bare loop, {count:,} texts of 4 KiB as a group, same calls for objects",
            limit,
            cpu=median_text(bare_cpu),
        ),
        Row(
            f"`load_files` of {count:,} of 4 KiB from another node, durable in groups",
            loaded,
            f"{figure(ratio)}x the bare loop",
            f"{giver} giving + {taker} taking",
            median_text(peaks),
            budget=at_least(BATCHES_RATIO_MIN, ratio, "x") + " (aim 5,000 files/s)",
        ),
    ]


def _peaks(pair: Pair) -> list[Row]:
    """The memory of both nodes after all of this."""
    told = {"giving": pair.alice.peak_mib(), "taking": pair.bob.peak_mib()}
    return [
        Row(f"peak memory of the {name} node", sample([peak], "MiB"), peak=figure(peak))
        for name, peak in told.items()
        if peak is not None
    ]
