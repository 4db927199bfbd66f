"""Messages of members in a feed of somebody else: submitting them, and appending what comes.

The owner's node appends what a member submits whom it lets, and answers once it is durable.
Each message has an id of the submitter's making: one that is in the log already is not appended
again but answered with its position, so whoever got no answer submits the same again. The ids
are in the log's entries; the register only finds them fast.

The submitter believes no word of it: it reads the entries back, with their proof.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import trio

from kachery_p2p.errors import (
    FeedUnavailableError,
    HeadError,
    LogFormatError,
    MessageFormatError,
    PeerError,
    PeerRefusedError,
    ProtocolError,
    WriteRefusedError,
)
from kachery_p2p.feeds.fetching import proved_entries
from kachery_p2p.feeds.following import refusal
from kachery_p2p.feeds.messages import Submission, read_message, submitted_entry
from kachery_p2p.feeds.names import HEAD_TAG
from kachery_p2p.feeds.permits import Permits, wait_for_turn
from kachery_p2p.feeds.register import Register
from kachery_p2p.feeds.subfeed import Source, Subfeed, Teller
from kachery_p2p.feeds.subfeeds import Subfeeds
from kachery_p2p.feeds.told import SubfeedName
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    FEED_READ_BYTES_MAX,
    FEED_READ_ENTRIES_MAX,
    SUBMIT_S_MAX,
    SUBMITTED_BURST,
    SUBMITTED_MAX,
    SUBMITTED_PER_S,
)
from kachery_p2p.log.heads import SignedHead
from kachery_p2p.network.allowance import TokenBucket
from kachery_p2p.network.session import Session
from kachery_p2p.wire.feed_messages import (
    LENGTH_BYTES,
    SUBMISSION_ID_BYTES,
    SUBMITTED_BYTES_MAX,
    pack,
    pack_numbers,
    unpack,
    unpack_numbers,
)

Append = Callable[[Subfeed, Sequence[bytes]], Awaitable[int]]
# Who has shown that it can append, and has not refused.
Find = Callable[[Subfeed, Collection[Teller]], Awaitable[Source]]


class Submitted(NamedTuple):
    """One message, under its id."""

    id: bytes
    text: str


class Receiving:
    """The owner's side. `append` puts entries behind the last one of an own subfeed."""

    def __init__(
        self, permits: Permits, subfeeds: Subfeeds, register: Register, append: Append
    ) -> None:
        self._permits = permits
        self._subfeeds = subfeeds
        self._register = register
        self._append = append
        self._allowances: WeakKeyDictionary[Session, TokenBucket] = WeakKeyDictionary()

    async def answer_submit(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        """Answer `feed submit`."""
        name, channel = SubfeedName.of(body), body["channel"]
        if not await self._permits.may_submit(session, channel, name):
            raise refusal()
        messages = await trio.to_thread.run_sync(_messages_of, body)
        await self._wait_for_turn(session, len(messages))
        positions, head = await self.receive(name, session.peer, messages)
        return {"positions": pack_numbers(positions), "head": head.encode()}

    async def receive(
        self, name: SubfeedName, submitter: NodeId, messages: Sequence[Submitted]
    ) -> tuple[list[int], SignedHead]:
        """Append what is not in the own subfeed yet; the positions, and the head above them.

        Raises what `LogFile.append` does.
        """
        subfeed = await self._subfeeds.open(name)
        async with subfeed.submitting:
            asked = [Submission(submitter, message.id) for message in messages]
            known = await trio.to_thread.run_sync(self._positions, subfeed, asked)
            fresh = {s: m.text for s, m in zip(asked, messages, strict=True) if s not in known}
            if fresh:
                now_ms = time.time_ns() // 1_000_000
                entries = [submitted_entry(text, s, now_ms) for s, text in fresh.items()]
                first = await self._append(subfeed, entries)
                appended = dict(zip(fresh, itertools.count(first)))
                known.update(appended)
                await trio.to_thread.run_sync(
                    self._register.note_submissions,
                    name.log.name,
                    appended.items(),
                    first + len(appended),
                )
        head = subfeed.replica.shown
        assert head is not None
        return [known[submission] for submission in asked], head

    def _positions(self, subfeed: Subfeed, asked: Sequence[Submission]) -> dict[Submission, int]:
        """Where those are that the log has. In a thread."""
        log_name = subfeed.name.log.name
        self._note_missing(subfeed)
        found = self._noted(log_name, asked)
        if not all(_is_at(subfeed, at, submission) for submission, at in found.items()):
            # The log was restored from an older copy, and has grown again since.
            self._register.forget_submissions(log_name)
            self._note_missing(subfeed)
            found = self._noted(log_name, asked)
        return found

    def _noted(self, log_name: bytes, asked: Sequence[Submission]) -> dict[Submission, int]:
        found = ((s, self._register.submitted_at(log_name, s)) for s in asked)
        return {submission: at for submission, at in found if at is not None}

    def _note_missing(self, subfeed: Subfeed) -> None:
        """Note the submissions that the log has and the register does not: it was lost, or late."""
        log_name, log = subfeed.name.log.name, subfeed.replica.log
        noted = self._register.submissions_noted(log_name)
        if noted > log.size:
            # The log was restored from an older copy.
            self._register.forget_submissions(log_name)
            noted = 0
        while noted < log.size:
            entries = log.entries(noted, FEED_READ_ENTRIES_MAX, FEED_READ_BYTES_MAX)
            if not entries:
                return
            found = list(_submissions_in(entries, noted))
            noted += len(entries)
            if found or noted == log.size:
                self._register.note_submissions(log_name, found, noted)

    async def _wait_for_turn(self, session: Session, count: int) -> None:
        now = trio.current_time()
        allowance = self._allowances.get(session)
        if allowance is None:
            allowance = TokenBucket(SUBMITTED_PER_S, SUBMITTED_BURST, now)
            self._allowances[session] = allowance
        await wait_for_turn(allowance, count)


class Submitting:
    """The submitter's side. `find` looks for the owner's node."""

    def __init__(self, node_id: NodeId, find: Find) -> None:
        self._node_id = node_id
        self._find = find

    async def submit(self, subfeed: Subfeed, messages: Sequence[Submitted]) -> list[int]:
        """The positions at which the owner's node has appended the messages, durably.

        WriteRefusedError if it does not let us; FeedUnavailableError if it cannot be reached.
        """
        positions: list[int] = []
        for group in _groups(messages):
            positions += await self._submit(subfeed, group)
        return positions

    async def _submit(self, subfeed: Subfeed, group: Sequence[Submitted]) -> list[int]:
        why: PeerError | None = None
        refused: set[Teller] = set()
        with trio.move_on_after(SUBMIT_S_MAX):
            while True:
                try:
                    source = await self._find(subfeed, refused)
                    return await self._submit_to(source, subfeed, group)
                except FeedUnavailableError:
                    if refused:
                        raise _refused(subfeed) from None
                    # It was there a moment ago, and may be back in another.
                    if why is None:
                        raise
                except PeerRefusedError:
                    # Its key may be at another node too, which may take them.
                    refused.add(source.session)
                    continue
                except ProtocolError as error:
                    subfeed.blame(source.session, trio.current_time())
                    why = error
                except PeerError as error:
                    # It may have appended them: with the same ids it is safe to ask again.
                    why = error
                await trio.sleep(0.1)
        raise FeedUnavailableError(
            "the feed's owner did not take the messages: "
            + (str(why) if why else f"no answer within {SUBMIT_S_MAX:.0f} s"),
            hint="submit them again under the same ids: what was appended is not appended twice",
        )

    async def _submit_to(
        self, source: Source, subfeed: Subfeed, group: Sequence[Submitted]
    ) -> list[int]:
        body = {
            **subfeed.name.body(source.channel),
            "ids": b"".join(message.id for message in group),
            "messages": pack(message.text.encode() for message in group),
        }
        answer = await source.session.request("feed submit", body, SUBMIT_S_MAX)
        positions = unpack_numbers(answer["positions"])
        head = _checked_head(subfeed, answer["head"])
        if len(positions) != len(group) or not all(at < head.size for at in positions):
            raise ProtocolError("it did not say where the messages are")
        expected = dict(zip(positions, group, strict=True))
        if len(expected) != len(group):
            raise ProtocolError("it says that two messages are in one place")
        for first, end in _runs(sorted(expected)):
            await self._confirm(source, subfeed, head, first, end, expected)
        return positions

    async def _confirm(
        self,
        source: Source,
        subfeed: Subfeed,
        head: SignedHead,
        first: int,
        end: int,
        expected: dict[int, Submitted],
    ) -> None:
        """See that the owner has signed them. ProtocolError if not."""
        while first < end:
            for entry in await proved_entries(subfeed, source, head, first, end - first):
                wanted = Submission(self._node_id, expected[first].id)
                # The text is that of the first submission under this id, whatever came later.
                if read_message(entry).submission != wanted:
                    raise ProtocolError("it says that a message is where another one is")
                first += 1


def _is_at(subfeed: Subfeed, position: int, submission: Submission) -> bool:
    """True if the entry at a position of an own log is this submission."""
    entries = subfeed.replica.log.entries(position, 1, FEED_READ_BYTES_MAX)
    return any(found == submission for found, _ in _submissions_in(entries, position))


def _messages_of(body: dict[str, Any]) -> list[Submitted]:
    """The messages of a request; ProtocolError if they are not messages. In a thread."""
    packed = body["ids"]
    ids = [packed[at : at + SUBMISSION_ID_BYTES] for at in range(0, len(packed), 16)]
    texts = unpack(body["messages"], SUBMITTED_MAX, SUBMITTED_BYTES_MAX)
    if len(ids) != len(texts) or len(set(ids)) != len(ids):
        raise ProtocolError("each message needs an id of its own")
    try:
        found = [Submitted(id, text.decode()) for id, text in zip(ids, texts, strict=True)]
        for message in found:
            json.loads(message.text)
    except (ValueError, RecursionError):
        raise ProtocolError("a message is not JSON")
    return found


def _submissions_in(entries: Sequence[bytes], first: int) -> Iterator[tuple[Submission, int]]:
    for position, entry in enumerate(entries, first):
        try:
            submission = read_message(entry).submission
        except MessageFormatError:
            continue
        if submission is not None:
            yield submission, position


def _groups(messages: Sequence[Submitted]) -> Iterator[list[Submitted]]:
    """The messages in groups that fit one request."""
    group: list[Submitted] = []
    room = SUBMITTED_BYTES_MAX
    for message in messages:
        size = LENGTH_BYTES + len(message.text.encode())
        if group and (size > room or len(group) >= SUBMITTED_MAX):
            yield group
            group, room = [], SUBMITTED_BYTES_MAX
        group.append(message)
        room -= size
    if group:
        yield group


def _runs(positions: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive numbers of a sorted list, each as its first and its end."""
    for _, run in itertools.groupby(enumerate(positions), lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        yield numbers[0], numbers[-1] + 1


def _checked_head(subfeed: Subfeed, data: bytes) -> SignedHead:
    try:
        head = SignedHead.decode(data, HEAD_TAG)
        head.verify(subfeed.name.log)
    except (LogFormatError, HeadError) as error:
        raise ProtocolError(f"it showed a wrong head: {error}")
    return head


def _refused(subfeed: Subfeed) -> WriteRefusedError:
    return WriteRefusedError(
        f"Permission denied: the owner of feed {subfeed.name.feed[:16]} does not let this node "
        "submit messages",
        hint="ask the owner for `kachery-p2p feed grant`, with the id that `kachery-p2p node-id` "
        "prints",
    )
