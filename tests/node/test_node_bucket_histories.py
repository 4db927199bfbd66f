"""Histories of channels from buckets: whoever was admitted gets in, and no lie is believed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kachery_p2p.bucket import log_layout as layout
from kachery_p2p.bucket.credentials import Credentials
from kachery_p2p.bucket.log_book import LogBook
from kachery_p2p.bucket.log_layout import LogHead
from kachery_p2p.bucket.log_mirror import LogMirror
from kachery_p2p.bucket.log_reading import read_head
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.urls import parse_bucket_url
from kachery_p2p.channels.changes import MemberRemoved
from kachery_p2p.channels.channel import Channel
from kachery_p2p.channels.history import History
from kachery_p2p.channels.notices import log_id
from kachery_p2p.channels.permissions import READ
from kachery_p2p.identity.keys import NodeKey
from kachery_p2p.log.heads import sign_head
from kachery_p2p.network.histories import Histories
from kachery_p2p.network.meeting import Me
from kachery_p2p.network.memberships import Memberships
from kachery_p2p.node.history_looking import HistoryLooking
from kachery_p2p.node.log_mirroring import of_history
from kachery_p2p.transfer.buckets import Buckets
from tests.channels.conftest import SECRET, Lab

_numbers = itertools.count()


class Scene:
    """A channel, its bucket, and a member on a new computer whose history is empty."""

    def __init__(self, directory: Path) -> None:
        self.lab = Lab()
        self.key = self.lab.member()
        self.lab.member()
        self.bucket = Objects(
            parse_bucket_url(f"memory:histories-{next(_numbers)}"), Credentials({})
        )
        self.book = LogBook(str(directory / "logs.db"))
        self.saved: list[History] = []
        self.looking, self.memberships = self.computer(self.key)

    def computer(self, key: NodeKey) -> tuple[HistoryLooking, Memberships]:
        channel = Channel.owned(self.lab.id, SECRET, "lab")
        memberships = Memberships([channel], [History.empty(self.lab.id)])

        async def save(history: History) -> None:
            self.saved.append(history)

        histories = Histories(Me(key, memberships, lambda count: bytes(count)), save)
        buckets = Buckets()
        buckets.put({self.lab.id: [self.bucket]})
        parts: Any = SimpleNamespace(memberships=memberships, channel_name=lambda channel: "lab")
        sessions: Any = SimpleNamespace(all=lambda: ())
        bucketing: Any = SimpleNamespace(buckets=buckets)
        return HistoryLooking(parts, sessions, histories, bucketing), memberships

    async def look(self) -> History:
        """What is known after another look."""
        self.looking.look_soon(self.lab.id)
        await self.looking.look()
        history = self.memberships.history(self.lab.id)
        assert history is not None
        return history

    def mirror(self, history: History | None = None) -> None:
        mirror = LogMirror(self.bucket, self.lab.id, "place", self.book)
        mirror.put(of_history(history or self.lab.history, "lab"))

    def head(self) -> LogHead:
        head = read_head(self.bucket, log_id(self.lab.id))
        assert head is not None
        return head

    def put_head(self, data: bytes) -> None:
        self.bucket.put(layout.head_key(log_id(self.lab.id)), data)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.book.close()


async def test_an_admitted_member_with_an_empty_history_gets_in(scene: Scene) -> None:
    scene.mirror()
    assert not scene.memberships.may(scene.key.node_id, scene.lab.id, READ)
    history = await scene.look()
    assert history.head == scene.lab.history.head
    assert scene.memberships.may(scene.key.node_id, scene.lab.id, READ)
    assert scene.saved[-1].size == history.size, "on the disk before it is believed"


async def test_what_is_older_or_the_same_changes_nothing(scene: Scene) -> None:
    scene.mirror()
    old = scene.head().encode()
    scene.lab.member()
    scene.mirror()
    newest = await scene.look()
    scene.put_head(old)
    assert await scene.look() is newest
    assert scene.looking.problems() == []


async def test_a_renewed_head_and_a_removal_arrive(scene: Scene) -> None:
    scene.mirror()
    await scene.look()
    scene.lab.keeper.renewed(scene.lab.tick())
    scene.mirror()
    assert (await scene.look()).head == scene.lab.history.head
    scene.lab.record(MemberRemoved(scene.key.node_id))
    scene.mirror()
    await scene.look()
    assert not scene.memberships.may(scene.key.node_id, scene.lab.id, READ)


async def test_a_second_history_becomes_a_proof_and_brings_nobody_back(scene: Scene) -> None:
    twin = scene.lab.copy()
    scene.lab.record(MemberRemoved(scene.key.node_id))
    scene.mirror()
    await scene.look()
    for _ in range(3):
        twin.member()
    scene.bucket.delete(layout.head_key(log_id(scene.lab.id)))
    scene.mirror(twin.history)
    history = await scene.look()
    assert history.fork is not None
    assert not scene.memberships.may(scene.key.node_id, scene.lab.id, READ)
    # And who mirrors passes the proof on.
    scene.mirror(history)
    cold, memberships = scene.computer(scene.key)
    await cold.look()
    told = memberships.history(scene.lab.id)
    assert told is not None
    assert told.fork is not None


async def test_a_head_that_the_channels_key_did_not_sign_is_refused_and_named(
    scene: Scene,
) -> None:
    scene.mirror()
    head = scene.head()
    thief = scene.key
    lie = head.head.head._replace(log=head.head.log._replace(owner=thief.node_id))
    forged = sign_head(lie, thief)._replace(head=head.head.head._replace(time_ms=1))
    scene.put_head(head._replace(head=forged).encode())
    assert (await scene.look()).size == 0
    (problem,) = scene.looking.problems()
    assert "history" in problem
    scene.put_head(head.encode())
    assert (await scene.look()).size == scene.lab.history.size
    assert scene.looking.problems() == []


@pytest.mark.parametrize("junk", [b"", b"<html>log in</html>", bytes(5 << 20)])
@pytest.mark.parametrize("what", ["head", "segment"])
async def test_what_is_damaged_is_not_believed_and_read_again_later(
    what: str, junk: bytes, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.mirror()
    log = log_id(scene.lab.id)
    key = layout.segment_key(log, scene.head().segments[0].digest)
    key = layout.head_key(log) if what == "head" else key
    sound = scene.bucket.read_whole(key, 1 << 20)
    scene.bucket.put(key, junk)
    assert (await scene.look()).size == 0
    scene.bucket.put(key, sound)
    assert (await scene.look()).size == scene.lab.history.size
