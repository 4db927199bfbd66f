"""Directory snapshots: one tree has one name, and names that could do harm are refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kachery_p2p import errors
from kachery_p2p.content import directories
from kachery_p2p.content.directories import Directory, FileEntry
from kachery_p2p.content.hashes import ContentHash, Md5, Root, sha1_of
from kachery_p2p.content.uris import check_label
from kachery_p2p.errors import (
    DataFormatError,
    InvalidNameError,
    KacheryError,
    PathNotFoundError,
    UnsupportedValueError,
)

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors/content.json").read_text()
)
A_FILE = FileEntry(13, ContentHash("b971c6ef19b1d70ae8f0feb989b106c319b36230"))
EMPTY = Directory({}, {})
DS001 = Directory(
    {"file1.txt": A_FILE, "file2.csv": A_FILE},
    {
        "subdir1": Directory({"other_file1.txt": A_FILE, "other_file2.txt": A_FILE}, {}),
        "subdir2": EMPTY,
    },
)


def is_label(text: str) -> bool:
    try:
        return check_label(text) == text
    except InvalidNameError:
        return False


def shuffled(record: Any, rng: random.Random) -> Any:
    """The same JSON with the keys of every object in another order."""
    if not isinstance(record, dict):
        return record
    keys = list(record)
    rng.shuffle(keys)
    return {key: shuffled(record[key], rng) for key in keys}


def nested(depth: int) -> Directory:
    directory = EMPTY
    for _ in range(depth):
        directory = Directory({}, {"a": directory})
    return directory


labels = st.sampled_from(["files", "dirs", "size", "sha1"]) | st.text(
    min_size=1, max_size=10
).filter(is_label)
sizes = st.integers(0, 1 << 44)
roots = st.binary(min_size=32, max_size=32).map(Root.of_raw)
files = st.builds(
    FileEntry,
    sizes,
    st.binary(min_size=20, max_size=20).map(ContentHash.of_raw),
    st.none() | roots,
) | st.builds(FileEntry, sizes, st.binary(min_size=16, max_size=16).map(Md5.of_raw), st.none())


def without_doubles(named: tuple[dict[str, FileEntry], dict[str, Directory]]) -> Directory:
    return Directory({k: v for k, v in named[0].items() if k not in named[1]}, named[1])


trees = st.recursive(
    st.just(EMPTY),
    lambda inner: st.tuples(
        st.dictionaries(labels, files, max_size=5), st.dictionaries(labels, inner, max_size=4)
    ).map(without_doubles),
    max_leaves=12,
)


@pytest.mark.parametrize("vector", VECTORS["directories"], ids=lambda v: str(v["why"]))
def test_a_directory_is_read_in_any_order_and_written_in_one(vector: dict[str, str]) -> None:
    written = Directory.decode(vector["read"].encode()).encode()
    assert written.decode() == vector["written"]
    assert sha1_of(written) == vector["sha1"]
    assert Directory.decode(written).encode() == written


@pytest.mark.parametrize("vector", VECTORS["bad_directories"], ids=lambda v: str(v["why"]))
def test_every_bad_directory_gets_its_own_error(vector: dict[str, str]) -> None:
    with pytest.raises(KacheryError) as caught:
        Directory.decode(vector["read"].encode())
    assert type(caught.value) is errors.by_name(vector["error"])
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "data",
    [
        b'{"files": {"a": {"size": ' + b"9" * 5_000 + b"}}}",
        b'{"dirs": ' * 100_000,
        b"[" * 100_000,
        b'{"files": {"\xff": 0}, "dirs": {}}',
        b'{"files": {}, "dirs": {}}\0',
    ],
    ids=["huge number", "deep objects", "deep lists", "not UTF-8", "NUL behind"],
)
def test_json_that_makes_the_reader_itself_fail_is_refused(data: bytes) -> None:
    with pytest.raises(DataFormatError):
        Directory.decode(data)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(trees, st.randoms(use_true_random=False))
def test_one_tree_has_one_name_in_whatever_order_the_disk_gives_it(
    tree: Directory, rng: random.Random
) -> None:
    data = tree.encode()
    assert Directory.decode(data) == tree
    again = json.dumps(shuffled(json.loads(data), rng), indent=rng.choice([None, 1]))
    assert Directory.decode(again.encode()).encode() == data


def test_64_directories_below_each_other_are_read_and_written() -> None:
    assert Directory.decode(nested(64).encode()) == nested(64)
    with pytest.raises(UnsupportedValueError, match="64 directories below each other"):
        nested(65).encode()


def test_a_directory_above_the_bounds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = DS001.encode()
    for name, bound in (("DIRECTORY_BYTES_MAX", 100), ("DIRECTORY_ENTRIES_MAX", 5)):
        with monkeypatch.context() as patch:
            patch.setattr(directories, name, bound)
            with pytest.raises(DataFormatError):
                Directory.decode(data)
            with pytest.raises(UnsupportedValueError):
                DS001.encode()
    monkeypatch.setattr(directories, "PARTS_MAX", 10)
    with pytest.raises(DataFormatError):
        Directory.decode(data)


def test_every_directory_within_the_bounds_has_parts_within_the_bounds() -> None:
    files = json.dumps({str(n): {"size": n, "sha1": A_FILE.content} for n in range(1000)})
    dirs = json.dumps({str(n): {"files": {}, "dirs": {}} for n in range(1000)})
    for text in (files, dirs):
        assert sum(text.count(mark) for mark in ",[{") < 6 * 1000


@pytest.mark.parametrize("name", VECTORS["bad_names"])
def test_a_name_that_could_leave_its_directory_or_deceive_is_not_written(name: str) -> None:
    for tree in (Directory({name: A_FILE}, {}), Directory({}, {"a": Directory({}, {name: EMPTY})})):
        with pytest.raises(InvalidNameError):
            tree.encode()


def test_a_tree_that_could_not_be_read_again_is_not_written() -> None:
    for tree in (
        Directory({"a": A_FILE}, {"a": EMPTY}),
        Directory({"a": FileEntry(-1, A_FILE.content)}, {}),
        Directory({"a": FileEntry((1 << 44) + 1, A_FILE.content)}, {}),
        Directory({"a": FileEntry(1, Md5("0" * 32), Root("1" * 64))}, {}),
    ):
        with pytest.raises(UnsupportedValueError):
            tree.encode()


def test_a_listing_has_directories_first_and_both_sorted() -> None:
    tree = Directory({"b": A_FILE, "A": A_FILE}, {"z": EMPTY, "c": EMPTY})
    assert [name for name, _ in tree.listing()] == ["c", "z", "A", "b"]


def test_every_file_below_is_found_with_its_path() -> None:
    assert [path for path, _ in DS001.walk()] == [
        ("subdir1", "other_file1.txt"),
        ("subdir1", "other_file2.txt"),
        ("file1.txt",),
        ("file2.csv",),
    ]


def test_every_directory_below_comes_after_the_one_that_it_is_in() -> None:
    tree = Directory({}, {"b": DS001, "a": EMPTY})
    assert list(tree.walk_directories()) == [
        ("a",),
        ("b",),
        ("b", "subdir1"),
        ("b", "subdir2"),
    ]


def test_a_record_is_what_the_snapshot_says() -> None:
    rooted = FileEntry(1 << 20, A_FILE.content, Root("1" * 64))
    tree = Directory({"b": rooted, "a": A_FILE}, {"c": EMPTY})
    assert tree.record() == json.loads(tree.encode())
    assert tree.record()["files"]["b"]["root"] == "1" * 64
    assert "root" not in tree.record()["files"]["a"]


def test_a_path_leads_to_a_file_or_a_directory() -> None:
    assert DS001.at(()) is DS001
    assert DS001.at(("file1.txt",)) == A_FILE
    assert DS001.at(("subdir2",)) == EMPTY
    assert DS001.at(("subdir1", "other_file2.txt")) == A_FILE


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("nothing",), "there is no 'nothing' in the directory"),
        (("subdir1", "nothing"), "there is no 'nothing' in 'subdir1'"),
        (("nothing", "file1.txt"), "there is no 'nothing' in the directory"),
        (("file1.txt", "x"), "'file1.txt' is a file, so nothing is in 'file1.txt'"),
        (("..",), "there is no '..' in the directory"),
    ],
)
def test_a_path_to_nothing_says_where_it_ends(path: tuple[str, ...], message: str) -> None:
    with pytest.raises(PathNotFoundError) as caught:
        DS001.at(path)
    assert str(caught.value) == message


def test_a_name_in_the_wrong_case_gets_the_right_one_as_a_hint() -> None:
    with pytest.raises(PathNotFoundError) as caught:
        DS001.at(("Subdir1", "other_file1.txt"))
    assert caught.value.hint == "did you mean 'subdir1'"
