"""Measure the speeds that the documentation promises, and print them as one markdown table.

usage: run.py [--quick] [SUBJECT...]

Every figure is a median of several repetitions, and stands beside something that was
measured in the same run, because computers and their disks differ from day to day. The exit
code is 0 whatever the figures are: benchmarks print, tests assert. `--quick` only shows that
the benchmarks still run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import bucket
import bulk
import feeds
import idle
import load
import logs
import node
import opening
import sources
import startup
import store
from settings import Settings
from table import Row, markdown

ROOT = Path(__file__).resolve().parents[2]
SUBJECTS: dict[str, Callable[[Settings], list[Row]]] = {
    "startup": startup.measure,
    "node": node.measure,
    "store": store.measure,
    "load": load.measure,
    "bulk": bulk.measure,
    "opening": opening.measure,
    "sources": sources.measure,
    "logs": logs.measure,
    "feeds": feeds.measure,
    "bucket": bucket.measure,
    "idle": idle.measure_idle,
    "members": idle.measure_members,
}


def main() -> None:
    """Print the table. What goes on meanwhile goes to stderr."""
    parser = argparse.ArgumentParser(description="Measure kachery_p2p on this computer.")
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=", ".join(SUBJECTS))
    given = parser.parse_args()
    unknown = set(given.subjects) - set(SUBJECTS)
    if unknown:
        parser.error(f"no such subject: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with _directory() as directory:
        rows = _measure(Settings(directory, given.quick), given.subjects or list(SUBJECTS))
    print(_computer(), end="\n\n")
    print("\n".join(markdown(rows)))


def _measure(settings: Settings, subjects: list[str]) -> list[Row]:
    rows: list[Row] = []
    for name in subjects:
        began = time.monotonic()
        print(f"measuring {name} ...", end=" ", file=sys.stderr, flush=True)
        rows += SUBJECTS[name](settings)
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    return rows


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    """A directory on the disk of the repository (one in memory would flatter), gone at the end."""
    parent = ROOT / ".bench"
    parent.mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            parent.rmdir()


def _computer() -> str:
    load_1, _, _ = os.getloadavg()
    return (
        f"Python {platform.python_version()}, {platform.system()} {platform.release()}, "
        f"{os.cpu_count()} cores, load {load_1:.1f} at the end, {time.strftime('%Y-%m-%d')}"
    )


if __name__ == "__main__":
    main()
