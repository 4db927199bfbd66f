"""`install` makes the three names those of this room, in this process, and `uninstall` ends it."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kachery_p2p.compat
from kachery_p2p.compat.finder import SUBMODULES
from kachery_p2p.errors import ServiceGoneError

PACKAGES = ("kachery", "kachery_client", "kachery_cloud")


@pytest.fixture
def installed() -> Iterator[None]:
    kachery_p2p.compat.install()
    yield
    kachery_p2p.compat.uninstall()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", PACKAGES)
def test_the_names_are_those_of_our_module(name: str) -> None:
    package = importlib.import_module(name)
    ours = importlib.import_module(f"kachery_p2p.compat.{name}")
    assert package is not ours
    assert package.__name__ == name
    for public in ours.__all__:
        assert getattr(package, public) is getattr(ours, public)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    "name", [f"{package}.{name}" for package in PACKAGES for name in SUBMODULES[package]]
)
def test_submodules_are_imported_and_leave_the_functions_alone(name: str) -> None:
    package, _, submodule = name.partition(".")
    assert isinstance(importlib.import_module(name), types.ModuleType)
    found = getattr(importlib.import_module(package), submodule.partition(".")[0])
    ours = importlib.import_module(f"kachery_p2p.compat.{package}")
    assert isinstance(found, types.ModuleType) != (submodule.partition(".")[0] in vars(ours))


def test_names_that_were_imported_before_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    original = types.ModuleType("kachery_cloud")
    monkeypatch.setitem(sys.modules, "kachery_cloud", original)
    kachery_p2p.compat.install()
    kachery_p2p.compat.install()
    assert importlib.import_module("kachery_cloud") is not original
    kachery_p2p.compat.uninstall()
    kachery_p2p.compat.uninstall()
    assert sys.modules["kachery_cloud"] is original


def test_without_install_nothing_is_found() -> None:
    code = "import kachery_p2p.compat, importlib.util as u; print(u.find_spec('kachery_client'))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "None\n"


@pytest.mark.usefixtures("installed")
def test_a_name_that_is_gone_says_why() -> None:
    client: Any = importlib.import_module("kachery_client")
    with pytest.raises(AttributeError, match="tasks are not part of this version"):
        client.taskfunction  # noqa: B018
    cloud: Any = importlib.import_module("kachery_cloud")
    with pytest.raises(AttributeError, match="kachery-p2p share"):
        cloud.share_local_files_experimental  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'$"):
        cloud.nonsense  # noqa: B018


def test_what_only_a_server_could_do_says_what_to_use_instead() -> None:
    from kachery_p2p.compat import kachery_cloud as kcl

    calls: tuple[Callable[[], object], ...] = (
        lambda: kcl.set_mutable("k", "v"),
        lambda: kcl.get_mutable("k"),
        lambda: kcl.delete_mutable("k"),
        lambda: kcl.delete_mutable_folder("k"),
        lambda: kcl.decrypt_uri("sha1-enc://x.ag_g"),
        lambda: kcl.admin_delete_file("sha1://x"),
        lambda: kcl.initiate_zenodo_upload(),
        lambda: kcl.load_file("jot://x"),
        lambda: kcl.load_file("sha1-enc://abc.ag_group"),
    )
    for call in calls:
        with pytest.raises(ServiceGoneError) as caught:
            call()
        assert caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "code", "stdout"),
    [
        (["-c", "import kachery; print(kachery.__name__)"], 0, "kachery\n"),
        (["-m", "json.tool", "--help"], 0, None),
        (["-c", "raise SystemExit(7)"], 7, ""),
        (["-c", "import sys; print(sys.argv)", "a"], 0, "['-c', 'a']\n"),
        (["missing.py"], 2, ""),
        ([], 2, ""),
        (["--nonsense"], 2, ""),
        (["--help"], 0, None),
    ],
)
def test_programs_are_run_as_python_runs_them(
    arguments: list[str], code: int, stdout: str | None, home: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kachery_p2p.compat", *arguments],
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert stdout is None or done.stdout == stdout


def test_importing_the_packages_is_light() -> None:
    heavy = {"trio", "libp2p", "numpy", "cryptography", "msgpack", "asyncio", "sqlite3"}
    code = (
        "import kachery_p2p.compat as c; c.install(); import kachery, kachery_client, kachery_cloud"
    )
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    modules = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "kachery_p2p.compat.finder" in modules
    assert not modules & heavy
