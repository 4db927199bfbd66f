"""Buckets that are read by leave of a member: what it lends, and members that lie."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.bucket import layout
from kachery_p2p.bucket.credentials import Credentials
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.queue import WAITING
from kachery_p2p.bucket.urls import parse_bucket_url
from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.errors import (
    AllProvidersFailedError,
    NotFoundError,
    PeerRefusedError,
)
from kachery_p2p.network.session import Session
from tests.bucket.faulty import Faulty, Request, running_faulty, send, status
from tests.transfer.bucket_nodes import LARGE, SMALL, BucketMember, body, new_url, to
from tests.transfer.conftest import LAB, Disk, Lab


@pytest.fixture
def url() -> str:
    return new_url()


@pytest.fixture
def bucket(url: str) -> Objects:
    """The bucket itself, to look into."""
    return Objects(parse_bucket_url(url), Credentials({}))


@pytest.fixture
def author(new_disk: Callable[..., Disk]) -> Disk:
    return new_disk("author")


@pytest.fixture
def cloud() -> Iterator[Faulty]:
    with running_faulty() as server:
        server.fault = signed_only
        yield server


def signed_only(server: Faulty, request: Request, connection: socket.socket) -> bool:
    """As a cloud does it: a signature in a header or in the query, or nothing is read."""
    path, _, query = request.path.partition("?")
    if "authorization" not in request.headers and "X-Amz-Signature" not in query:
        send(connection, 403, b"<Error><Code>AccessDenied</Code></Error>", request=request)
    else:
        server.answer(Request(request.method, path, request.headers), connection)
    return True


@asynccontextmanager
async def signing(lab: Lab, cloud: Faulty, author: Disk, data: bytes = LARGE) -> AsyncIterator[Any]:
    url = f"s3://lab/files?endpoint={cloud.url}"
    stored = author.blobs.put_bytes(data)
    cloud.put(f"/lab/files/{layout.key_of(stored.content)}", data, root=stored.root)
    known, page = author.blobs.known(stored.content), author.blobs.page(stored.content, 0)
    assert known is not None
    tables = known.encode() + (page or b"")
    cloud.put(f"/lab/files/{layout.tables_key(stored.root)}", tables)
    cloud.put(f"/lab/files/{layout.MARKER}", f"{LAB.id}\n".encode())
    provider = await lab.node("provider", kind=BucketMember)
    reader = await lab.node("reader", kind=BucketMember)
    assert isinstance(provider, BucketMember) and isinstance(reader, BucketMember)
    await provider.use(url, credentials=key_file(provider, "AKGOOD"), mirror="none")
    await reader.use(url, credentials="members", mirror="none")
    await lab.together(provider, reader)
    yield SimpleNamespace(url=url, stored=stored, provider=provider, reader=reader)


def key_file(node: BucketMember, key: str) -> str:
    path = node.disk.directory / "keys.toml"
    path.write_text(f'access_key_id = "{key}"\nsecret_access_key = "secret"\n')
    path.chmod(0o600)
    return f"file:{path}"


def borrowed(cloud: Faulty) -> list[Request]:
    """What was asked for with a signature in the query."""
    return [one for one in cloud.requests if "X-Amz-Signature" in one.path]


async def test_a_cloud_is_read_with_signatures_that_the_provider_lends(
    lab: Lab, cloud: Faulty, author: Disk
) -> None:
    async with signing(lab, cloud, author) as at:
        assert await at.reader.load(at.stored) == LARGE
        assert borrowed(cloud) and at.provider.disk.objects() == []
        assert "secret" not in "".join(one.path for one in cloud.requests)


async def test_a_signature_that_has_run_out_is_renewed_once(
    lab: Lab, cloud: Faulty, author: Disk
) -> None:
    refused: list[str] = []

    def first_refused(server: Faulty, request: Request, connection: socket.socket) -> bool:
        if "X-Amz-Signature" in request.path and request.span and not refused:
            refused.append(request.path)
            send(connection, 403, b"Request has expired", request=request)
            return True
        return signed_only(server, request, connection)

    async with signing(lab, cloud, author) as at:
        cloud.fault = first_refused
        assert await at.reader.load(at.stored) == LARGE
        assert refused


@pytest.mark.parametrize(
    "fault",
    [status(403), status(302, {"Location": "http://127.0.0.1:9/elsewhere"}), status(500)],
    ids=["403", "302", "500"],
)
async def test_a_signed_address_that_is_refused_or_leads_elsewhere_is_an_error(
    lab: Lab, cloud: Faulty, author: Disk, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How long a source that went away is waited for.
    monkeypatch.setattr("kachery_p2p.transfer.suppliers.SOURCE_RETURN_S_MAX", 0.2)

    def only_signed(server: Faulty, request: Request, connection: socket.socket) -> bool:
        if "X-Amz-Signature" in request.path:
            return bool(fault(server, request, connection))
        return signed_only(server, request, connection)

    async with signing(lab, cloud, author) as at:
        cloud.fault = only_signed
        with pytest.raises((NotFoundError, AllProvidersFailedError)) as failed:
            await at.reader.load(at.stored)
        assert failed.value.hint
        assert at.reader.disk.objects() == []


# --- providers that lie --------------------------------------------------------------------------


async def says(lab: Lab, url: str, answers: dict[str, Any], **told: Any) -> BucketMember:
    """A reader whose only provider says this."""
    liar = await lab.node("liar")
    for op, answer in answers.items():

        async def handler(session: Session, asked: Any, answer: Any = answer) -> Any:
            return answer(asked) if callable(answer) else answer

        liar.sessions.handle(op, handler)
    reader = await lab.node("reader", kind=BucketMember)
    assert isinstance(reader, BucketMember)
    await reader.use(url, credentials="members", **told)
    await lab.together(liar, reader)
    return reader


YES = {"puts": True, "reads": True}


@pytest.mark.parametrize(
    "query",
    ["@127.0.0.1:1/x", "X=1&@evil.example/", "/../../other/secret", "a=b?c=d", "%0d%0aHost:x"],
)
async def test_whatever_a_provider_lends_only_the_bucket_of_the_channel_is_asked(
    lab: Lab, cloud: Faulty, query: str
) -> None:
    cloud.fault = None
    content = sha1_of(SMALL)
    looked = {"size": len(SMALL), "attributes": [], "query": query, "valid_s": 300}
    url = f"s3://lab/files?endpoint={cloud.url}"
    reader = await says(lab, url, {"bucket": YES, "bucket look": looked}, mirror="none")
    with pytest.raises((NotFoundError, AllProvidersFailedError)):
        await reader.downloads.load(content, None, reader.told.append)
    asked = {one.path.partition("?")[0] for one in cloud.requests}
    assert asked == {f"/lab/files/{layout.key_of(content)}"}
    assert {one.headers["host"] for one in cloud.requests} == {cloud.url.removeprefix("http://")}


@pytest.mark.parametrize(
    ("size", "root", "data"),
    [
        (len(SMALL), None, b"other" * 2_000),
        (len(SMALL), "ab" * 32, SMALL[:-1] + b"!"),
        (len(SMALL) + 1, None, SMALL),
        (len(SMALL), None, SMALL[:-1]),
        (1 << 45, None, SMALL),
    ],
    ids=["other bytes", "other root", "too long", "cut off", "huge"],
)
async def test_what_a_provider_reads_for_others_is_verified(
    lab: Lab, url: str, size: int, root: str | None, data: bytes
) -> None:
    attributes = [] if root is None else [{"name": "root", "value": root}]
    looked = {"size": size, "attributes": attributes, "query": "", "valid_s": 300}
    reader = await says(
        lab,
        url,
        {
            "bucket": YES,
            "bucket look": looked,
            "bucket read": lambda asked: {
                "data": data[asked["start"] : asked["start"] + asked["length"]] or b"x"
            },
        },
        mirror="none",
    )
    with pytest.raises((NotFoundError, AllProvidersFailedError)):
        await reader.downloads.load(sha1_of(SMALL), None, reader.told.append)
    assert reader.disk.objects() == []


async def test_a_provider_that_says_queued_for_ever_is_given_up(
    lab: Lab, url: str, virtual_clock: MockClock
) -> None:
    queued = {"state": 0, "said": ""}
    member = await says(lab, url, {"bucket": YES, "bucket put": queued}, mirror="shared")
    stored = member.store(SMALL)
    with trio.fail_after(600):
        while not (row := await member.settled(stored.content, WAITING)).tries:  # noqa: ASYNC110
            await trio.sleep(1)
    assert "takes too long" in (row.said or "")


# --- credentials that are refused ---------------------------------------------------------------


async def test_own_credentials_that_are_refused_are_no_end(
    lab: Lab, cloud: Faulty, author: Disk
) -> None:
    def good_key_only(server: Faulty, request: Request, connection: socket.socket) -> bool:
        if "AKBAD" in request.headers.get("authorization", ""):
            send(connection, 403, b"<Error><Code>InvalidAccessKeyId</Code></Error>")
            return True
        return signed_only(server, request, connection)

    async with signing(lab, cloud, author) as at:
        cloud.fault = good_key_only
        await at.reader.use(at.url, credentials=key_file(at.reader, "AKBAD"), mirror="none")
        assert await at.reader.load(at.stored) == LARGE
        bad = [one for one in cloud.requests if "AKBAD" in one.headers.get("authorization", "")]
        assert 0 < len(bad) <= 4, "asked with them once in a while only"


# --- what else lies there ------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["bucket look", "bucket read"])
@pytest.mark.parametrize("what", ["another channel", "its marker", "no kachery at all"])
async def test_what_lies_below_the_prefix_and_is_not_the_channels_is_not_lent(
    lab: Lab, cloud: Faulty, virtual_clock: MockClock, op: str, what: str
) -> None:
    content = sha1_of(SMALL)
    key = {
        "another channel": f"field/{layout.key_of(content)}",
        "its marker": f"field/{layout.MARKER}",
        "no kachery at all": "hr/salaries.csv",
    }[what]
    cloud.put(f"/lab/{key}", SMALL)
    cloud.put(f"/lab/{layout.key_of(content)}", SMALL)
    cloud.put(f"/lab/{layout.MARKER}", f"{LAB.id}\n".encode())
    url = f"s3://lab?endpoint={cloud.url}"
    provider = await lab.node("provider", kind=BucketMember)
    assert isinstance(provider, BucketMember)
    await provider.use(url, credentials=key_file(provider, "AKGOOD"), mirror="none")
    mallory = await lab.node("mallory")
    await lab.together(provider, mallory)
    span = {"start": 0, "length": 10} if op == "bucket read" else {}
    with pytest.raises(PeerRefusedError):
        await to(mallory, provider).request(op, body(url, key=key, **span), 10)
    # What is the channel's is lent.
    own = body(url, key=layout.key_of(content), **span)
    assert await to(mallory, provider).request(op, own, 10)
