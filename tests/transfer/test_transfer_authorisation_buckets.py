"""Questions about a channel's bucket, from everyone who may send one: as PROTOCOL.md says."""

from __future__ import annotations

from typing import Any

import pytest
from trio.testing import MockClock

from kachery_p2p.bucket import layout
from kachery_p2p.bucket.credentials import Credentials
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.pushing import push
from kachery_p2p.bucket.urls import parse_bucket_url
from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.wire.bucket_messages import BUCKET_OPERATIONS
from tests.transfer.bucket_nodes import BucketMember
from tests.transfer.test_transfer_authorisation import (
    ALL,
    FIELD,
    LAB,
    outcome,
    owned_node,
    session_of,
)

URL = "memory:authorisation"
READERS = {"outsider": "gone", "removed": "no", "reader": "yes", "provider": "no", "admin": "yes"}
EXPECTED: dict[str, dict[str, str]] = {
    "bucket": {**READERS, "provider": "yes"},
    # Who may share there may have it put there.
    "bucket put": {**READERS, "reader": "no", "provider": "yes"},
    "bucket look": READERS,
    "bucket read": READERS,
}


@pytest.fixture
async def keeper(lab: Any) -> Any:
    """The keeper of `lab`, whose bucket it uses for members."""
    node = await lab.node("keeper", LAB, FIELD, kind=owned_node(BucketMember))
    await node.use(URL, mirror="requested")
    return node


def bodies(keeper: Any) -> dict[str, dict[str, Any]]:
    bucket = Objects(parse_bucket_url(URL), Credentials({}))
    stored = keeper.store(b"kept", LAB)
    push(bucket, keeper.disk.blobs, stored.content)
    where = {"channel": LAB.id, "bucket": bytes.fromhex(bucket.node)}
    key = {**where, "key": layout.key_of(stored.content)}
    return {
        "bucket": where,
        "bucket put": {**where, "content": stored.content.raw, "label": "", "wait_ms": 1_000},
        "bucket look": key,
        "bucket read": {**key, "start": 0, "length": 4},
    }


@pytest.mark.parametrize("op", EXPECTED)
async def test_each_question_is_answered_to_each_kind_of_node_as_documented(
    op: str, keeper: Any, lab: Any
) -> None:
    body = bodies(keeper)[op]
    while keeper.mirroring.own_uploads(LAB.id) is None:
        await keeper.mirroring._look(lab.nursery)
    for who in ALL:
        assert await outcome(op, body, who, keeper, lab) == EXPECTED[op][who], who


def test_no_question_is_missing_from_this_table() -> None:
    assert BUCKET_OPERATIONS.keys() == EXPECTED.keys()


@pytest.mark.parametrize("op", EXPECTED)
async def test_the_bucket_of_one_channel_is_not_that_of_another(
    op: str, keeper: Any, lab: Any, virtual_clock: MockClock
) -> None:
    body = {**bodies(keeper)[op], "channel": FIELD.id}
    assert await outcome(op, body, "admin", keeper, lab) == "no"


async def test_absent_and_forbidden_are_answered_alike(keeper: Any, lab: Any) -> None:
    body = bodies(keeper)["bucket look"]
    texts = set()
    absent = layout.key_of(sha1_of(b"absent"))
    asked = [("admin", absent), ("removed", body["key"]), ("removed", absent)]
    for who, key in [*asked, ("admin", "hr/salaries.csv")]:
        with pytest.raises(BaseExceptionGroup) as caught:
            async with session_of(who, keeper, lab) as session:
                await session.request("bucket look", {**body, "key": key}, 10)
        texts.add(str(caught.value.exceptions[0]))
    assert len(texts) == 1
