"""Asking members that have the credentials of a channel's bucket, for a node that has none.

Who does what with which bucket is asked of each member that may provide, and remembered for
a while. The first that answers a question is believed as far as any source is: what it says
of an object is verified with the object. Whoever turned out wrong about it, or failed, is asked
after the others.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

import trio

from kachery_p2p.bucket.faults import AbsentError, no_provider, wrong_answer
from kachery_p2p.bucket.through import Lent
from kachery_p2p.bucket.urls import BucketUrl
from kachery_p2p.channels.permissions import PROVIDE, READ
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import (
    BucketBusyError,
    BucketError,
    BucketProviderError,
    BucketUnreachableError,
    PeerBusyError,
    PeerError,
    PeerRefusedError,
)
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    BUCKET_KNOWN_MAX,
    BUCKET_PROVIDER_S,
    BUCKET_PROVIDER_WAIT_S,
    BUCKET_WISH_WAIT_S_MAX,
    HAVE_S_MAX,
    LIAR_DROPPED_S,
    PEERS_MAX,
    REQUEST_S_MAX,
)
from kachery_p2p.network.session import Session
from kachery_p2p.network.sessions import Sessions
from kachery_p2p.wire.bucket_messages import LEFT_OUT

PUTS, READS = "puts", "reads"
# A second member is asked for a look before whoever looks gives the bucket up.
_LOOK = "bucket look"
_ANSWER_S_MAX = {
    _LOOK: HAVE_S_MAX / 2,
    "bucket read": REQUEST_S_MAX,
    "bucket put": REQUEST_S_MAX,
}

Answer = TypeVar("Answer")


class Wish(NamedTuple):
    """How far the wish is that a content be put into the bucket."""

    # QUEUED, THERE or LEFT_OUT (`wire.bucket_messages`).
    state: int
    said: str


class BucketMembers:
    """The members connected now, as users of one channel's bucket."""

    def __init__(self, sessions: Sessions, channel: str, url: BucketUrl) -> None:
        self._sessions = sessions
        self._channel = channel
        self._name = str(url).partition("?")[0]
        self._where: dict[str, Any] = {"channel": channel, "bucket": bytes.fromhex(url.node)}
        # What each said that it does, and until when that is believed.
        self._known: dict[Session, tuple[float, dict[str, Any]]] = {}
        # Who was wrong about which object, and who failed, when last; the latest comes last.
        self._wrong: dict[tuple[str, NodeId], float] = {}
        self._failed: dict[NodeId, float] = {}
        self._lock = threading.Lock()

    async def is_there(self) -> bool:
        """True if a member is connected that puts things into the bucket."""
        return bool(await self._asked(PUTS))

    def may_look(self) -> bool:
        """True if this node may see what is in the bucket, by its roles in the channel."""
        return self._sessions.may(self._channel, READ)

    async def readers(self) -> list[NodeId]:
        """Who lends this node what is in the bucket."""
        return [session.peer for session in await self._asked(READS)]

    def disbelieve(self, key: str, node: NodeId) -> bool:
        """A member was wrong about an object, or a wish: others are asked about it before.

        False if that was known. Safe in any thread.
        """
        now = time.monotonic()
        with self._lock:
            at = self._wrong.pop((key, node), -math.inf)
            if len(self._wrong) >= BUCKET_KNOWN_MAX:
                del self._wrong[next(iter(self._wrong))]
            self._wrong[key, node] = self._failed[node] = now
        return now - at >= LIAR_DROPPED_S

    async def look(self, key: str, by: NodeId | None = None) -> Lent:
        """What a member, or just this one, says of an object.

        Raises AbsentError if none has it, and BucketErrors.
        """
        told, teller = await self._ask(_LOOK, {"key": key}, READS, key, by=by)
        attributes = {one["name"]: one["value"] for one in told["attributes"]}
        return Lent(told["size"], attributes, told["query"], told["valid_s"], teller)

    async def read(
        self, key: str, start: int, length: int, by: NodeId | None = None
    ) -> tuple[bytes, NodeId]:
        """So many bytes of an object, and which member, or just this one, handed them on.

        Raises BucketErrors.
        """
        body = {"key": key, "start": start, "length": length}
        try:
            told, teller = await self._ask("bucket read", body, READS, key, by=by)
        except AbsentError:
            raise wrong_answer(self._name, f"has no {key} (any more)") from None
        return told["data"], teller

    async def put(
        self, content: ContentHash, label: str | None, wait_s: float, turn: int = 0
    ) -> tuple[Wish, NodeId]:
        """Wish that a content, which members may fetch here, be put there; how far that is.

        And which member says so; the key for `disbelieve` is the content. Waits for the end of it,
        so long at most. Asked again it is the same wish; in the next turn another member is asked
        first. Raises BucketProviderError if nobody can be asked, and other BucketErrors.
        """
        wait_ms = int(min(wait_s, BUCKET_WISH_WAIT_S_MAX) * 1000)
        body = {"content": content.raw, "label": label or "", "wait_ms": wait_ms}
        try:
            told, teller = await self._ask("bucket put", body, PUTS, content, turn=turn)
        except AbsentError:
            raise BucketProviderError(
                f"members refuse to put anything into {self._name} for this node",
                hint="ask an admin for the role `provide`, or add credentials of your own",
            ) from None
        return Wish(told["state"], told["said"]), teller

    async def _ask(
        self,
        op: str,
        body: dict[str, Any],
        what: str,
        key: str,
        *,
        by: NodeId | None = None,
        turn: int = 0,
    ) -> tuple[dict[str, Any], NodeId]:
        """The first answer, and whose it is; but LEFT_OUT only if nobody does it.

        AbsentError if all refuse, BucketErrors for what kept them from it.
        """
        providers = [s for s in await self._providers(what) if by in (None, s.peer)]
        providers.sort(key=lambda session: self._standing(key, session.peer))
        if not providers:
            raise no_provider(self._name)
        first = turn % len(providers)
        asked = providers[first:] + providers[:first]
        # In no turn is whoever was wrong about it asked before the others.
        asked.sort(key=lambda session: self._standing(key, session.peer)[0])
        failure: BucketError | None = None
        left_out: tuple[dict[str, Any], NodeId] | None = None
        is_refused = False
        for session in asked:
            # Whoever is asked last need not leave time for others.
            answer_s = REQUEST_S_MAX if session is asked[-1] else _ANSWER_S_MAX[op]
            try:
                told = await session.request(op, {**self._where, **body}, answer_s)
                if told.get("state") != LEFT_OUT:
                    return told, session.peer
                # What one does not put there, for its limits or its whim, another may.
                left_out = left_out or (told, session.peer)
            except PeerRefusedError:
                is_refused = True
            except PeerBusyError as error:
                failure = BucketBusyError(f"{session.name} {error}", hint="it is tried again later")
            except PeerError as error:
                self._known.pop(session, None)
                with self._lock:
                    self._failed[session.peer] = time.monotonic()
                failure = failure or BucketUnreachableError(
                    f"{self._name} through {session.name}: {error}", hint="see that member's node"
                )
        if failure is None and left_out is not None:
            return left_out
        if failure is not None and not (is_refused and op == _LOOK):
            raise failure
        # Of what is absent one answer is enough: it is no failure that others gave none.
        raise AbsentError

    def _standing(self, key: str, node: NodeId) -> tuple[float, float]:
        """Who is asked first: the least."""
        with self._lock:
            at, failed = self._wrong.get((key, node), -math.inf), self._failed.get(node, -math.inf)
        return (at if time.monotonic() - at < LIAR_DROPPED_S else -math.inf, failed)

    async def _providers(self, what: str) -> list[Session]:
        """Who does that; those who are being met are waited for, if nobody does."""
        found: list[Session] = []
        with trio.move_on_after(BUCKET_PROVIDER_WAIT_S):
            while not (found := await self._asked(what)) and not self._sessions.settled:
                await self._sessions.changed()
        return found

    async def _asked(self, what: str) -> list[Session]:
        now = trio.current_time()
        members = [s for s in self._sessions.all() if s.may(self._channel, PROVIDE)]
        self._known = {s: known for s, known in self._known.items() if s in members}
        present = {session.peer for session in members}
        with self._lock:
            self._failed = {node: at for node, at in self._failed.items() if node in present}
        async with trio.open_nursery() as nursery:
            for session in members[:PEERS_MAX]:
                if now >= self._known.get(session, (0.0, {}))[0]:
                    nursery.start_soon(self._ask_what, session)
        return [s for s in members if self._known.get(s, (0.0, {}))[1].get(what)]

    async def _ask_what(self, session: Session) -> None:
        told: dict[str, Any] = {}
        with contextlib.suppress(PeerError):
            told = await session.request("bucket", self._where, BUCKET_PROVIDER_WAIT_S / 2)
        self._known[session] = (trio.current_time() + BUCKET_PROVIDER_S, told)


class BlockingMembers:
    """The same, for threads of a node; each call waits for the answer of the event loop."""

    def __init__(
        self,
        members: BucketMembers,
        token: trio.lowlevel.TrioToken,
        by: NodeId | None = None,
    ) -> None:
        """`token` is that of the event loop in which `members` lives; `by` who alone is asked."""
        self._members = members
        self._token = token
        self._by = by

    def look(self, key: str) -> Lent:
        """As `BucketMembers.look`."""
        return self._wait_for(functools.partial(self._members.look, key, self._by))

    def read(self, key: str, start: int, length: int) -> tuple[bytes, NodeId]:
        """As `BucketMembers.read`."""
        return self._wait_for(functools.partial(self._members.read, key, start, length, self._by))

    def disbelieve(self, key: str, node: NodeId) -> bool:
        """As `BucketMembers.disbelieve`; False where there is nobody else to ask."""
        return self._by is None and self._members.disbelieve(key, node)

    def _wait_for(self, question: Callable[[], Awaitable[Answer]]) -> Answer:
        try:
            return trio.from_thread.run(question, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            raise BucketUnreachableError("this node is stopping", hint="start it again") from None
