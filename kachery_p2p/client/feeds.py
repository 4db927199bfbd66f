"""Feeds: signed lists of messages that one node writes, and the members of a channel read.

A feed is a key; it has subfeeds, each a list of messages by its name. Whoever has the URI of one,
`feed://ID/NAME`, and is in a channel where the feed is shared, reads it, live, from whoever has it.
All of it goes through the daemon, but for snapshots: copies of a feed as it was, stored as a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from kachery_p2p.client.feed_calls import LiveSubfeed, call
from kachery_p2p.client.subfeeds import Flag, Subfeed
from kachery_p2p.errors import LogError, UnknownFeedError, UriError

if TYPE_CHECKING:
    from kachery_p2p.client.snapshots import Snapshot
    from kachery_p2p.content.schemes import FeedUri

FEED_SCHEME = "feed://"


def create_feed(name: str | None = None, channels: Sequence[str] | None = None) -> Feed:
    """A new feed of this node; `name` is what it is called on this computer.

    `channels` says where it can be read: None, in those of the share list as it is now; [],
    nowhere; or channels by their names. LogError if another feed has the name; DaemonDownError if
    no daemon runs.
    """
    body = {"name": name, "channels": None if channels is None else list(channels)}
    return Feed(call("feed_create", body)["feed"])


def load_feed(uri_or_name: str, create: bool = False, timeout_sec: float | None = None) -> Feed:
    """A feed by its URI, one of this node by its name, or a snapshot by its sha1:// URI.

    With `create` a feed is made if none has the name. UnknownFeedError if there is none;
    UriError for what cannot be a URI. Somebody else's feed is looked for when it is read.
    `timeout_sec` is for loading a snapshot.
    """
    text = uri_or_name.strip()
    if _is_feed_uri(text):
        found = feed_uri(text)
        if found.subfeed is not None:
            raise UriError("the URI is of a subfeed, not of a feed", hint="use load_subfeed")
        return Feed(found.feed)
    if "://" in text or text.startswith("kachery:"):
        from kachery_p2p.client.snapshots import load_snapshot

        return Feed(snapshot=load_snapshot(text, timeout_sec))
    return Feed(get_feed_id(uri_or_name, create))


def load_subfeed(uri: str, *, channel: str | None = None) -> Subfeed:
    """A subfeed by its URI: `feed://ID/NAME`, `feed://ID/~HASH`, or one of a snapshot.

    It is read in whatever common channel it is shared: `channel`, which kachery-client needed, says
    nothing. UriError for what cannot be the URI of a subfeed.
    """
    text = uri.strip()
    if not _is_feed_uri(text):
        from kachery_p2p.client.snapshots import load_snapshot, subfeed_named_in

        name = subfeed_named_in(text)
        return Feed(snapshot=load_snapshot(text, None)).get_subfeed(name)
    found = feed_uri(text)
    if found.subfeed is None:
        raise UriError(
            "the URI is of a feed, and names none of its subfeeds",
            hint="write feed://ID/NAME, or use load_feed",
        )
    return Feed(found.feed).get_subfeed(found.subfeed)


def get_feed_id(name: str, create: bool = False) -> str:
    """The id of the feed that is called so on this computer. UnknownFeedError if none is."""
    try:
        return str(call("feed_named", {"name": name})["feed"])
    except UnknownFeedError:
        if not create:
            raise
    try:
        return create_feed(name).feed_id
    except LogError:
        # Another process may just have made it.
        return str(call("feed_named", {"name": name})["feed"])


def delete_feed(uri_or_name: str) -> None:
    """Remove a feed from this node: an own one with its key, for good. UnknownFeedError."""
    load_feed(uri_or_name).delete()


def list_feeds() -> list[dict[str, Any]]:
    """The feeds of this node, the oldest first: "feed" (the id), "names" and "channels" of each."""
    found: list[dict[str, Any]] = []
    after = None
    while True:
        answer = call("feed_list", {"after": after})
        found += answer["feeds"]
        after = answer["next"]
        if after is None:
            return found


class Feed:
    """A feed: its id, its subfeeds, and whether this node writes it. `load_feed` gives one."""

    def __init__(self, feed_id: str | None = None, *, snapshot: Snapshot | None = None) -> None:
        assert (feed_id is None) != (snapshot is None)
        self._id = feed_id
        self._snapshot = snapshot

    def __repr__(self) -> str:
        return f"<Feed {self.uri}>"

    # --- what it is -------------------------------------------------------------------------------

    @property
    def uri(self) -> str:
        """`feed://ID`, or the sha1:// URI of a snapshot."""
        return self._snapshot.uri if self._snapshot is not None else f"{FEED_SCHEME}{self._id}"

    @property
    def feed_id(self) -> str:
        """64 hex digits: the feed's key. Of a snapshot, "" if it does not say of which feed."""
        return (self._snapshot.feed_id if self._snapshot is not None else self._id) or ""

    @property
    def is_writeable(self) -> Flag:
        """Whether this node writes the feed. `is_writeable()` is the same."""
        return Flag(self._id is not None and self.info()["own"])

    @property
    def is_snapshot(self) -> Flag:
        """Whether this is a copy that never changes. `is_snapshot()` is the same."""
        return Flag(self._snapshot is not None)

    def get_uri(self) -> str:
        """As `uri`."""
        return self.uri

    def get_feed_id(self) -> str:
        """As `feed_id`."""
        return self.feed_id

    def get_feed_node_id(self) -> str | None:
        """The id of the node that writes the feed if that is this one, else None.

        A feed's id does not tell whose it is.
        """
        from kachery_p2p.client.files import get_node_id

        return get_node_id() if self.is_writeable else None

    def info(self) -> dict[str, Any]:
        """What this node knows: "own", "names", "channels", and "subfeeds", each with its
        "name_hash" and, if it was told here, its "name".
        """
        answer: dict[str, Any] = call("feed_info", {"feed": self.feed_id})
        subfeeds, after = list(answer["subfeeds"]), answer["next"]
        while after is not None:
            page = call("feed_info", {"feed": self.feed_id, "after": after})
            subfeeds += page["subfeeds"]
            after = page["next"]
        return {**{k: v for k, v in answer.items() if k != "next"}, "subfeeds": subfeeds}

    # --- subfeeds ---------------------------------------------------------------------------------

    def get_subfeed(self, name: Any, position: int = 0) -> Subfeed:
        """A subfeed by its name (a text, or any other JSON value) or by `~HASH`.

        It needs not be there yet: it is begun by its first message. InvalidNameError.
        """
        plain, name_hash = _name_and_hash(name)
        if self._snapshot is not None:
            source: Any = self._snapshot.subfeed(name_hash)
        else:
            assert self._id is not None
            told = plain if isinstance(plain, str) else None
            source = LiveSubfeed(self._id, name_hash, told)
        subfeed = Subfeed(self, plain, source, name_hash)
        subfeed.set_position(position)
        return subfeed

    def load_subfeed(self, name: Any, *, position: int = 0, channel: str | None = None) -> Subfeed:
        """As `get_subfeed`; `channel`, which kachery-client needed, says nothing."""
        return self.get_subfeed(name, position)

    def uri_of_subfeed(self, name: Any, name_hash: str) -> str:
        """The URI of a subfeed: with its name if that is a text, else with its hash."""
        from kachery_p2p.content.uris import encoded

        is_text = isinstance(name, str) and name != "" and not name.startswith("~")
        if self._snapshot is not None:
            query = f"subfeedName={encoded(name)}" if is_text else f"subfeedHash={name_hash}"
            return f"{self.uri}{'&' if '?' in self.uri else '?'}{query}"
        return f"{self.uri}/{encoded(name) if is_text else '~' + name_hash}"

    def create_snapshot(
        self, subfeed_names: Iterable[Any], *, channels: Sequence[str] | None = None
    ) -> str:
        """Store these subfeeds as they are now, as one file; its URI, which `load_feed` reads.

        The file is shared as others are: `channels` is that of `store_file`.
        """
        from kachery_p2p.client.snapshots import write_snapshot

        subfeeds = [self.get_subfeed(name) for name in subfeed_names]
        return write_snapshot(self.feed_id, subfeeds, channels)

    # --- changing it ------------------------------------------------------------------------------

    def share(self, channels: Sequence[str] | None = None) -> None:
        """Let the members of these channels read it too; None: those of the share list."""
        listed = None if channels is None else list(channels)
        call("feed_share", {"feed": self.feed_id, "channels": listed})

    def unshare(self, channel: str) -> None:
        """Let the members of a channel read it no more. What they have read they keep."""
        call("feed_unshare", {"feed": self.feed_id, "channel": channel})

    def delete(self) -> None:
        """Remove it from this node: an own feed with its key, for good."""
        if self._snapshot is not None:
            raise UriError("a snapshot is a file", hint="remove it with `kachery-p2p rm`")
        call("feed_delete", {"feed": self.feed_id})


def feed_uri(text: str) -> FeedUri:
    """What a feed:// URI names. UriError or InvalidNameError if it is none."""
    from kachery_p2p.content.schemes import FeedUri, parse_any

    found = parse_any(text)
    assert isinstance(found, FeedUri)
    return found


def _is_feed_uri(text: str) -> bool:
    return text[: len(FEED_SCHEME)].lower() == FEED_SCHEME


def _name_and_hash(name: Any) -> tuple[Any, str]:
    """The name (None if only its hash is told) and its hash. InvalidNameError, UriError."""
    from kachery_p2p.content.hashes import ContentHash
    from kachery_p2p.feeds.names import name_hash_of

    if isinstance(name, str) and name.startswith("~"):
        return None, str(ContentHash.parse(name[1:]))
    return name, str(name_hash_of(name))
