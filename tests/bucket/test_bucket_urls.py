"""URLs of buckets: what they say, and what is refused with a sentence that helps."""

from __future__ import annotations

import pytest

from kachery_p2p.bucket import layout
from kachery_p2p.bucket.urls import BucketUrl, parse_bucket_url
from kachery_p2p.content.hashes import ContentHash, Root, sha1_of
from kachery_p2p.content.manifests import ManifestBuilder, RootObject, verify_page
from kachery_p2p.errors import BucketUrlError
from kachery_p2p.limits import CHUNK_BYTES

CONTENT = ContentHash("aaf4c61ddcc5e8a2dabede0f3b482cd9aea9434d")
ROOT = Root("ab" * 32)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("s3://lab-data", BucketUrl("s3", "lab-data")),
        ("s3://lab-data/a/b/", BucketUrl("s3", "lab-data", "a/b")),
        (
            "s3://lab/x?endpoint=https://s3.example.org/&region=eu-west-1",
            BucketUrl("s3", "lab", "x", "https://s3.example.org", "eu-west-1"),
        ),
        ("gs://lab/x", BucketUrl("gs", "lab", "x")),
        ("az://lab/x?account=ours", BucketUrl("az", "lab", "x", None, None, "ours")),
        ("file:///srv/lab/", BucketUrl("file", "/srv/lab")),
        ("memory:", BucketUrl("memory", "default")),
        ("https://data.example.org/k/", BucketUrl("https", "https://data.example.org/k")),
        (
            "https://example.org/get?h={hash}",
            BucketUrl("https", "https://example.org/get?h={hash}"),
        ),
    ],
)
def test_a_url_says_where_the_bucket_is(text: str, meant: BucketUrl) -> None:
    assert parse_bucket_url(text) == meant
    assert parse_bucket_url(str(meant)) == meant


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lab",
        "ftp://lab/x",
        "s3://",
        "s3://l",
        "s3://Lab",
        "s3://lab/../other",
        "s3://lab/a b",
        "s3://key:secret@lab/x",
        "s3://lab?endpoint=ftp://x",
        "s3://lab?endpoint=https://key:secret@host",
        "s3://lab?secret_access_key=x",
        "s3://lab#x",
        "az://lab/x",
        "file://other-host/srv",
        "file:///srv/../etc",
        "file://",
        "https://",
        "https://example.org/?q=1",
        "https://example.org/{hash}/{name}",
        "https://example.org/{aa}",
        "https://example.org/{hash",
        "https://user:secret@example.org/",
        'https://example.org/"',
        "s3://lab/" + "x" * 2_000,
    ],
)
def test_what_is_no_url_of_a_bucket_is_refused_without_repeating_a_secret(text: str) -> None:
    with pytest.raises(BucketUrlError) as refused:
        parse_bucket_url(text)
    assert "key:secret" not in str(refused.value)
    assert "user:secret" not in str(refused.value)
    assert refused.value.hint


def test_a_mirror_has_our_layout_or_that_of_its_template() -> None:
    plain = parse_bucket_url("https://example.org/lab")
    assert plain.of_content(CONTENT) == f"https://example.org/lab/sha1/aa/f4/c6/{CONTENT}"
    template = parse_bucket_url("https://example.org/{aa}/{bb}{cc}?h={hash}")
    assert template.of_content(CONTENT) == f"https://example.org/aa/f4c6?h={CONTENT}"


def test_two_buckets_are_told_apart_and_one_is_known_again() -> None:
    one = parse_bucket_url("s3://lab/x?endpoint=https://a.example&region=r1")
    same = parse_bucket_url("s3://lab/x/?region=r1&endpoint=https://a.example/")
    other = parse_bucket_url("s3://lab/y?endpoint=https://a.example&region=r1")
    assert one.node == same.node != other.node
    assert len(one.node) == 64


def test_only_the_keys_of_contents_are_contents() -> None:
    assert layout.content_of(layout.key_of(CONTENT)) == CONTENT
    for key in (f"sha1/{CONTENT}", f"sha1/aa/f4/c7/{CONTENT}", "sha1/aa/f4/c6/x", "README", ""):
        assert layout.content_of(key) is None


def test_the_parts_of_the_chunk_hashes_are_where_the_spans_say() -> None:
    builder = ManifestBuilder()
    chunk = bytes(CHUNK_BYTES)
    for _ in range(1025):
        builder.update(chunk)
    builder.update(b"end")
    manifest = builder.finish(CONTENT)
    tables = layout.tables_of(manifest)
    start, end = layout.root_object_span(manifest.size)
    root_object = RootObject.decode(tables[start:end])
    assert root_object == manifest.root_object
    for number in range(2):
        start, end = layout.page_span(manifest.size, number)
        verify_page(root_object, number, tables[start:end])
    assert end == len(tables)


def test_a_label_and_a_root_survive_as_metadata_and_nonsense_does_not() -> None:
    told = layout.attributes(ROOT, "Übung 1.csv")
    assert all(value.isascii() for value in told.values())
    assert told["Content-Type"] == "text/csv"
    assert layout.told_root(told) == ROOT
    assert layout.told_label(told) == "Übung 1.csv"
    assert layout.told_root({"root": "x"}) is None
    assert layout.told_label({"label": "../x"}) is None
    assert layout.told_label({}) is None
    assert layout.content_type(None) == layout.content_type("x") == "application/octet-stream"


def test_the_hash_in_a_key_is_that_of_the_bytes() -> None:
    assert layout.key_of(sha1_of(b"hello")) == f"sha1/aa/f4/c6/{CONTENT}"
