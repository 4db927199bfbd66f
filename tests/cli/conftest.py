"""A shell of its own for each test: real processes, with directories that nobody else uses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


class Shell:
    """Runs `kachery-p2p` with directories of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("KACHERY")},
            "KACHERY_STORAGE_DIR": str(directory / "store"),
            "KACHERY_P2P_CONFIG_DIR": str(directory / "config"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PYTHONWARNINGS": "error",
        }

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kachery_p2p", *arguments],
            cwd=self.directory,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def answer(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.removesuffix("\n")

    def fails(self, code: int, *arguments: str, **environment: str) -> str:
        """stderr of a command that must fail so: one error line, one hint at most, no stdout."""
        done = self.run(*arguments, **environment)
        lines = done.stderr.splitlines()
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert 1 <= len(lines) <= 2, done.stderr
        assert lines[0].startswith("kachery-p2p: error: ")
        assert all(line.startswith("kachery-p2p: hint: ") for line in lines[1:])
        assert "bug" not in done.stderr
        return done.stderr


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def stored(shell: Shell) -> str:
    (shell.directory / "a.txt").write_bytes(b"0123456789\n")
    return shell.answer("store", "a.txt")
