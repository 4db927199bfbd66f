"""Access groups of kachery-cloud: its documented example, with a group of this node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

import kachery_p2p as kp
from kachery_p2p.compat import kachery as ka
from kachery_p2p.compat import kachery_cloud as kcl
from kachery_p2p.errors import AccessGroupError, NotInAccessGroupError, ServiceGoneError

Run = Callable[..., "CompletedProcess[str]"]

# doc/access_groups_and_encrypted_uris.md of kachery-cloud, but for the id of the group.
EXAMPLE = """
    import sys
    import kachery_cloud as kcl

    access_group = sys.argv[1]
    uri = kcl.store_text('some-text '*3, label='some_text.txt')
    uri_enc = kcl.encrypt_uri(uri, access_group=access_group)

    print(uri)
    print(uri_enc)

    txt2 = kcl.load_text(uri_enc)
    print(txt2)
"""
# As that page prints it.
OF_THEIR_SERVER = (
    "sha1-enc://4dc5679dfcd586c5e211cfad3699505d36f9dd8c275b8c6e67c94674ad8bcda3bc8af5a571a38120"
    "dff3570af057f957.ag_kddvtdrlrl?label=some_text.txt"
)


@pytest.fixture
def group(home: Path) -> str:
    return kp.create_access_group("wet-lab").id


def test_the_documented_example_runs(run: Run, group: str) -> None:
    clear, encrypted, text = run(EXAMPLE, group).stdout.splitlines()
    assert clear == "sha1://cbb44480e2918cb41791366d748294bdbb874b52?label=some_text.txt"
    assert encrypted.startswith("sha1-enc://")
    assert encrypted.endswith(f".ag_{group}?label=some_text.txt")
    assert text == "some-text some-text some-text "
    assert kcl.decrypt_uri(encrypted) == clear


def test_one_uri_has_one_code_and_an_encrypted_one_stays_as_it_is(group: str) -> None:
    uri = kcl.store_text("x", label="x.txt")
    encrypted = kcl.encrypt_uri(uri, access_group=group)
    assert kcl.encrypt_uri(uri, access_group="wet-lab") == encrypted
    assert kcl.encrypt_uri(encrypted, access_group=group) == encrypted
    other = kp.create_access_group("dry-lab").id
    passed_on = kcl.encrypt_uri(encrypted, access_group=other)
    assert passed_on.endswith(f".ag_{other}?label=x.txt")
    assert kcl.decrypt_uri(passed_on) == uri


def test_what_is_encrypted_with_its_content_is_loaded_by_all_names(group: str, home: Path) -> None:
    (home / "a.dat").write_bytes(bytes(range(256)) * 1000)
    uri = kp.store_file(home / "a.dat", access_group="wet-lab")
    for path in (kcl.load_file(uri), ka.load_file(uri)):
        assert path is not None
        assert Path(path).read_bytes() == bytes(range(256)) * 1000
    assert kcl.load_bytes(uri, 5, 10) == bytes(range(5, 10))
    assert kcl.load_file_info(uri) == {"found": True, "size": 256_000}
    assert kcl.load_text(kp.store_text("häufig", access_group=group)) == "häufig"


def test_nobody_has_it_is_none_and_no_key_is_an_error(
    group: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = kcl.encrypt_uri(f"sha1://{'ab' * 20}", access_group=group)
    with pytest.warns(UserWarning, match="not stored here"):
        assert kcl.load_text(uri) is None
    monkeypatch.setenv("KACHERY_P2P_CONFIG_DIR", str(home / "other"))
    with pytest.raises(NotInAccessGroupError):
        kcl.load_text(uri)
    with pytest.raises(AccessGroupError):
        kcl.encrypt_uri(f"sha1://{'ab' * 20}", access_group=group)


def test_what_their_server_encrypted_is_explained(home: Path) -> None:
    for read in (kcl.load_text, kcl.decrypt_uri, ka.load_file):
        with pytest.raises(ServiceGoneError, match="kddvtdrlrl") as caught:
            read(OF_THEIR_SERVER)
        assert caught.value.hint == "ask its author for the sha1:// URI"
