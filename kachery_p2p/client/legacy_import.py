"""Taking over the feeds of an older kachery, of which every signature is verified first.

A feed whose private key is there becomes a feed of this node, under the same key: each entry of
the new log holds an old signed message, verbatim, so its signature can still be shown to anybody.
A feed of somebody else cannot be continued by us, and a log under its key is its owner's to sign:
it becomes a snapshot, a file in the store. Doing it again goes on where it ended.

Who might submit messages to an own feed may do so again, by the node id of then. That is granted
once, when the feed is taken over: what was revoked since stays so.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kachery_p2p.client.feed_calls import LiveSubfeed, call
from kachery_p2p.client.legacy_feeds import LegacyFeeds
from kachery_p2p.client.legacy_signatures import SignedMessage, read_signed, why_not_next
from kachery_p2p.client.snapshots import store_snapshot
from kachery_p2p.content.hashes import ContentHash, FeedId
from kachery_p2p.errors import DataFormatError, LogError

OWN, ARCHIVE = "continued under its key", "archived as a snapshot"
# Messages that are appended at a time.
_BATCH = 1_000


class Imported(NamedTuple):
    """What became of an old subfeed, or of a feed of somebody else."""

    # feed://ID/~HASH, or feed://ID of an archive.
    what: str
    kind: str
    # Where it is now: its feed:// URI, or that of the snapshot; None if nothing verified.
    uri: str | None
    # How many messages verified.
    messages: int
    # What did not verify, and why.
    problem: str | None
    # How many nodes were let submit messages to it.
    writers: int = 0


class _Verified:
    """The messages of one old subfeed that verify, one after the other, until one does not."""

    def __init__(self, old: LegacyFeeds, feed: FeedId, name_hash: ContentHash) -> None:
        self._texts = old.messages(feed, name_hash)
        self._feed = feed
        self.name_hash = name_hash
        self.count = 0
        self.problem: str | None = None

    def __iter__(self) -> Iterator[SignedMessage]:
        before: SignedMessage | None = None
        try:
            for text in self._texts:
                message = read_signed(text)
                why = why_not_next(self._feed, message, before)
                if why is not None:
                    raise DataFormatError(why)
                self.count += 1
                yield message
                before = message
        except DataFormatError as error:
            self.problem = f"message {self.count}: {error}"

    def texts(self) -> Iterator[str]:
        """As they were stored."""
        return (message.text for message in self)


def import_feeds(directory: str, channels: Sequence[str] | None) -> Iterator[Imported]:
    """Take over all feeds in the directory of an older kachery; what became of each, as it is done.

    `channels` are those in which own feeds, and snapshots, are shared. UnknownFeedError if there
    are no feeds; DataFormatError if the files are not what they should be; DaemonDownError if an
    own feed is to be continued and no daemon runs.
    """
    with LegacyFeeds(directory) as old:
        for feed, found in itertools.groupby(old.subfeeds(), lambda one: one[0]):
            subfeeds = [_Verified(old, feed, name_hash) for _, name_hash in found]
            seed = old.seed(feed)
            if seed is None:
                yield _archived(feed, subfeeds, channels)
                continue
            is_new = _adopt(feed, seed, old.name(feed), channels)
            granted = _granted(feed, old) if is_new else {}
            for subfeed in subfeeds:
                writers = granted.get(subfeed.name_hash, 0)
                yield _continued(feed, subfeed)._replace(writers=writers)


def _archived(
    feed: FeedId, subfeeds: Sequence[_Verified], channels: Sequence[str] | None
) -> Imported:
    parts = ((one.name_hash, one.texts()) for one in subfeeds)
    uri = store_snapshot(feed, parts, channels, unless_empty=True)
    problems = [f"~{one.name_hash}: {one.problem}" for one in subfeeds if one.problem]
    count = sum(one.count for one in subfeeds)
    return Imported(f"feed://{feed}", ARCHIVE, uri, count, "; ".join(problems) or None)


def _granted(feed: FeedId, old: LegacyFeeds) -> dict[ContentHash, int]:
    """Let those submit who might; to how many nodes that was granted, by subfeeds."""
    counts = {}
    for name_hash, nodes in old.writers(feed):
        LiveSubfeed(feed, name_hash, None).set_writers(nodes)
        counts[name_hash] = len(nodes)
    return counts


def _adopt(feed: FeedId, seed: bytes, name: str | None, channels: Sequence[str] | None) -> bool:
    """Make the feed one of this node's; False if it is one already."""
    if call("feed_info", {"feed": feed})["own"]:
        return False
    listed = None if channels is None else list(channels)
    body = {"seed": seed.hex(), "channels": listed}
    try:
        call("feed_adopt", {**body, "name": name})
    except LogError:
        # Another feed has the name by now.
        if name is None:
            raise
        call("feed_adopt", body)
    return True


def _continued(feed: FeedId, subfeed: _Verified) -> Imported:
    """Append what verifies, behind what an earlier run appended."""
    live = LiveSubfeed(feed, subfeed.name_hash, None)
    uri = f"feed://{feed}/~{subfeed.name_hash}"
    messages = iter(subfeed)
    if not _begins_alike(live, messages):
        problem = "the subfeed has other messages here already, so nothing was appended"
        return Imported(uri, OWN, uri, 0, problem)
    while batch := list(itertools.islice(messages, _BATCH)):
        live.append_legacy([one.text.encode() for one in batch], [one.time_ms for one in batch])
    return Imported(uri, OWN, uri if subfeed.count else None, subfeed.count, subfeed.problem)


def _begins_alike(live: LiveSubfeed, messages: Iterator[SignedMessage]) -> bool:
    """Whether all messages that the new log has are the first of these, which are then taken."""
    position, size = 0, live.local_size()
    while position < size:
        told = live.read(position, 0, 0.0, signed=True).told
        if not told:
            return False
        for one in told:
            message = next(messages, None)
            if message is None or message.text != one.text:
                return False
        position += len(told)
    return True
