"""The size of a file that a daemon elsewhere brings: from what it verified, never from a claim."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kachery_p2p as kp
from kachery_p2p.cli.main import run
from kachery_p2p.errors import DaemonProtocolError, InvalidRangeError, NotFoundError
from kachery_p2p.limits import CHUNK_BYTES
from kachery_p2p.node.doors import Call
from tests.client.conftest import TOKEN, FakeDaemon

DATA = random.Random(1).randbytes(2 * CHUNK_BYTES + 7)
ROOT = "1" * 64


class Misled(FakeDaemon):
    """Members claim a size of everything that it does not have yet."""

    said = 1000

    async def _find(self, call: Call) -> dict[str, Any]:
        found = await super()._find(call)
        return found if found["local"] else {**found, "size": self.said}


@pytest.fixture
def misled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Misled]:
    """The client's daemon, on another machine."""
    (tmp_path / "their-config").mkdir(mode=0o700)
    (tmp_path / "their-store").mkdir()
    daemon = Misled(tmp_path / "their-config", tmp_path / "their-store")
    daemon.start()
    name_daemon(monkeypatch, daemon.port)
    yield daemon
    daemon.stop()


def name_daemon(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("KACHERY_DAEMON_HOST", "127.0.0.1")
    monkeypatch.setenv("KACHERY_DAEMON_PORT", str(port))
    monkeypatch.setenv("KACHERY_DAEMON_TOKEN", TOKEN)


def uri_of(content: str) -> str:
    return f"sha1://{content}/data.bin?root={ROOT}"


@pytest.mark.parametrize("said", [0, 1000, 9_000_000])
def test_a_file_has_the_size_that_the_daemon_verified(misled: Misled, said: int) -> None:
    misled.said = said
    with kp.open(uri_of(misled.give_network(DATA))) as file:
        assert file.seek(0, 2) == len(DATA)
        file.seek(0)
        assert file.read() == DATA


@pytest.mark.parametrize("said", [0, 1000, 9_000_000])
@pytest.mark.parametrize("root", ["", f"?root={ROOT}"])
@pytest.mark.filterwarnings("ignore:.* are fetched and verified first:UserWarning")
def test_what_is_printed_up_to_its_end_ends_where_it_was_verified(
    misled: Misled, capfdbinary: pytest.CaptureFixture[bytes], said: int, root: str
) -> None:
    misled.said = said
    uri = f"sha1://{misled.give_network(DATA)}{root}"
    assert run(["cat", uri, "--start", "5"]) == 0
    assert capfdbinary.readouterr().out == DATA[5:]


@pytest.mark.parametrize("root", ["", f"?root={ROOT}"])
@pytest.mark.filterwarnings("ignore:.* are fetched and verified first:UserWarning")
def test_an_empty_range_is_refused_outside_the_file_only(misled: Misled, root: str) -> None:
    uri = f"sha1://{misled.give_network(DATA)}{root}"
    assert kp.load_bytes(uri, len(DATA), len(DATA)) == b""
    with pytest.raises(InvalidRangeError):
        kp.load_bytes(uri, len(DATA) + 1, len(DATA) + 1)


def test_an_empty_file_is_no_error(misled: Misled) -> None:
    uri = uri_of(misled.give_network(b""))
    with kp.open(uri) as file:
        assert file.read() == b""
    assert kp.load_bytes(uri, 0, 0) == b""
    with pytest.raises(InvalidRangeError):
        kp.load_bytes(uri, 1, 1)


def test_what_nobody_has_is_the_daemons_error(misled: Misled) -> None:
    for call in (kp.open, lambda uri: kp.load_bytes(uri, 0, 0)):
        with pytest.raises(NotFoundError, match="no peer has") as caught:
            call(uri_of("0" * 40))
        assert caught.value.hint == "ask its owner"


def test_a_daemon_that_is_down_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    name_daemon(monkeypatch, port)
    with pytest.raises(NotFoundError, match=f"127.0.0.1:{port}"):
        kp.open(uri_of("0" * 40))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-0/*\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Range: bytes 0-0/5\r\nContent-Length: 1\r\n\r\nx",
    ],
)
def test_an_answer_that_tells_no_size_is_an_error(
    monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        name_daemon(monkeypatch, listening.getsockname()[1])

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(DaemonProtocolError):
            kp.open(uri_of("0" * 40))
        thread.join()
