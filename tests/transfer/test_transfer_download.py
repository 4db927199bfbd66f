"""Claims, blame and sharing: members that say what they like about what they hold."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.channels.channel import Channel
from kachery_p2p.content.hashes import ContentHash, sha1_of
from kachery_p2p.content.manifests import Manifest, RootObject
from kachery_p2p.errors import (
    AllProvidersFailedError,
    NotFoundError,
    PeerGoneError,
    RootMismatchError,
    UriInconsistentError,
)
from kachery_p2p.limits import (
    CHUNK_BYTES,
    CLAIM_ATTEMPTS_MAX,
    FIND_S_MAX,
    HAVE_GRACE_S,
    SOURCE_RETURN_S_MAX,
)
from kachery_p2p.network.link import DATA, Stream
from kachery_p2p.network.simulated_wire import Path as NetworkPath
from kachery_p2p.store.blobs import Stored
from kachery_p2p.store.hashing import hash_bytes
from kachery_p2p.transfer.sources import Claim
from kachery_p2p.wire.codec import FrameDecoder
from kachery_p2p.wire.ranges import read_range_request

MIB = CHUNK_BYTES
FIELD = Channel.shared(b"F" * 20, "field")
LAB = Channel.shared(b"L" * 20, "lab")
BYTES = hashlib.shake_128(b"download").digest(3 * MIB + 7)
CONTENT = sha1_of(BYTES)


class Liar:
    """Makes a node claim `content` under a root of its own, and serve other bytes for it."""

    def __init__(
        self, node: Any, content: ContentHash, data: bytes, *, deliver: bool = True
    ) -> None:
        honest = hash_bytes(data)
        self.manifest = Manifest(
            RootObject(len(data), content, honest.root_object.pages), honest.pages
        )
        self.data = data
        self.deliver = deliver
        self.asked_for_root = self.served = 0
        node.sessions.handle("have", self.have)
        node.sessions.handle("root", self.root)
        node.sessions.handle("page", self.page)
        node.link.accept(DATA, self.serve)

    async def have(self, session: Any, body: Any) -> dict[str, Any]:
        return {"size": len(self.data), "root": self.manifest.root.raw, "pinned": True}

    async def root(self, session: Any, body: Any) -> dict[str, Any]:
        self.asked_for_root += 1
        if not self.deliver:
            raise PeerGoneError("no")
        return {"object": self.manifest.root_object.encode()}

    async def page(self, session: Any, body: Any) -> dict[str, Any]:
        return {"page": self.manifest.pages[body["number"]]}

    async def serve(self, stream: Stream) -> None:
        decoder = FrameDecoder()
        while data := await stream.receive_some(1 << 16):
            for message in decoder.feed(data):
                request = read_range_request(message)
                for number in range(request.first, request.first + request.count):
                    self.served += 1
                    chunk = self.data[number * MIB : (number + 1) * MIB]
                    await stream.send_all(request.chunk_frame(number, chunk))


def lie(node: Any, seed: int = 0, **how: Any) -> Liar:
    return Liar(node, CONTENT, hashlib.shake_128(b"lie%d" % seed).digest(2 * MIB), **how)


def standing(node: Any) -> dict[str, bool]:
    """Every object of a node, and whether it is what its name says."""
    return {
        path.name: hashlib.sha1(path.read_bytes()).hexdigest() == path.name
        for path in node.disk.objects()
    }


# --- who is believed ----------------------------------------------------------------------------


async def test_a_false_claim_costs_its_claimant_and_not_the_load(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, mallory, bob = [await lab.node(name) for name in ("alice", "mallory", "bob")]
    # Outvoted or not, mallory's claim is tried at the latest when it is the only one.
    liar = lie(mallory)
    await lab.together(alice, mallory, bob)
    with pytest.raises(AllProvidersFailedError, match="mallory .*do not have this hash"):
        await bob.downloads.load(CONTENT, None, lambda state: None)
    assert liar.served == 2
    stored = alice.store(BYTES)
    assert await bob.load(stored) == BYTES
    assert liar.asked_for_root == 1, "it is not believed a second time"
    assert standing(bob) == {CONTENT: True}
    assert bob.disk.partials() == []


async def test_nine_liars_of_one_lie_and_one_honest_holder(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    liars = [await lab.node(f"liar{n}") for n in range(9)]
    for node in liars:
        lie(node)
    stored = alice.store(BYTES)
    await lab.together(alice, bob, *liars)
    assert await bob.load(stored) == BYTES
    assert standing(bob) == {CONTENT: True}


async def test_nine_who_say_they_have_it_and_do_not_deliver_and_one_holder(
    virtual_clock: MockClock, lab: Any
) -> None:
    """Each claims a root of its own, so that none of them can be tried together."""
    alice, bob = await lab.node("alice"), await lab.node("bob")
    liars = [await lab.node(f"liar{n}") for n in range(9)]
    for number, node in enumerate(liars):
        lie(node, number, deliver=False)
    stored = alice.store(BYTES)
    await lab.together(alice, bob, *liars)
    began = trio.current_time()
    assert await bob.load(stored) == BYTES
    assert trio.current_time() - began < SOURCE_RETURN_S_MAX, "nobody's return was waited for"


async def test_after_three_full_size_lies_we_give_up_and_name_them(
    virtual_clock: MockClock, lab: Any
) -> None:
    bob = await lab.node("bob")
    nodes = [await lab.node(f"liar{n}") for n in range(5)]
    liars = [lie(node, number) for number, node in enumerate(nodes)]
    await lab.together(bob, *nodes)
    with pytest.raises(AllProvidersFailedError) as caught:
        await bob.downloads.load(CONTENT, None, lambda state: None)
    assert sum(liar.served for liar in liars) == 2 * CLAIM_ATTEMPTS_MAX
    assert str(caught.value).count("vouched for bytes") == CLAIM_ATTEMPTS_MAX
    assert standing(bob) == {}


async def test_a_root_of_the_uri_is_the_uris_fault_and_bans_nobody(
    virtual_clock: MockClock, lab: Any
) -> None:
    mallory, bob = await lab.node("mallory"), await lab.node("bob")
    liar = lie(mallory)
    await lab.together(mallory, bob)
    for _ in range(2):
        with pytest.raises(UriInconsistentError):
            await bob.downloads.load(CONTENT, liar.manifest.root, lambda state: None)
    assert liar.asked_for_root == 2, "it is asked again"
    assert standing(bob) == {}


async def test_a_root_of_the_uri_passes_by_everyone_who_claims_another(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, mallory, bob = [await lab.node(name) for name in ("alice", "mallory", "bob")]
    liar = lie(mallory)
    stored = alice.store(BYTES)
    await lab.together(alice, mallory, bob)
    assert await bob.load(stored, root=True) == BYTES
    assert liar.asked_for_root == 0


async def test_a_liar_in_one_channel_does_not_keep_a_blob_from_who_shares_two_with_a_holder(
    virtual_clock: MockClock, lab: Any
) -> None:
    """The simulated lab found this one: the liar's channel was the only one that was tried."""
    bob = await lab.node("bob", LAB, FIELD)
    alice, mallory = await lab.node("alice", LAB), await lab.node("mallory", FIELD)
    stored = alice.store(BYTES)
    liar = Liar(mallory, CONTENT, bytes(len(BYTES)))
    # It claims the right root, and cannot know better than to serve wrong bytes for it.
    liar.manifest = hash_bytes(BYTES)
    lab.world.set_path(alice.id, bob.id, NetworkPath(delay_s=2 * HAVE_GRACE_S))
    await lab.together(alice, bob)
    await lab.together(mallory, bob)
    assert await bob.load(stored, root=True) == BYTES
    assert bob.disk.grants.channels_of(CONTENT) == (LAB.id,)


async def test_a_root_against_one_that_was_hashed_here_is_a_mismatch(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    stored = alice.store(BYTES)
    path = bob.disk.blobs.put_bytes(BYTES).path
    os.unlink(path)
    with pytest.raises(RootMismatchError):
        await bob.downloads.load(CONTENT, hash_bytes(b"other").root, lambda state: None)
    await lab.together(alice, bob)
    assert await bob.load(stored) == BYTES


async def test_bytes_that_were_hashed_here_once_are_taken_from_nobody_who_says_otherwise(
    virtual_clock: MockClock, lab: Any
) -> None:
    mallory, bob = await lab.node("mallory"), await lab.node("bob")
    os.unlink(bob.disk.blobs.put_bytes(BYTES).path)
    liar = lie(mallory)
    await lab.together(mallory, bob)
    with pytest.raises(NotFoundError):
        await bob.downloads.load(CONTENT, None, lambda state: None)
    assert liar.asked_for_root == 0


async def test_a_quick_liar_does_not_cut_off_a_slow_honest_holder(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, mallory, bob = [await lab.node(name) for name in ("alice", "mallory", "bob")]
    lie(mallory)
    stored = alice.store(BYTES)
    lab.world.set_path(alice.id, bob.id, NetworkPath(delay_s=2 * HAVE_GRACE_S))
    await lab.together(alice, mallory, bob)
    assert await bob.load(stored) == BYTES
    again = hashlib.shake_128(b"again").digest(MIB + 1)
    stored = alice.store(again)
    assert await bob.load(stored, root=True) == again


async def test_a_quick_source_that_stalls_does_not_cut_off_a_slow_one(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, mallory, bob = [await lab.node(name) for name in ("alice", "mallory", "bob")]
    stored = alice.store(BYTES)
    mallory.store(BYTES)

    async def silent(stream: Stream) -> None:
        await trio.sleep_forever()

    mallory.link.accept(DATA, silent)
    lab.world.set_path(alice.id, bob.id, NetworkPath(delay_s=2 * HAVE_GRACE_S))
    await lab.together(alice, mallory, bob)
    assert await bob.load(stored) == BYTES


# --- many who wait ------------------------------------------------------------------------------


async def test_many_loads_of_one_content_are_one_transfer_and_one_question(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    stored = alice.store(BYTES)
    await lab.together(alice, bob)
    questions = 0
    have = alice.server._have

    async def count(session: Any, body: Any) -> Any:
        nonlocal questions
        questions += 1
        return await have(session, body)

    alice.sessions.handle("have", count)
    async with trio.open_nursery() as nursery:
        for number in range(200):
            root = stored.root if number % 2 else None
            nursery.start_soon(bob.downloads.load, CONTENT, root, lambda state: None)
    assert alice.server.bytes_served == len(BYTES)
    assert questions <= 2
    assert bob.downloads.active() == []


async def test_more_contents_than_a_peer_takes_requests_are_all_found(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    stored = alice.store(BYTES)
    await lab.together(alice, bob)
    have, found = alice.server._have, list[Claim]()

    async def slow(session: Any, body: Any) -> Any:
        await trio.sleep(0.5)
        return await have(session, {**body, "content": stored.content.raw})

    alice.sessions.handle("have", slow)

    async def find(content: ContentHash) -> None:
        found.extend(await bob.holders.find(content, lambda claim: True, FIND_S_MAX))

    async with trio.open_nursery() as nursery:
        for number in range(500):
            nursery.start_soon(find, sha1_of(b"%d" % number))
    assert len(found) == 500


async def test_the_first_who_asked_may_leave_without_harm_to_the_second(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    stored = alice.store(BYTES)
    lab.world.set_path(alice.id, bob.id, NetworkPath(delay_s=0.1))
    await lab.together(alice, bob)
    scopes = [trio.CancelScope() for _ in range(2)]

    async def load(scope: trio.CancelScope) -> None:
        with scope:
            await bob.downloads.load(CONTENT, None, lambda state: None)

    async with trio.open_nursery() as nursery:
        for scope in scopes:
            nursery.start_soon(load, scope)
        await trio.sleep(0.05)  # the question is on its way
        scopes[0].cancel()
    assert [scope.cancelled_caught for scope in scopes] == [True, False]
    assert bob.bytes_of(stored.content) == BYTES


async def test_a_load_again_after_it_was_given_up_asks_only_for_what_is_missing(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    stored = alice.store(BYTES)
    await lab.together(alice, bob)
    lab.world.set_path(alice.id, bob.id, NetworkPath(bytes_per_s=MIB), one_way=True)
    with trio.move_on_after(2.5) as given_up:
        await bob.load(stored)
    assert given_up.cancelled_caught
    await trio.sleep(0.1)
    assert bob.downloads.active() == []
    before = alice.server.bytes_served
    lab.world.set_path(alice.id, bob.id, NetworkPath(), one_way=True)
    assert await bob.load(stored) == BYTES
    assert alice.server.bytes_served - before <= len(BYTES) - 2 * MIB


async def test_a_range_and_the_whole_at_once_cost_each_chunk_once(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    stored = alice.store(BYTES)
    await lab.together(alice, bob)

    async def read() -> None:
        descriptor, size = await bob.downloads.load_range(
            CONTENT, stored.root, 2 * MIB, 2 * MIB + 9, lambda state: None
        )
        assert size == len(BYTES)
        assert os.pread(descriptor, 9, 2 * MIB) == BYTES[2 * MIB : 2 * MIB + 9]
        os.close(descriptor)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bob.load, stored)
        nursery.start_soon(read)
    assert alice.server.bytes_served == len(BYTES)


async def test_ranges_of_a_blob_ask_for_their_chunks_alone(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    stored = alice.store(BYTES)
    await lab.together(alice, bob)
    descriptor, _ = await bob.downloads.load_range(CONTENT, stored.root, 5, 9, lambda state: None)
    os.close(descriptor)
    assert alice.server.bytes_served == MIB
    assert standing(bob) == {}


# --- nobody has it ------------------------------------------------------------------------------


async def test_nobody_is_connected(virtual_clock: MockClock, lab: Any) -> None:
    bob = await lab.node("bob")
    with pytest.raises(NotFoundError, match="no peer in channel lab is connected"):
        await bob.downloads.load(CONTENT, None, lambda state: None)


async def test_nobody_holds_it(virtual_clock: MockClock, lab: Any) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    await lab.together(alice, bob)
    with pytest.raises(NotFoundError, match=r"no peer in channel lab holds .* \(1 asked\)"):
        await bob.downloads.load(CONTENT, None, lambda state: None)


async def test_who_is_only_being_dialled_is_waited_for(virtual_clock: MockClock, lab: Any) -> None:
    alice = await lab.node("alice")
    stored = alice.store(BYTES)
    lab.world.set_all_paths(NetworkPath(delay_s=0.4))
    bob = await lab.node("bob")
    assert await bob.load(stored) == BYTES


async def test_who_comes_while_others_are_asked_is_asked_too(
    virtual_clock: MockClock, lab: Any
) -> None:
    """Carol's answer takes 4 s; Alice, who has it, is met meanwhile."""
    bob, carol = await lab.node("bob"), await lab.node("carol")
    await lab.together(bob, carol)

    async def slow(session: Any, body: Any) -> Any:
        await trio.sleep(4)
        return await carol.server._have(session, body)

    carol.sessions.handle("have", slow)
    found: list[bytes] = []

    async def load() -> None:
        await bob.downloads.load(CONTENT, None, lambda state: None)
        found.append(bob.bytes_of(CONTENT))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(load)
        await trio.sleep(1)
        alice = await lab.node("alice")
        alice.store(BYTES)
    assert found == [BYTES]


async def test_a_frozen_member_does_not_hold_up_a_load(virtual_clock: MockClock, lab: Any) -> None:
    alice, frozen, bob = [await lab.node(name) for name in ("alice", "frozen", "bob")]
    stored = alice.store(BYTES)
    await lab.together(alice, frozen, bob)
    lab.world.silence(frozen.id)
    began = trio.current_time()
    assert await bob.load(stored) == BYTES
    assert trio.current_time() - began < 3


async def test_a_provider_that_freezes_and_is_alone_ends_the_load_in_time(
    virtual_clock: MockClock, lab: Any
) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    stored: Stored = alice.store(BYTES)
    await lab.together(alice, bob)
    lab.world.set_path(alice.id, bob.id, NetworkPath(bytes_per_s=MIB), one_way=True)

    async def freeze() -> None:
        await trio.sleep(1.5)
        lab.world.silence(alice.id)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(freeze)
        with pytest.raises(AllProvidersFailedError, match="alice"):
            await bob.load(stored)
    assert trio.current_time() < 200_000 + 3 * (FIND_S_MAX + SOURCE_RETURN_S_MAX)
    assert standing(bob) == {}


async def test_a_node_that_stops_says_so_to_whoever_waits(
    virtual_clock: MockClock, lab: Any
) -> None:
    from kachery_p2p.errors import LoadFileError

    alice, bob = await lab.node("alice"), await lab.node("bob")
    alice.store(BYTES)
    await lab.together(alice, bob)
    lab.world.silence(alice.id)
    with pytest.raises((LoadFileError, NotFoundError)):
        await bob.downloads.load(CONTENT, None, lambda state: None)
    bob.downloads._nursery = None
    lab.world.wake(alice.id)
    await trio.sleep(30)
    with pytest.raises(LoadFileError, match="not running"):
        await bob.downloads.load(CONTENT, None, lambda state: None)
    assert bob.downloads.active() == []
