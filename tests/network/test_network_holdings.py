"""What is announced of contents that are still being loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kachery_p2p.content.hashes import ContentHash, sha1_of
from kachery_p2p.network.holdings import Holdings
from kachery_p2p.network.prefixes import prefix_of
from kachery_p2p.store.grants import Grants

LAB, FIELD = "aa" * 32, "bb" * 32
A, B = sha1_of(b"a"), sha1_of(b"b")


class Node:
    def __init__(self, grants: Grants) -> None:
        self.grants = grants
        self.stored: set[ContentHash] = set()
        self.loading: dict[str, set[ContentHash]] = {}
        self.holdings = Holdings(
            grants,
            lambda content: content in self.stored,
            prefixes_max=1,
            loading=lambda channel: self.loading.get(channel, set()),
        )

    async def announces(self, content: ContentHash, channel: str = LAB) -> bool:
        await self.holdings.look([LAB, FIELD])
        return prefix_of(content) in self.holdings.catalogue(channel).held


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    grants = Grants(str(tmp_path / "grants.db"))
    yield Node(grants)
    grants.close()


async def test_what_is_being_loaded_is_announced_in_its_channel_until_it_is_given_up(
    node: Node,
) -> None:
    assert not await node.announces(A)
    node.loading[LAB] = {A}
    assert await node.announces(A)
    assert not await node.announces(A, FIELD)
    node.loading[LAB] = set()
    assert not await node.announces(A)


async def test_what_was_loaded_is_announced_on_without_a_gap(node: Node) -> None:
    node.loading[LAB] = {A}
    assert await node.announces(A)
    version = node.holdings.catalogue(LAB).version
    node.stored.add(A)
    node.grants.grant([A], [LAB], "fetched", 0.0)
    node.loading[LAB] = set()
    assert await node.announces(A)
    assert node.holdings.catalogue(LAB).version == version, "nobody is told anything new"


async def test_of_more_than_may_be_announced_some_are_not(node: Node) -> None:
    node.loading[LAB] = {A, B}
    assert [await node.announces(A), await node.announces(B)].count(True) == 1


async def test_a_channel_that_was_left_and_joined_again_is_told_anew(node: Node) -> None:
    node.loading[LAB] = {A}
    assert await node.announces(A)
    await node.holdings.look([FIELD])
    assert await node.announces(A)
