from __future__ import annotations

import subprocess
import sys

from kachery_p2p.store.paths import blob_path, partial_dir, quarantine_dir, temp_dir


def test_objects_lie_where_every_kachery_has_put_them() -> None:
    h = "b971c6ef19b1d70ae8f0feb989b106c319b36230"
    assert blob_path("/store", h) == f"/store/sha1/b9/71/c6/{h}"


def test_what_is_not_an_object_lies_outside_of_sha1() -> None:
    assert temp_dir("/store") == "/store/.tmp"
    assert quarantine_dir("/store") == "/store/.quarantine"
    assert partial_dir("/store", "ab" * 32) == "/store/.partial/" + "ab" * 32


def test_finding_a_file_imports_nothing_heavy() -> None:
    code = (
        "import sys; before = set(sys.modules); import kachery_p2p.store.paths;"
        "heavy = {'sqlite3', 'json', 'hashlib', 'blake3', 'trio', 'numpy'};"
        "sys.exit(', '.join(heavy & (set(sys.modules) - before)) or None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
