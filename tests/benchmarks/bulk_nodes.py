"""Two bulk planes in processes of their own: one serves a file, the other puts it together.

Each function is called by child.py. What a control stream would carry goes over a plain
TCP connection as lines of JSON. A node has long imported its cryptography when it is asked
for a file, so that is not measured here.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import cryptography.hazmat.primitives.ciphers.aead
import cryptography.hazmat.primitives.kdf.hkdf
import trio

from kachery_p2p.content.manifests import (
    HASH_BYTES,
    HEADER_BYTES,
    Manifest,
    RootObject,
    page_count,
    page_length,
)
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import BULK_PIPELINED, BULK_RANGE_CHUNKS
from kachery_p2p.network.bulk import open_bulk_plane
from kachery_p2p.network.bulk_asking import BulkConnection
from kachery_p2p.store.hashing import hash_file
from kachery_p2p.store.partials import Partial
from kachery_p2p.transfer.assembly import Assembly
from kachery_p2p.wire.bulk_messages import BulkRange

ALICE = NodeId.of_raw(b"a" * 32)
BOB = NodeId.of_raw(b"b" * 32)
CHANNEL = "0f" * 32
_LINE_BYTES_MAX = 4096


class ServedFile:
    """A file that everybody may have."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self.descriptor).st_size

    def revoked(self) -> bool:
        return False

    def close(self) -> None:
        os.close(self.descriptor)


def serve(path: str) -> dict[str, Any]:
    """Print a port for tickets, and serve the file until whoever connects there has gone."""
    return trio.run(_serve, path)


async def _serve(path: str) -> dict[str, Any]:
    async def serve_file(peer: NodeId, wanted: Any) -> ServedFile:
        return ServedFile(path)

    async with open_bulk_plane(ALICE, [("127.0.0.1", 0)], serve_file) as plane:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        print(listener.socket.getsockname()[1], flush=True)
        began = time.process_time()
        control = await listener.accept()
        await control.send_all(_line(plane.offer(BOB, _body(await _read_line(control)))))
        await _read_line(control)
        used = time.process_time() - began
    await listener.aclose()
    return {"transfer_cpu_s": used}


def fetch(port: int, store: str, manifest: str) -> dict[str, Any]:
    """Fetch the file into a download in `store`, as a node does it."""
    return trio.run(_fetch, port, store, read_manifest(Path(manifest)))


async def _fetch(port: int, store: str, manifest: Manifest) -> dict[str, Any]:
    control = await trio.open_tcp_stream("127.0.0.1", port)

    async def ask(op: str, body: dict[str, Any]) -> dict[str, Any]:
        await control.send_all(_line(body))
        return _body(await _read_line(control))

    async def nobody(peer: NodeId, wanted: Any) -> ServedFile:
        raise AssertionError("this side serves nothing")

    async with open_bulk_plane(BOB, [], nobody) as plane:
        connection = await plane.connect(ALICE, ask, ["127.0.0.1"])
        result = await _fetch_all(connection, store, manifest)
    await control.send_all(b"\n")
    return result


async def _fetch_all(connection: BulkConnection, store: str, manifest: Manifest) -> dict[str, Any]:
    began, cpu_began = time.perf_counter(), time.process_time()
    partial = Partial.open(store, ALICE, manifest.root_object, reserve_bytes=0)
    for number, page in enumerate(manifest.pages):
        partial.write_page(number, page)
    assembly = Assembly(partial)
    places = trio.CapacityLimiter(BULK_PIPELINED)
    chunks = manifest.root_object.chunk_count
    async with trio.open_nursery() as nursery:
        for first in range(0, chunks, BULK_RANGE_CHUNKS):
            count = min(BULK_RANGE_CHUNKS, chunks - first)
            wanted = BulkRange(CHANNEL, b"c" * 20, b"r" * 32, first, count)
            await places.acquire_on_behalf_of(first)
            nursery.start_soon(_fetch_range, connection, wanted, assembly, places)
    sha1 = await trio.to_thread.run_sync(assembly.finish)
    verified, cpu = time.perf_counter(), time.process_time()
    await trio.to_thread.run_sync(partial.sync)
    durable = time.perf_counter()
    partial.discard()
    return {
        "sha1": sha1,
        "seconds": verified - began,
        "durable_s": durable - began,
        "transfer_cpu_s": cpu - cpu_began,
    }


async def _fetch_range(
    connection: BulkConnection, wanted: BulkRange, assembly: Assembly, places: trio.CapacityLimiter
) -> None:
    await connection.fetch(wanted, assembly.take)
    places.release_on_behalf_of(wanted.first)


def write_manifest(source: Path, path: Path) -> str:
    """Hash the file, put its manifest to `path`, and answer its SHA-1."""
    with source.open("rb") as file:
        manifest = hash_file(file.fileno(), source.stat().st_size)
    path.write_bytes(manifest.root_object.encode() + b"".join(manifest.pages))
    return manifest.content


def read_manifest(path: Path) -> Manifest:
    """What `write_manifest` wrote."""
    data = path.read_bytes()
    size = int.from_bytes(data[8:16], "big")
    end = HEADER_BYTES + HASH_BYTES * page_count(size)
    ends = itertools.accumulate(
        (page_length(size, n) for n in range(page_count(size))), initial=end
    )
    pages = tuple(data[start:stop] for start, stop in itertools.pairwise(ends))
    return Manifest(RootObject.decode(data[:end]), pages)


def _line(body: dict[str, Any]) -> bytes:
    hexed = {k: {"hex": v.hex()} if isinstance(v, bytes) else v for k, v in body.items()}
    return json.dumps(hexed).encode() + b"\n"


def _body(line: bytes) -> dict[str, Any]:
    found = json.loads(line)
    return {k: bytes.fromhex(v["hex"]) if isinstance(v, dict) else v for k, v in found.items()}


async def _read_line(stream: trio.SocketStream) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < _LINE_BYTES_MAX:
        more = await stream.receive_some(1024)
        if not more:
            break
        line += more
    return line


# Named, so that nobody takes these imports for unused ones.
IMPORTED = (cryptography.hazmat.primitives.ciphers.aead, cryptography.hazmat.primitives.kdf.hkdf)
