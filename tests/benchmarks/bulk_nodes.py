"""Two bulk planes in processes of their own: one serves a file, the other fetches it.

Each function is called by child.py. What a control stream would carry goes over a plain
TCP connection as lines of JSON. A node has long imported its cryptography when it is asked
for a file, so that is not measured here.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import queue
import threading
import time
from typing import Any

import cryptography.hazmat.primitives.ciphers.aead
import cryptography.hazmat.primitives.kdf.hkdf
import trio
from bulk_pipes import PIECE_BYTES

from kachery_p2p.content.manifests import chunk_count, chunk_hash
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import BULK_REQUEST_CHUNKS_MAX
from kachery_p2p.network.bulk import open_bulk_plane
from kachery_p2p.network.bulk_asking import BulkConnection
from kachery_p2p.network.bulk_buffers import Piece
from kachery_p2p.wire.bulk_messages import BulkRange

ALICE = NodeId.of_raw(b"a" * 32)
BOB = NodeId.of_raw(b"b" * 32)
CHANNEL = "0f" * 32
# Requests under way at once: the next begins while the last chunks of one are written.
FETCHES_MAX = 2
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
    async def serve_file(peer: NodeId, wanted: BulkRange) -> ServedFile:
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


def fetch(port: int, path: str, size: int, hashes: str) -> dict[str, Any]:
    """Fetch the file, with the BLAKE3 of each chunk to be verified in a file of theirs."""
    with open(hashes, "rb") as file:
        table = file.read()
    return trio.run(functools.partial(_fetch, port, path, size, table))


async def _fetch(port: int, path: str, size: int, table: bytes) -> dict[str, Any]:
    control = await trio.open_tcp_stream("127.0.0.1", port)

    async def ask(op: str, body: dict[str, Any]) -> dict[str, Any]:
        await control.send_all(_line(body))
        return _body(await _read_line(control))

    async def nobody(peer: NodeId, wanted: BulkRange) -> ServedFile:
        raise AssertionError("this side serves nothing")

    async with open_bulk_plane(BOB, [], nobody) as plane:
        filing = Filing(path, table)
        await _fetch_all(await plane.connect(ALICE, ask, ["127.0.0.1"]), size, filing)
        result = await trio.to_thread.run_sync(filing.finish)
    await control.send_all(b"\n")
    return result


async def _fetch_all(connection: BulkConnection, size: int, filing: Filing) -> None:
    places = trio.CapacityLimiter(FETCHES_MAX)
    chunks = chunk_count(size)
    async with trio.open_nursery() as nursery:
        for first in range(0, chunks, BULK_REQUEST_CHUNKS_MAX):
            count = min(BULK_REQUEST_CHUNKS_MAX, chunks - first)
            wanted = BulkRange(CHANNEL, b"c" * 20, b"r" * 32, first, count)
            await places.acquire_on_behalf_of(first)
            nursery.start_soon(_fetch_range, connection, wanted, filing, places)


async def _fetch_range(
    connection: BulkConnection, wanted: BulkRange, filing: Filing, places: trio.CapacityLimiter
) -> None:
    await connection.fetch(wanted, filing.take)
    places.release_on_behalf_of(wanted.first)


class Filing:
    """A file that is verified and written as it comes; SHA-1 follows in a thread."""

    def __init__(self, path: str, hashes: bytes) -> None:
        self._began = time.perf_counter()
        self._cpu_began = time.process_time()
        self._file = open(path, "wb", 0)  # noqa: SIM115
        self._hashes = hashes
        self._sha1 = hashlib.sha1(usedforsecurity=False)
        self._full: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        self._hasher = threading.Thread(target=self._hash)
        self._hasher.start()

    def take(self, piece: Piece) -> None:
        number = piece.number
        if chunk_hash(piece.data) != self._hashes[32 * number : 32 * (number + 1)]:
            raise ValueError("a chunk is not the one that was served")
        os.pwrite(self._file.fileno(), piece.data, number * PIECE_BYTES)
        self._full.put(piece)

    def _hash(self) -> None:
        while (piece := self._full.get()) is not None:
            self._sha1.update(piece.data)
            piece.release()

    def finish(self) -> dict[str, Any]:
        self._full.put(None)
        self._hasher.join()
        verified = time.perf_counter()
        cpu = time.process_time()
        os.fsync(self._file.fileno())
        durable = time.perf_counter()
        self._file.close()
        return {
            "sha1": self._sha1.hexdigest(),
            "seconds": verified - self._began,
            "durable_s": durable - self._began,
            "transfer_cpu_s": cpu - self._cpu_began,
        }


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
