"""A home of its own for each test, and programs that import the older packages."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kachery_p2p.compat import servers
from kachery_p2p.compat.calls import CLOUD_CALLS, KACHERY_2_CALLS

FIXTURES = Path(__file__).parent / "fixtures"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory, and no settings but where the store and the configuration are."""
    for name in [name for name in os.environ if name.startswith(("KACHERY_", "KBUCKET_"))]:
        monkeypatch.delenv(name)
    for name in ("SHA1_CACHE_DIR", "MD5_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KACHERY_STORAGE_DIR", str(tmp_path / "store"))
    monkeypatch.setenv("KACHERY_P2P_CONFIG_DIR", str(tmp_path / "config"))
    return tmp_path


@pytest.fixture(autouse=True)
def nothing_configured() -> Iterator[None]:
    """What a program sets for its own process is not left to the next test."""
    before = servers.get_config()
    yield
    servers._config.update(before)
    CLOUD_CALLS.backend = KACHERY_2_CALLS.backend = None


@pytest.fixture
def run(home: Path) -> Run:
    """Run a program through `python -m kachery_p2p.compat`, with variables of the environment."""

    def run_program(program: str, *arguments: str, **environment: str) -> object:
        path = home / "program.py"
        path.write_text(textwrap.dedent(program))
        done = subprocess.run(
            [sys.executable, "-m", "kachery_p2p.compat", str(path), *arguments],
            env=os.environ | environment,
            cwd=home,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done

    return run_program  # type: ignore[return-value]


@pytest.fixture
def fixtures() -> Path:
    """Small stores as the older packages laid them out."""
    return FIXTURES
