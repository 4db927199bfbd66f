"""Members that say something false of what they put into a bucket for others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.bucket import layout
from kachery_p2p.bucket.credentials import Credentials
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.pushing import push
from kachery_p2p.bucket.queue import DONE, LEFT_OUT, WAITING, Upload
from kachery_p2p.bucket.urls import parse_bucket_url
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import BucketAnswerError, PeerRefusedError
from kachery_p2p.network.session import Session
from kachery_p2p.wire.bucket_messages import LEFT_OUT as TOLD_LEFT_OUT
from kachery_p2p.wire.bucket_messages import QUEUED, THERE
from tests.transfer.bucket_nodes import SMALL, BucketMember, memory_bucket, new_url, put_body, to
from tests.transfer.conftest import Disk, Lab


@pytest.fixture
def url() -> str:
    return new_url()


@pytest.fixture
def bucket(url: str) -> Objects:
    """The bucket itself, to look into."""
    return Objects(parse_bucket_url(url), Credentials({}))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    # The queue goes by the time of day, which passes slowly here.
    monkeypatch.setattr("kachery_p2p.bucket.queue.UPLOAD_RETRY_S_MIN", 0.0)


async def provider(lab: Lab, url: str, name: str = "provider") -> BucketMember:
    node = await lab.node(name, kind=BucketMember)
    assert isinstance(node, BucketMember)
    await node.use(url, mirror="requested")
    await trio.sleep(1)  # what it says that it does is believed for a while
    return node


async def member(lab: Lab, url: str) -> BucketMember:
    node = await lab.node("member", kind=BucketMember)
    assert isinstance(node, BucketMember)
    await node.use(url, mirror="shared", credentials="members")
    return node


async def liar(
    lab: Lab, state: int, name: str = "liar", *, said: str = "no", **answers: Any
) -> tuple[Any, list[Any]]:
    """A member that says this of every wish, and what it was asked for."""
    node, asked = await lab.node(name), []

    async def what(session: Session, body: dict[str, Any]) -> dict[str, Any]:
        return {"puts": True, "reads": True}

    async def put(session: Session, body: dict[str, Any]) -> dict[str, Any]:
        asked.append(body)
        return {"state": state, "said": said}

    node.sessions.handle("bucket", what)
    node.sessions.handle("bucket put", put)
    for op, answer in answers.items():

        async def told(session: Session, body: dict[str, Any], answer: Any = answer) -> Any:
            return answer(body)

        node.sessions.handle(f"bucket {op}", told)
    return node, asked


async def tried(node: BucketMember, content: ContentHash) -> Upload:
    """The row of the queue once it has failed."""
    with trio.fail_after(300):
        while not (row := await node.settled(content, WAITING, DONE)).tries:
            assert row.state == WAITING
            await trio.sleep(0.1)
    return row


# --- "it is there" -------------------------------------------------------------------------------


async def test_what_was_taken_out_of_the_bucket_is_put_there_again_for_who_wishes_it(
    lab: Lab, url: str, bucket: Objects, virtual_clock: MockClock
) -> None:
    honest, node = await provider(lab, url), await member(lab, url)
    await lab.together(honest, node)
    stored = node.store(SMALL)
    await node.settled(stored.content)
    bucket.delete(layout.key_of(stored.content))
    honest.wishes._open.clear()  # what it has just answered is not answered again
    with trio.fail_after(60):
        told: dict[str, Any] = {}
        while told.get("state") != THERE:
            told = await to(node, honest).request("bucket put", put_body(url, stored.content), 10)
    assert bucket.look(stored.content) is not None


def nothing(asked: dict[str, Any]) -> dict[str, Any]:
    raise PeerRefusedError("absent, or not allowed")


def own_copy() -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
    """The answers of who hands on what it has itself, as if it were in the bucket."""
    told = {"size": len(SMALL), "attributes": [], "query": "", "valid_s": 300}
    return {
        "look": lambda asked: told,
        "read": lambda asked: {"data": SMALL[asked["start"] :][: asked["length"]]},
    }


@pytest.mark.parametrize(
    "answers", [{"look": nothing}, own_copy()], ids=["shows nothing", "hands on its own"]
)
async def test_what_one_member_says_is_there_and_is_not_another_puts_there(
    lab: Lab, url: str, bucket: Objects, answers: dict[str, Any], virtual_clock: MockClock
) -> None:
    mallory, asked = await liar(lab, THERE, **answers)
    node, honest = await member(lab, url), await provider(lab, url)
    await lab.together(mallory, node, honest)
    stored = node.store(SMALL)
    assert (await node.settled(stored.content)).state == DONE
    assert asked and bucket.look(stored.content) is not None


async def test_what_is_said_to_be_there_and_is_not_seen_there_is_not_done(
    lab: Lab, url: str, virtual_clock: MockClock
) -> None:
    mallory, asked = await liar(lab, THERE, look=nothing)
    node = await member(lab, url)
    await lab.together(mallory, node)
    row = await tried(node, node.store(SMALL).content)
    assert row.state == WAITING and "it is not there" in (row.said or "")
    assert len(asked) == 2, "once more, as the last who can be asked"


async def test_another_content_that_is_shown_as_the_one_that_was_wished_is_not_believed(
    lab: Lab, url: str, virtual_clock: MockClock
) -> None:
    wrong = own_copy() | {"read": lambda asked: {"data": bytes(asked["length"])}}
    mallory, _ = await liar(lab, THERE, **wrong)
    node = await member(lab, url)
    await lab.together(mallory, node)
    assert (await tried(node, node.store(SMALL).content)).state == WAITING


# --- "it is not put there" -----------------------------------------------------------------------


async def test_what_one_member_does_not_put_there_another_does(
    lab: Lab, url: str, bucket: Objects, virtual_clock: MockClock
) -> None:
    mallory, asked = await liar(lab, TOLD_LEFT_OUT)
    node, honest = await member(lab, url), await provider(lab, url)
    await lab.together(mallory, node, honest)
    stored = node.store(SMALL)
    assert (await node.settled(stored.content)).state == DONE
    assert asked and bucket.look(stored.content) is not None


@pytest.mark.parametrize("said", ["", "later"])
async def test_what_one_member_promises_for_ever_another_puts_there(
    lab: Lab,
    url: str,
    bucket: Objects,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    virtual_clock: MockClock,
) -> None:
    monkeypatch.setattr("kachery_p2p.node.asked_uploads.BUCKET_WISH_S_MIN", 2.0)
    mallory, asked = await liar(lab, QUEUED, said=said)
    node, honest = await member(lab, url), await provider(lab, url)
    await lab.together(mallory, node, honest)
    stored = node.store(SMALL)
    assert (await node.settled(stored.content)).state == DONE
    assert asked and bucket.look(stored.content) is not None


async def test_what_no_member_puts_there_is_left_out(
    lab: Lab, url: str, virtual_clock: MockClock
) -> None:
    one, _ = await liar(lab, TOLD_LEFT_OUT)
    other, asked = await liar(lab, TOLD_LEFT_OUT, "other")
    node = await member(lab, url)
    await lab.together(one, other, node)
    row = await node.settled(node.store(SMALL).content)
    assert row.state == LEFT_OUT and row.said == "no" and len(asked) == 1


# --- something else of that name -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("junk", "noted"),
    [(b"junk", {}), (SMALL[:-1] + b"!", {"root": "ab" * 32})],
    ids=["another size", "another root"],
)
async def test_another_object_of_that_name_is_no_fulfilled_wish(
    lab: Lab,
    url: str,
    bucket: Objects,
    new_disk: Callable[..., Disk],
    junk: bytes,
    noted: Any,
    virtual_clock: MockClock,
) -> None:
    honest, node = await provider(lab, url), await member(lab, url)
    await lab.together(honest, node)
    content = new_disk("elsewhere").blobs.put_bytes(SMALL).content
    bucket.put_new(layout.key_of(content), junk, noted)
    node.store(SMALL)
    row = await tried(node, content)
    assert row.state == WAITING and "as sha1://" in (row.said or "")


def test_an_object_with_another_root_is_not_taken_for_the_content(
    new_disk: Callable[..., Disk],
) -> None:
    disk, place = new_disk("own"), memory_bucket()
    stored = disk.blobs.put_bytes(SMALL)
    place.put_new(layout.key_of(stored.content), SMALL[:-1] + b"!", {"root": "ab" * 32})
    with pytest.raises(BucketAnswerError, match="has something with the root"):
        push(place, disk.blobs, stored.content)
