"""What strangers wrote: every mutated URI, chunk list and directory is read or refused."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.content.chunk_lists import KACHERY, ChunkList
from kachery_p2p.content.directories import Directory
from kachery_p2p.content.hashes import Cid
from kachery_p2p.content.schemes import format_any, parse_any
from kachery_p2p.content.uris import check_label, format_uri, parse_uri
from kachery_p2p.errors import DataFormatError, InvalidNameError, KacheryError, UriError

SEED = 20_431
VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors/content.json").read_text()
)
URIS = [v["uri"] for key in ("uris", "any_uris") for v in VECTORS[key] if len(v["uri"]) < 300]
URI_SPICE = ["%", "%2e", "%2F", "%00", "%ff", "/", "..", "?", "&", "=", "~", ":", "#", "\n", "\0"]
URI_SPICE += ["label=", "root=", "manifest=", "chunkOf=", "location=/", "sha1", "\u202e", "\udcff"]
CHUNK_LISTS = [v["read"].encode() for v in VECTORS["good_chunk_lists"]]
DIRECTORIES = [v["read"].encode() for v in VECTORS["directories"]]
JSON_SPICE = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u0000", b"\\ud800", b"0", b"-1"]
JSON_SPICE += [
    b"1e9",
    b"NaN",
    b"null",
    b"true",
    b'"a":',
    b'"..":',
    b"{}",
    b"[]",
    b"9" * 30,
    b"\xff",
]
JSON_SPICE += [b'"size":', b'"sha1":', b'"md5":', b'"files":', b'"dirs":', b'"chunks":', b'"/":{}']


def mutated(seeds: list[Any], spice: list[Any], rng: random.Random) -> Any:
    """One of `seeds` with one to four parts cut out, doubled, or replaced by some of `spice`."""
    text = rng.choice(seeds)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(text) + 1)
        end = start + int(rng.expovariate(0.2))
        change = rng.random()
        if change < 0.3:
            text = text[:start] + text[end:]
        elif change < 0.5:
            text = text[:end] + text[start:]
        else:
            text = text[:start] + rng.choice(spice) + text[end if change < 0.7 else start :]
    return text


def fuzz(rounds: int, make: Callable[[random.Random], Any], read: Callable[[Any], None]) -> int:
    """How many of `rounds` were refused; any error but ours of the right kind fails."""
    rng, refused = random.Random(SEED), 0
    for number in range(rounds):
        given = make(rng)
        try:
            read(given)
        except (UriError, InvalidNameError, DataFormatError) as error:
            assert str(error).isprintable(), (SEED, number, given)
            refused += 1
        except (Exception, KacheryError) as error:
            raise AssertionError(f"seed {SEED}, round {number}: {given!r}") from error
    return refused


def read_uri(text: str) -> None:
    uri = parse_uri(text)
    assert uri.name is None or check_label(uri.name)
    assert parse_uri(format_uri(uri)) == uri


def read_any(text: str) -> None:
    uri = parse_any(text)
    written = format_any(uri)
    assert parse_any(written) == uri
    assert format_any(parse_any(written)) == written


def read_chunk_list(data: bytes) -> None:
    found = ChunkList.decode(data)
    assert sum(chunk.end - chunk.start for chunk in found.chunks) == found.size
    assert ChunkList.decode(found.encode(KACHERY)) == found


def read_directory(data: bytes) -> None:
    directory = Directory.decode(data)
    assert all(check_label(name) for path, _ in directory.walk() for name in path)
    assert Directory.decode(directory.encode()) == directory


FUZZERS: dict[str, tuple[list[Any], list[Any], Callable[[Any], None]]] = {
    "uris": (URIS, URI_SPICE, read_uri),
    "any uris": (URIS, URI_SPICE, read_any),
    "chunk lists": (CHUNK_LISTS, JSON_SPICE, read_chunk_list),
    "directories": (DIRECTORIES, JSON_SPICE, read_directory),
}


@pytest.mark.parametrize("what", FUZZERS)
def test_fifty_thousand_mutated_texts_are_read_or_refused(what: str) -> None:
    seeds, spice, read = FUZZERS[what]
    refused = fuzz(50_000, lambda rng: mutated(seeds, spice, rng), read)
    assert 20_000 < refused < 49_900


@pytest.mark.fuzz
@pytest.mark.parametrize("what", FUZZERS)
def test_many_more_mutated_texts_are_read_or_refused(what: str) -> None:
    seeds, spice, read = FUZZERS[what]
    fuzz(int(os.environ.get("FUZZ_ROUNDS", "1000000")), lambda r: mutated(seeds, spice, r), read)


def test_fifty_thousand_random_ipfs_hashes_are_names_or_refused() -> None:
    seeds = [v["cid"] for v in VECTORS["values"] if "cid" in v]
    seeds += [v["fields"][0] for v in VECTORS["any_uris"] if v["kind"] == "IpfsUri"]
    spice = ["a", "7", "0", "Q", "m", "b", "=", "é", ""]
    refused = fuzz(
        50_000,
        lambda rng: mutated(seeds, spice, rng),
        lambda text: None if Cid.parse(text) else None,
    )
    assert refused > 40_000
