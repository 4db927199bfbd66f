"""`make compat-live`: against the older packages as they are published, and npm's IPFS importer.

In a temporary directory, with Python's and npm's own package registries: the CIDs of
tests/content are made again, and stores are read both ways. Not part of `make test`, which
needs no registry. Prints a line for each thing that holds, and ends with 1 at the first that does
not.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
# The last of each. numpy 1, because kachery-cloud's own pickles do not load under numpy 2; and
# yaml, which kachery-cloud imports and does not ask for.
PACKAGES = (
    *("kachery==2.0.3", "kachery-cloud==0.4.10", "kachery-client==1.2.0"),
    *("numpy<2", "pyyaml", "setuptools<81"),
)
TIMEOUT_S = 600


def main() -> int:
    """Check everything; the exit code."""
    with tempfile.TemporaryDirectory(prefix="compat-live-") as directory:
        check_cids(Path(directory) / "npm")
        python = install_theirs(Path(directory) / "venv")
        check_we_read_theirs(python, Path(directory) / "theirs")
        check_they_read_ours(python, Path(directory) / "ours")
    return 0


def check_cids(directory: Path) -> None:
    """The vectors of tests/content/test_content_cids.py are those of npm's importer."""
    expected: dict[int, str] = vectors()
    if shutil.which("npm") is None:
        sys.exit("npm is not installed: the CIDs cannot be checked")
    directory.mkdir()
    for name in ("package.json", "cids.mjs"):
        shutil.copy(HERE / name, directory / name)
    run(["npm", "install", "--no-audit", "--no-fund", "--silent"], {}, directory)
    made = run(["node", "cids.mjs", *map(str, expected)], {}, directory)
    same("CIDs of ipfs-unixfs-importer", dict(map(tuple, made)), expected)


def vectors() -> dict[int, str]:
    """`VECTORS` of the test, which is no module that could be imported by name."""
    path = ROOT / "tests/content/test_content_cids.py"
    spec = importlib.util.spec_from_file_location("test_content_cids", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[int, str] = module.VECTORS
    return found


def install_theirs(directory: Path) -> str:
    """The Python of a new environment with the published packages."""
    run([sys.executable, "-m", "venv", str(directory)], {})
    python = str(directory / "bin" / "python")
    run([python, "-m", "pip", "install", "--quiet", *PACKAGES], {})
    print("installed", *PACKAGES, flush=True)
    return python


def check_we_read_theirs(python: str, directory: Path) -> None:
    """All that the published packages stored without a server is loaded here."""
    directory.mkdir()
    theirs = {
        "KACHERY_CLOUD_DIR": str(directory / "cloud"),
        "KACHERY_DIR": str(directory / "kachery"),
        "HOME": str(directory),
    }
    client = {"KACHERY_OFFLINE_STORAGE_DIR": str(directory / "client")}
    (directory / "client").mkdir()
    stored = run([python, str(HERE / "theirs.py"), "store", str(directory)], theirs | client)
    here = {
        "KACHERY_P2P_CONFIG_DIR": str(directory / "config"),
        # The store of kachery-client is the node's, as it was its daemon's.
        "KACHERY_STORAGE_DIR": str(directory / "client"),
    }
    loaded = run_ours("load", theirs | here, stored)
    for kind, expected in stored.items():
        same(f"what they stored as {kind}", loaded[kind], expected)
    same("their mutables", loaded["mutables"], ["cloud value", "kachery value"])


def check_they_read_ours(python: str, directory: Path) -> None:
    """All that is stored here is loaded by the published packages, in the same directory."""
    directory.mkdir()
    store = str(directory / "store")
    variables = {"KACHERY_CLOUD_DIR": store, "KACHERY_DIR": store, "HOME": str(directory)}
    here = {"KACHERY_STORAGE_DIR": store, "KACHERY_P2P_CONFIG_DIR": str(directory / "config")}
    uris = run_ours("store", variables | here)
    offline = {"KACHERY_OFFLINE_STORAGE_DIR": store}
    loaded = run([python, str(HERE / "theirs.py"), "load"], variables | offline, told=uris)
    for what, value in loaded.items():
        expected = {
            "text": "our text",
            "zone": "our text",
            "json": {"a": [2], "b": 1},
            "npy": [[0, 1, 2], [3, 4, 5]],
            "pkl": [[0, 1, 2], [3, 4, 5]],
            "mutable": "value",
        }[what.split()[1]]
        same(f"what we stored for them: {what}", value, expected)


def run_ours(what: str, variables: Mapping[str, str], told: Any = None) -> Any:
    """The answer of `ours.py`."""
    command = [sys.executable, "-m", "kachery_p2p.compat", str(HERE / "ours.py"), what]
    return run(command, variables, ROOT, told)


def run(
    command: list[str], variables: Mapping[str, str], cwd: Path | None = None, told: Any = None
) -> Any:
    """The JSON on the last line of what a command prints, None if it prints nothing."""
    ours = ("KACHERY_", "KBUCKET_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        command,
        env={**kept, **variables},
        cwd=cwd,
        input=json.dumps(told),
        stdout=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT_S,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines and lines[-1].startswith(("{", "[")) else None


def same(what: str, found: object, expected: object) -> None:
    """Say that it holds, or end."""
    if found != expected:
        sys.exit(f"{what}: {found!r} is not {expected!r}")
    print("holds:", what, flush=True)


if __name__ == "__main__":
    sys.exit(main())
