"""Feeds of kachery-cloud: one list of messages each, under `kachery-feed://ID`.

There a server kept and wrote them; here each is a signed feed of the node that created it,
with its messages in one subfeed. Who created it appends, others read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kachery_p2p.client.subfeeds import Subfeed

SUBFEED = "messages"
_SCHEME = "kachery-feed://"


class Feed:
    """A feed, and a position in it. `create_feed` and `load_feed` give one."""

    def __init__(self, *, feed_id: str, project_id: str | None) -> None:
        from kachery_p2p.client.feeds import load_feed

        self._feed_id = feed_id
        self._project_id = project_id
        self._subfeed: Subfeed = load_feed(f"feed://{feed_id}").get_subfeed(SUBFEED)

    @staticmethod
    def create(*, project_id: str | None = None) -> Feed:
        """A new feed of this node."""
        from kachery_p2p.client.feeds import create_feed

        return Feed(feed_id=create_feed().feed_id, project_id=project_id)

    @staticmethod
    def load(feed_id_or_uri: str) -> Feed:
        """The feed of that id or URI."""
        feed_id = feed_id_or_uri.strip().removeprefix(_SCHEME).partition("/")[0]
        return Feed(feed_id=feed_id, project_id=None)

    @property
    def uri(self) -> str:
        """`kachery-feed://ID`."""
        return f"{_SCHEME}{self._feed_id}"

    @property
    def feed_id(self) -> str:
        """64 hex digits."""
        return self._feed_id

    @property
    def current_message_number(self) -> int:
        """The number of the next message to read."""
        return self._subfeed.position

    def set_position(self, position: int) -> None:
        """Go to a message."""
        self._subfeed.set_position(position)

    def append_message(self, message: dict[str, Any]) -> None:
        """Append one message. FeedReadOnlyError if the feed is another node's."""
        self.append_messages([message])

    def append_messages(self, messages: Sequence[dict[str, Any]]) -> None:
        """Append messages, in their order."""
        self._subfeed.append_messages(list(messages))

    def get_next_messages(self, *, timeout_sec: float = 0) -> list[Any]:
        """The messages from the position on; waits for one if there is none."""
        return list(self._subfeed.get_next_messages(wait_msec=int(timeout_sec * 1000)))
