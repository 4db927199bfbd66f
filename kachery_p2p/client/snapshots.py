"""Snapshots: subfeeds as they were, stored as one file that is loaded like any other.

    {"feedId": ID, "subfeeds": {HASH: {"subfeedHash": HASH, "messages": [{"body": {...}}, ...]}}}

This is what the older packages wrote, but for `feedId`. The hash in the URI says that nobody has
changed it since; what it says of the feed is the word of whoever made it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from kachery_p2p.client.feed_calls import FeedPage
from kachery_p2p.client.feed_values import message_of_signed
from kachery_p2p.errors import DataFormatError, MessageFormatError, UnknownFeedError, UriError

if TYPE_CHECKING:
    from kachery_p2p.client.subfeeds import Subfeed

LABEL = "feed.json"


class SnapshotSubfeed:
    """The messages of one subfeed of a snapshot."""

    def __init__(self, messages: list[Any]) -> None:
        self._messages = messages

    def read(self, first: int, count: int, wait_s: float, *, signed: bool) -> FeedPage:
        """As `SubfeedSource.read`; nothing is waited for, since nothing will come."""
        found = self._messages[first : first + count if count else None]
        values = [one if signed else _message_of(one) for one in found]
        return FeedPage(first, values, len(self._messages))

    def size(self) -> int:
        """How many messages it has."""
        return len(self._messages)

    def local_size(self) -> int:
        """As many."""
        return len(self._messages)


class Snapshot(NamedTuple):
    """A snapshot that was loaded."""

    uri: str
    # "" if it does not say.
    feed_id: str
    subfeeds: dict[str, SnapshotSubfeed]

    def subfeed(self, name_hash: str) -> SnapshotSubfeed:
        """One of its subfeeds. UnknownFeedError if it has no such."""
        found = self.subfeeds.get(name_hash)
        if found is None:
            raise UnknownFeedError(
                "the snapshot does not have this subfeed",
                hint=f"it has {len(self.subfeeds)}, by these hashes of their names: "
                + ", ".join(sorted(self.subfeeds)[:8]),
            )
        return found


def load_snapshot(uri: str, timeout_s: float | None) -> Snapshot:
    """The snapshot with this URI. DataFormatError if the file is none; LoadFileError."""
    from kachery_p2p.client.values import load_json
    from kachery_p2p.content.uris import format_uri, parse_uri

    plain = format_uri(parse_uri(uri))
    value = load_json(plain, timeout=timeout_s)
    if not isinstance(value, dict) or not isinstance(value.get("subfeeds"), dict):
        raise DataFormatError("the file is not a snapshot of a feed")
    feed_id = value.get("feedId")
    return Snapshot(
        plain,
        feed_id if isinstance(feed_id, str) else "",
        {name: SnapshotSubfeed(_messages(one)) for name, one in value["subfeeds"].items()},
    )


def subfeed_named_in(uri: str) -> str:
    """Which subfeed the URI of a snapshot names, as `Feed.get_subfeed` takes it. UriError."""
    from kachery_p2p.content.uris import decoded, split_query

    keys = split_query(uri)[1]
    if "subfeedName" in keys:
        return decoded(keys["subfeedName"])
    if "subfeedHash" in keys:
        return "~" + keys["subfeedHash"]
    raise UriError(
        "the URI names no subfeed", hint="add ?subfeedName=NAME to the URI of a snapshot"
    )


def write_snapshot(
    feed_id: str, subfeeds: Iterable[Subfeed], channels: Sequence[str] | None
) -> str:
    """Store the subfeeds as they are now; the URI of the snapshot."""
    import json

    encode = json.JSONEncoder(separators=(",", ":")).encode
    parts = ((one.subfeed_hash, map(encode, _each_signed(one))) for one in subfeeds)
    uri = store_snapshot(feed_id, parts, channels)
    assert uri is not None
    return uri


def store_snapshot(
    feed_id: str,
    subfeeds: Iterable[tuple[str, Iterable[str]]],
    channels: Sequence[str] | None,
    *,
    unless_empty: bool = False,
) -> str | None:
    """Store a snapshot of these: hashes of names, and the JSON of each signed message; its URI.

    Written to a file as it comes, so it may be larger than memory. With `unless_empty` nothing is
    stored, and None answered, if there was no message.
    """
    import os
    import tempfile

    from kachery_p2p.client.files import store_file

    with tempfile.TemporaryDirectory(prefix="kachery-feed-") as directory:
        path = os.path.join(directory, LABEL)
        with open(path, "w", encoding="utf-8") as file:
            count = _write(file, feed_id, subfeeds)
        if unless_empty and not count:
            return None
        return store_file(path, channels=channels, progress=False)


def _write(file: TextIO, feed_id: str, subfeeds: Iterable[tuple[str, Iterable[str]]]) -> int:
    """Write a snapshot; how many messages it has."""
    count = 0
    file.write(f'{{"feedId":"{feed_id}","subfeeds":{{')
    for number, (name_hash, messages) in enumerate(subfeeds):
        file.write("," if number else "")
        file.write(f'"{name_hash}":{{"subfeedHash":"{name_hash}","messages":[')
        for place, message in enumerate(messages):
            file.write("," + message if place else message)
            count += 1
        file.write("]}")
    file.write("}}")
    return count


def _each_signed(subfeed: Subfeed) -> Iterator[Any]:
    """All messages with the objects around them, up to as many as there were at first."""
    size = subfeed.get_num_messages()
    subfeed.set_position(0)
    while subfeed.position < size:
        left = min(size - subfeed.position, 4_096)
        found = subfeed.get_next_messages(signed=True, max_num_messages=left)
        if not found:
            raise UnknownFeedError(
                f"message {subfeed.position} of {size} did not come", hint="try again later"
            )
        yield from found


def _messages(subfeed: Any) -> list[Any]:
    if isinstance(subfeed, dict) and isinstance(subfeed.get("messages"), list):
        messages: list[Any] = subfeed["messages"]
        return messages
    raise DataFormatError("the file is not a snapshot of a feed")


def _message_of(signed: Any) -> Any:
    """The message; some older snapshots have the messages without the objects around them."""
    try:
        return message_of_signed(signed)
    except MessageFormatError:
        return signed
