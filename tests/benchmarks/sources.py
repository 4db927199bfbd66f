"""One file from one holder and from three: at full speed, and with each holder's line limited."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import NamedTuple

from load import MEET_S_MAX
from node import new_secret
from processes import NodeProcess, child
from settings import MIB, Settings, settle
from table import Row, at_least, at_most, figure, median_text, sample

from kachery_p2p.client.daemon import UnixDaemon

HOLDERS = 3
ROUNDS = 3
# Three are never slower than one: but for what two runs of the same differ.
THREE_PART_MIN = 0.95
# What three cost more than one, in processor time of all nodes together.
CPU_PART_MAX = 1.25
# Of each holder's line when it is limited, and how much of three such lines is used.
LIMIT_MIB_PER_S = 40
LIMITED_PART_MIN = 0.85


class Load(NamedTuple):
    """A load of the file that the receiver did not have, and what all nodes needed for it."""

    seconds: float
    giving_cpu_s: float
    taking_cpu_s: float

    @property
    def cpu_s(self) -> float:
        return self.giving_cpu_s + self.taking_cpu_s


class Town:
    """Holders of one file, which share a store, and a node that loads it."""

    def __init__(self, directory: Path, *options: str) -> None:
        directory.mkdir()
        secret = new_secret()
        self.holders = [NodeProcess(directory / f"holder{n}", secret) for n in range(HOLDERS)]
        for holder in self.holders[1:]:
            store = str(self.holders[0].storage_dir)
            holder.environment["KACHERY_STORAGE_DIR"] = store
        self.taker = NodeProcess(directory / "taker", secret)
        self._options = options

    def start(self) -> None:
        self.taker.start()
        for holder in self.holders:
            holder.start("--bootstrap", self.taker.address, *self._options)
        daemon = UnixDaemon(str(self.taker.config_dir))
        deadline = time.monotonic() + MEET_S_MAX
        while len(daemon.call("status", {})[0]["peers"]) < HOLDERS:
            if time.monotonic() > deadline:
                raise TimeoutError("the nodes did not find each other")
            time.sleep(0.02)
        daemon.close()

    def share(self, source: Path) -> str:
        """The file is in the store, hashed and granted by each holder."""
        uris = {
            child(holder.environment, "clients.store_file", str(source))["uri"]
            for holder in self.holders
        }
        (uri,) = uris
        return str(uri)

    def load(self, uri: str, content: str, node: str | None) -> Load:
        settle()
        before = self._cpu_s()
        done = child(self.taker.environment, "sources_clients.load_file", uri, node)
        after = self._cpu_s()
        with open(done["path"], "rb") as file:
            assert hashlib.file_digest(file, "sha1").hexdigest() == content
        os.unlink(done["path"])
        giving, taking = after[0] - before[0], after[1] - before[1] + done["cpu_s"]
        return Load(done["seconds"], giving, taking)

    def _cpu_s(self) -> tuple[float, float]:
        return sum(holder.cpu_s() for holder in self.holders), self.taker.cpu_s()

    def node_id(self) -> str:
        """The one holder, when only one is asked."""
        daemon = UnixDaemon(str(self.holders[0].config_dir))
        try:
            return str(daemon.call("status", {})[0]["node_id"])
        finally:
            daemon.close()

    def stop(self) -> None:
        for node in (*self.holders, self.taker):
            node.stop()


def measure(settings: Settings) -> list[Row]:
    """The same file from one holder and from three, in turns."""
    room = settings.room("sources")
    source = settings.random_file("sources-source")
    full_one, full_three = _both(settings, Town(room / "full"), source)
    # A quarter of it, as it takes its time.
    size = settings.big_bytes // 4
    os.truncate(source, size)
    options = ("--max-upload", f"{LIMIT_MIB_PER_S}MiB/s")
    slow_one, slow_three = _both(settings, Town(room / "limited", *options), source)
    source.unlink()
    full, slow = settings.big_bytes / MIB, size / MIB
    return [
        _row(f"`load_file` of {full:,.0f} MiB from one holder", full, full_one),
        _compared("the same from three holders", full, full_three, full_one),
        _row(f"{slow:,.0f} MiB from one holder limited to {LIMIT_MIB_PER_S} MiB/s", slow, slow_one),
        _limited("the same from three such holders", slow, slow_three, slow_one),
    ]


def _both(settings: Settings, town: Town, source: Path) -> tuple[list[Load], list[Load]]:
    with source.open("rb") as file:
        content = hashlib.file_digest(file, "sha1").hexdigest()
    one: list[Load] = []
    three: list[Load] = []
    try:
        town.start()
        uri = town.share(source)
        # Connections are made, and what is imported at the first load.
        town.load(uri, content, None)
        for _ in settings.times(ROUNDS):
            one.append(town.load(uri, content, town.node_id()))
            three.append(town.load(uri, content, None))
    finally:
        town.stop()
    return one, three


def _row(what: str, mib: float, loads: list[Load]) -> Row:
    rate = sample([mib / load.seconds for load in loads], "MiB/s")
    giving = median_text([load.giving_cpu_s for load in loads])
    taking = median_text([load.taking_cpu_s for load in loads])
    return Row(what, rate, cpu=f"{giving} giving + {taking} taking")


def _part(three: list[Load], one: list[Load]) -> float:
    """How many times as fast, the median of rounds."""
    parts = [b.seconds / a.seconds for a, b in zip(three, one, strict=True)]
    return sample(parts, "x").median


def _compared(what: str, mib: float, three: list[Load], one: list[Load]) -> Row:
    part = _part(three, one)
    cpu = sample([a.cpu_s / b.cpu_s for a, b in zip(three, one, strict=True)], "x").median
    return _row(what, mib, three)._replace(
        against=f"{figure(part)}x one, with {figure(cpu)}x its CPU",
        budget=f"{at_least(THREE_PART_MIN, part, 'x one')}; "
        f"{at_most(CPU_PART_MAX, cpu, 'x its CPU')}",
    )


def _limited(what: str, mib: float, three: list[Load], one: list[Load]) -> Row:
    part = _part(three, one)
    return _row(what, mib, three)._replace(
        against=f"{figure(part)}x one",
        budget=at_least(LIMITED_PART_MIN * HOLDERS, part, "x one"),
    )
