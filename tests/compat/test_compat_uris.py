"""URIs are written as each of the older packages wrote them, and all of them are read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from kachery_p2p.compat import kachery as ka
from kachery_p2p.compat import kachery_client as kc
from kachery_p2p.compat import kachery_cloud as kcl
from kachery_p2p.compat.uri_forms import chunk_bytes, list_builder
from kachery_p2p.content.chunk_lists import KACHERY, KACHERY_P2P, ChunkList, ListedChunk
from kachery_p2p.content.hashes import ContentHash, sha1_of
from kachery_p2p.errors import (
    ConfigError,
    DataFormatError,
    UnsafePickleError,
    UnsupportedValueError,
    UriError,
    VerificationError,
)

TEXT = "example text"
SHA1 = "d9e989f651cdd269d7f9bb8a215d024d8d283688"
CID = "bafkreiaossxdnwtp6a4zfjl73w67i4ulmcoq277g5maz7kprxg23kqgygu"
MB = 1_000_000


@pytest.mark.parametrize(
    ("style", "uri"),
    [
        ("2019", f"sha1://{SHA1}/a b.txt"),
        ("client", f"sha1://{SHA1}/a b.txt"),
        ("cloud", f"sha1://{SHA1}?label=a%20b.txt"),
        ("2024", f"sha1://{SHA1}?label=a%20b.txt"),
        ("ipfs", f"ipfs://{CID}"),
    ],
)
def test_the_style_of_the_environment_holds_for_every_package(
    style: str, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KACHERY_URI_STYLE", style)
    assert kcl.store_text(TEXT, label="a b.txt") == uri
    assert ka.store_text(TEXT, label="a b.txt") == uri
    assert ka.store_text(TEXT, basename="a b.txt") == uri
    assert kc.store_text(TEXT, "a b.txt") == uri
    for load in (kcl.load_text, ka.load_text, kc.load_text):
        assert load(uri) == TEXT


def test_a_style_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KACHERY_URI_STYLE", "2020")
    with pytest.raises(ConfigError, match="which is no style of URIs"):
        kcl.store_text(TEXT)


def test_zone_uris_are_written_when_asked_for() -> None:
    assert ka.store_text(TEXT, label="x y", uri_type=2) == f"kachery:default:sha1:{SHA1}:x%20y"
    assert ka.store_text(TEXT, uri_type=2, local=True) == f"kachery::sha1:{SHA1}"
    assert ka.store_text(TEXT, label="x", uri_type=1) == f"sha1://{SHA1}?label=x"
    assert ka.load_text(f"kachery:default:sha1:{SHA1}:x%20y") == TEXT
    assert ka.load_text(f"kachery::sha1:{SHA1}") == TEXT
    with pytest.raises(UnsupportedValueError):
        ka.store_text(TEXT, uri_type=3)


def test_keywords_of_both_generations_do_not_mix() -> None:
    with pytest.raises(TypeError, match="cannot be mixed"):
        ka.store_text(TEXT, basename="a.txt", label="a.txt")
    with pytest.raises(TypeError, match="unexpected keyword"):
        ka.store_text(TEXT, colour="red")


def test_the_160_mb_array_of_the_documentation_has_its_uri(home: Path) -> None:
    grid = np.array(np.meshgrid(np.arange(10000), np.arange(1002)))
    uri = ka.store_npy(grid, basename="array.npy")
    assert uri == (
        "sha1://1d671d3393b9f67a8f32af1b3dc6017caa96c8ee/array.npy"
        "?manifest=f72e9a974ea212b973b132e766802a21795a58db"
    )


@pytest.mark.parametrize(
    ("size", "expected"),
    [(5 * MB, 2_500_000), (89 * MB, 5 * MB), (160 * MB, 10 * MB), (1001 * MB, 20 * MB)],
)
def test_chunks_have_the_lengths_that_the_first_kachery_gave_them(size: int, expected: int) -> None:
    assert chunk_bytes(size, KACHERY) == expected
    assert chunk_bytes(size, KACHERY_P2P) == 20 * MB


def test_the_list_of_a_file_above_a_gigabyte_has_that_of_its_first_chunk_inside() -> None:
    # 1,000,000,001 zeros, of which only the first chunk is made here; the vector is the SHA-1 of
    # the list that kachery 0.5's own steps give.
    size, whole = 1_000_000_001, ContentHash("a26083a49d8ba67c884d15d81cc132c869fa0342")
    builder = list_builder(size, KACHERY)
    builder.update(bytes(20 * MB))
    made = builder.finish(whole)
    assert made.first is not None and made.first.first is None
    assert [chunk.end for chunk in made.first.chunks] == [1_250_000 * n for n in range(1, 17)]
    starts = range(0, size, 20 * MB)
    hashes = [made.chunks[0].content] * 50 + [sha1_of(b"\0")]
    chunks = tuple(
        ListedChunk(start, min(start + 20 * MB, size), name)
        for start, name in zip(starts, hashes, strict=True)
    )
    data = ChunkList(size, whole, chunks, made.first).encode(KACHERY)
    assert sha1_of(data) == "cc733b1c7251956f20029ebfee4d708878ec6397"
    # What is inside is not needed to read it.
    assert ChunkList.decode(data).covering(0, 1) == chunks[:1]
    assert list_builder(size, KACHERY_P2P)._first is None
    assert list_builder(size - 2, KACHERY)._first is None


def test_the_chunk_list_of_kachery_client_is_compact_and_stored(home: Path) -> None:
    data = bytes(range(256)) * 80_000
    (home / "large.dat").write_bytes(data)
    uri = kc.store_file(str(home / "large.dat"))
    head, _, listed = uri.partition("?manifest=")
    assert head == f"sha1://{sha1_of(data)}/large.dat"
    path = kc.load_file(f"sha1://{listed}")
    assert path is not None
    written = Path(path).read_bytes()
    assert written.startswith(b'{"size":20480000,"sha1":"')
    assert [chunk.end for chunk in ChunkList.decode(written).chunks] == [20_000_000, 20_480_000]
    assert kc.load_bytes(uri, 19_999_990, 20_000_010) == data[19_999_990:20_000_010]


def test_a_chunk_is_cut_out_of_the_file_that_it_is_of(home: Path) -> None:
    data = bytes(range(200))
    whole = kcl.store_text(data.decode("latin-1"))
    assert whole.startswith("sha1://")
    (home / "f").write_bytes(data)
    whole = kc.store_file(str(home / "f"))
    chunk, name = sha1_of(data[50:99]), sha1_of(data)
    path = kcl.load_file(f"sha1://{chunk}?chunkOf={name}~50~99")
    assert path is not None
    assert Path(path).read_bytes() == data[50:99]
    with pytest.raises(VerificationError):
        kcl.load_file(f"sha1://{sha1_of(b'else')}?chunkOf={name}~50~99")


def test_json_is_spaced_and_sorted_as_each_package_did() -> None:
    value = {"name": "example-object", "a": 1}
    written = {
        ka.store_object({"name": "example-object"}): b'{"name": "example-object"}',
        kcl.store_json(value): b'{"a":1,"name":"example-object"}',
        kc.store_json(value): b'{"name":"example-object","a":1}',
        ka.store_json(value): b'{"a":1,"name":"example-object"}',
        kcl.store_json(value, separators=(", ", ": "), indent=2): None,
        ka.store_object(value, indent=4): None,
    }
    for uri, data in written.items():
        path = kcl.load_file(uri)
        assert path is not None
        if data is not None:
            assert Path(path).read_bytes() == data
    assert ka.store_object({"name": "example-object"}).split("/")[2] == (
        "af0fa33ccfec88a593504bbc34b40099325a7c1d"
    )


def test_nan_is_refused_as_the_originals_refused_it() -> None:
    for store in (kcl.store_json, kc.store_json, ka.store_json, ka.store_object):
        with pytest.raises(UnsupportedValueError):
            store({"x": float("nan")})


def test_the_vector_of_an_npy_array_holds() -> None:
    array = np.array([[1, 2], [3, 4], [5, 6]], dtype=np.int64)
    assert kcl.store_npy(array) == "sha1://d37c5a82bbd344493af1ce6a1ac2b967d2490927"


def test_a_pickle_that_would_run_code_is_refused(home: Path) -> None:
    mark = home / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(mark), "w")

    import pickle

    (home / "evil.pkl").write_bytes(pickle.dumps({"a": Evil()}))
    for store, load in ((kcl.store_file, kcl.load_pkl), (kc.store_file, kc.load_pkl)):
        uri = store(str(home / "evil.pkl"))
        with pytest.raises(UnsafePickleError):
            load(uri)
    assert not mark.exists()


def test_what_is_not_of_the_format_is_an_error_and_not_none() -> None:
    uri = kcl.store_text("no json")
    with pytest.raises(DataFormatError):
        kcl.load_json(uri)
    with pytest.raises(DataFormatError):
        kcl.load_npy(uri)


@pytest.mark.parametrize("uri", ["nonsense://x", "sha1://short", "kachery:zone:md5:abc"])
def test_what_is_no_uri_is_an_error_and_not_none(uri: str) -> None:
    for load in (kcl.load_file, ka.load_file, kc.load_file):
        with pytest.raises(UriError):
            load(uri)


def test_contents_by_md5_are_stored_and_loaded() -> None:
    data = "by md5"
    md5 = hashlib.md5(data.encode()).hexdigest()
    assert ka.store_text(data, algorithm="md5") == f"md5://{md5}/file.txt"
    assert ka.load_text(f"md5://{md5}/file.txt") == data
    assert ka.get_file_info(f"md5://{md5}")["md5"] == md5  # type: ignore[index]
    assert ka.load_text(f"md5://{'0' * 32}") is None
    with pytest.raises(UnsupportedValueError):
        ka.store_text(data, algorithm="sha256")


def test_a_cid_that_nothing_was_stored_under_is_not_found() -> None:
    kcl.store_text(TEXT)
    assert kcl.load_text(f"ipfs://{CID}") is None


def test_the_names_survive_in_another_process_and_a_damaged_file_is_moved_aside(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    from kachery_p2p.compat import names

    monkeypatch.setenv("KACHERY_URI_STYLE", "ipfs")
    assert kcl.store_text(TEXT) == f"ipfs://{CID}"
    names._open.pop(names.names_path()).close()
    for suffix in ("-wal", "-shm"):
        Path(names.names_path() + suffix).unlink(missing_ok=True)
    Path(names.names_path()).write_bytes(b"damaged" * 1000)
    assert kcl.load_text(f"ipfs://{CID}") is None
    assert kcl.store_text(TEXT) == f"ipfs://{CID}"
    assert kcl.load_text(f"ipfs://{CID}") == TEXT
    assert list(Path(names.names_path()).parent.glob("names.db.damaged-*"))


def test_a_mutable_is_a_text_if_kachery_client_is_asked_for_one() -> None:
    kc.set("number", 7)
    assert kc.get_string("number") == "7"
    assert kc.get_string("nothing") is None
    assert kc.set("number", 8, update=False) is False
    assert kc.delete("number") is True


def test_parts_of_uris_are_objects_in_kachery_client() -> None:
    uri = kc.parse_uri(f"sha1://{SHA1}/x.txt")
    assert (uri.algorithm, uri.hash, uri.filename) == ("sha1", SHA1, "x.txt")
    assert kc.build_uri(uri) == str(uri) == f"sha1://{SHA1}/x.txt"


def test_dicts_have_the_hash_that_kachery_cloud_gave_them() -> None:
    expected = hashlib.sha1(b'{"a":1,"b":[2,{"c":0.5}]}').hexdigest()
    assert kcl.sha1_of_dict({"b": [2.0, {"c": 0.5}], "a": 1.0}) == expected
    assert ka.sha1_of_dict({"b": [2.0, {"c": 0.5}], "a": 1.0}) == expected
    assert ka.get_object_hash({"b": 1, "a": 2}) == hashlib.sha1(b'{"a":2,"b":1}').hexdigest()
