"""Appending to a Merkle log: no disk, no signature, only the tree."""

from __future__ import annotations

import hashlib
import time

from settings import Settings
from table import Row, at_least, figure, sample

from kachery_p2p.log.tree import Frontier

LEAVES_A_SECOND_MIN = 500_000
BATCH = 1_000


def measure(settings: Settings) -> list[Row]:
    """Leaves a second, in batches, against a loop that only hashes as often."""
    leaves = [number.to_bytes(32, "big") for number in range(settings.calls(200_000))]
    appended, hashed = [], []
    for _ in settings.times(7):
        appended.append(len(leaves) / _append(leaves))
        hashed.append(len(leaves) / _hash(leaves))
    ours, bare = sample(appended, "leaves/s"), sample(hashed, "hashes/s")
    return [
        Row("bare loop of SHA-256 over 65 bytes", bare),
        Row(
            f"log append, batches of {BATCH:,} leaf hashes",
            ours,
            f"{figure(ours.median / bare.median)}x the bare loop",
            budget=at_least(LEAVES_A_SECOND_MIN, ours.median, "leaves/s"),
        ),
    ]


def _append(leaves: list[bytes]) -> float:
    frontier = Frontier()
    began = time.perf_counter()
    for start in range(0, len(leaves), BATCH):
        frontier = frontier.extended(leaves[start : start + BATCH]).frontier
    return time.perf_counter() - began


def _hash(leaves: list[bytes]) -> float:
    sha256 = hashlib.sha256
    began = time.perf_counter()
    for leaf in leaves:
        sha256(b"\1" + leaf + leaf).digest()
    return time.perf_counter() - began
