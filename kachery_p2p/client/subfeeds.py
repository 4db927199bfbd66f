"""A subfeed as programs use it: a position in a list of messages that only grows.

A `Subfeed` object belongs to one thread, because it has a position; two of the same subfeed do not
disturb each other. It is that of the older packages: the methods of kachery-p2p and the properties
of kachery-client are both there, and `Flag` is what both called by the same name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kachery_p2p.client.feed_calls import FeedPage, LiveSubfeed, SubfeedSource
from kachery_p2p.errors import (
    FeedEndedError,
    FeedReadOnlyError,
    InvalidRangeError,
    LogError,
    UnsupportedValueError,
)
from kachery_p2p.limits import FEED_POSITION_MAX, FEED_STREAM_WAIT_S

if TYPE_CHECKING:
    from kachery_p2p.client.feeds import Feed


class Flag(int):
    """True or False as a property, and as a method too: `feed.is_writeable`, `feed.is_writeable()`.

    It is 1 or 0 and no `bool`, which cannot be called: use it in conditions, not with `is`.
    """

    __slots__ = ()

    def __call__(self) -> bool:
        return bool(self)

    def __repr__(self) -> str:
        return repr(bool(self))


class Subfeed:
    """One list of messages of a feed, and a position in it: the next message to read.

    Get one with `load_subfeed` or `Feed.get_subfeed`. Iterating over it gives the messages that
    there are, from the position on; `message_stream` waits for later ones too.
    """

    def __init__(self, feed: Feed, name: Any, source: SubfeedSource, name_hash: str) -> None:
        self._feed = feed
        self._name = name
        self._source = source
        self._hash = name_hash
        self._position = 0

    def __repr__(self) -> str:
        return f"<Subfeed {self.uri} at {self._position}>"

    # --- what it is -------------------------------------------------------------------------------

    @property
    def uri(self) -> str:
        """The URI, which `load_subfeed` reads on every computer."""
        return self._feed.uri_of_subfeed(self._name, self._hash)

    @property
    def subfeed_name(self) -> Any:
        """The name; of a subfeed that was given by the hash of its name, `~HASH`."""
        return f"~{self._hash}" if self._name is None else self._name

    @property
    def subfeed_hash(self) -> str:
        """The SHA-1 of the name, by which nodes know the subfeed."""
        return self._hash

    @property
    def position(self) -> int:
        """The number of the next message to read; the first message is 0."""
        return self._position

    @position.setter
    def position(self, position: int) -> None:
        self.set_position(position)

    @property
    def is_writeable(self) -> Flag:
        """Whether this node may append. `is_writeable()` is the same."""
        return self._feed.is_writeable

    @property
    def is_snapshot(self) -> Flag:
        """Whether this is a copy that never changes. `is_snapshot()` is the same."""
        return self._feed.is_snapshot

    def get_uri(self) -> str:
        """As `uri`."""
        return self.uri

    def get_subfeed_name(self) -> Any:
        """As `subfeed_name`."""
        return self.subfeed_name

    def get_subfeed_hash(self) -> str:
        """As `subfeed_hash`."""
        return self._hash

    def get_position(self) -> int:
        """As `position`."""
        return self._position

    def set_position(self, position: int) -> None:
        """Go to a message: the next one read is number `position`."""
        if isinstance(position, bool) or not isinstance(position, int):
            raise UnsupportedValueError(f"a position is a number, not a {type(position).__name__}")
        if not 0 <= position <= FEED_POSITION_MAX:
            raise InvalidRangeError(f"{position} is not a position in a subfeed")
        self._position = position

    def get_num_messages(self) -> int:
        """How many messages there are, as far as the feed's owner, or who has it, can be asked."""
        return self._source.size()

    def get_num_local_messages(self) -> int:
        """How many of them are at this node."""
        return self._source.local_size()

    # --- reading ----------------------------------------------------------------------------------

    def get_next_messages(
        self,
        wait_msec: float = 10,
        signed: bool = False,
        max_num_messages: int = 0,
        advance_position: bool = True,
    ) -> list[Any]:
        """The messages from the position on, and the position goes behind them.

        All that there are, `max_num_messages` at most if that is not 0. If there are none it
        waits `wait_msec` for some, and gives an empty list when none came. A subfeed of somebody
        else is followed from the first read on: its messages come to this node as they are written.
        FeedUnavailableError if nobody who is connected has it; FeedEndedError or FeedForkedError
        behind its end.

        With `signed` each is the object around the message: {"body": {"message", "messageNumber",
        "timestamp"}}; in messages of an older kachery also what their author signed, verbatim.
        """
        found = self._read_all(wait_msec / 1000, max_num_messages, signed)
        if advance_position:
            self._position += len(found)
        return found

    def get_next_message(
        self, wait_msec: float = 10, signed: bool = False, advance_position: bool = True
    ) -> Any:
        """The next message; None if there is none within `wait_msec`."""
        found = self.get_next_messages(wait_msec, signed, 1, advance_position)
        return found[0] if found else None

    def __iter__(self) -> Iterator[Any]:
        """The messages that there are, from the position on, which goes with them."""
        while messages := self._here():
            for message in messages:
                self._position += 1
                yield message

    def message_stream(self, *, signed: bool = False) -> Iterator[Any]:
        """The messages from the position on, and then each as it is written, for ever.

        FeedEndedError when the owner has ended the subfeed: its hint names the feed that goes on.
        """
        while True:
            page = self._source.read(self._position, 0, FEED_STREAM_WAIT_S, signed=signed)
            for message in page.values:
                self._position += 1
                yield message

    def page(self, count_max: int, wait_s: float, *, signed: bool = False) -> FeedPage:
        """What one answer has from the position on, which goes behind it.

        As `get_next_messages`, but never more than the daemon tells at once (4,096 messages,
        1 MiB), and with all that it tells of each. `count_max` 0 means as many as there are.
        """
        page = self._source.read(self._position, count_max, wait_s, signed=signed)
        self._position += len(page.values)
        return page

    def print_messages(self) -> None:
        """Print the messages from the position on, each as a line of JSON."""
        self._print(signed=False)

    def print_signed_messages(self) -> None:
        """The same with the objects around them."""
        self._print(signed=True)

    def _print(self, *, signed: bool) -> None:
        import json

        # ASCII only: what others wrote is not to steer a terminal.
        for message in self.get_next_messages(signed=signed):
            print(json.dumps(message))

    def _here(self) -> list[Any]:
        """What one answer has from the position on, without waiting; nothing at the end."""
        try:
            return self._source.read(self._position, 0, 0.0, signed=False).values
        except FeedEndedError:
            return []

    def _read_all(self, wait_s: float, count_max: int, signed: bool) -> list[Any]:
        if count_max < 0 or wait_s < 0:
            raise InvalidRangeError("neither messages nor milliseconds can be less than none")
        first = self._position
        page = self._source.read(first, count_max, wait_s, signed=signed)
        found = page.values
        while found and first + len(found) < page.size and len(found) != count_max:
            left = count_max - len(found) if count_max else 0
            try:
                more = self._source.read(first + len(found), left, 0.0, signed=signed).values
            except LogError:
                # What has been read is told now, and what is wrong when there is nothing else.
                break
            if not more:
                break
            found += more
        return found

    # --- writing ----------------------------------------------------------------------------------

    def append_message(self, message: Any) -> int:
        """Append a message, any JSON; its position. It is on the disk when this returns.

        FeedReadOnlyError if the feed is somebody else's; UnsupportedValueError for what is no JSON;
        MessageTooLargeError above 1 MiB; DaemonDownError if no daemon runs.
        """
        return self.append_messages([message])[0]

    def append_messages(self, messages: Sequence[Any]) -> list[int]:
        """Append messages in this order; their positions.

        As fast as can be: thousands cost little more than one. Up to 4,096 of them, of 1 MiB
        together, are appended all or none; more are so in several steps.
        """
        return self._live().append(list(messages))

    def submit_message(self, message: Any, *, id: str | None = None) -> int:
        """Have the feed's owner append a message; its position, when it is on the owner's disk.

        WriteRefusedError if the owner has not granted it; FeedUnavailableError if the owner's node
        cannot be reached. `id` (32 hex digits, random) makes it safe to submit the same again:
        what was appended is not appended twice.
        """
        return self.submit_messages([message], ids=None if id is None else [id])[0]

    def submit_messages(
        self, messages: Sequence[Any], *, ids: Sequence[str] | None = None
    ) -> list[int]:
        """Have the feed's owner append messages in this order; their positions."""
        return self._live().submit(list(messages), ids)

    def grant_write_access(self, *, node_id: str) -> None:
        """Let a node submit messages. UnknownFeedError if the feed is not this node's."""
        self._live().grant(node_id)

    def revoke_write_access(self, *, node_id: str) -> None:
        """Let it submit no more."""
        self._live().revoke(node_id)

    def get_access_rules(self) -> dict[str, Any]:
        """Who may submit: {"rules": [{"nodeId": ..., "write": True}, ...]}."""
        return {"rules": [{"nodeId": node, "write": True} for node in self._live().writers()]}

    def set_access_rules(self, rules: dict[str, Any]) -> None:
        """Let those submit whom the rules name with "write": True, and no others."""
        try:
            nodes = [rule["nodeId"] for rule in rules["rules"] if rule.get("write")]
        except (TypeError, KeyError, AttributeError):
            raise UnsupportedValueError(
                'access rules are written {"rules": [{"nodeId": ID, "write": true}, ...]}'
            ) from None
        self._live().set_writers(nodes)

    @property
    def live(self) -> LiveSubfeed:
        """The subfeed at the daemon. FeedReadOnlyError for one of a snapshot."""
        return self._live()

    def _live(self) -> LiveSubfeed:
        if isinstance(self._source, LiveSubfeed):
            return self._source
        raise FeedReadOnlyError(
            "Cannot append messages to a readonly feed: it is a snapshot",
            hint="load the feed itself, by its feed:// URI",
        )
