"""Names of contents: parsed once, compared as text."""

from __future__ import annotations

import hashlib

import pytest

from kachery_p2p.content.hashes import Cid, ContentHash, Root, quoted, sha1_of
from kachery_p2p.errors import UriError

SHA1 = "b971c6ef19b1d70ae8f0feb989b106c319b36230"


def test_the_sha1_of_the_familys_test_file_is_the_known_one() -> None:
    assert sha1_of(b"test-content\n") == SHA1


def test_upper_case_hex_is_lowered() -> None:
    assert ContentHash.parse(SHA1.upper()) == SHA1


def test_raw_bytes_come_back() -> None:
    assert ContentHash.of_raw(ContentHash(SHA1).raw) == SHA1
    assert len(Root.parse("ab" * 32).raw) == 32


@pytest.mark.parametrize(
    "text",
    [
        "",
        SHA1[1:],
        SHA1 + "0",
        SHA1[:-1] + "g",
        SHA1[:-1] + " ",
        SHA1[:-1] + "\u0663",
        "\u212a" * 40,
    ],
)
def test_anything_but_forty_hex_characters_is_refused(text: str) -> None:
    with pytest.raises(UriError):
        ContentHash.parse(text)


def test_raw_bytes_of_another_length_are_refused() -> None:
    with pytest.raises(UriError):
        Root.of_raw(bytes(20))


def test_the_error_says_how_many_characters_are_missing() -> None:
    with pytest.raises(UriError, match="cut off: it has 39 characters, not 40"):
        ContentHash.parse(SHA1[1:])


def test_an_ipfs_hash_of_one_block_tells_the_sha256_of_the_content() -> None:
    name = Cid.parse("bafkreiajr6u7obg3mpunezz2mwarr2sptwr3zaedia665vdayvw6mpn5ga".upper())
    assert name.sha256 == hashlib.sha256(b"test-content\n").digest()


@pytest.mark.parametrize(
    "text",
    [
        "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWKPbdG",
        "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi",
    ],
)
def test_an_ipfs_hash_of_a_list_of_blocks_tells_nothing_of_the_content(text: str) -> None:
    assert Cid.parse(text) == text
    assert Cid.parse(text).sha256 is None


def test_what_is_quoted_is_escaped_and_short() -> None:
    assert quoted("\x1b[31m\u202e") == r"'\x1b[31m\u202e'"
    assert len(quoted("a" * 10_000)) < 100
