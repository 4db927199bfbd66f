"""The benchmarks still run; what they measure is for `make bench` to say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_quick_benchmark_prints_one_table_and_leaves_nothing_behind() -> None:
    before = set(ROOT.glob(".bench/*"))
    done = subprocess.run(
        [sys.executable, "tests/benchmarks/run.py", "--quick", "startup", "store"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert table[0].startswith("| what ")
    assert len({line.count("|") for line in table}) == 1
    assert any("`kachery-p2p load` of a stored file" in line for line in table)
    assert any("`store_text`" in line for line in table)
    assert set(ROOT.glob(".bench/*")) <= before
