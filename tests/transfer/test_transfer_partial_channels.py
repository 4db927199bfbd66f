"""What came in one channel is neither passed on nor granted in another."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from kachery_p2p.channels.channel import Channel
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import StorageFailedError
from kachery_p2p.limits import CHUNK_BYTES
from kachery_p2p.network.simulated_wire import Path as NetworkPath
from kachery_p2p.store import partials
from kachery_p2p.store.blobs import Stored
from kachery_p2p.store.hashing import hash_bytes
from kachery_p2p.store.partials import Partial
from kachery_p2p.transfer.only import Only
from kachery_p2p.transfer.progress import View
from tests.transfer.conftest import FIELD, LAB, Lab, Node

DATA = hashlib.shake_128(b"secret").digest(3 * CHUNK_BYTES + 7)
MANIFEST = hash_bytes(DATA)
SMALL = b"one chunk"
ONE = hash_bytes(SMALL)
ALL_BUT_THE_LAST = (0, 3 * CHUNK_BYTES)


@pytest.fixture
async def reader(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr("kachery_p2p.transfer.fetch.FETCH_LINGER_S", 0.01)
    return await lab.node("reader", LAB, FIELD)


async def read(reader: Node, channel: Channel, start: int, end: int) -> None:
    """A part of it is loaded in the channel, and the load has ended."""
    descriptor, _ = await reader.downloads.load_range(
        MANIFEST.content, MANIFEST.root, start, end, reader.told.append, Only(channel=channel.id)
    )
    os.close(descriptor)
    while reader.downloads.active():  # noqa: ASYNC110
        await trio.sleep(0.1)


async def load(reader: Node, channel: Channel) -> set[ContentHash]:
    """All of it is loaded in the channel; what was passed on there meanwhile."""
    offered: set[ContentHash] = set()
    reused = []

    def tell(view: View) -> None:
        offered.update(reader.offers.contents(channel.id))
        reused.append(view(trio.current_time()).reused)

    only = Only(channel=channel.id)
    await reader.downloads.load(MANIFEST.content, MANIFEST.root, tell, only)
    # What was here is not fetched again, wherever it came from.
    assert reused[-1] >= CHUNK_BYTES
    assert reader.bytes_of(MANIFEST.content) == DATA
    assert reader.disk.partials() == []
    return offered


def granted(reader: Node) -> list[str]:
    grants = reader.disk.grants
    return [c.name for c in (LAB, FIELD) if grants.is_granted(MANIFEST.content, c.id)]


async def holder_in(lab: Lab, reader: Node, *channels: Channel) -> Stored:
    holder = await lab.node("holder", *channels)
    stored = holder.store(DATA, *channels)
    await lab.together(reader, holder)
    # Else all of it has come before anybody is told.
    lab.world.set_all_paths(NetworkPath(bytes_per_s=10 * CHUNK_BYTES))
    return stored


async def test_what_goes_on_in_its_channel_is_passed_on_and_granted_there(
    reader: Node, lab: Lab
) -> None:
    await holder_in(lab, reader, LAB, FIELD)
    await read(reader, FIELD, *ALL_BUT_THE_LAST)
    assert await load(reader, FIELD) == {MANIFEST.content}
    assert granted(reader) == ["field"]


async def test_what_came_in_another_channel_is_used_but_neither_passed_on_nor_granted(
    reader: Node, lab: Lab
) -> None:
    await holder_in(lab, reader, LAB, FIELD)
    await read(reader, LAB, *ALL_BUT_THE_LAST)
    assert await load(reader, FIELD) == set()
    assert granted(reader) == []


async def test_a_mixture_stays_a_mixture_in_each_of_its_channels(reader: Node, lab: Lab) -> None:
    await holder_in(lab, reader, LAB, FIELD)
    await read(reader, LAB, 0, 1)
    await read(reader, FIELD, CHUNK_BYTES, CHUNK_BYTES + 1)
    assert await load(reader, LAB) == set()
    assert granted(reader) == []


async def test_what_a_node_of_an_older_version_left_came_from_who_knows_where(
    reader: Node, lab: Lab
) -> None:
    await holder_in(lab, reader, LAB, FIELD)
    await read(reader, LAB, 0, 1)
    (directory,) = reader.disk.partials()
    (directory / "root").write_bytes(MANIFEST.root_object.encode())
    assert await load(reader, LAB) == set()
    assert granted(reader) == []


async def test_one_who_knows_hashes_and_a_single_chunk_gets_no_more(reader: Node, lab: Lab) -> None:
    """The spy, of FIELD alone, serves the last chunk, so that the reader completes the file."""
    author = await lab.node("author", LAB)
    author.store(DATA, LAB)
    await lab.together(reader, author)
    await read(reader, LAB, *ALL_BUT_THE_LAST)
    author.disk.grants.revoke([MANIFEST.content], LAB.id)
    spy = await lab.node("spy", FIELD)
    await lab.together(reader, spy)
    partial = Partial.open(spy.disk.blobs.directory, spy.id, MANIFEST.root_object, 0)
    partial.write_page(0, MANIFEST.pages[0])
    partial.write_chunk(3, DATA[3 * CHUNK_BYTES :])
    spy.offers.make(FIELD.id, partial)
    with trio.fail_after(60):
        assert await load(reader, FIELD) == set()
    assert granted(reader) == []
    assert await spy.holders.ask(MANIFEST.content, FIELD.id) == []
    partial.close()


# --- on disk ----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> str:
    (tmp_path / "store").mkdir()
    return str(tmp_path / "store")


def opened(store: str, channel: str | None) -> Partial:
    return Partial.open(store, "ab" * 32, ONE.root_object, 0, channel)


def bring(partial: Partial) -> None:
    partial.write_page(0, ONE.pages[0])
    partial.write_chunk(0, SMALL)


def test_of_what_no_chunk_ever_came_any_channel_may_go_on(store: str) -> None:
    first = opened(store, "lab")
    first.write_page(0, ONE.pages[0])
    first.close()
    partial = opened(store, "field")
    assert partial.is_of_channel
    # The hashes of its chunks are nothing that members of the field are to be told either.
    assert not partial.has_page(0)
    bring(partial)
    partial.close()
    assert opened(store, "field").is_of_channel


@pytest.mark.parametrize("other", ["field", "lab2", "la", "", None])
def test_a_chunk_is_of_the_channel_in_which_it_came_and_of_no_other(
    store: str, other: str | None
) -> None:
    partial = opened(store, "lab")
    bring(partial)
    partial.close()
    again = opened(store, "lab")
    assert again.is_of_channel
    again.close()
    foreign = opened(store, other)
    assert not foreign.is_of_channel
    assert list(foreign.verified_chunks()) == [0]
    foreign.close()
    assert not opened(store, "lab").is_of_channel


def test_a_note_that_could_not_be_taken_away_for_good_is_thrown_away_with_the_rest(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = opened(store, "lab")
    bring(partial)
    partial.close()

    def failing(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(partials, "sync_file", failing)
        with pytest.raises(StorageFailedError):
            opened(store, "field")
    assert not os.path.exists(partial.directory)


class Killed(BaseException):
    """The process was killed."""


class Machine:
    """A disk that may forget what was not synced, under processes that may be killed."""

    def __init__(self, store: str, rng: random.Random, patched: pytest.MonkeyPatch) -> None:
        self.store = store
        self.rng = rng
        # Channels in which chunks came that count.
        self.came: set[str] = set()
        # What the file of the note may hold after a power cut.
        self.notes = [b""]
        self.steps_left = 0
        for module, name in ((os, "ftruncate"), (partials, "write_all")):
            patched.setattr(module, name, self.stepping(getattr(module, name)))
        patched.setattr(partials, "sync_file", self.sync)
        # Who is killed removes nothing.
        patched.setattr(Partial, "discard", Partial.close)

    @property
    def path(self) -> Path:
        (path,) = Path(self.store).glob(".partial/*/*/root")
        return path

    def stepping(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            self.step()
            done = real(*arguments)
            self.remember()
            return done

        return step

    def step(self) -> None:
        self.steps_left -= 1
        if self.steps_left == 0:
            raise Killed

    def remember(self) -> None:
        note = self.path.read_bytes()
        if note != self.notes[-1]:
            self.notes.append(note)

    def sync(self, fd: int) -> None:
        self.step()
        del self.notes[:-1]

    def run_a_process(self, channel: str) -> None:
        self.steps_left = self.rng.randrange(6)
        try:
            partial = opened(self.store, channel)
        except Killed:
            return
        self.steps_left = 0
        assert not partial.is_of_channel or self.came <= {channel}
        if self.rng.random() < 0.5:
            self.came.add(channel)
            bring(partial)
        partial.close()

    def cut_power(self) -> None:
        note = self.rng.choice(self.notes)
        self.path.write_bytes(note)
        self.notes = [note]
        if self.rng.random() < 0.2:
            self.path.with_name("bits").write_bytes(b"")
            self.came.clear()


def test_no_kill_and_no_power_cut_makes_a_chunk_one_of_another_channel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(1000):
        rng = random.Random(seed)
        (tmp_path / str(seed)).mkdir()
        with monkeypatch.context() as patched:
            machine = Machine(str(tmp_path / str(seed)), rng, patched)
            for _ in range(10):
                machine.run_a_process(rng.choice(["lab", "field"]))
                if rng.random() < 0.3:
                    machine.cut_power()
