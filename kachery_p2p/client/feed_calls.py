"""A subfeed at the daemon: reading, appending and what else there is, as values of Python."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from kachery_p2p.client.feed_values import encode_message, message_value
from kachery_p2p.errors import DaemonProtocolError, MessageFormatError, UnsupportedValueError
from kachery_p2p.limits import (
    FEED_CALL_BYTES_MAX,
    FEED_CALL_MESSAGES_MAX,
    FEED_POSITION_MAX,
    FEED_WAIT_S_MAX,
    SUBMITTED_MAX,
)

if TYPE_CHECKING:
    from kachery_p2p.wire.feed_records import ReadMessage

SUBMISSION_ID_BYTES = 16
# What stands in front of each message.
_LENGTH_BYTES = 4


class FeedPage(NamedTuple):
    """Messages that one read gave."""

    # The position of the first of them.
    first: int
    values: list[Any]
    # How many messages the subfeed has.
    size: int
    # The same as the daemon told them, with times and submitters; of a snapshot nothing.
    told: Sequence[ReadMessage] = ()


class SubfeedSource(Protocol):
    """Where the messages of a subfeed are read."""

    def read(self, first: int, count: int, wait_s: float, *, signed: bool) -> FeedPage:
        """Messages from `first` on, `count` at most (0: as many as one answer has); none if none
        comes within `wait_s`.
        """

    def size(self) -> int:
        """How many messages there are."""

    def local_size(self) -> int:
        """How many of them are on this computer."""


class LiveSubfeed:
    """A subfeed that the daemon has, or follows. Any call raises DaemonDownError if none runs."""

    def __init__(self, feed_id: str, name_hash: str, name: str | None) -> None:
        self.feed_id = feed_id
        self.name_hash = name_hash
        self._which = {"feed": feed_id, "name_hash": name_hash}
        # The name is told for the lists that people read.
        self._named = self._which if name is None else {**self._which, "name": name}

    # --- reading --------------------------------------------------------------------------------

    def read(self, first: int, count: int, wait_s: float, *, signed: bool) -> FeedPage:
        """As `SubfeedSource.read`; raises what the daemon's feeds do."""
        from kachery_p2p.wire.feed_records import ReadMessage, unpack_messages

        asked = min(count or FEED_CALL_MESSAGES_MAX, FEED_CALL_MESSAGES_MAX)
        body = {"first": first, "count": asked, "wait_s": min(wait_s, FEED_WAIT_S_MAX)}
        answer = self._call("feed_read", {**self._named, **body})
        told = answer["messages"]
        if isinstance(told, bytes):
            messages = unpack_messages(told)
        else:
            messages = [ReadMessage(*(one.get(f) for f in ReadMessage._fields)) for one in told]
        return FeedPage(first, _values(messages, first, signed), answer["size"], messages)

    def status(self) -> dict[str, Any]:
        """What the daemon knows of it; nobody else is asked."""
        return self._call("feed_status", self._named)

    def size(self) -> int:
        """How many messages there are, as its owner or others say who have it."""
        from kachery_p2p.errors import FeedEndedError, LogForkedError

        try:
            return self.read(FEED_POSITION_MAX, 1, 0.0, signed=False).size
        except (FeedEndedError, LogForkedError):
            return int(self.status()["size"])

    def local_size(self) -> int:
        """How many of them this node has."""
        return int(self.status()["local_size"])

    # --- writing --------------------------------------------------------------------------------

    def append(self, messages: Sequence[Any]) -> list[int]:
        """Append; the positions. What is more than 1 MiB together is appended in several steps."""
        # Here and not above: who only reads needs none of it.
        from kachery_p2p.client.feed_appends import append

        texts = [encode_message(one) for one in messages]
        if len(texts) == 1:
            return [append(self.feed_id, self.name_hash, texts, self._ask_to_append)]
        positions: list[int] = []
        for group in groups(texts, FEED_CALL_MESSAGES_MAX):
            first = append(self.feed_id, self.name_hash, group, self._ask_to_append)
            positions += range(first, first + len(group))
        return positions

    def _ask_to_append(self, group: Sequence[bytes]) -> int:
        body = {**self._named, "messages": _packed(group)}
        return int(self._call("feed_append", body)["first"])

    def submit(self, messages: Sequence[Any], ids: Sequence[str] | None) -> list[int]:
        """Have the owner's node append the messages; their positions."""
        texts = [encode_message(one) for one in messages]
        given = _submission_ids(len(texts)) if ids is None else list(ids)
        if len(given) != len(texts):
            raise UnsupportedValueError("each message needs an id of its own")
        positions: list[int] = []
        for group in groups(texts, SUBMITTED_MAX):
            done = len(positions)
            body = {"messages": _packed(group), "ids": given[done : done + len(group)]}
            positions += self._call("feed_submit", {**self._which, **body})["positions"]
        return positions

    # --- who may write ---------------------------------------------------------------------------

    def writers(self) -> list[str]:
        """The nodes that may submit messages."""
        return list(self._call("feed_access", self._which)["nodes"])

    def set_writers(self, nodes: Sequence[str]) -> None:
        """Let these nodes submit, and no others."""
        self._call("feed_set_access", {**self._which, "nodes": [node_id(one) for one in nodes]})

    def grant(self, node: str) -> None:
        """Let a node submit."""
        self._call("feed_grant", {**self._which, "node": node_id(node)})

    def revoke(self, node: str) -> None:
        """Let it submit no more."""
        self._call("feed_revoke", {**self._which, "node": node_id(node)})

    # --- what is wrong ---------------------------------------------------------------------------

    def proof(self) -> bytes:
        """The proof that two histories were signed. UnknownFeedError if no fork is known."""
        return bytes.fromhex("".join(self._call("feed_proof", self._which)["proof"]))

    def resume(self) -> None:
        """Say that no other copy of a restored own subfeed is in use."""
        self._call("feed_resume", self._which)

    def end(self, successor: str | None) -> None:
        """End it for good."""
        self._call("feed_end", {**self._which, "successor": successor})

    def append_legacy(self, texts: Sequence[bytes], times_ms: Sequence[int]) -> None:
        """Append signed objects of an older kachery, byte for byte as they were signed."""
        done = 0
        for group in groups(texts, FEED_CALL_MESSAGES_MAX):
            times = list(times_ms[done : done + len(group)])
            body = {"messages": _packed(group), "times_ms": times}
            self._call("feed_append_legacy", {**self._which, **body})
            done += len(group)

    def _call(self, op: str, body: dict[str, Any]) -> dict[str, Any]:
        return call(op, body)


def call(op: str, body: dict[str, Any]) -> dict[str, Any]:
    """The result of an operation of this configuration's daemon, which may take as long as it says
    now and then that it is alive.
    """
    # Here and not above: `import kachery_p2p` needs no sockets.
    from kachery_p2p.client.daemon import connect

    return connect().call(op, body)[0]


def node_id(text: str) -> str:
    """The id of a node, given in either form. ConfigError if it is none."""
    from kachery_p2p.identity.keys import NodeId

    return str(NodeId.parse(text))


def groups(texts: Sequence[bytes], count_max: int) -> Iterator[list[bytes]]:
    """The messages in groups that fit one call."""
    group: list[bytes] = []
    room = FEED_CALL_BYTES_MAX
    for text in texts:
        size = _LENGTH_BYTES + len(text)
        if group and (size > room or len(group) >= count_max):
            yield group
            group, room = [], FEED_CALL_BYTES_MAX
        group.append(text)
        room -= size
    if group:
        yield group


def _packed(texts: Sequence[bytes]) -> bytes | list[str]:
    """Messages as the daemon of this configuration takes them: bytes do not travel in JSON."""
    from kachery_p2p.client.daemon import UnixDaemon, connect

    if isinstance(connect(), UnixDaemon):
        from kachery_p2p.wire.feed_records import pack_texts

        return pack_texts(texts)
    return [text.decode() for text in texts]


def _submission_ids(count: int) -> list[str]:
    return [os.urandom(SUBMISSION_ID_BYTES).hex() for _ in range(count)]


def _values(messages: Sequence[Any], first: int, signed: bool) -> list[Any]:
    """The values before one that is no message, which is raised if it comes first."""
    values: list[Any] = []
    for position, read in enumerate(messages, first):
        if read.text is None or read.type is None:
            raise DaemonProtocolError("the daemon told a message that is none")
        try:
            values.append(message_value(read, position, signed=signed))
        except MessageFormatError as error:
            if values:
                break
            hint = f"`set_position({position + 1})` goes on behind it; its author should know"
            raise MessageFormatError(f"message {position}: {error}", hint=hint) from None
    return values
