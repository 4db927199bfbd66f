"""One fetch from scripted sources into a real store, on a clock that costs no time."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.manifests import Manifest, RootObject
from kachery_p2p.errors import (
    AllProvidersFailedError,
    HashCollisionError,
    InvalidRangeError,
    KacheryError,
    LoadFileError,
    PeerBusyError,
    PeerGoneError,
    PeerRefusedError,
    PeerTimeoutError,
    ProtocolError,
    StorageFailedError,
    StorageFullError,
    UriInconsistentError,
    sole_error,
)
from kachery_p2p.limits import CHUNK_BYTES, FETCH_LINGER_S, SOURCE_REST_S, SOURCE_RETURN_S_MAX
from kachery_p2p.store.hashing import hash_bytes
from kachery_p2p.transfer import verdicts
from kachery_p2p.transfer.fetch import Fetch
from kachery_p2p.transfer.progress import AT_WORK, Snapshot
from kachery_p2p.transfer.sources import Source
from kachery_p2p.transfer.suppliers import Suppliers

MIB = CHUNK_BYTES
ME = "ab" * 32
NewDisk = Callable[..., Any]


class Blob:
    """Bytes, and what an honest holder says of them."""

    def __init__(self, data: bytes, manifest: Manifest | None = None) -> None:
        self.data = data
        self.manifest = manifest or hash_bytes(data)
        self.content = self.manifest.content
        self.root = self.manifest.root

    def chunk(self, number: int) -> bytes:
        return self.data[number * MIB : (number + 1) * MIB]


BLOB = Blob(hashlib.shake_128(b"fetch").digest(5 * MIB + 7))
LAST = 5


class Member:
    """An honest source; the scripts below are kinds of it. Remembers what it was asked."""

    def __init__(self, blob: Blob = BLOB, node: str = "node", label: str | None = None) -> None:
        self.blob = blob
        self.node = node
        self.name = label or node
        self.channel = "lab"
        self.asked: list[int] = []
        self.roots = self.pages = 0

    async def root_object(self, content: ContentHash, root: Root) -> bytes:
        self.roots += 1
        return self.blob.manifest.root_object.encode()

    async def page(self, content: ContentHash, root: Root, number: int) -> bytes:
        self.pages += 1
        return self.blob.manifest.pages[number]

    async def bulk(self) -> None:
        return None

    async def pull(
        self,
        content: ContentHash,
        root: Root,
        next_range: Callable[[], range | None],
        deliver: Callable[[Source, int, bytes], Awaitable[None]],
    ) -> None:
        while (chunks := next_range()) is not None:
            self.asked.extend(chunks)
            for number in chunks:
                await trio.sleep(0.01)
                await deliver(self, number, await self.chunk(number))

    async def chunk(self, number: int) -> bytes:
        return self.blob.chunk(number)


class Scripted(Member):
    """Does `script(number)` before the chunk; what that returns is sent instead, if anything."""

    def __init__(self, script: Callable[[int], Any], **who: Any) -> None:
        super().__init__(**who)
        self.script = script

    async def chunk(self, number: int) -> bytes:
        said = self.script(number)
        if isinstance(said, KacheryError):
            raise said
        if said is not None and not isinstance(said, bytes):
            said = await said
        return self.blob.chunk(number) if said is None else said


def at(number: int, said: Any) -> Callable[[int], Any]:
    """A script: from chunk `number` on, say this."""
    return lambda asked: said if asked >= number else None


class World:
    """Who holds the blob just now, and one fetch of it."""

    def __init__(
        self,
        disk: Any,
        *members: Member,
        blob: Blob = BLOB,
        patient: bool = True,
        one_by_one: bool = False,
        is_small: bool = False,
    ) -> None:
        self.disk = disk
        self.blob = blob
        self.members = list(members)
        # True: only the first who did not fail is to be found, as if the next came then.
        self.one_by_one = one_by_one
        self.changed = trio.Event()
        self.granted = 0
        self.finds = 0
        self.states: list[Snapshot] = []
        self.fetch = Fetch(
            blob.content,
            blob.root,
            blobs=disk.blobs,
            node_id=ME,
            suppliers=Suppliers(
                blob.content, known=[], find=self.find, wait=self.wait, patient=patient
            ),
            stored=self.stored,
            tell=lambda: self.states.append(self.fetch.snapshot(trio.current_time())),
            is_small=is_small,
        )

    def change(self, *members: Member) -> None:
        self.members = list(members)
        self.changed.set()
        self.changed = trio.Event()

    async def find(self, failed: Collection[str]) -> list[Source]:
        await trio.lowlevel.checkpoint()
        self.finds += 1
        found: list[Source] = list(self.members)
        if self.one_by_one:
            found = [member for member in found if member.node not in failed][:1]
        return found

    async def wait(self, timeout_s: float) -> None:
        with trio.move_on_after(timeout_s):
            await self.changed.wait()

    async def stored(self) -> None:
        self.granted += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Fetch]:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.fetch.run)
                yield self.fetch
        except BaseExceptionGroup as group:
            raise sole_error(group) or group

    async def load(self) -> bytes:
        """The whole blob as it stands in the store."""
        async with self.running() as fetch:
            assert (await fetch.wait_for(None))[1] == len(self.blob.data)
        return self.stored_bytes()

    def stored_bytes(self) -> bytes:
        path = self.disk.blobs.find(self.blob.content)
        assert path is not None
        return Path(path).read_bytes()

    async def read(self, start: int, end: int) -> bytes:
        async with self.running() as fetch:
            return await read(fetch, start, end)


async def read(fetch: Fetch, start: int, end: int) -> bytes:
    descriptor, _ = await fetch.wait_for((start, end))
    assert descriptor is not None
    try:
        return os.pread(descriptor, end - start, start)
    finally:
        os.close(descriptor)


# --- the right bytes ----------------------------------------------------------------------------


async def test_an_honest_source_is_enough(disk: Any, virtual_clock: MockClock) -> None:
    member = Member()
    world = World(disk, member)
    assert await world.load() == BLOB.data
    assert member.asked == [0, 1, 2, 3, 4, 5]
    assert (member.roots, member.pages, world.granted) == (1, 1, 1)
    assert disk.partials() == []
    assert world.states[-1].bytes == len(BLOB.data)


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB])
async def test_every_size_arrives(disk: Any, size: int, virtual_clock: MockClock) -> None:
    blob = Blob(hashlib.shake_128(b"sized").digest(size))
    assert await World(disk, Member(blob), blob=blob).load() == blob.data
    assert disk.blobs.known(blob.content) == blob.manifest.root_object


async def test_chunks_may_come_in_any_order(disk: Any, virtual_clock: MockClock) -> None:
    class Shuffled(Member):
        async def pull(self, content: Any, root: Any, next_range: Any, deliver: Any) -> None:
            numbers: list[int] = []
            while (chunks := next_range()) is not None:
                numbers += chunks
            for number in reversed(numbers):
                await deliver(self, number, self.blob.chunk(number))

    assert await World(disk, Shuffled()).load() == BLOB.data


async def test_two_hundred_who_wait_cost_one_transfer(disk: Any, virtual_clock: MockClock) -> None:
    member = Member()
    world = World(disk, member)
    sizes = []

    async def wait() -> None:
        sizes.append((await world.fetch.wait_for(None))[1])

    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(world.fetch.run)
    assert sizes == [len(BLOB.data)] * 200
    assert member.asked == [0, 1, 2, 3, 4, 5]
    assert (member.roots, member.pages) == (1, 1)


# --- sources that lie ---------------------------------------------------------------------------

WRONG_CHUNKS: dict[str, Callable[[bytes], bytes]] = {
    "wrong bytes": lambda data: bytes(len(data)),
    "one bit flipped": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "one byte more": lambda data: data + b"x",
    "one byte less": lambda data: data[:-1],
    "nothing": lambda data: b"",
}


@pytest.mark.parametrize("where", [0, 3, LAST])
@pytest.mark.parametrize("lie", WRONG_CHUNKS)
async def test_a_liar_is_found_at_its_first_wrong_chunk_and_not_asked_again(
    disk: Any, where: int, lie: str, virtual_clock: MockClock
) -> None:
    liar = Scripted(lambda n: WRONG_CHUNKS[lie](BLOB.chunk(n)) if n == where else None, node="liar")
    honest = Member(node="honest")
    world = World(disk, liar, honest, one_by_one=True)
    assert await world.load() == BLOB.data
    assert liar.asked[-1] >= where
    assert liar.roots + honest.roots == 1
    assert honest.asked == list(range(where, LAST + 1)), "what was verified is kept"


async def test_a_liar_alone_is_named_with_its_reason_and_nothing_is_stored(
    disk: Any, virtual_clock: MockClock
) -> None:
    world = World(disk, Scripted(at(2, bytes(MIB)), node="n1", label="mallory"))
    with pytest.raises(AllProvidersFailedError, match="mallory: .*does not match its hash"):
        await world.load()
    assert disk.objects() == []
    assert trio.current_time() - START < 1, "a liar is not waited for"


async def test_a_liar_cannot_get_an_honest_node_blamed_by_taking_its_name(
    disk: Any, virtual_clock: MockClock
) -> None:
    liar = Scripted(at(0, bytes(MIB)), node="n1", label="alice (ab12)")
    honest = Member(node="n2", label="alice (ab12)")
    assert await World(disk, liar, honest).load() == BLOB.data


async def test_nine_liars_do_not_keep_an_honest_holder_from_being_heard(
    disk: Any, virtual_clock: MockClock
) -> None:
    liars = [Scripted(at(n % 6, bytes(MIB)), node=f"liar{n}") for n in range(9)]
    assert await World(disk, *liars, Member(node="honest")).load() == BLOB.data


async def test_a_lying_page_is_found_and_the_page_asked_of_another(
    disk: Any, virtual_clock: MockClock
) -> None:
    class LyingPage(Member):
        async def page(self, content: ContentHash, root: Root, number: int) -> bytes:
            return bytes(len(self.blob.manifest.pages[number]))

    honest = Member(node="honest")
    assert await World(disk, LyingPage(node="liar"), honest).load() == BLOB.data
    assert honest.pages == 1


@pytest.mark.parametrize("sent", [b"", b"junk", BLOB.manifest.root_object.encode()[:-1], bytes(40)])
async def test_a_root_object_that_is_not_behind_the_root_is_refused(
    disk: Any, sent: bytes, virtual_clock: MockClock
) -> None:
    class LyingRoot(Member):
        async def root_object(self, content: ContentHash, root: Root) -> bytes:
            return sent

    assert await World(disk, LyingRoot(node="liar"), Member(node="honest")).load() == BLOB.data


async def test_a_root_that_belongs_to_another_content_is_the_fault_of_who_named_it(
    disk: Any, virtual_clock: MockClock
) -> None:
    other = Blob(b"another content")
    world = World(disk, Member(other), blob=other)
    world.fetch.content = BLOB.content
    with pytest.raises(UriInconsistentError, match=f"belongs to sha1://{other.content}"):
        await world.load()
    assert disk.objects() == []
    assert disk.partials() == []


def forged(data: bytes, content: ContentHash) -> Blob:
    """A root that names `content` and stands for other bytes: only the whole blob shows it."""
    honest = hash_bytes(data)
    root_object = RootObject(len(data), content, honest.root_object.pages)
    return Blob(data, Manifest(root_object, honest.pages))


async def test_bytes_with_the_right_root_and_the_wrong_sha1_are_never_stored(
    disk: Any, virtual_clock: MockClock
) -> None:
    forgery = forged(bytes(3 * MIB), BLOB.content)
    world = World(disk, Member(forgery), blob=forgery)
    with pytest.raises(UriInconsistentError, match="do not have the SHA-1"):
        await world.load()
    assert disk.objects() == []
    assert disk.partials() == []
    assert world.granted == 0


async def test_bytes_that_collide_with_what_was_read_here_before_are_not_stored(
    disk: Any, virtual_clock: MockClock
) -> None:
    # SHA-1 collisions cannot be made in a test; that other bytes were once pinned can.
    other = hash_bytes(b"the first content")
    pinned = Manifest(RootObject(other.size, BLOB.content, other.root_object.pages), other.pages)
    disk.index.remember(BLOB.content, os.stat(__file__), pinned)
    member = Member()
    with pytest.raises(HashCollisionError):
        await World(disk, member).load()
    assert disk.objects() == []
    assert disk.partials() == []
    assert member.asked == [0, 1, 2, 3, 4, 5], "the source told the truth and is not blamed"


# --- sources that go away -----------------------------------------------------------------------

START = 0.0


@pytest.fixture(autouse=True)
def the_beginning(virtual_clock: MockClock) -> None:
    global START
    START = virtual_clock.current_time()


AWAY = {
    "gone": PeerGoneError("went away"),
    "silent": PeerTimeoutError("sent nothing for 5 s"),
    "busy": PeerBusyError("is busy"),
    "refusing": PeerRefusedError("may not give it to us"),
}


@pytest.mark.parametrize("how", AWAY)
@pytest.mark.parametrize("where", [0, 1, 3, LAST])
async def test_another_source_goes_on_where_one_stopped(
    disk: Any, how: str, where: int, virtual_clock: MockClock
) -> None:
    first, second = Scripted(at(where, AWAY[how]), node="first"), Member(node="second")
    assert await World(disk, first, second, one_by_one=True).load() == BLOB.data
    assert second.asked == list(range(where, LAST + 1))


async def test_a_source_that_comes_back_within_its_time_goes_on(
    disk: Any, virtual_clock: MockClock
) -> None:
    back = trio.Event()
    member = Scripted(lambda n: AWAY["gone"] if n == 3 and not back.is_set() else None)
    world = World(disk, member)

    async def go_and_come_back() -> None:
        await trio.sleep(1)
        world.change()
        await trio.sleep(SOURCE_RETURN_S_MAX / 2)
        back.set()
        world.change(member)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(go_and_come_back)
        assert await world.load() == BLOB.data
    assert member.asked.count(2) == 1, "what was verified is not asked for again"


async def test_a_source_that_does_not_come_back_is_named(
    disk: Any, virtual_clock: MockClock
) -> None:
    member = Scripted(at(3, AWAY["gone"]), label="alice")
    world = World(disk, member)
    with pytest.raises(AllProvidersFailedError, match="alice: went away"):
        await world.load()
    assert trio.current_time() - START == pytest.approx(SOURCE_RETURN_S_MAX, abs=1)
    assert len(disk.partials()) == 1, "what arrived is kept"


async def test_a_source_that_fails_at_once_is_not_asked_in_a_loop(
    disk: Any, virtual_clock: MockClock
) -> None:
    member = Scripted(at(0, AWAY["gone"]))
    with pytest.raises(AllProvidersFailedError):
        await World(disk, member).load()
    assert len(member.asked) / 4 <= SOURCE_RETURN_S_MAX / SOURCE_REST_S + 1


async def test_progress_renews_the_patience(disk: Any, virtual_clock: MockClock) -> None:
    """Each chunk comes after nearly all of the patience: in sum they take far longer than it."""
    failed: set[int] = set()

    async def late(number: int) -> None:
        if number not in failed:
            failed.add(number)
            raise PeerGoneError("went away")
        await trio.sleep(SOURCE_RETURN_S_MAX * 0.8)

    assert await World(disk, Scripted(late)).load() == BLOB.data
    assert trio.current_time() - START > 4 * SOURCE_RETURN_S_MAX


async def test_a_claimant_who_is_gone_when_the_fetch_begins_is_waited_for(
    disk: Any, virtual_clock: MockClock
) -> None:
    world = World(disk)

    async def come() -> None:
        await trio.sleep(3)
        world.change(Member())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come)
        assert await world.load() == BLOB.data


async def test_a_fetch_with_better_claims_behind_it_gives_up_at_the_first_fault(
    disk: Any, virtual_clock: MockClock
) -> None:
    world = World(disk, Scripted(at(0, AWAY["silent"])), patient=False)
    with pytest.raises(AllProvidersFailedError):
        await world.load()
    assert trio.current_time() - START < 1


async def test_a_liar_beside_one_who_is_away_does_not_end_the_waiting(
    disk: Any, virtual_clock: MockClock
) -> None:
    liar = Scripted(at(0, bytes(MIB)), node="liar")
    away = Scripted(at(1, AWAY["gone"]), node="away")
    world = World(disk, liar, away)

    async def come_back() -> None:
        await trio.sleep(4)
        world.change(liar, Member(node="away"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_back)
        assert await world.load() == BLOB.data


# --- ours that fails ----------------------------------------------------------------------------


async def test_a_full_disk_is_said_and_nobody_is_blamed(
    new_disk: NewDisk, virtual_clock: MockClock
) -> None:
    disk = new_disk(reserve_bytes=1 << 60)
    member = Member()
    with pytest.raises(StorageFullError):
        await World(disk, member).load()
    assert member.asked == []


async def test_a_disk_that_fails_on_the_way_is_said_to_everyone_who_waits(
    disk: Any, monkeypatch: pytest.MonkeyPatch, virtual_clock: MockClock
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    def break_disk(number: int) -> None:
        if number == 2:
            monkeypatch.setattr("kachery_p2p.store.partials.write_all", full)

    world = World(disk, Scripted(break_disk))
    errors: list[KacheryError] = []

    async def wait() -> None:
        with pytest.raises(StorageFailedError) as caught:
            await world.fetch.wait_for(None)
        errors.append(caught.value)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(world.fetch.run)
    assert len({id(error) for error in errors}) == 3, "each has an error of its own"
    assert disk.objects() == []


async def test_a_mistake_of_ours_reaches_whoever_waits_as_an_error_of_ours(
    disk: Any, caplog: pytest.LogCaptureFixture, virtual_clock: MockClock
) -> None:
    world = World(disk, Scripted(lambda number: 1 / 0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(quietly, world.fetch.run)
        with pytest.raises(LoadFileError, match="internal error"):
            await world.fetch.wait_for(None)


async def quietly(run: Callable[[], Awaitable[None]]) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await run()
    assert caught.value.subgroup(ZeroDivisionError)


# --- those who wait -----------------------------------------------------------------------------


async def test_the_last_who_leaves_stops_the_fetch_and_what_was_verified_stays(
    disk: Any, virtual_clock: MockClock
) -> None:
    async def stop_at_3(number: int) -> None:
        if number == 3:
            await trio.sleep_forever()

    member = Scripted(stop_at_3)
    world = World(disk, member)
    async with world.running() as fetch:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch.wait_for, None)
            nursery.start_soon(fetch.wait_for, None)
            await trio.sleep(1)
            assert not fetch.ended.is_set()
            nursery.cancel_scope.cancel()
        assert fetch.closing
    assert fetch.ended.is_set()
    assert disk.objects() == []

    again = Member()
    assert await World(disk, again).load() == BLOB.data
    assert again.asked == [3, 4, 5], "only what is missing is asked for"
    assert again.pages == 0


async def test_one_who_leaves_does_not_stop_it_for_the_others(
    disk: Any, virtual_clock: MockClock
) -> None:
    world = World(disk, Member())
    async with world.running() as fetch, trio.open_nursery() as nursery:
        nursery.start_soon(fetch.wait_for, None)
        with trio.move_on_after(0.02) as left:
            await fetch.wait_for(None)
        assert left.cancelled_caught
    assert len(disk.objects()) == 1


def rot(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"rot")


async def test_damaged_chunks_of_an_earlier_try_are_asked_for_again(
    disk: Any, virtual_clock: MockClock
) -> None:
    world = World(disk, Scripted(at(4, AWAY["gone"])))
    with pytest.raises(AllProvidersFailedError):
        await world.load()
    (partial,) = disk.partials()
    rot(partial / "data", MIB + 17)
    again = Member()
    assert await World(disk, again).load() == BLOB.data
    assert again.asked == [1, 4, 5]


async def test_a_range_costs_only_its_chunks(disk: Any, virtual_clock: MockClock) -> None:
    member = Member()
    world = World(disk, member)
    assert await world.read(2 * MIB - 3, 3 * MIB + 5) == BLOB.data[2 * MIB - 3 : 3 * MIB + 5]
    assert member.asked == [1, 2, 3]
    assert disk.objects() == []
    assert world.granted == 0


async def test_an_empty_range_and_the_end_of_the_file_are_ranges(
    disk: Any, virtual_clock: MockClock
) -> None:
    size = len(BLOB.data)
    assert await World(disk, Member()).read(0, 0) == b""
    assert await World(disk, Member()).read(size, size) == b""
    assert await World(disk, Member()).read(size - 1, size) == BLOB.data[-1:]


@pytest.mark.parametrize("span", [(0, 6 * MIB), (7, 5), (-1, 5), (6 * MIB, 6 * MIB)])
async def test_a_range_outside_the_file_fails_alone(
    disk: Any, span: tuple[int, int], virtual_clock: MockClock
) -> None:
    world = World(disk, Member())
    async with world.running() as fetch, trio.open_nursery() as nursery:
        nursery.start_soon(fetch.wait_for, None)
        with pytest.raises(InvalidRangeError):
            await fetch.wait_for(span)
    assert disk.blobs.find(BLOB.content) is not None


async def test_a_range_is_answered_before_the_whole_that_was_wanted_first(
    disk: Any, virtual_clock: MockClock
) -> None:
    blob = Blob(hashlib.shake_128(b"long").digest(24 * MIB))
    world = World(disk, Member(blob), blob=blob)
    done: list[str] = []

    async def whole() -> None:
        await world.fetch.wait_for(None)
        done.append("whole")

    async with world.running() as fetch, trio.open_nursery() as nursery:
        nursery.start_soon(whole)
        await trio.sleep(0.025)
        assert await read(fetch, 20 * MIB, 20 * MIB + 9) == blob.data[20 * MIB : 20 * MIB + 9]
        done.append("range")
    assert done == ["range", "whole"]
    assert disk.blobs.find(blob.content) is not None


async def test_who_joins_while_the_last_bytes_are_stored_is_answered_too(
    disk: Any, monkeypatch: pytest.MonkeyPatch, virtual_clock: MockClock
) -> None:
    world = World(disk, Member())
    joined: list[bytes | int] = []
    nursery: trio.Nursery

    async def join_whole() -> None:
        joined.append((await world.fetch.wait_for(None))[1])

    async def join_range() -> None:
        joined.append(await read(world.fetch, MIB, MIB + 3))

    async def stored() -> None:
        # The blob stands in the store and its partial is gone; nobody has been told yet.
        nursery.start_soon(join_whole)
        nursery.start_soon(join_range)
        await trio.sleep(0.1)

    world.fetch._stored = stored
    async with trio.open_nursery() as nursery:
        await world.load()
    assert sorted(map(str, joined)) == sorted(map(str, [len(BLOB.data), BLOB.data[MIB : MIB + 3]]))


async def test_who_joins_while_an_earlier_try_is_hashed_again_is_answered_once(
    disk: Any, virtual_clock: MockClock
) -> None:
    with pytest.raises(AllProvidersFailedError):
        await World(disk, Scripted(at(4, AWAY["gone"]))).load()
    world = World(disk, Member())
    resume = world.fetch._resume

    async def slow_resume() -> None:
        await resume()
        await trio.sleep(5)

    world.fetch._resume = slow_resume  # type: ignore[method-assign]
    async with world.running() as fetch, trio.open_nursery() as nursery:
        nursery.start_soon(fetch.wait_for, None)
        await trio.sleep(1)
        assert await read(fetch, 0, 5) == BLOB.data[:5]
    assert world.fetch._schedule._wants == [], "no want is left behind"


async def test_who_leaves_while_the_blob_is_stored_leaves_a_blob_with_its_grant(
    disk: Any, monkeypatch: pytest.MonkeyPatch, virtual_clock: MockClock
) -> None:
    world = World(disk, Member())

    with trio.CancelScope() as scope:

        def adopt_and_cancel(*arguments: Any) -> None:
            trio.from_thread.run_sync(scope.cancel)
            verdicts.adopt(*arguments)

        monkeypatch.setattr("kachery_p2p.transfer.fetch.adopt", adopt_and_cancel)
        await world.load()
    assert scope.cancelled_caught
    assert len(disk.objects()) == 1
    assert world.granted == 1
    assert disk.partials() == []


async def test_who_leaves_while_the_bytes_turn_out_wrong_leaves_nothing(
    disk: Any, monkeypatch: pytest.MonkeyPatch, virtual_clock: MockClock
) -> None:
    forgery = forged(bytes(3 * MIB), BLOB.content)
    world = World(disk, Member(forgery), blob=forgery)
    with trio.CancelScope() as scope:

        def adopt_and_cancel(*arguments: Any) -> None:
            trio.from_thread.run_sync(scope.cancel)
            verdicts.adopt(*arguments)

        monkeypatch.setattr("kachery_p2p.transfer.fetch.adopt", adopt_and_cancel)
        with suppress(UriInconsistentError, BaseExceptionGroup):
            await world.load()
    assert disk.objects() == []
    assert disk.partials() == []
    # Nobody holds its lock either: another fetch of the same root can begin.
    with pytest.raises(UriInconsistentError):
        await World(disk, Member(forgery), blob=forgery).load()


async def test_no_descriptor_is_left_open_whatever_happens(
    disk: Any, virtual_clock: MockClock
) -> None:
    await World(disk, Member()).read(0, 10)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        with pytest.raises(AllProvidersFailedError):
            await World(disk, Scripted(at(1, bytes(MIB)))).load()
        await World(disk, Member()).read(0, 10)
        with trio.move_on_after(0.02):
            await World(disk, Member()).read(5 * MIB, 5 * MIB + 1)
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_a_source_that_breaks_the_protocol_is_not_used_again(
    disk: Any, virtual_clock: MockClock
) -> None:
    rude = Scripted(at(0, ProtocolError("a chunk that is not the next one due")), node="rude")
    world = World(disk, rude)
    with pytest.raises(AllProvidersFailedError, match="not the next one due"):
        await world.load()
    assert rude.asked == [0, 1, 2, 3]


async def test_the_reader_of_many_ranges_finds_the_fetch_still_open(
    disk: Any, virtual_clock: MockClock
) -> None:
    member = Member()
    async with World(disk, member).running() as fetch:
        assert await read(fetch, 0, 5) == BLOB.data[:5]
        await trio.sleep(FETCH_LINGER_S / 2)
        assert not fetch.closing
        assert await read(fetch, MIB, MIB + 5) == BLOB.data[MIB : MIB + 5]
        await trio.sleep(FETCH_LINGER_S + 1)
        assert fetch.ended.is_set()
    assert member.asked == [0, 1]


# --- many sources at once -----------------------------------------------------------------------

LONG = Blob(hashlib.shake_128(b"long").digest(40 * MIB + 3))


def sharing(count: int) -> list[Member]:
    return [Member(LONG, node=f"node{number}") for number in range(count)]


async def test_three_sources_share_the_work_and_none_is_asked_for_all(
    disk: Any, virtual_clock: MockClock
) -> None:
    members = sharing(3)
    world = World(disk, *members, blob=LONG)
    assert await world.load() == LONG.data
    asked = [number for member in members for number in member.asked]
    assert set(asked) == set(range(41))
    assert all(5 <= len(member.asked) <= 25 for member in members)
    at_work = [[s.node for s in one.sources if s.state in AT_WORK] for one in world.states]
    assert any(len(nodes) == 3 for nodes in at_work)
    assert members[0].roots == 1, "one root object is enough"


class Frozen(Member):
    async def chunk(self, number: int) -> bytes:
        await trio.sleep_forever()
        raise AssertionError


async def test_one_that_lies_and_one_that_freezes_cost_neither_bytes_nor_much_time(
    disk: Any, virtual_clock: MockClock
) -> None:
    liar = Scripted(lambda n: bytes(MIB) if n > 6 else None, node="liar", blob=LONG)
    frozen = Frozen(LONG, node="frozen")
    honest = Member(LONG, node="honest")
    world = World(disk, liar, frozen, honest, blob=LONG)
    with trio.fail_after(10):
        assert await world.load() == LONG.data
    assert world.granted == 1


async def test_a_source_a_hundred_times_slower_holds_up_nobody(
    disk: Any, virtual_clock: MockClock
) -> None:
    class Slow(Member):
        async def chunk(self, number: int) -> bytes:
            await trio.sleep(1.0)
            return await super().chunk(number)

    alone = World(disk, *sharing(1), blob=LONG)
    began = trio.current_time()
    assert await alone.load() == LONG.data
    alone_s = trio.current_time() - began
    for path in disk.objects():
        path.unlink()
    world = World(disk, *sharing(1), Slow(LONG, node="slow"), blob=LONG)
    began = trio.current_time()
    assert await world.load() == LONG.data
    assert trio.current_time() - began <= alone_s + 0.2


async def test_all_that_came_before_the_others_died_is_kept(
    disk: Any, virtual_clock: MockClock
) -> None:
    dying = [
        Scripted(at(10, PeerGoneError("went away")), node=f"dying{n}", blob=LONG) for n in range(2)
    ]
    honest = Member(LONG, node="honest")
    world = World(disk, *dying, honest, blob=LONG)
    assert await world.load() == LONG.data
    assert len(honest.asked) >= 31


# --- blobs of one chunk --------------------------------------------------------------------------

SMALL = Blob(b"one chunk and no more" * 99)


async def test_a_small_blob_costs_one_question_and_no_partial(
    disk: Any, virtual_clock: MockClock
) -> None:
    member = Member(SMALL)
    world = World(disk, member, blob=SMALL, is_small=True)
    assert await world.load() == SMALL.data
    assert (member.roots, member.pages, member.asked) == (0, 0, [0])
    assert (world.granted, disk.partials()) == (1, [])


async def test_a_range_of_a_small_blob_is_read_from_the_whole(
    disk: Any, virtual_clock: MockClock
) -> None:
    world = World(disk, Member(SMALL), blob=SMALL, is_small=True)
    assert await world.read(3, 9) == SMALL.data[3:9]
    assert world.stored_bytes() == SMALL.data


async def test_whoever_sends_other_bytes_for_a_small_blob_is_a_liar(
    disk: Any, virtual_clock: MockClock
) -> None:
    liar = Scripted(at(0, b"something else"), node="liar", blob=SMALL)
    honest = Member(SMALL, node="honest")
    world = World(disk, liar, honest, blob=SMALL, is_small=True, one_by_one=True)
    assert await world.load() == SMALL.data
    assert world.fetch._suppliers.liars == {"liar"}


async def test_a_blob_that_is_only_said_to_be_small_is_fetched_all_the_same(
    disk: Any, virtual_clock: MockClock
) -> None:
    liar, honest = Member(node="liar"), Member(node="honest")
    world = World(disk, liar, honest, is_small=True, one_by_one=True)
    assert await world.load() == BLOB.data


async def test_small_bytes_with_the_root_but_another_sha1_are_nobodys_fault(
    disk: Any, virtual_clock: MockClock
) -> None:
    forgery = forged(SMALL.data, BLOB.content)
    world = World(disk, Member(forgery), blob=forgery, is_small=True)
    with pytest.raises(UriInconsistentError):
        await world.load()
    assert disk.objects() == []
    assert not world.fetch._suppliers.liars


@pytest.mark.parametrize("is_small", [False, True])
async def test_the_next_source_is_asked_at_once_when_the_first_cannot_begin(
    disk: Any, virtual_clock: MockClock, is_small: bool
) -> None:
    class Gone(Member):
        async def root_object(self, content: ContentHash, root: Root) -> bytes:
            raise PeerGoneError("went away")

    gone = Gone(SMALL, node="gone") if not is_small else Scripted(at(0, AWAY["gone"]), node="gone")
    world = World(disk, gone, Member(SMALL, node="honest"), blob=SMALL, is_small=is_small)
    began = trio.current_time()
    assert await world.load() == SMALL.data
    assert trio.current_time() - began < 0.5


@pytest.mark.parametrize("is_small", [False, True])
async def test_nobody_joins_a_fetch_that_has_brought_its_blob(
    disk: Any, virtual_clock: MockClock, is_small: bool
) -> None:
    world = World(disk, Member(SMALL), blob=SMALL, is_small=is_small)
    began = trio.current_time()
    async with world.running() as fetch:
        await fetch.wait_for(None)
        assert fetch.closing
        await fetch.ended.wait()
    assert trio.current_time() - began < 0.5, "it ends as soon as it has"
