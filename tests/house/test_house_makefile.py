"""What a person types in a fresh checkout says what it does, and what is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = {"help", "install", "demo", "test", "check", "bench", "fuzz", "soak", "lock", "clean"} | {
    "compat-live"
}

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str, cwd: Path = ROOT) -> str:
    """What `make` prints. It is given none of the settings of a `make test` around this test."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", *arguments],
        cwd=cwd,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout


def preflight(python: str | Path, **environment: str) -> tuple[int, list[str]]:
    """The exit code of bootstrap/preflight.sh, and the lines it prints."""
    done = subprocess.run(
        ["sh", str(ROOT / "bootstrap/preflight.sh"), str(python)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


def script(path: Path, text: str) -> Path:
    """An executable shell script at `path`."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@needs_make
def test_help_lists_every_target_on_one_line() -> None:
    lines = make("help").splitlines()
    assert {line.split()[1] for line in lines} == TARGETS
    assert all(re.fullmatch(r"make [a-z-]+ +\S.*", line) and len(line) <= 110 for line in lines)


@needs_make
def test_make_alone_is_help_wherever_it_is_called(tmp_path: Path) -> None:
    assert make() == make("help") == make("-f", str(ROOT / "Makefile"), cwd=tmp_path)


@needs_make
def test_each_target_that_runs_something_installs_first() -> None:
    for target in ("demo", "test", "check", "bench", "fuzz", "soak"):
        planned = make("--dry-run", "--always-make", target)
        assert "-r requirements-dev.txt" in planned, target


@needs_make
def test_nothing_is_installed_that_is_not_locked() -> None:
    planned = make("--dry-run", "--always-make", "install").splitlines()
    installs = [line for line in planned if "pip install" in line]
    assert len(installs) == 3
    assert all("--require-hashes" in line or "--no-deps" in line for line in installs)
    assert all("--no-build-isolation" in line for line in installs[1:])


def test_continuous_integration_runs_the_command_of_the_readme() -> None:
    run = ROOT / ".ci/run"
    assert run.stat().st_mode & 0o111
    assert [line for line in run.read_text().splitlines() if line[:1].isalpha()][-1] == "make test"


def test_a_computer_that_can_build_passes_silently() -> None:
    assert preflight(sys.executable) == (0, [])


def test_a_missing_compiler_is_told_with_the_command_that_mends_it() -> None:
    code, lines = preflight(sys.executable, CC="no-such-compiler")
    assert code == 1
    assert lines[0].startswith("error: no C compiler was found")
    assert re.match(r"hint: (apt-get|brew) install ", lines[1])
    assert len(lines) == 2


@pytest.mark.parametrize("header", ["gmp", "Python"])
def test_missing_headers_are_told_with_the_command_that_mends_it(
    header: str, tmp_path: Path
) -> None:
    compiler = script(tmp_path / "cc", f'! grep -q "<{header}.h>" "$2"')
    code, lines = preflight(sys.executable, CC=str(compiler), CFLAGS="")
    assert code == 1
    assert lines[0].startswith("error: the headers of ")
    assert ("gmp were not found" in lines[0]) == (header == "gmp")
    assert re.match(r"hint: (apt-get|brew) install ", lines[1])


def test_an_old_python_is_told_its_version(tmp_path: Path) -> None:
    old = script(
        tmp_path / "python",
        'case "$*" in *version_info*) exit 1;; --version) echo Python 3.9.2;; esac',
    )
    code, lines = preflight(old)
    assert code == 1
    assert lines[0] == "error: Python 3.9.2 is too old, 3.11 or newer is needed"
    assert lines[1].startswith("hint: ")


def test_a_python_that_is_not_there_is_told() -> None:
    code, lines = preflight("no-such-python")
    assert code == 1
    assert lines[0] == "error: no python called no-such-python was found"
