"""One side of a control stream, as a state machine without a stream (after h11).

It is told the bytes that came (`receive`) and answers events; it is told what we want
to say (`request`, `answer`, ...) and answers the bytes to send. It opens no socket,
reads no clock, and draws no random numbers.

    HELLO   both sides send `hello()` at once and wait for the other's
    PROVE   the dialler sends `prove(...)`; the listener matches what it received and
            sends its own `prove(...)`; that opens the conversation for both
    OPEN    both sides ask and answer, in any order
    CLOSED  after a bye, the end of the stream, or an error

Request ids are odd from the dialler and even from the listener, so the two sides
never choose the same. What the peer may leave with us is bounded: a frame, and
PENDING_REQUESTS_MAX unanswered requests; what we may leave with it likewise, so that
cancelled requests stay bounded too.

A conversation that opened says nothing about membership: whether any proof matched is
for the session to judge when it meets ProofsReceived, before the events after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple

from kachery_p2p.channels.membership import DIALLER, LISTENER
from kachery_p2p.errors import PeerGoneError, PeerTimeoutError, ProtocolError, ProtocolVersionError
from kachery_p2p.limits import PENDING_REQUESTS_MAX, REASON_CHARS_MAX
from kachery_p2p.wire.codec import FrameDecoder, Message, encode_frame
from kachery_p2p.wire.handshake import (
    Hello,
    older_side,
    other,
    pad_proofs,
    padded_count,
    read_hello,
    read_proofs,
    read_versions,
    version_error,
)
from kachery_p2p.wire.messages import (
    Fields,
    check_answer,
    check_failure,
    check_message,
    check_request,
    failure,
    fit_reason,
    integer,
    printable,
)

ID_MAX = (1 << 63) - 1


class State(Enum):
    """Where a conversation stands."""

    HELLO = "hello"
    PROVE = "prove"
    OPEN = "open"
    CLOSED = "closed"


class HelloReceived(NamedTuple):
    """The other side's hello; a version is spoken by both. `version` is the newest such."""

    hello: Hello
    version: int


class ProofsReceived(NamedTuple):
    """What the other side claims to prove, padding included; `channels.membership` matches it."""

    proofs: tuple[bytes, ...]


class Request(NamedTuple):
    """The peer asks; answer it with `answer` or `fail`, under the same id."""

    id: int
    op: str
    body: Message


class Answer(NamedTuple):
    """The answer to our request `id`."""

    id: int
    body: Message


class Failure(NamedTuple):
    """Our request `id` got no answer. `code` is one of ours; `text` is the peer's, printable."""

    id: int
    code: str
    text: str


class Bye(NamedTuple):
    """The peer leaves politely. `reason` is its own text, printable."""

    reason: str


Event = HelloReceived | ProofsReceived | Request | Answer | Failure | Bye

_ID_FIELDS: Fields = {"id": integer(1, ID_MAX)}
_BYE_FIELDS: Fields = {"bye": printable(REASON_CHARS_MAX)}


class Conversation:
    """One side of a control stream. `role` is "dialler" for who opened it, else "listener"."""

    def __init__(self, role: str, hello: Hello) -> None:
        assert role in (DIALLER, LISTENER), role
        self.role = role
        self.state = State.HELLO
        self.peer_hello: Hello | None = None
        self._hello = hello
        self._frames = FrameDecoder()
        # How many proofs the dialler sent: the listener sends as many.
        self._proofs: int | None = None
        self._next_id = 1 if role == DIALLER else 2
        # Our unanswered requests: id to operation, or to None once we cancelled it.
        self._asked: dict[int, str | None] = {}
        # The peer's unanswered requests: id to operation.
        self._owed: dict[int, str] = {}
        self._last_words = b""

    # --- what we say ------------------------------------------------------------------

    def hello(self) -> bytes:
        """The first bytes to send, once, by either side, without waiting for the other's."""
        return encode_frame(self._hello.message())

    def prove(self, proofs: Sequence[bytes], random: bytes) -> bytes:
        """Our proofs, padded with `random` (PADDING_BYTES fresh bytes; `handshake` says why).

        The dialler proves after HelloReceived; the listener after ProofsReceived, and
        only for the channels that it matched.
        """
        if self.state is State.CLOSED:
            raise PeerGoneError("the conversation with the peer is over")
        assert self.state is State.PROVE
        assert (self.role == DIALLER) == (self._proofs is None), "prove once, in turn"
        if self._proofs is None:
            self._proofs = padded_count(len(proofs))
        else:
            self.state = State.OPEN
        return encode_frame({"proofs": pad_proofs(proofs, self._proofs, random)})

    def request(self, op: str, body: Message) -> tuple[int, bytes]:
        """The id of a new request, and its bytes.

        Raises PeerGoneError on a closed conversation, and PeerTimeoutError if the peer
        has left PENDING_REQUESTS_MAX requests unanswered, cancelled ones included.
        """
        if self.state is State.CLOSED:
            raise PeerGoneError("the conversation with the peer is over")
        assert self.state is State.OPEN
        if len(self._asked) >= PENDING_REQUESTS_MAX:
            raise PeerTimeoutError(f"the peer has left {len(self._asked)} requests unanswered")
        checked = _own(check_request, op, body)
        request_id = self._next_id
        frame = encode_frame({"id": request_id, "op": op, "body": checked})
        self._next_id += 2
        self._asked[request_id] = op
        return request_id, frame

    def cancel(self, request_id: int) -> None:
        """Nobody waits for this answer any more: when it comes it is dropped unread.

        The peer is not told, and the request counts as unanswered until it is answered.
        Cancelling what was answered does nothing.
        """
        if request_id in self._asked:
            self._asked[request_id] = None

    def withdraw(self, request_id: int) -> None:
        """The bytes of this request were never sent, so that no answer will come."""
        self._asked.pop(request_id, None)

    def answer(self, request_id: int, body: Message) -> bytes:
        """The bytes that answer the peer's request; none if the conversation is over."""
        if self.state is State.CLOSED:
            return b""
        checked = _own(check_answer, self._owed[request_id], body)
        frame = encode_frame({"id": request_id, "ok": checked})
        del self._owed[request_id]
        return frame

    def fail(self, request_id: int, code: str, text: str = "") -> bytes:
        """The bytes that say why there is no answer; none if the conversation is over.

        A "refused" goes out with one fixed text, whatever is given: absent and not
        allowed must look the same.
        """
        if self.state is State.CLOSED:
            return b""
        del self._owed[request_id]
        return encode_frame({"id": request_id, **failure(code, text)})

    def bye(self, reason: str = "") -> bytes:
        """The last bytes to send; the conversation is over. None if it already was."""
        if self.state is State.CLOSED:
            return b""
        self._close()
        return encode_frame({"bye": fit_reason(reason)})

    def last_words(self) -> bytes:
        """What to send, once, after `receive` raised, before the stream is dropped. Or nothing."""
        words, self._last_words = self._last_words, b""
        return words

    # --- what we are told ---------------------------------------------------------------

    def receive(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """What the peer said with these bytes, in order; `b""` tells that its stream ended.

        Raises ProtocolError for what PROTOCOL.md does not allow, ProtocolVersionError
        if no version is spoken by both sides, PeerGoneError for an end without a bye.
        Each closes the conversation. On a closed one nothing is read any more.
        """
        if self.state is State.CLOSED:
            return []
        try:
            if not len(data):
                raise PeerGoneError("the peer ended the conversation without a word")
            return self._events(data)
        except ProtocolVersionError:
            self._close()
            raise
        except ProtocolError as broken:
            self._close()
            self._last_words = encode_frame({"bye": fit_reason(f"protocol error: {broken}")})
            raise
        except PeerGoneError:
            self._close()
            raise

    def _events(self, data: bytes | bytearray | memoryview) -> list[Event]:
        events = []
        for message in self._frames.each(data):
            event = self._event(message)
            if event is not None:
                events.append(event)
            if self.state is State.CLOSED:
                break
        return events

    def _event(self, message: Message) -> Event | None:
        if "bye" in message:
            return self._hear_bye(message)
        if self.state is State.HELLO:
            return self._hear_hello(message)
        if self.state is State.PROVE:
            return self._hear_proofs(message)
        if "op" in message:
            return self._hear_request(message)
        return self._hear_answer(message)

    def _hear_hello(self, message: Message) -> HelloReceived:
        ours, theirs = self._hello.versions, read_versions(message)
        outdated = older_side(ours, theirs, self.role)
        if outdated is not None:
            self._last_words = encode_frame(
                {"bye": f"no common version: upgrade the {outdated}", "upgrade": outdated}
            )
            raise version_error(upgrade_us=outdated == self.role)
        hello = read_hello(message)
        if hello.nonce == self._hello.nonce:
            raise ProtocolError("our own nonce came back: a reflected hello")
        self.peer_hello = hello
        self.state = State.PROVE
        return HelloReceived(hello, min(ours.newest, theirs.newest))

    def _hear_proofs(self, message: Message) -> ProofsReceived:
        # The dialler knows their number once it proved, the listener once it has heard them.
        if (self.role == DIALLER) != (self._proofs is not None):
            raise ProtocolError("proofs out of turn")
        proofs = read_proofs(message, self._proofs)
        self._proofs = len(proofs)
        if self.role == DIALLER:
            self.state = State.OPEN
        return ProofsReceived(proofs)

    def _hear_request(self, message: Message) -> Request:
        request_id = _read_id(message)
        if request_id % 2 != (0 if self.role == DIALLER else 1):
            raise ProtocolError("a request under an id of ours")
        if request_id in self._owed:
            raise ProtocolError("a request under the id of an unanswered one")
        if len(self._owed) >= PENDING_REQUESTS_MAX:
            raise ProtocolError(f"more than {PENDING_REQUESTS_MAX} unanswered requests")
        op = message["op"]
        body = check_request(op, message.get("body"))
        self._owed[request_id] = op
        return Request(request_id, op, body)

    def _hear_answer(self, message: Message) -> Answer | Failure | None:
        request_id = _read_id(message)
        if request_id not in self._asked:
            raise ProtocolError("an answer to nothing that was asked")
        if ("ok" in message) == ("error" in message):
            raise ProtocolError("neither an answer nor a failure")
        op = self._asked.pop(request_id)
        if op is None:
            return None
        if "ok" in message:
            return Answer(request_id, check_answer(op, message["ok"]))
        return Failure(request_id, *check_failure(message))

    def _hear_bye(self, message: Message) -> Bye:
        reason = check_message("a bye", _BYE_FIELDS, message)["bye"]
        upgrade = message.get("upgrade")
        if self.state is State.HELLO and upgrade in (self.role, other(self.role)):
            raise version_error(upgrade_us=upgrade == self.role)
        self._close()
        return Bye(reason)

    def _close(self) -> None:
        self.state = State.CLOSED
        self._frames = FrameDecoder()


def _read_id(message: Message) -> int:
    found = check_message("a message", _ID_FIELDS, message)["id"]
    assert isinstance(found, int)
    return found


def _own(check: Callable[[str, object], Message], op: str, body: Message) -> Message:
    """`body` as the peer will check it. Raises ValueError: it is not the peer who is wrong."""
    try:
        return check(op, body)
    except ProtocolError as wrong:
        raise ValueError(f"not a message that may be sent: {wrong}") from None
