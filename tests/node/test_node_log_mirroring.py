"""Logs on their way into a bucket, as a node puts them there: when, how often, and what if not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from kachery_p2p.bucket.log_book import LogBook, book_path
from kachery_p2p.bucket.log_reading import read_head
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.channels.bucket_settings import REQUESTED, SHARED
from kachery_p2p.channels.notices import log_id
from kachery_p2p.channels.permissions import READ
from kachery_p2p.errors import BucketUnreachableError
from kachery_p2p.limits import BUCKET_LOG_EVERY_S
from kachery_p2p.node.log_mirroring import LogMirroring
from tests.node.test_node_bucket_histories import Scene


class Mirroring:
    """What puts the history of a channel into its bucket, on the computer of `key`."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scene = Scene(directory)
        self.now = 1_000.0
        monkeypatch.setattr("trio.current_time", lambda: self.now)
        self.directory = directory
        (directory / "state").mkdir()
        self.settings = SimpleNamespace(mirror=SHARED)
        self.asked: list[str] = []
        lab = self.scene.lab
        self.uploads = SimpleNamespace(
            bucket=self.scene.bucket,
            settings=self.settings,
            place="place",
            pace=lambda byte_count: None,
            is_refused=False,
        )
        memberships: Any = SimpleNamespace(
            history=lambda channel: lab.history,
            may=lambda node, channel, action: lab.history.roster.roles_of(node) and action in
            lab.history.roster.roles_of(node),
        )  # fmt: skip
        parts: Any = SimpleNamespace(
            config=SimpleNamespace(config_dir=str(directory)),
            channels=[SimpleNamespace(id=lab.id)],
            channel_name=lambda channel: "lab",
            memberships=memberships,
            node_id=lab.chief.node_id,
        )
        self.parts = parts
        mirroring: Any = SimpleNamespace(own_uploads=lambda channel: self.uploads)
        feeding: Any = SimpleNamespace(service_now=None)
        self.logs = LogMirroring(parts, mirroring, feeding, self.asked.append)

    async def look(self, after_s: float = 0.0) -> int:
        """How many entries the bucket has when all that is due is done."""
        self.now += after_s
        async with trio.open_nursery() as nursery:
            await self.logs._look(nursery)
        head = read_head(self.scene.bucket, log_id(self.scene.lab.id))
        return 0 if head is None else head.end

    @property
    def kept(self) -> list[tuple[int, int, str | None]]:
        book = LogBook(book_path(str(self.directory)))
        try:
            return [(one.here, one.there, one.said) for one in book.in_place("place")]
        finally:
            book.close()


@pytest.fixture
def mirroring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirroring]:
    made = Mirroring(tmp_path, monkeypatch)
    yield made
    made.scene.book.close()
    made.logs._book.close()


async def test_a_history_goes_there_and_what_is_new_of_it_after_a_moment(
    mirroring: Mirroring,
) -> None:
    size = mirroring.scene.lab.history.size
    assert await mirroring.look() == size
    mirroring.scene.lab.member()
    assert await mirroring.look() == size, "it was just there"
    assert await mirroring.look(after_s=BUCKET_LOG_EVERY_S) == size + 1
    assert mirroring.kept == [(size + 1, size + 1, None)]
    assert mirroring.logs.problems() == []


async def test_nothing_goes_there_against_the_policy_or_without_the_role(
    mirroring: Mirroring,
) -> None:
    mirroring.settings.mirror = REQUESTED
    assert await mirroring.look() == 0
    mirroring.settings.mirror = SHARED
    mirroring.parts.node_id = mirroring.scene.lab.member(frozenset({READ})).node_id
    assert await mirroring.look() == 0


async def test_a_bucket_that_fails_is_left_alone_for_a_while_and_named(
    mirroring: Mirroring, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    def fail(*_: object) -> bool:
        nonlocal tries
        tries += 1
        raise BucketUnreachableError("the bucket does not answer", hint="mend it")

    with monkeypatch.context() as patched:
        patched.setattr(Objects, "put_new", fail)
        for _ in range(5):
            assert await mirroring.look() == 0
        assert tries == 1
    (problem,) = mirroring.logs.problems()
    assert "does not answer" in problem
    assert "mend it" in problem
    ((here, there, said),) = mirroring.kept
    assert (here, there) == (mirroring.scene.lab.history.size, 0)
    assert "does not answer" in str(said)
    assert await mirroring.look(after_s=60) == mirroring.scene.lab.history.size
    assert mirroring.logs.problems() == []


async def test_who_has_a_copy_lets_the_keeper_be_first(mirroring: Mirroring) -> None:
    mirroring.parts.node_id = mirroring.scene.key.node_id
    size = await mirroring.look()
    mirroring.scene.lab.member()
    assert await mirroring.look(after_s=5) == size
    assert await mirroring.look(after_s=20) == size + 1


async def test_another_history_there_is_looked_into(mirroring: Mirroring) -> None:
    twin = mirroring.scene.lab.copy()
    twin.member()
    mirroring.scene.mirror(twin.history)
    mirroring.scene.lab.member()
    await mirroring.look()
    assert mirroring.asked == [mirroring.scene.lab.id]
