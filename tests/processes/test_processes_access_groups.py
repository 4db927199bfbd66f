"""Three real nodes of one channel, two of them in an access group."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.processes.conftest import Lab

pytestmark = pytest.mark.processes

MIB = 1 << 20


def test_members_of_a_channel_that_are_not_in_the_group_get_ciphertext_only(lab: Lab) -> None:
    alice, bob = lab.pair()
    carol = lab.node("carol").start("--bootstrap", alice.address)
    assert alice.cli("group", "create", "wet-lab").returncode == 0
    # They are connected, so its id is enough.
    invitation = alice.cli("group", "add", "wet-lab", bob.node_id)
    assert invitation.returncode == 0, invitation.stderr
    # Anybody may see the line, and only bob can use it.
    refused = carol.cli("group", "accept", invitation.stdout.strip())
    assert (refused.returncode, refused.stdout) == (5, "")
    accepted = bob.cli("group", "accept", "-", input=invitation.stdout)
    assert accepted.stdout == "wet-lab\n", accepted.stderr

    recording = lab.file("recording.dat", 6 * MIB + 5)
    content = recording.read_bytes()
    stored = alice.cli("store", "--access-group", "wet-lab", str(recording))
    assert stored.returncode == 0, stored.stderr
    uri = stored.stdout.strip()
    clear_uri = alice.cli("decrypt-uri", uri).stdout.strip()

    # A range of it: less travels than the file has.
    piece = bob.python(
        "import sys, kachery_p2p as kp\n"
        f"sys.stdout.buffer.write(kp.load_bytes({uri!r}, 3_000_000, 3_000_100).hex().encode())"
    )
    assert piece.stdout == content[3_000_000:3_000_100].hex(), piece.stderr
    (partial,) = [
        path
        for path in (bob.storage_dir / ".partial").rglob("*")
        if path.is_file() and path.stat().st_size > MIB
    ]
    assert partial.stat().st_blocks * 512 < 3 * MIB

    loaded = bob.cli("load", uri)
    assert loaded.returncode == 0, loaded.stderr
    path = Path(loaded.stdout.strip())
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o600

    denied = carol.cli("load", uri)
    assert (denied.returncode, denied.stdout) == (5, "")
    assert "whose key this node does not hold" in denied.stderr
    assert "group card" in denied.stderr
    # The channel gives it the sealed file, if it learns the name; of bob's, too.
    alice.kill()
    sealed = carol.cli("load", clear_uri)
    assert sealed.returncode == 0, sealed.stderr
    data = Path(sealed.stdout.strip()).read_bytes()
    assert data.startswith(b"KPSEAL")
    assert content[:64] not in data
    # Nobody has the content in clear under a name that a node could serve.
    for node in (alice, bob, carol):
        for stored_path in (node.storage_dir / "sha1").rglob("*"):
            assert not stored_path.is_file() or os.path.getsize(stored_path) != len(content)
