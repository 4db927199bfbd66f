"""What a process does with a bucket in these benchmarks, with our code and with obstore alone."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore

from kachery_p2p.bucket.credentials import environment, find_credentials
from kachery_p2p.bucket.layout import key_of
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.pushing import push
from kachery_p2p.bucket.urls import parse_bucket_url
from kachery_p2p.client.local import open_store
from kachery_p2p.content.hashes import ContentHash

PIECE_BYTES = 8 << 20
AT_ONCE = 64


def opened(url: str) -> Objects:
    """The bucket, with the credentials of the environment."""
    parsed = parse_bucket_url(url)
    return Objects(parsed, find_credentials("environment", parsed.scheme, environment()))


def put_file(url: str, content: str) -> dict[str, Any]:
    """Put a file of the store there, as uploads do it."""
    with open_store() as store:
        began = time.perf_counter()
        pushed = push(opened(url), store, ContentHash(content), "bench.dat")
        assert pushed.sent, "it was there already"
        return {"seconds": time.perf_counter() - began}


def put_many(url: str, contents: list[str]) -> dict[str, Any]:
    """Put small files of the store there: what a reader has, not measured."""
    bucket = opened(url)
    with open_store() as store, ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda content: push(bucket, store, ContentHash(content)), contents))
    return {}


def get_many(url: str, contents: list[str], size: int) -> dict[str, Any]:
    """Read small objects, 64 at a time, by our code."""
    bucket = opened(url)

    def get(content: str) -> int:
        return sum(map(len, bucket.read(ContentHash(content), 0, size)))

    return _timed(get, contents, size)


def get_many_bare(url: str, contents: list[str], size: int) -> dict[str, Any]:
    """The same by the library alone."""
    parsed, store = parse_bucket_url(url), _store(url)

    def get(content: str) -> int:
        found = obstore.get(store, f"{parsed.prefix}/{key_of(ContentHash(content))}")
        return len(bytes(found.bytes()))

    return _timed(get, contents, size)


def _timed(get: Any, contents: list[str], size: int) -> dict[str, Any]:
    with ThreadPoolExecutor(AT_ONCE) as threads:
        # Connections first: a node keeps them.
        list(threads.map(get, contents[:AT_ONCE]))
        began = time.perf_counter()
        lengths = list(threads.map(get, contents))
        seconds = time.perf_counter() - began
    assert set(lengths) == {size}
    return {"seconds": seconds}


def put_bare(url: str, key: str, path: str) -> dict[str, Any]:
    """Put a file there by the library alone, which chooses how."""
    store = _store(url)
    began = time.perf_counter()
    obstore.put(store, key, Path(path))
    return {"seconds": time.perf_counter() - began}


def get_bare(url: str, key: str, path: str) -> dict[str, Any]:
    """Get an object into a durable file by the library alone. Nothing is verified."""
    store = _store(url)
    began = time.perf_counter()
    with open(path, "xb", 0) as file:
        for piece in obstore.get(store, key).stream(min_chunk_size=PIECE_BYTES):
            file.write(piece)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    os.unlink(path)
    return {"seconds": seconds}


def delete(url: str, keys: list[str]) -> dict[str, Any]:
    """Remove objects, so that the server's memory holds the next ones."""
    obstore.delete(_store(url), keys)
    return {}


def _store(url: str) -> Any:
    parsed = parse_bucket_url(url)
    return obstore.store.S3Store(
        parsed.place,
        endpoint=parsed.endpoint,
        region="us-east-1",
        access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        client_options={"allow_http": True, "timeout": "10m"},
        virtual_hosted_style_request=False,
    )
