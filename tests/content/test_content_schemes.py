"""URIs of every scheme of the family: typed, written back the same, or refused with a sentence."""

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
from kachery_p2p.content.hashes import Cid, ContentHash, FeedId, Md5, Root, sha1_of
from kachery_p2p.content.schemes import (
    AnyUri,
    DirectoryUri,
    EncryptedUri,
    FeedUri,
    GithubUri,
    IpfsUri,
    Md5Uri,
    WebUri,
    format_any,
    parse_any,
)
from kachery_p2p.content.uris import ChunkOf, Uri, ZoneUri, check_label
from kachery_p2p.errors import InvalidNameError, KacheryError, UriError

REPOSITORY = Path(__file__).parents[2]
VECTORS: dict[str, Any] = json.loads((REPOSITORY / "tests/vectors/content.json").read_text())
SHA1 = ContentHash("b971c6ef19b1d70ae8f0feb989b106c319b36230")
FEED = FeedId("491df591c3bf1ca29421bae012460f3137fc8ba4140d8e1b0842588ebd9f4a4c")
HEAVY = {"base64", "dataclasses", "hashlib", "json", "pathlib", "urllib.parse"}


def is_label(text: str) -> bool:
    try:
        return check_label(text) == text
    except InvalidNameError:
        return False


def lists(value: Any) -> Any:
    """Tuples as JSON has them."""
    return [lists(part) for part in value] if isinstance(value, tuple) else value


labels = st.text(min_size=1, max_size=20).filter(is_label)
names = st.none() | labels
paths = st.lists(labels, max_size=5).map(tuple)
contents = st.binary(min_size=20, max_size=20).map(ContentHash.of_raw)
cids = st.sampled_from([Cid(vector["cid"]) for vector in VECTORS["values"] if "cid" in vector])
subfeeds = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: not name.startswith("~")
) | contents.map(lambda name: f"~{name}")
chunks_of = st.builds(ChunkOf, contents, st.integers(0, 10**9), st.integers(10**10, 10**12))
uris = st.builds(
    Uri,
    contents,
    names,
    st.none() | st.binary(min_size=32, max_size=32).map(Root.of_raw),
    st.none() | contents,
    st.none() | chunks_of,
    st.none() | st.lists(labels, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts)),
)
any_uris = st.one_of(
    uris,
    st.builds(ZoneUri, st.just("") | labels, uris),
    st.builds(Md5Uri, st.binary(min_size=16, max_size=16).map(Md5.of_raw), names),
    st.builds(DirectoryUri, contents, names, paths),
    st.builds(IpfsUri, cids, names),
    st.builds(FeedUri, st.just(FEED), st.none() | subfeeds),
    st.builds(EncryptedUri, st.from_regex(r"[A-Za-z0-9+=_-]{1,40}", fullmatch=True), labels, names),
    st.builds(
        GithubUri, labels, labels, labels, st.lists(labels, min_size=1, max_size=4).map(tuple)
    ),
    st.from_regex(r"https?://[a-z0-9.:]{1,20}(/[!-~]{0,20})?", fullmatch=True).map(WebUri),
)


@pytest.mark.parametrize("vector", VECTORS["any_uris"], ids=lambda v: repr(v["uri"][:60]))
def test_every_form_of_the_family_is_read(vector: dict[str, Any]) -> None:
    uri = parse_any(vector["uri"])
    assert type(uri).__name__ == vector["kind"]
    assert lists(uri) == vector["fields"]
    assert format_any(uri) == vector["written"]
    assert parse_any(format_any(uri)) == uri


@pytest.mark.parametrize("vector", VECTORS["bad_any_uris"], ids=lambda v: repr(v["uri"][:60]))
def test_every_bad_form_of_the_family_gets_its_own_error(vector: dict[str, str]) -> None:
    with pytest.raises(KacheryError) as caught:
        parse_any(vector["uri"])
    assert type(caught.value) is errors.by_name(vector["error"])
    assert str(caught.value).isprintable() and len(str(caught.value)) < 250


@pytest.mark.parametrize("vector", VECTORS["uris"], ids=lambda v: repr(v["uri"][:60]))
def test_what_names_one_content_is_read_the_same_by_both_readers(vector: dict[str, str]) -> None:
    uri = parse_any(vector["uri"])
    assert isinstance(uri, Uri | ZoneUri)
    assert (uri.uri if isinstance(uri, ZoneUri) else uri).content == vector["sha1"]


@settings(derandomize=True, deadline=None, max_examples=300)
@given(any_uris)
def test_every_uri_comes_back_as_it_was_written_and_is_plain_text(uri: AnyUri) -> None:
    text = format_any(uri)
    assert parse_any(text) == uri
    assert type(parse_any(text)) is type(uri)
    assert text.isascii() and " " not in text


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.sampled_from([v["uri"] for v in VECTORS["any_uris"]]), st.text())
def test_what_is_read_of_garbage_is_written_in_one_way(start: str, tail: str) -> None:
    try:
        uri = parse_any(start + tail)
    except (UriError, InvalidNameError):
        return
    assert format_any(parse_any(format_any(uri))) == format_any(uri)


def test_a_subfeed_is_known_by_the_hash_of_its_name() -> None:
    named = FeedUri(FEED, "subfeed name")
    assert named.subfeed_hash == sha1_of(b"subfeed name")
    assert FeedUri(FEED, f"~{named.subfeed_hash}").subfeed_hash == named.subfeed_hash
    assert FeedUri(FEED).subfeed_hash is None


@pytest.mark.parametrize(
    "uri",
    [
        Md5Uri(Md5("0" * 32), ".."),
        DirectoryUri(SHA1, "a/b"),
        DirectoryUri(SHA1, None, ("a", "..")),
        EncryptedUri("0a", "a\nb"),
        GithubUri("user", "repo", "main", ("../x",)),
        ZoneUri("..", Uri(SHA1)),
        ZoneUri("", Uri(SHA1, "/x")),
    ],
)
def test_a_uri_with_a_name_that_is_none_is_not_written(uri: AnyUri) -> None:
    with pytest.raises(InvalidNameError):
        format_any(uri)


@pytest.mark.parametrize("uri", ["feed://" + FEED + "/\udcff", "sha1dir://" + SHA1 + "/\udcff"])
def test_a_byte_that_is_not_text_is_refused(uri: str) -> None:
    with pytest.raises(InvalidNameError):
        parse_any(uri)


def test_parsing_any_uri_imports_nothing_heavy() -> None:
    code = (
        "import sys, types; package = types.ModuleType('kachery_p2p');"
        "package.__path__ = ['kachery_p2p']; sys.modules['kachery_p2p'] = package;"
        "before = set(sys.modules); import kachery_p2p.content.schemes as s;"
        f"s.format_any(s.parse_any('sha1dir://{SHA1}.label/a/b.txt'));"
        "print(*(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert not HEAVY & set(done.stdout.split())
