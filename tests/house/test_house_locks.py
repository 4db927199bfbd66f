"""The locks hold every version with its hash, and say nothing about where to download from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements-build.txt", "requirements.txt", "requirements-dev.txt")
PIN = re.compile(r"([a-z0-9][a-z0-9.-]*)==([^ ;]+)")


def pins(lock: str) -> set[tuple[str, str]]:
    """The packages and versions that `lock` names."""
    lines = (ROOT / lock).read_text().splitlines()
    return {(found[1], found[2]) for line in lines if (found := PIN.match(line))}


def wanted(*requirements: str) -> set[str]:
    """The names of the packages in requirements such as `trio>=0.30`."""
    return {re.split(r"[^A-Za-z0-9.-]", text)[0].lower() for text in requirements}


def project() -> dict[str, dict[str, list[str]]]:
    """The tables `project`, `extras` and `groups` of pyproject.toml, as lists of requirements."""
    written = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return {
        "project": {"dependencies": written["project"]["dependencies"]},
        "extras": written["project"]["optional-dependencies"],
        "groups": written["dependency-groups"],
    }


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_address_and_no_path(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert not re.search(r"://|--index|--extra-index|--find-links|--trusted|^-[efirc] | @ |/", text)


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_of_a_lock_is_a_version_or_its_hash(lock: str) -> None:
    lines = (ROOT / lock).read_text().splitlines()
    code = [line for line in lines if not line.startswith("#")]
    assert code
    for line, following in zip(code, [*code[1:], ""], strict=True):
        if re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line):
            assert line.endswith("\\") == following.startswith("    --hash="), line
        else:
            assert PIN.match(line), line
            assert following.startswith("    --hash="), line


def test_libp2p_is_exactly_the_version_that_was_examined() -> None:
    assert ("libp2p", "0.8.1") in pins("requirements.txt")
    assert "libp2p==0.8.1" in project()["project"]["dependencies"]


def test_what_runs_is_tested_in_the_same_versions() -> None:
    assert pins("requirements.txt") <= pins("requirements-dev.txt")
    assert pins("requirements-build.txt") <= pins("requirements-dev.txt")


def test_the_locks_hold_what_pyproject_asks_for() -> None:
    asked = project()
    extras = (*asked["extras"]["progress"], *asked["extras"]["cloud"])
    run = wanted(*asked["project"]["dependencies"], *extras)
    dev = wanted(*asked["groups"]["dev"])
    build = wanted(*asked["groups"]["build"])
    assert run <= {name for name, _ in pins("requirements.txt")}
    assert run | dev | build <= {name for name, _ in pins("requirements-dev.txt")}
    assert build <= {name for name, _ in pins("requirements-build.txt")}


def test_what_only_tests_or_checks_is_not_installed_to_run() -> None:
    run = {name for name, _ in pins("requirements.txt")}
    assert not run & {"pytest", "mypy", "ruff", "hypothesis", "import-linter", "hatchling"}
