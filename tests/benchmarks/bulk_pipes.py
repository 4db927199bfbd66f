"""What this computer could do at best: a file through a socket, encrypted, verified and written.

Nothing of ours in between, no protocol: what comes is the file. Each function is called
by child.py in a process of its own. A receiver takes BLAKE3 of each MiB and writes in one
thread, SHA-1 in another. Keys and certificates are made up: this measures, it protects
nothing.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import queue
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PIECE_BYTES = 1 << 20
TAG_BYTES = 16
PIECES_AHEAD_MAX = 8
KEY = bytes(range(32))


def send_sealed(path: str) -> dict[str, Any]:
    """Print a port, and send the file to whoever connects there, in AES-256-GCM frames of a MiB."""
    aead = AESGCM(KEY)
    plain = memoryview(bytearray(PIECE_BYTES))
    frame = memoryview(bytearray(PIECE_BYTES + TAG_BYTES))
    with _accepted() as connection, open(path, "rb", 0) as file:
        began = time.process_time()
        number = 0
        while count := file.readinto(plain):
            nonce = number.to_bytes(12, "big")
            aead.encrypt_into(nonce, plain[:count], None, frame[: count + TAG_BYTES])
            connection.sendall(frame[: count + TAG_BYTES])
            number += 1
        return {"transfer_cpu_s": time.process_time() - began}


def receive_sealed(port: int, path: str, size: int) -> dict[str, Any]:
    """Receive a file that comes in AES-256-GCM frames."""
    filing = Filing(path)
    aead = AESGCM(KEY)
    frame = memoryview(bytearray(PIECE_BYTES + TAG_BYTES))
    with socket.create_connection(("127.0.0.1", port)) as source:
        for number, length in enumerate(_lengths(size)):
            received = frame[: length + TAG_BYTES]
            assert source.recv_into(received, 0, socket.MSG_WAITALL) == len(received)
            buffer = filing.free.get()
            piece = memoryview(buffer)[:length]
            aead.decrypt_into(number.to_bytes(12, "big"), received, None, piece)
            filing.take(number, piece)
    return filing.finish()


def send_tls(path: str, directory: str) -> dict[str, Any]:
    """The same over TLS 1.3 by `ssl`, with AES-256-GCM."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(*certificate(Path(directory)))
    plain = memoryview(bytearray(PIECE_BYTES))
    with (
        _accepted() as accepted,
        context.wrap_socket(accepted, server_side=True) as connection,
        open(path, "rb", 0) as file,
    ):
        began = time.process_time()
        while count := file.readinto(plain):
            connection.sendall(plain[:count])
        return {"transfer_cpu_s": time.process_time() - began}


def receive_tls(port: int, path: str, size: int) -> dict[str, Any]:
    """Receive a file over TLS 1.3."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    filing = Filing(path)
    with (
        socket.create_connection(("127.0.0.1", port)) as tcp,
        context.wrap_socket(tcp) as source,
    ):
        for number, length in enumerate(_lengths(size)):
            piece = memoryview(filing.free.get())[:length]
            filled = 0
            while filled < length:
                filled += source.recv_into(piece[filled:])
            filing.take(number, piece)
    return filing.finish()


class Filing:
    """A file that is verified and written as it comes, as every receiver here has to do it."""

    def __init__(self, path: str) -> None:
        self._began = time.perf_counter()
        self._cpu_began = time.process_time()
        self._file = open(path, "wb", 0)  # noqa: SIM115
        self._sha1 = hashlib.sha1(usedforsecurity=False)
        self._chunks = blake3()
        self._full: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self.free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        for _ in range(PIECES_AHEAD_MAX):
            self.free.put(bytearray(PIECE_BYTES))
        self._hasher = threading.Thread(target=self._hash)
        self._hasher.start()

    def take(self, number: int, piece: memoryview) -> None:
        self._chunks.update(blake3(piece).digest())
        os.pwrite(self._file.fileno(), piece, number * PIECE_BYTES)
        self._full.put(piece)

    def _hash(self) -> None:
        while (piece := self._full.get()) is not None:
            self._sha1.update(piece)
            self.free.put(piece.obj)  # type: ignore[arg-type] # the bytearray that it is a view of

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


def _accepted() -> socket.socket:
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        connection, _ = server.accept()
        return connection


def _lengths(size: int) -> list[int]:
    return [min(PIECE_BYTES, size - at) for at in range(0, size, PIECE_BYTES)]


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate that signs itself, and its key, as files."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "benchmark")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(hours=1))
        .sign(key, None)
    )
    certificate_path, key_path = directory / "certificate.pem", directory / "key.pem"
    certificate_path.write_bytes(certificate.public_bytes(Encoding.PEM))
    key_path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate_path, key_path
