"""Mirrors, and clouds too: whatever their server does, there is a typed error in time."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from threading import Thread

import pytest

from kachery_p2p.bucket import layout
from kachery_p2p.bucket.credentials import find_credentials
from kachery_p2p.bucket.mirror import Mirror
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.probe import check_place
from kachery_p2p.bucket.urls import parse_bucket_url
from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.errors import (
    BucketAnswerError,
    BucketBusyError,
    BucketError,
    BucketRefusedError,
    BucketUnreachableError,
)
from tests.bucket import faulty as faults
from tests.bucket.faulty import Faulty

DATA = bytes(range(256)) * 4_000
CONTENT = sha1_of(DATA)
ROOT = "ab" * 32
LAB = "1a" * 32


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("web", "objects"):
        monkeypatch.setattr(f"kachery_p2p.bucket.{module}.STALL_S_MAX", 0.5)
    monkeypatch.setattr("kachery_p2p.bucket.web.BUCKET_HEADERS_S_MAX", 1.0)
    monkeypatch.setattr("kachery_p2p.bucket.objects.BUCKET_READ_S_MAX", 2.0)
    monkeypatch.setattr("kachery_p2p.bucket.objects.BUCKET_READ_RETRIES_MAX", 0)


@pytest.fixture
def mirror(faulty: Faulty) -> Iterator[Mirror]:
    faulty.put(f"/k/{layout.key_of(CONTENT)}", DATA, root=ROOT, label="x%20y.csv")
    with contextlib.closing(Mirror(parse_bucket_url(f"{faulty.url}/k"))) as opened:
        yield opened


@pytest.fixture(params=["mirror", "s3"])
def place(request: pytest.FixtureRequest, faulty: Faulty) -> Iterator[Mirror | Objects]:
    """The same objects, read as a mirror and as a bucket of S3."""
    path = layout.key_of(CONTENT)
    for top in ("k", "lab/k"):
        faulty.put(f"/{top}/{path}", DATA, root=ROOT, label="x%20y.csv")
    if request.param == "mirror":
        with contextlib.closing(Mirror(parse_bucket_url(f"{faulty.url}/k"))) as opened:
            yield opened
        return
    environ = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    url = parse_bucket_url(f"s3://lab/k?endpoint={faulty.url}")
    yield Objects(url, find_credentials("environment", "s3", environ))


def test_a_content_is_found_and_read_in_parts(place: Mirror | Objects) -> None:
    found = place.look(CONTENT)
    assert found is not None
    assert (found.size, found.root, found.label) == (len(DATA), ROOT, "x y.csv")
    for start, end in ((0, len(DATA)), (10, 20), (100_000, 900_000)):
        assert b"".join(place.read(CONTENT, start, end)) == DATA[start:end]
    assert place.look(sha1_of(b"absent")) is None
    with pytest.raises(BucketAnswerError):
        list(place.read(sha1_of(b"absent"), 0, 1))


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, BucketRefusedError),
        (403, BucketRefusedError),
        (429, BucketBusyError),
        (500, BucketAnswerError),
        (503, BucketBusyError),
        (418, BucketAnswerError),
    ],
)
def test_a_status_is_a_typed_error(
    place: Mirror | Objects, faulty: Faulty, status: int, error: type[BucketError]
) -> None:
    faulty.fault = faults.status(status)
    with pytest.raises(error) as looked:
        place.look(CONTENT)
    assert looked.value.hint
    with pytest.raises(error):
        list(place.read(CONTENT, 0, 10))


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("7", 7),
        ("99999999", 3_600),
        ("soon", 0),
        ("Sat, 21 Nov 2020 08:00:00 GMT", 0),
        ("1 jan 99999999999999999999 00:00", 0),
        ("Mon, 01 Jan 0001 00:00:00 -0000", 0),
    ],
)
def test_retry_after_is_heard_and_not_believed_for_ever(
    mirror: Mirror, faulty: Faulty, told: str, seconds: float
) -> None:
    faulty.fault = faults.status(429, {"Retry-After": told})
    with pytest.raises(BucketBusyError) as busy:
        mirror.look(CONTENT)
    assert busy.value.retry_after_s == seconds


def test_a_body_that_is_cut_off_is_an_error(place: Mirror | Objects, faulty: Faulty) -> None:
    faulty.fault = faults.cutting_off
    with pytest.raises((BucketUnreachableError, BucketAnswerError)):
        list(place.read(CONTENT, 0, 500_000))


def test_an_endless_body_is_read_no_further_than_was_asked(
    place: Mirror | Objects, faulty: Faulty
) -> None:
    faulty.fault = faults.only_get(faults.endless)
    came = 0
    with pytest.raises(BucketError):
        for piece in place.read(CONTENT, 0, 500_000):
            came += len(piece)
    assert came <= 500_000


def test_a_frozen_server_is_given_up(place: Mirror | Objects, faulty: Faulty) -> None:
    faulty.fault = faults.frozen
    started = time.monotonic()
    with pytest.raises(BucketUnreachableError):
        place.look(CONTENT)
    with pytest.raises(BucketUnreachableError):
        list(place.read(CONTENT, 0, 10))
    assert time.monotonic() - started < 8


def test_a_login_page_is_not_taken_for_a_part(place: Mirror | Objects, faulty: Faulty) -> None:
    faulty.fault = faults.page
    with pytest.raises(BucketAnswerError):
        list(place.read(CONTENT, 1_000, 2_000))
    found = place.look(CONTENT)
    assert found is None or found.root is None, "the page says nothing of a root"


def test_a_check_finds_out_a_server_that_has_everything(mirror: Mirror, faulty: Faulty) -> None:
    assert [p.state for p in check_place(mirror, LAB, writes=True)] == ["ok", "skip"]
    faulty.fault = faults.page
    (reach, _) = check_place(mirror, LAB, writes=True)
    assert reach.state == "fail"


def test_headers_that_drip_are_given_up(mirror: Mirror, faulty: Faulty) -> None:
    def dripping(server: Faulty, request: faults.Request, connection: socket.socket) -> bool:
        while not server.closing.wait(0.1):
            connection.sendall(b"X")
        return True

    faulty.fault = dripping
    started = time.monotonic()
    with pytest.raises(BucketError):
        mirror.look(CONTENT)
    assert time.monotonic() - started < 5


def test_a_body_that_drips_is_given_up(mirror: Mirror, faulty: Faulty) -> None:
    def dripping(server: Faulty, request: faults.Request, connection: socket.socket) -> bool:
        faults.send(
            connection, 206, b"", length=500, headers={"Content-Range": f"bytes 0-499/{len(DATA)}"}
        )
        while not server.closing.wait(0.1):
            connection.sendall(b"X")
        return True

    faulty.fault = dripping
    with pytest.raises(BucketUnreachableError):
        list(mirror.read(CONTENT, 0, 500))


def test_a_server_that_ignores_ranges_is_used_for_whole_files_only(
    mirror: Mirror, faulty: Faulty
) -> None:
    def whole(server: Faulty, request: faults.Request, connection: socket.socket) -> bool:
        request.headers.pop("range", None)
        return False

    faulty.fault = whole
    assert b"".join(mirror.read(CONTENT, 0, len(DATA))) == DATA
    with pytest.raises(BucketAnswerError):
        list(mirror.read(CONTENT, 0, 10))


def test_a_redirect_is_followed_a_few_times_and_never_to_another_kind(
    mirror: Mirror, faulty: Faulty
) -> None:
    target = f"/k/{layout.key_of(CONTENT)}"

    def moved(server: Faulty, request: faults.Request, connection: socket.socket) -> bool:
        if request.path != f"/old{target}":
            return False
        faults.send(connection, 302, b"", request=request, headers={"Location": target})
        return True

    faulty.fault = moved
    old = Mirror(parse_bucket_url(f"{faulty.url}/old/k"))
    assert b"".join(old.read(CONTENT, 5, 9)) == DATA[5:9]
    for location in (f"/old{target}", "ftp://127.0.0.1/", "file:///etc/passwd"):
        faulty.fault = faults.status(302, {"Location": location})
        with pytest.raises(BucketAnswerError):
            old.look(CONTENT)
    old.close()


@pytest.mark.parametrize(
    "location",
    [
        "http://[/x",
        "http://127.0.0.1:abc/x",
        "http://127.0.0.1:99999999999999999999/x",
        "http://a b/x",
        "http://a..b/x",
        "/d\xe9j\xe0",
        "/a b",
    ],
)
def test_a_redirect_to_what_is_no_address_is_a_wrong_answer(
    mirror: Mirror, faulty: Faulty, location: str
) -> None:
    def moved(server: Faulty, request: faults.Request, connection: socket.socket) -> bool:
        # The bytes of a header are whatever the server likes.
        head = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
        connection.sendall(head.encode("latin-1"))
        return True

    faulty.fault = moved
    with pytest.raises(BucketAnswerError) as looked:
        mirror.look(CONTENT)
    assert looked.value.hint
    with pytest.raises(BucketAnswerError):
        list(mirror.read(CONTENT, 0, 10))
    # And the connection goes on.
    faulty.fault = None
    assert mirror.look(CONTENT) is not None


def test_connections_are_kept_and_one_that_ended_meanwhile_is_replaced(
    mirror: Mirror, faulty: Faulty
) -> None:
    mirror.look(CONTENT)
    list(mirror.read(CONTENT, 0, 10))
    assert len(faulty.connections) == 1
    faulty.end_connections()
    assert mirror.look(CONTENT) is not None
    assert len(faulty.connections) == 2
    mirror.close()


def test_many_threads_read_at_once(place: Mirror | Objects) -> None:
    got: list[bytes] = []

    def read(number: int) -> None:
        got.append(b"".join(place.read(CONTENT, number, number + 1_000)))

    threads = [Thread(target=read, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(DATA[number : number + 1_000] for number in range(32))
