"""libp2p without its host: quicker to import, and whole again for whoever asks later."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kachery_p2p.network.lean_import import empty_packages


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_daemon_imports_the_link_without_libp2ps_host() -> None:
    code = """
import sys
from kachery_p2p.node.node import _import_host
open_link = _import_host()
assert open_link.__module__ == "kachery_p2p.network.libp2p_host"
print("libp2p.host.basic_host" in sys.modules)
"""
    assert python(code) == "False"


def test_libp2p_is_whole_for_whoever_imports_it_afterwards() -> None:
    code = """
from kachery_p2p.node.node import _import_host
_import_host()
from libp2p import new_host
print(callable(new_host))
"""
    assert python(code) == "True"


def test_a_package_that_is_imported_already_stays_as_it_is() -> None:
    import json

    with empty_packages(("json",)):
        assert sys.modules["json"] is json
    assert sys.modules["json"] is json


def test_a_package_that_does_not_exist_is_said() -> None:
    with pytest.raises(ModuleNotFoundError), empty_packages(("no_such_package",)):
        pass
