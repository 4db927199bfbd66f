"""One control stream: strangers, replays and junk; requests, deadlines and silence."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kachery_p2p.channels.channel import Channel
from kachery_p2p.channels.membership import DIALLER, LISTENER, Meeting, proofs_for
from kachery_p2p.errors import (
    KacheryError,
    NotAMemberError,
    PeerBusyError,
    PeerError,
    PeerGoneError,
    PeerRefusedError,
    PeerTimeoutError,
    ProtocolError,
    ProtocolVersionError,
)
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeKey
from kachery_p2p.limits import (
    HELLO_S_MAX,
    KEEPALIVE_IDLE_S,
    KEEPALIVE_S_MAX,
    PENDING_REQUESTS_MAX,
)
from kachery_p2p.network.link import CONTROL, Stream
from kachery_p2p.network.meeting import Me, meet
from kachery_p2p.network.memberships import Memberships
from kachery_p2p.network.session import Handler, Session
from kachery_p2p.network.simulated import World
from kachery_p2p.wire.codec import FrameDecoder, encode_frame
from kachery_p2p.wire.conversation import Answer, Conversation, Event, ProofsReceived
from kachery_p2p.wire.handshake import PADDING_BYTES, Hello, Versions, pad_proofs

LAB = Channel.shared(b"L" * 20, "lab")
FIELD = Channel.shared(b"F" * 20, "field")
OTHER_LAB = Channel.shared(b"O" * 20, "lab")


def me(number: int, *channels: Channel) -> Me:
    key = NodeKey.generate(bytes([number]) * NODE_KEY_BYTES)
    return Me(key, Memberships(channels), Random(number).randbytes)


ALICE, BOB = me(1, LAB), me(2, LAB)


@asynccontextmanager
async def control_stream(
    world: World, dialler: Me, listener: Me, serve: Callable[[Stream], Awaitable[None]]
) -> AsyncIterator[Stream]:
    """A control stream that `dialler` opened, and that `serve` has at the other side."""
    here, there = world.link(dialler.key.node_id), world.link(listener.key.node_id)
    there.accept(CONTROL, serve)
    await here.connect(there.addresses[0])
    here.admit(there.node_id)
    there.admit(here.node_id)
    stream = await here.open_stream(there.node_id, CONTROL)
    try:
        yield stream
    finally:
        await stream.reset()


class Listener:
    """Meets whoever calls, and remembers how that ended."""

    def __init__(self, who: Me, handlers: dict[str, Handler] | None = None) -> None:
        self.who = who
        self.handlers = handlers or {}
        self.error: PeerError | None = None
        self.session: Session | None = None
        self.ended = trio.Event()

    async def __call__(self, stream: Stream) -> None:
        try:
            self.session = Session(stream, await meet(stream, self.who), self.who.memberships)
            await self.session.run({"ping": pong, **self.handlers})
        except PeerError as error:
            self.error = error
        finally:
            self.ended.set()


async def pong(session: Session, body: dict[str, Any]) -> dict[str, Any]:
    return {}


@asynccontextmanager
async def a_session(
    dialler: Me = ALICE,
    listener: Me = BOB,
    handlers: dict[str, Handler] | None = None,
    world: World | None = None,
) -> AsyncIterator[tuple[World, Session, Listener]]:
    """A session as the dialler has it, running."""
    async with world or World(seed=1) as world:
        there = Listener(listener, handlers)
        async with control_stream(world, dialler, listener, there) as stream:
            session = Session(stream, await meet(stream, dialler), dialler.memberships)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(quietly, session)
                yield world, session, there
                nursery.cancel_scope.cancel()


async def quietly(session: Session) -> None:
    with suppress(PeerError):
        await session.run({"ping": pong})


# --- who is met ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "common"),
    [
        ([LAB], [LAB], [LAB]),
        ([LAB, FIELD], [FIELD], [FIELD]),
        ([FIELD, LAB], [LAB, FIELD, OTHER_LAB], [LAB, FIELD]),
    ],
)
async def test_a_session_is_for_the_channels_that_both_proved(
    ours: list[Channel],
    theirs: list[Channel],
    common: list[Channel],
    autojump_clock: MockClock,
) -> None:
    async with a_session(me(1, *ours), me(2, *theirs)) as (_, session, there):
        assert await session.request("ping", {}, 1) == {}
        assert there.session is not None
        assert session.channels == there.session.channels == {c.id for c in common}
        assert session.peer == there.who.key.node_id


@pytest.mark.parametrize("theirs", [[], [FIELD], [OTHER_LAB]])
async def test_without_a_common_channel_both_end_and_neither_has_a_session(
    theirs: list[Channel], autojump_clock: MockClock
) -> None:
    async with World(seed=1) as world:
        there = Listener(me(2, *theirs))
        async with control_stream(world, ALICE, there.who, there) as stream:
            with pytest.raises(NotAMemberError):
                await meet(stream, ALICE)
            await there.ended.wait()
            assert isinstance(there.error, NotAMemberError)
            assert there.session is None


async def hello_of(who: Me, **changes: Any) -> bytes:
    hello = Hello(who.random(32), who.key.exchange_public, who.key.exchange_signature)
    return encode_frame(hello._replace(**changes).message())


class Raw:
    """A control stream in the hands of an attacker: frames as they come."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.decoder = FrameDecoder()
        self.messages: list[dict[str, Any]] = []
        self.received = b""

    async def message(self) -> dict[str, Any]:
        while not self.messages:
            data = await self.stream.receive_some(1 << 16)
            if not data:
                raise PeerGoneError("the end")
            self.received += data
            self.messages += self.decoder.feed(data)
        return self.messages.pop(0)

    async def everything(self) -> list[dict[str, Any]]:
        found = []
        with suppress(PeerGoneError):
            while True:
                found.append(await self.message())
        return found


async def prove(raw: Raw, who: Me, channels: list[Channel], listener: Me) -> bytes:
    """The attacker's honest handshake up to its proofs; they are returned, not sent."""
    nonce = who.random(32)
    await raw.stream.send_all(await hello_of(who, nonce=nonce))
    theirs = (await raw.message())["nonce"]
    meeting = Meeting(who.key.node_id, listener.key.node_id, nonce, theirs)
    proofs = proofs_for(channels, DIALLER, meeting)
    return encode_frame({"proofs": pad_proofs(proofs, 16, who.random(PADDING_BYTES))})


@asynccontextmanager
async def an_attack(attacker: Me = ALICE) -> AsyncIterator[tuple[Raw, Listener]]:
    async with World(seed=1) as world:
        there = Listener(BOB)
        async with control_stream(world, attacker, BOB, there) as stream:
            yield Raw(stream), there


MALLORY = me(3, OTHER_LAB)

OUTSIDERS = {
    "no channel": [],
    "another secret": [OTHER_LAB],
    "many secrets": [Channel.shared(bytes([n]) * 20, "lab") for n in range(16)],
}


@pytest.mark.parametrize("channels", OUTSIDERS)
async def test_whatever_an_outsider_proves_it_gets_one_and_the_same_answer(
    channels: str, autojump_clock: MockClock
) -> None:
    async with an_attack(MALLORY) as (raw, there):
        proofs = await prove(raw, MALLORY, OUTSIDERS[channels], BOB)
        await raw.stream.send_all(proofs)
        (answer,) = await raw.everything()
        assert list(answer) == ["proofs"]
        assert len(answer["proofs"]) == 16
        assert {len(proof) for proof in answer["proofs"]} == {32}
        await there.ended.wait()
        assert isinstance(there.error, NotAMemberError)


FRAMES_AFTER_PROOFS = {
    "ping": {"id": 1, "op": "ping", "body": {}},
    "have": {"id": 1, "op": "have", "body": {"channel": LAB.id, "content": bytes(20)}},
    "members": {"id": 1, "op": "members", "body": {"channel": LAB.id}},
    "introduce": {"id": 1, "op": "introduce", "body": {"label": "", "addresses": [], "agent": ""}},
    "leave": {"id": 1, "op": "leave", "body": {"channel": LAB.id}},
    "an answer": {"id": 2, "ok": {}},
}


@pytest.mark.parametrize("frame", FRAMES_AFTER_PROOFS)
async def test_an_outsiders_requests_are_not_answered_however_early_they_come(
    frame: str, autojump_clock: MockClock
) -> None:
    async with an_attack(MALLORY) as (raw, there):
        proofs = await prove(raw, MALLORY, [OTHER_LAB], BOB)
        await raw.stream.send_all(proofs + encode_frame(FRAMES_AFTER_PROOFS[frame]))
        (answer,) = await raw.everything()
        assert list(answer) in (["proofs"], ["bye"])
        await there.ended.wait()
        assert there.session is None


@pytest.mark.parametrize("frame", FRAMES_AFTER_PROOFS)
async def test_a_request_before_the_proof_ends_the_stream_also_for_a_member(
    frame: str, autojump_clock: MockClock
) -> None:
    async with an_attack() as (raw, there):
        await raw.stream.send_all(await hello_of(ALICE))
        await raw.message()
        await raw.stream.send_all(encode_frame(FRAMES_AFTER_PROOFS[frame]))
        (answer,) = await raw.everything()
        assert answer["bye"].startswith("protocol error")
        await there.ended.wait()
        assert isinstance(there.error, ProtocolError)


async def test_a_request_before_the_listeners_proof_ends_the_stream_also_for_a_member(
    autojump_clock: MockClock,
) -> None:
    async with an_attack() as (raw, there):
        proofs = await prove(raw, ALICE, [LAB], BOB)
        await raw.stream.send_all(proofs + encode_frame(FRAMES_AFTER_PROOFS["ping"]))
        (answer,) = await raw.everything()
        assert "out of turn" in answer["bye"]
        assert there.session is None


async def test_a_recorded_handshake_is_worth_nothing_the_next_time(
    autojump_clock: MockClock,
) -> None:
    async with an_attack() as (raw, there):
        hello = await hello_of(ALICE, nonce=b"n" * 32)
        await raw.stream.send_all(hello)
        theirs = (await raw.message())["nonce"]
        meeting = Meeting(ALICE.key.node_id, BOB.key.node_id, b"n" * 32, theirs)
        proofs = proofs_for([LAB], DIALLER, meeting)
        recorded = encode_frame({"proofs": pad_proofs(proofs, 16, bytes(PADDING_BYTES))})
        await raw.stream.send_all(recorded)
        assert "proofs" in await raw.message()
        assert there.session is not None
    async with an_attack() as (raw, there):
        # Bob has moved on: his nonce is another one.
        there.who = BOB._replace(random=Random(77).randbytes)
        await raw.stream.send_all(hello + recorded)
        await there.ended.wait()
        assert isinstance(there.error, NotAMemberError)


async def test_a_member_that_is_dialled_gives_its_dialler_nothing_to_pass_for_it_elsewhere() -> (
    None
):
    """Mallory, dialled by Alice, passes Alice's words on to Bob, and Bob's back to Alice."""
    async with World(seed=1) as world:
        there = Listener(BOB)
        outcome: list[object] = []

        async def alice_dials() -> None:
            async with control_stream(world, ALICE, MALLORY, relay) as stream:
                with pytest.raises(PeerError) as caught:
                    await meet(stream, ALICE)
                outcome.append(caught.value)

        async def relay(from_alice: Stream) -> None:
            async with (
                control_stream(world, MALLORY, BOB, there) as to_bob,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(pump, from_alice, to_bob)
                nursery.start_soon(pump, to_bob, from_alice)

        await alice_dials()
        await there.ended.wait()
        assert len(outcome) == 1
        assert there.session is None
        assert there.error is not None


async def pump(source: Stream, target: Stream) -> None:
    with suppress(PeerError):
        while data := await source.receive_some(1 << 16):
            await target.send_all(data)
        await target.close()


async def test_ones_own_words_sent_back_prove_nothing(autojump_clock: MockClock) -> None:
    async def reflect(stream: Stream) -> None:
        await pump(stream, stream)

    async with World(seed=1) as world, control_stream(world, ALICE, MALLORY, reflect) as stream:
        with pytest.raises(PeerError):
            await meet(stream, ALICE)


async def test_an_exchange_key_that_its_node_did_not_sign_is_refused(
    autojump_clock: MockClock,
) -> None:
    async with an_attack() as (raw, there):
        await raw.stream.send_all(await hello_of(ALICE, exchange=MALLORY.key.exchange_public))
        await there.ended.wait()
        assert isinstance(there.error, ProtocolError)


async def test_another_version_is_told_which_side_to_upgrade(autojump_clock: MockClock) -> None:
    async with an_attack() as (raw, there):
        await raw.stream.send_all(await hello_of(ALICE, versions=Versions(9, 9)))
        await there.ended.wait()
        assert isinstance(there.error, ProtocolVersionError)
        assert [m.get("upgrade") for m in await raw.everything()][-1] == "listener"


@pytest.mark.parametrize("state", ["hello", "prove", "open"])
@pytest.mark.parametrize("seed", range(8))
async def test_junk_ends_the_stream_in_every_state(
    state: str, seed: int, autojump_clock: MockClock
) -> None:
    random = Random(seed)
    async with an_attack() as (raw, there):
        if state == "prove":
            await raw.stream.send_all(await hello_of(ALICE))
        elif state == "open":
            await raw.stream.send_all(await prove(raw, ALICE, [LAB], BOB))
        junk = random.randbytes(random.randrange(1, 300))
        with suppress(PeerError):
            await raw.stream.send_all(len(junk).to_bytes(4, "big") + junk + junk)
        await there.ended.wait()
        assert isinstance(there.error, PeerError)


@pytest.mark.parametrize("words", [b"", b"\0", b"\0\0\0\x40half a fr"])
async def test_who_does_not_finish_its_handshake_is_left_after_a_while(
    words: bytes, autojump_clock: MockClock
) -> None:
    async with an_attack() as (raw, there):
        began = trio.current_time()
        if words:
            await raw.stream.send_all(words)
        await there.ended.wait()
        assert isinstance(there.error, PeerTimeoutError)
        assert trio.current_time() - began <= HELLO_S_MAX + 1


async def test_a_handshake_drip_fed_is_left_after_the_same_while(autojump_clock: MockClock) -> None:
    async with an_attack() as (raw, there):
        began = trio.current_time()
        with suppress(PeerError):
            for byte in await hello_of(ALICE):
                await raw.stream.send_all(bytes([byte]))
                await trio.sleep(0.5)
        await there.ended.wait()
        assert isinstance(there.error, PeerTimeoutError)
        assert trio.current_time() - began <= HELLO_S_MAX + 1


# --- requests -----------------------------------------------------------------------------------


async def test_many_requests_at_once_are_all_answered_even_beyond_what_may_be_pending(
    autojump_clock: MockClock,
) -> None:
    waiting = most = 0

    async def slow(session: Session, body: dict[str, Any]) -> dict[str, Any]:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        await trio.sleep(1)
        waiting -= 1
        return {}

    async with a_session(handlers={"ping": slow}) as (_, session, _there):
        answers = []

        async def ask() -> None:
            answers.append(await session.request("ping", {}, 10))

        async with trio.open_nursery() as nursery:
            for _ in range(3 * PENDING_REQUESTS_MAX):
                nursery.start_soon(ask)
        assert answers == [{}] * (3 * PENDING_REQUESTS_MAX)
        assert most <= PENDING_REQUESTS_MAX


async def test_one_pending_request_too_many_ends_the_stream_of_who_sends_it(
    autojump_clock: MockClock,
) -> None:
    async def never(session: Session, body: dict[str, Any]) -> dict[str, Any]:
        await trio.sleep_forever()
        raise AssertionError

    async with an_attack() as (raw, there):
        there.handlers = {"ping": never}
        await raw.stream.send_all(await prove(raw, ALICE, [LAB], BOB))
        assert "proofs" in await raw.message()
        for number in range(PENDING_REQUESTS_MAX):
            await raw.stream.send_all(
                encode_frame({"id": 2 * number + 1, "op": "ping", "body": {}})
            )
        await trio.sleep(1)
        assert not there.ended.is_set()
        await raw.stream.send_all(encode_frame({"id": 99_999, "op": "ping", "body": {}}))
        (last,) = await raw.everything()
        assert "unanswered requests" in last["bye"]
        await there.ended.wait()
        assert isinstance(there.error, ProtocolError)


FAILURES: dict[str, tuple[BaseException, type[PeerError]]] = {
    "a mistake": (ZeroDivisionError("ours"), PeerError),
    "a full disk": (KacheryError("secret path /home/x"), PeerError),
    "a refusal": (PeerRefusedError("because of /home/x"), PeerRefusedError),
    "busy": (PeerBusyError("is hashing it"), PeerBusyError),
    "a group": (ExceptionGroup("two", [ValueError("a"), OSError("b")]), PeerError),
}


@pytest.mark.parametrize("what", FAILURES)
async def test_a_handler_that_raises_fails_its_request_and_keeps_the_session(
    what: str, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    raised, expected = FAILURES[what]

    async def fail(session: Session, body: dict[str, Any]) -> dict[str, Any]:
        raise raised

    async with a_session(handlers={"have": fail}) as (_, session, _there):
        body = {"channel": LAB.id, "content": bytes(20)}
        with pytest.raises(expected) as caught:
            await session.request("have", body, 5)
        assert "/home/x" not in str(caught.value)
        assert await session.request("ping", {}, 5) == {}


async def test_a_request_that_nobody_offers_fails_alone(autojump_clock: MockClock) -> None:
    async with a_session() as (_, session, _there):
        with pytest.raises(ProtocolError, match="not offered here"):
            await session.request("members", {"channel": LAB.id}, 5)
        assert await session.request("ping", {}, 5) == {}


async def test_an_answer_that_is_too_late_is_dropped_and_the_session_goes_on(
    autojump_clock: MockClock,
) -> None:
    async def late(session: Session, body: dict[str, Any]) -> dict[str, Any]:
        await trio.sleep(3)
        return {"members": []}

    async with a_session(handlers={"members": late}) as (_, session, _there):
        with pytest.raises(PeerTimeoutError):
            await session.request("members", {"channel": LAB.id}, 1)
        await trio.sleep(5)
        assert await session.request("ping", {}, 5) == {}


async def test_everyone_who_waits_hears_when_the_peer_goes_away(autojump_clock: MockClock) -> None:
    async def never(session: Session, body: dict[str, Any]) -> dict[str, Any]:
        await trio.sleep_forever()
        raise AssertionError

    async with a_session(handlers={"ping": never}) as (world, session, _there):
        errors: list[Exception] = []

        async def ask() -> None:
            with pytest.raises(PeerGoneError) as caught:
                await session.request("ping", {}, 60)
            errors.append(caught.value)

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            # More than may be pending, and more than the outbox takes.
            for _ in range(2 * PENDING_REQUESTS_MAX):
                nursery.start_soon(ask)
            await trio.sleep(1)
            world.crash(BOB.key.node_id)
        assert trio.current_time() - began < 2
        assert len({id(error) for error in errors}) == 2 * PENDING_REQUESTS_MAX
        with pytest.raises(PeerGoneError):
            await session.request("ping", {}, 60)


async def test_requests_that_never_left_do_not_use_up_what_may_be_pending(
    autojump_clock: MockClock,
) -> None:
    """A peer that reads nothing: the outbox is full, and each caller gives up after a while."""
    async with a_session() as (world, session, _there):
        world.silence(BOB.key.node_id)
        big = {"label": "", "addresses": ["/x" + "y" * 250] * 16, "agent": ""}
        for _ in range(PENDING_REQUESTS_MAX + 20):
            with pytest.raises(PeerError):
                await session.request("introduce", big, 0.01)
        world.wake(BOB.key.node_id)
        await trio.sleep(2)
        assert await session.request("ping", {}, 5) == {}


# --- silence ------------------------------------------------------------------------------------


async def test_a_peer_that_falls_silent_is_noticed(autojump_clock: MockClock) -> None:
    async with World(seed=1) as world:
        there = Listener(BOB)
        async with control_stream(world, ALICE, BOB, there) as stream:
            session = Session(stream, await meet(stream, ALICE), ALICE.memberships)
            world.silence(BOB.key.node_id)
            began = trio.current_time()
            with pytest.raises(PeerTimeoutError):
                await session.run({})
            assert trio.current_time() - began <= KEEPALIVE_IDLE_S + KEEPALIVE_S_MAX + 0.1


async def test_a_suspect_is_asked_at_once(autojump_clock: MockClock) -> None:
    async with World(seed=1) as world:
        there = Listener(BOB)
        async with control_stream(world, ALICE, BOB, there) as stream:
            session = Session(stream, await meet(stream, ALICE), ALICE.memberships)
            world.silence(BOB.key.node_id)
            session.suspect()
            began = trio.current_time()
            with pytest.raises(PeerTimeoutError):
                await session.run({})
            assert trio.current_time() - began <= KEEPALIVE_S_MAX + 0.1


async def test_an_idle_session_lives_on(autojump_clock: MockClock) -> None:
    async with a_session() as (_, session, there):
        await trio.sleep(3600)
        assert not there.ended.is_set()
        assert await session.request("ping", {}, 5) == {}


async def test_a_wrongly_suspected_peer_keeps_its_session(autojump_clock: MockClock) -> None:
    async with a_session() as (_, session, there):
        for _ in range(10):
            session.suspect()
            await trio.sleep(1)
        assert not there.ended.is_set()


async def test_what_was_said_with_the_last_proof_is_not_lost(autojump_clock: MockClock) -> None:
    answers: list[Event] = []

    async def prove_and_ask(stream: Stream) -> None:
        """A listener whose proof and first request are one segment."""
        nonce = BOB.random(32)
        key = BOB.key
        bob = Conversation(LISTENER, Hello(nonce, key.exchange_public, key.exchange_signature))
        await stream.send_all(bob.hello())
        while not any(isinstance(e, ProofsReceived) for e in await events(bob, stream)):
            pass
        assert bob.peer_hello is not None
        meeting = Meeting(ALICE.key.node_id, key.node_id, bob.peer_hello.nonce, nonce)
        proofs = proofs_for([LAB], LISTENER, meeting)
        words = bob.prove(proofs, BOB.random(PADDING_BYTES))
        await stream.send_all(words + bob.request("ping", {})[1])
        answers.extend(await events(bob, stream))

    async with (
        World(seed=1) as world,
        control_stream(world, ALICE, BOB, prove_and_ask) as stream,
    ):
        await quietly(Session(stream, await meet(stream, ALICE), ALICE.memberships))
    assert answers == [Answer(2, {})]


async def events(conversation: Conversation, stream: Stream) -> list[Event]:
    return conversation.receive(await stream.receive_some(1 << 16))
