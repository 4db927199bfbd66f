"""URIs: every form of the family for sha1, and a sentence for everything else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kachery_p2p import errors
from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.uris import (
    ChunkOf,
    Uri,
    ZoneUri,
    check_label,
    format_uri,
    format_zone_uri,
    parse_uri,
)
from kachery_p2p.errors import InvalidNameError, KacheryError, UnknownSchemeError, UriError

REPOSITORY = Path(__file__).parents[2]
VECTORS: dict[str, Any] = json.loads((REPOSITORY / "tests/vectors/content.json").read_text())
SHA1 = ContentHash("b971c6ef19b1d70ae8f0feb989b106c319b36230")
HEAVY = {
    "blake3", "click", "cryptography", "dataclasses", "hashlib", "json", "libp2p", "msgpack",
    "numpy", "pathlib", "pickle", "sqlite3", "trio", "urllib.parse",
}  # fmt: skip


def is_label(text: str) -> bool:
    try:
        return check_label(text) == text
    except InvalidNameError:
        return False


labels = st.text(min_size=1, max_size=255).filter(is_label)
contents = st.binary(min_size=20, max_size=20).map(ContentHash.of_raw)
roots = st.binary(min_size=32, max_size=32).map(Root.of_raw)
positions = st.integers(0, 10**15 - 2)
chunks_of = st.builds(
    lambda content, start, length: ChunkOf(content, start, min(start + length, 10**15 - 1)),
    contents, positions, st.integers(1, 10**9),
)  # fmt: skip
locations = st.lists(st.sampled_from(["data", "day 1", "a&b=c?d", "100%", "é#+"]), min_size=1).map(
    lambda parts: "/" + "/".join(parts)
)
uris = st.builds(
    Uri,
    contents,
    st.none() | labels,
    st.none() | roots,
    st.none() | contents,
    st.none() | chunks_of,
    st.none() | locations,
)


@pytest.mark.parametrize("vector", VECTORS["uris"], ids=lambda v: repr(v["uri"][:60]))
def test_every_good_form_is_read(vector: dict[str, Any]) -> None:
    uri = parse_uri(vector["uri"])
    assert uri[:4] == (vector["sha1"], vector["name"], vector["root"], vector["manifest"])
    assert uri.chunk_of == (tuple(vector["chunk_of"]) if vector["chunk_of"] else None)
    assert uri.location == vector["location"]
    assert format_uri(uri) == vector["written"]
    assert parse_uri(format_uri(uri)) == uri


@pytest.mark.parametrize("vector", VECTORS["bad_uris"], ids=lambda v: repr(v["uri"][:60]))
def test_every_bad_form_gets_its_own_error(vector: dict[str, str]) -> None:
    with pytest.raises(KacheryError) as caught:
        parse_uri(vector["uri"])
    assert type(caught.value) is errors.by_name(vector["error"])
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200


@pytest.mark.parametrize("name", VECTORS["names"])
def test_a_name_that_a_file_can_have_is_a_label(name: str) -> None:
    assert check_label(name) == name
    assert parse_uri(format_uri(Uri(SHA1, name))).name == name


@pytest.mark.parametrize("name", VECTORS["bad_names"])
def test_a_name_that_could_leave_its_directory_or_deceive_is_refused(name: str) -> None:
    with pytest.raises(InvalidNameError):
        check_label(name)
    with pytest.raises(InvalidNameError):
        format_uri(Uri(SHA1, name))


def test_a_name_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(InvalidNameError):
        check_label("a\udcffb")


@settings(derandomize=True, deadline=None, max_examples=40)
@given(uris)
def test_every_uri_comes_back_as_it_was_written(uri: Uri) -> None:
    text = format_uri(uri)
    assert parse_uri(text) == uri
    assert text.isascii() and " " not in text


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.just("") | labels, uris)
def test_every_uri_of_kachery_2_comes_back_as_it_was_written(zone: str, uri: Uri) -> None:
    assert parse_uri(format_zone_uri(ZoneUri(zone, uri))) == uri


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.text() | st.text().map(lambda tail: f"sha1://{SHA1}{tail}"))
def test_garbage_is_refused_or_gives_a_safe_name(text: str) -> None:
    try:
        uri = parse_uri(text)
    except (UriError, InvalidNameError):
        return
    assert uri.name is None or is_label(uri.name)


@pytest.mark.parametrize(
    ("uri", "what"),
    [
        ("sha1dir://H.label/path", "a directory or a file inside one"),
        ("md5://H", "a content by its md5"),
        ("ipfs://CID", "a content by its IPFS hash"),
        ("feed://ID/name", "a feed or a subfeed"),
        ("sha1-enc://CODE.ag_GROUP", "a content for the members of an access group"),
        ("https://example.org", "a page on the web"),
    ],
)
def test_what_names_something_else_gets_a_sentence_and_a_hint(uri: str, what: str) -> None:
    with pytest.raises(UnknownSchemeError, match=what) as caught:
        parse_uri(uri)
    assert caught.value.hint


def test_a_bare_hash_gets_the_uri_as_a_hint() -> None:
    with pytest.raises(UriError) as caught:
        parse_uri(SHA1)
    assert caught.value.hint == f"did you mean sha1://{SHA1}"


def test_a_path_gets_the_command_that_gives_a_uri() -> None:
    with pytest.raises(UriError) as caught:
        parse_uri("./recording.dat")
    assert not isinstance(caught.value, UnknownSchemeError)
    assert caught.value.hint is not None and "kachery-p2p store FILE" in caught.value.hint


def test_parsing_a_uri_imports_nothing_heavy() -> None:
    code = (
        # A bare package in its place: what the public API imports is not this room's affair.
        "import sys, types; package = types.ModuleType('kachery_p2p');"
        "package.__path__ = ['kachery_p2p']; sys.modules['kachery_p2p'] = package;"
        "before = set(sys.modules); import kachery_p2p.content.uris as u;"
        f"u.format_uri(u.parse_uri('sha1://{SHA1}/test.txt'));"
        "print(*(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert not HEAVY & set(done.stdout.split())
