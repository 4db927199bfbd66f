"""URIs that only the members of an access group can read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kachery_p2p as kp
from kachery_p2p.client.encrypted_uris import disclose
from kachery_p2p.content.uris import format_uri, parse_uri
from kachery_p2p.errors import LoadFilesError, SealError, ServiceGoneError, UriError
from kachery_p2p.identity.access_groups import Group
from kachery_p2p.identity.group_files import HeldGroup, changing, find_by_id, save
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import CHUNK_BYTES

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors/groups.json").read_text()
)
LARGE = bytes(range(256)) * (3 * CHUNK_BYTES // 256) + b"the end"
SERVERS = (
    "sha1-enc://4dc5679dfcd586c5e211cfad3699505d36f9dd8c275b8c6e67c94674ad8bcda3bc8af5a571a38120"
    "dff3570af057f957.ag_kddvtdrlrl?label=some_text.txt"
)


@pytest.fixture
def lab(environment: Path) -> str:
    return kp.create_access_group("wet-lab").id


@pytest.fixture
def as_stranger(lab: str, environment: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, another user's configuration with the same store."""

    def become() -> None:
        monkeypatch.setenv("KACHERY_P2P_CONFIG_DIR", str(environment / "stranger"))

    return become


def large_file(tmp_path: Path) -> str:
    source = tmp_path / "recording.dat"
    source.write_bytes(LARGE)
    return kp.store_file(source, access_group="wet-lab")


def stored_objects(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "store" / "sha1").rglob("*") if path.is_file()]


# --- URIs -------------------------------------------------------------------------------------


@pytest.fixture
def vectors_group(environment: Path) -> str:
    group = Group(
        NodeId(VECTORS["nodes"]["owner"]["id"]),
        bytes.fromhex(VECTORS["random"]),
        3,
        3,
        bytes.fromhex(next(one["key"] for one in VECTORS["keys"] if one["epoch"] == 3)),
    )
    with changing(str(environment / "config")):
        save(str(environment / "config"), HeldGroup("lab", group))
    return group.id


@pytest.mark.parametrize("vector", VECTORS["uris"], ids=lambda v: v["clear"][-20:])
def test_the_recorded_uris_are_read(vectors_group: str, vector: dict[str, Any]) -> None:
    disclosed = disclose(vector["uri"])
    assert disclosed.clear_uri == kp.decrypt_uri(vector["uri"]) == vector["clear"]
    if "file" in vector:
        assert disclosed.seal is not None
        sealer = disclosed.seal.sealer()
        content = bytes.fromhex(vector["content"])
        assert (sealer.header + sealer.seal_frames(0, content)).hex() == vector["file"]


@pytest.mark.parametrize("vector", VECTORS["bad_texts"], ids=lambda v: v["why"])
def test_a_uri_of_a_member_that_says_nonsense_is_refused(
    vectors_group: str, tmp_path: Path, vector: dict[str, str]
) -> None:
    held = find_by_id(str(tmp_path / "config"), vectors_group)
    assert held is not None
    code = held.group.encrypt(bytes.fromhex(vector["text"]))
    with pytest.raises((SealError, UriError)):
        disclose(f"sha1-enc://{code}.ag_{vectors_group}")


@pytest.mark.parametrize("name", ["", "/notes.txt", "?label=notes.txt", "/a%20b?root=" + "ab" * 32])
def test_a_uri_comes_back_as_it_went_whatever_its_form(lab: str, name: str) -> None:
    uri = f"sha1://{'ab' * 20}{name}"
    encrypted = kp.encrypt_uri(uri, access_group="wet-lab")
    assert kp.decrypt_uri(encrypted) == uri
    # As those of kachery-cloud, equal ones can be compared.
    assert kp.encrypt_uri(uri, access_group=lab) == encrypted
    assert kp.encrypt_uri(encrypted, access_group=lab) == encrypted


def test_only_the_name_of_a_content_is_hidden_by_an_encrypted_uri(lab: str) -> None:
    clear = kp.store_text("in clear")
    uri = kp.encrypt_uri(clear, access_group="wet-lab")
    assert kp.load_text(uri) == "in clear"
    assert kp.load_file(uri) == kp.load_file(clear)
    assert kp.load_bytes(uri, 3, 8) == b"clear"
    assert kp.find_file(uri).local


def test_a_content_is_passed_on_to_another_group_without_storing_it_again(
    lab: str, tmp_path: Path
) -> None:
    other = kp.create_access_group("dry-lab").id
    uri = kp.encrypt_uri(large_file(tmp_path), access_group="dry-lab")
    assert uri.endswith(f".ag_{other}")
    assert Path(kp.load_file(uri)).read_bytes() == LARGE
    assert len(stored_objects(tmp_path)) == 1


@pytest.mark.parametrize("uri", ["sha1dir://" + "ab" * 20, "feed://" + "ab" * 32, "nonsense"])
def test_what_names_no_content_is_not_encrypted(lab: str, uri: str) -> None:
    with pytest.raises(UriError):
        kp.encrypt_uri(uri, access_group="wet-lab")


def test_a_uri_of_a_server_that_is_gone_is_explained(lab: str) -> None:
    for read in (kp.load_file, kp.decrypt_uri, kp.load_text):
        with pytest.raises(ServiceGoneError, match="kddvtdrlrl by a server of kachery-cloud"):
            read(SERVERS)


def test_many_are_loaded_at_once_with_others_in_clear(
    lab: str, as_stranger: Callable[[], None], tmp_path: Path
) -> None:
    sealed, clear = large_file(tmp_path), kp.store_text("clear")
    hidden = kp.encrypt_uri(clear, access_group=lab)
    paths = kp.load_files([sealed, clear, hidden])
    assert [Path(path).read_bytes() for path in paths] == [LARGE, b"clear", b"clear"]
    as_stranger()
    with pytest.raises(LoadFilesError) as caught:
        kp.load_files([sealed, clear])
    assert list(caught.value.failed) == [sealed]


def test_a_long_name_still_fits(lab: str, tmp_path: Path) -> None:
    uri = kp.store_text("x", "ä" * 127, access_group=lab)
    assert disclose(uri).wanted.name == "ä" * 127
    assert parse_uri(kp.decrypt_uri(uri)).name == "content.sealed"
    assert format_uri(disclose(uri).wanted) in disclose(uri).uri
