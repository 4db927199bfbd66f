"""Rooms know only the rooms below them, and what people wait for imports little."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kachery_p2p"

# Each of these costs between 6 ms and a second (measured), and a stored file needs none of them.
HEAVY = {
    "trio",
    "libp2p",
    "numpy",
    "cryptography",
    "msgpack",
    "asyncio",
    "tqdm",
    "importlib.metadata",
}

# What decides gets time, bytes and random numbers as arguments (ARCHITECTURE.md, "The rooms").
PURE = (
    "content/hashes",
    "content/uris",
    "content/manifests",
    "content/schemes",
    "content/chunk_lists",
    "content/directories",
    "content/strict_json",
    "identity/access_groups",
    "identity/sealed",
    "log/tree",
    "log/entries",
    "log/heads",
    "log/proofs",
    "log/forks",
    "log/rules",
    "channels/channel",
    "channels/membership",
    "channels/permissions",
    "channels/spelling",
    "channels/change_kinds",
    "channels/changes",
    "channels/roster",
    "channels/notices",
    "channels/history",
    "channels/keeper",
    "channels/invites",
    "channels/admission",
    "channels/succession",
    "wire/codec",
    "wire/messages",
    "wire/operations",
    "wire/conversation",
    "wire/fields",
    "wire/channel_operations",
    "wire/feed_operations",
    "wire/feed_records",
    "wire/admission",
    "wire/rendezvous",
    "network/memberships",
    "network/noticeboard",
    "network/neighbours",
    "network/prefixes",
    "network/allowance",
    "network/providers",
    "network/catalogue",
    "transfer/schedule",
    "transfer/chunk_set",
    "transfer/rates",
    "transfer/progress",
    "transfer/given",
    "transfer/source_queue",
    "bucket/urls",
    "bucket/layout",
    "wire/sealed",
    "wire/bulk_messages",
    "network/bulk_tickets",
    "feeds/names",
    "feeds/messages",
    "feeds/records",
    "feeds/tombstones",
    "feeds/told",
    "feeds/replica",
    "feeds/catchup",
    "wire/feed_messages",
    "wire/message_fields",
)
OUTSIDE_WORLD = {
    "asyncio",
    "datetime",
    "io",
    "logging",
    "os",
    "pathlib",
    "random",
    "secrets",
    "selectors",
    "shutil",
    "socket",
    "sqlite3",
    "ssl",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "trio",
}


def imports_of(path: Path) -> set[str]:
    """The modules that the file imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return found


def top_level(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def imported_by(*arguments: str, **environment: str) -> tuple[str, set[str]]:
    """What `python ARGUMENTS` prints, and every module that it imports until it ends."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    modules = re.findall(r"^import time:[ \d|]+\| +([\w.]+)$", done.stderr, re.MULTILINE)
    assert "kachery_p2p" in modules
    return done.stdout, set(modules)


def test_the_contracts_between_rooms_hold() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
        + ["--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_room_is_in_the_contract() -> None:
    written = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contract = written["tool"]["importlinter"]["contracts"][0]
    placed = [name.strip() for layer in contract["layers"] for name in layer.split("|")]
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert sorted(placed) == sorted(rooms | modules)


def test_one_file_knows_libp2p() -> None:
    knowing = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "libp2p" in top_level(imports_of(path))
    ]
    assert knowing == ["network/libp2p_host.py"]


@pytest.mark.parametrize("name", PURE)
def test_what_decides_touches_nothing_outside(name: str) -> None:
    assert not top_level(imports_of(PACKAGE / f"{name}.py")) & OUTSIDE_WORLD


def test_importing_the_package_is_light() -> None:
    _, modules = imported_by("-c", "import kachery_p2p")
    assert not modules & HEAVY


def test_loading_a_stored_file_is_light(tmp_path: Path) -> None:
    content = hashlib.sha1(b"recorded").hexdigest()
    stored = tmp_path.joinpath("store/sha1", content[:2], content[2:4], content[4:6], content)
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"recorded")
    output, modules = imported_by(
        *("-m", "kachery_p2p", "load", f"sha1://{content}/recorded.txt"),
        KACHERY_STORAGE_DIR=str(tmp_path / "store"),
        KACHERY_P2P_CONFIG_DIR=str(tmp_path / "config"),
    )
    assert output == f"{stored}\n"
    assert not modules & HEAVY


def test_the_command_and_the_module_are_the_same_program() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["kachery-p2p"].partition(":")
    assert f"{module}.{function}" in imports_of(PACKAGE / "__main__.py")
