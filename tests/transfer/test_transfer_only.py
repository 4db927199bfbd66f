"""Loads from one channel or one node only: nobody else is used, or even asked."""

from __future__ import annotations

import os
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.channels.channel import Channel
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import NotFoundError, RootMismatchError, UriInconsistentError
from kachery_p2p.limits import CHUNK_BYTES
from kachery_p2p.network.link import DATA
from kachery_p2p.transfer.only import ANYONE, Only
from tests.transfer.test_transfer_download import Liar

LAB = Channel.shared(b"L" * 20, "lab")
FIELD = Channel.shared(b"F" * 20, "field")


def heard(node: Any) -> list[str]:
    """The contents that others asked this node for, from now on."""
    asked: list[str] = []
    is_granted = node.disk.grants.is_granted

    def noting(content: ContentHash, channel: str) -> bool:
        asked.append(content)
        return bool(is_granted(content, channel))

    node.disk.grants.is_granted = noting
    return asked


async def trio_of_nodes(lab: Any) -> tuple[Any, Any, Any]:
    """bob in both channels, alice in the lab, carol in the field; both hold what is stored."""
    bob = await lab.node("bob", LAB, FIELD)
    alice, carol = await lab.node("alice", LAB), await lab.node("carol", FIELD)
    await lab.together(bob, alice)
    await lab.together(bob, carol)
    return bob, alice, carol


def test_what_a_restriction_allows() -> None:
    assert ANYONE.allows("n", "c") and ANYONE.allows_transfer("c", None)
    one = Only("c", "n")
    assert one.allows("n", "c") and not one.allows("m", "c") and not one.allows("n", "d")
    assert one.allows_transfer("c", "n") and not one.allows_transfer("c", None)
    assert Only("c").allows_transfer("c", "n") and not Only("c").allows_transfer("d", "n")


@pytest.mark.parametrize("by", ["channel", "node"])
async def test_only_the_one_named_is_asked_and_used(lab: Any, by: str) -> None:
    bob, alice, carol = await trio_of_nodes(lab)
    stored = alice.store(b"x" * 5_000, LAB)
    carol.store(b"x" * 5_000, FIELD)
    asked = heard(alice)
    only = Only(channel=FIELD.id) if by == "channel" else Only(node=carol.id)
    await bob.downloads.load(stored.content, None, bob.told.append, only)
    assert bob.bytes_of(stored.content) == b"x" * 5_000
    assert asked == []
    assert bob.disk.grants.channels_of(stored.content) == (FIELD.id,)


@pytest.mark.parametrize("span", [None, (0, 10)])
async def test_what_only_others_have_is_not_found(lab: Any, span: Any) -> None:
    bob, alice, carol = await trio_of_nodes(lab)
    stored = alice.store(b"x" * 5_000, LAB)
    asked = heard(alice)
    for only in (Only(channel=FIELD.id), Only(node=carol.id), Only(LAB.id, carol.id)):
        with pytest.raises(NotFoundError) as caught:
            if span is None:
                await bob.downloads.load(stored.content, None, bob.told.append, only)
            else:
                await bob.downloads.load_range(
                    stored.content, stored.root, *span, bob.told.append, only
                )
        assert caught.value.hint is not None and "nobody else was asked" in caught.value.hint
    assert asked == []


async def test_finding_asks_only_those_too(lab: Any) -> None:
    bob, alice, carol = await trio_of_nodes(lab)
    stored = alice.store(b"x", LAB)
    carol.store(b"x", FIELD)
    for only, holders in (
        (ANYONE, {alice.id, carol.id}),
        (Only(channel=LAB.id), {alice.id}),
        (Only(node=carol.id), {carol.id}),
        (Only(LAB.id, carol.id), set()),
    ):
        claims = await bob.holders.find(stored.content, lambda claim: True, 0.0, only)
        assert {claim.source.node for claim in claims} == holders


async def test_a_restricted_call_does_not_join_a_transfer_that_may_use_others(lab: Any) -> None:
    """It waits for its end, and then the content is there."""
    bob, alice, carol = await trio_of_nodes(lab)
    data = os.urandom(8 * CHUNK_BYTES)
    stored = alice.store(data, LAB)
    begun = trio.Event()
    results: list[int] = []

    async def unrestricted() -> None:
        await bob.downloads.load(stored.content, None, lambda state: begun.set())

    async def restricted() -> None:
        await begun.wait()
        only = Only(node=carol.id)
        descriptor, size = await bob.downloads.load_range(
            stored.content, stored.root, 5, 10, bob.told.append, only
        )
        try:
            results.append(size)
            assert os.pread(descriptor, 5, 5) == data[5:10]
        finally:
            os.close(descriptor)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(unrestricted)
            nursery.start_soon(restricted)
    assert results == [len(data)]
    assert bob.disk.grants.channels_of(stored.content) == (LAB.id,)


async def test_an_unrestricted_call_joins_a_restricted_transfer_and_outlives_it(lab: Any) -> None:
    """The one node goes away in the middle; whoever named nobody gets it from the other."""
    bob, alice, carol = await trio_of_nodes(lab)
    data = os.urandom(8 * CHUNK_BYTES)
    stored = alice.store(data, LAB)
    carol.store(data, FIELD)
    begun = trio.Event()
    failed: list[Exception] = []

    async def restricted() -> None:
        def tell(state: Any) -> None:
            if not begun.is_set():
                begun.set()
                alice.disk.grants.revoke([stored.content], LAB.id)

        try:
            await bob.downloads.load(stored.content, stored.root, tell, Only(node=alice.id))
        except Exception as error:
            failed.append(error)

    async def unrestricted() -> None:
        await begun.wait()
        await bob.downloads.load(stored.content, stored.root, bob.told.append)

    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(restricted)
            nursery.start_soon(unrestricted)
    assert bob.bytes_of(stored.content) == data


async def test_a_range_is_of_the_root_that_was_asked_for(
    lab: Any, virtual_clock: MockClock
) -> None:
    """Also if the content comes into the store, with another root, while the range has to wait."""
    bob, mallory = await lab.node("bob", LAB, FIELD), await lab.node("mallory", LAB)
    carol = await lab.node("carol", FIELD)
    await lab.together(bob, mallory)
    await lab.together(bob, carol)
    stored = carol.store(b"t" * (3 * CHUNK_BYTES), FIELD)
    liar = Liar(mallory, stored.content, b"f" * (3 * CHUNK_BYTES))
    false_root = liar.manifest.root

    async def slowly(stream: Any) -> None:
        await trio.sleep(3)
        await liar.serve(stream)

    mallory.link.accept(DATA, slowly)

    async def load(root: str, *only: Only) -> None:
        await bob.downloads.load(stored.content, root, bob.told.append, *only)

    async def whole() -> None:
        with pytest.raises(UriInconsistentError):
            await load(false_root)

    async def part() -> None:
        where = (stored.content, false_root, 0, 100, bob.told.append, Only(channel=FIELD.id))
        with pytest.raises(RootMismatchError):
            await bob.downloads.load_range(*where)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(whole)
            # It cannot join that one, which is of another channel, and waits for its end.
            while not bob.downloads.active():  # noqa: ASYNC110
                await trio.sleep(0.01)
            nursery.start_soon(part)
            nursery.start_soon(load, stored.root, Only(channel=FIELD.id))
