"""What the repository says about itself is true, and nothing of one computer is written into it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import kachery_p2p.version

ROOT = Path(__file__).parents[2]

# Written in pieces, so that this file passes its own test.
OF_ONE_COMPUTER = re.compile(
    "|".join(
        [
            "/" + r"work/(main|shared|\.library)",
            "/" + "opt/(kp|pypi|wheels)",
            "/" + r"root/",
            "pypi" + r"\.org",
            "python" + r"hosted\.org",
            "npm" + r"js\.(org|com)",
            "debian" + r"\.org",
            "proxy" + r"\.golang",
            "crates" + r"\.io",
        ]
    )
)


def repository_files() -> list[Path]:
    """Every file that is, or would be, committed; all but hidden ones where there is no git."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode == 0:
        paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        paths = [
            p for p in ROOT.rglob("*") if not any(n[0] == "." for n in p.relative_to(ROOT).parts)
        ]
    return [path for path in paths if path.is_file()]


def test_no_file_names_a_path_of_one_computer_or_the_host_of_a_registry() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in repository_files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if OF_ONE_COMPUTER.search(line)
    ]
    assert found == []


def test_the_version_is_written_once() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert pyproject["project"]["dynamic"] == ["version"]
    assert pyproject["tool"]["hatch"]["version"] == {"path": "kachery_p2p/version.py"}
    written = [
        path
        for path in (ROOT / "kachery_p2p").rglob("*.py")
        if kachery_p2p.version.__version__ in path.read_text()
    ]
    assert [path.name for path in written] == ["version.py"]


def test_the_build_reads_the_version() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "hatchling", "metadata"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    assert json.loads(told)["version"] == kachery_p2p.version.__version__


def test_the_license_is_the_one_that_pyproject_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "LICENSE").read_text()
    assert (project["license"], project["license-files"]) == ("Apache-2.0", ["LICENSE"])
    assert "Apache License" in text[:100]
    assert "END OF TERMS AND CONDITIONS" in text


def test_every_marker_that_is_left_out_by_default_has_a_target() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    left_out = set(re.findall(r"not (\w+)", options["addopts"]))
    assert left_out == {"fuzz", "soak"}
    assert left_out < {marker.partition(":")[0] for marker in options["markers"]}
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"pytest -m {marker}" in makefile for marker in left_out)
