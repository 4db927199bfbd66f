"""Two conversations and a stream that splits as it likes: nobody waits for ever, no ids clash."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kachery_p2p.channels.membership import DIALLER, LISTENER
from kachery_p2p.wire.conversation import (
    Answer,
    Bye,
    Conversation,
    Event,
    Failure,
    HelloReceived,
    ProofsReceived,
    Request,
    State,
)
from kachery_p2p.wire.handshake import PADDING_BYTES, Hello

ROLES = (DIALLER, LISTENER)
PADDING = bytes(i % 251 for i in range(PADDING_BYTES))
HAVE = {"channel": "0f" * 32, "content": b"c" * 20}
HAS = {"size": 5, "root": b"r" * 32, "pinned": True}


def conversation(role: str) -> Conversation:
    return Conversation(role, Hello(role.encode().ljust(32, b"."), b"e" * 32, b"s" * 64))


class TwoSides(RuleBasedStateMachine):
    """Two conversations; what one says reaches the other in random pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.sides = {role: conversation(role) for role in ROLES}
        self.on_the_way = {role: bytearray(self.sides[role].hello()) for role in ROLES}
        self.owed: dict[str, dict[int, str]] = {role: {} for role in ROLES}
        self.waiting: dict[str, dict[int, str]] = {role: {} for role in ROLES}
        self.cancelled: dict[str, set[int]] = {role: set() for role in ROLES}

    def send(self, role: str, frame: bytes) -> None:
        self.on_the_way[role] += frame

    def met(self, role: str, event: Event) -> None:
        side = self.sides[role]
        proves_after = HelloReceived if role == DIALLER else ProofsReceived
        if isinstance(event, proves_after):
            self.send(role, side.prove([b"p" * 32], PADDING))
        elif isinstance(event, Request):
            self.owed[role][event.id] = event.op
        elif isinstance(event, Answer | Failure):
            assert event.id not in self.cancelled[role]
            op = self.waiting[role].pop(event.id)
            if isinstance(event, Answer):
                assert event.body == (HAS if op == "have" else {})
        elif isinstance(event, Bye):
            raise AssertionError(event)

    @rule(role=st.sampled_from(ROLES), size=st.integers(1, 300))
    def deliver(self, role: str, size: int) -> None:
        piece, self.on_the_way[role] = self.on_the_way[role][:size], self.on_the_way[role][size:]
        to = LISTENER if role == DIALLER else DIALLER
        for event in self.sides[to].receive(piece) if piece else ():
            self.met(to, event)

    @rule(role=st.sampled_from(ROLES), op=st.sampled_from(["ping", "have"]))
    def ask(self, role: str, op: str) -> None:
        if self.sides[role].state is State.OPEN and len(self.waiting[role]) < 20:
            request_id, frame = self.sides[role].request(op, HAVE if op == "have" else {})
            self.waiting[role][request_id] = op
            self.send(role, frame)

    @precondition(lambda self: any(self.owed.values()))
    @rule(role=st.sampled_from(ROLES), pick=st.randoms(use_true_random=False), fail=st.booleans())
    def answer(self, role: str, pick: Any, fail: bool) -> None:
        if self.owed[role]:
            request_id = pick.choice(sorted(self.owed[role]))
            op = self.owed[role].pop(request_id)
            side = self.sides[role]
            body = HAS if op == "have" else {}
            reply = side.fail(request_id, "busy") if fail else side.answer(request_id, body)
            self.send(role, reply)

    @precondition(lambda self: any(self.waiting.values()))
    @rule(role=st.sampled_from(ROLES), pick=st.randoms(use_true_random=False))
    def cancel(self, role: str, pick: Any) -> None:
        if self.waiting[role]:
            request_id = pick.choice(sorted(self.waiting[role]))
            self.sides[role].cancel(request_id)
            del self.waiting[role][request_id]
            self.cancelled[role].add(request_id)

    @invariant()
    def ids_never_clash(self) -> None:
        for role in ROLES:
            assert all(i % 2 == (role == DIALLER) for i in self.waiting[role])

    def teardown(self) -> None:
        """When everything is delivered and answered, nobody waits."""
        while any(self.on_the_way.values()) or any(self.owed.values()):
            for role in ROLES:
                self.deliver(role, 1 << 20)
                for request_id in list(self.owed[role]):
                    self.send(role, self.sides[role].fail(request_id, "busy"))
                    del self.owed[role][request_id]
        assert not any(self.waiting.values())
        assert all(side.state is State.OPEN for side in self.sides.values())


TestTwoSides = TwoSides.TestCase
TestTwoSides.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
