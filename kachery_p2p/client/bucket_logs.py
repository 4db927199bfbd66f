"""How far the feeds and the history of a channel are in its bucket."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from kachery_p2p.client import settings
from kachery_p2p.client.wording import counted

if TYPE_CHECKING:
    from kachery_p2p.client.uploading import KnownBucket


class LogState(NamedTuple):
    """One log that this node keeps in a bucket."""

    # "feed" or "history".
    kind: str
    # The feed's URI; the channel's name.
    name: str
    # Entries on this node, and in the bucket, when that was last looked at.
    here: int
    there: int
    # Why it is not there yet, if it was tried in vain.
    said: str | None


def logs_of(known: KnownBucket) -> list[LogState]:
    """All of them; none if this node has put none there."""
    from kachery_p2p.bucket.log_book import LogBook, book_path
    from kachery_p2p.bucket.queue import place_of
    from kachery_p2p.bucket.urls import parse_bucket_url

    path = book_path(settings.config_dir())
    if not os.path.exists(path):
        return []
    book = LogBook(path)
    try:
        node = parse_bucket_url(known.settings.urls[0]).node
        kept = book.in_place(place_of(node, known.channel.id))
        return [LogState(one.kind, one.name, one.here, one.there, one.said) for one in kept]
    finally:
        book.close()


def summed(logs: list[LogState]) -> list[str]:
    """A line for the feeds, and one for the history."""
    lines = []
    feeds = [log for log in logs if log.kind == "feed"]
    if feeds:
        there, waiting = sum(log.there for log in feeds), _waiting(feeds)
        lines.append(f"feeds: {len(feeds)}, {counted_entries(there)} there{waiting}")
    for log in logs:
        if log.kind == "history":
            lines.append(f"history: {counted_entries(log.there)} there{_waiting([log])}")
    return lines


def counted_entries(number: int) -> str:
    """`1 entry`, `2 entries`."""
    return f"{number:,} entr{'y' if number == 1 else 'ies'}"


def _waiting(logs: list[LogState]) -> str:
    waiting = sum(max(log.here - log.there, 0) for log in logs)
    failing = sum(log.said is not None for log in logs)
    told = f", {waiting:,} waiting" if waiting else ""
    return f"{told}, {counted(failing, 'log')} failing" if failing else told
