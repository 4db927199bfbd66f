"""Watching many subfeeds at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kachery_p2p.client.feed_calls import LiveSubfeed, call
from kachery_p2p.client.subfeeds import Subfeed
from kachery_p2p.errors import UnsupportedValueError
from kachery_p2p.limits import FEED_WATCHED_MAX


def watch_for_new_messages(
    watches: Mapping[Any, Any], wait_msec: float, signed: bool = False
) -> dict[Any, list[Any]]:
    """New messages of whichever subfeeds have some, by the keys of `watches`.

    Each watch is a Subfeed, which is read from its position, or {"feedId", "position"} with
    "subfeedName" or "subfeedHash". As soon as one has messages they are told, up to 4,096 of
    each; if none has any within `wait_msec`, none are. No position moves: that is the caller's,
    who knows which messages it has dealt with.
    """
    if len(watches) > FEED_WATCHED_MAX:
        raise UnsupportedValueError(
            f"{len(watches):,} subfeeds are more than one call watches",
            hint=f"watch at most {FEED_WATCHED_MAX:,} at a time",
        )
    if not watches:
        return {}
    keys = list(watches)
    asked = [_watched(watches[key]) for key in keys]
    body = {
        "watches": [
            {"feed": live.feed_id, "name_hash": live.name_hash, "position": position}
            for live, position in asked
        ],
        "wait_s": max(wait_msec, 0) / 1000,
    }
    found = call("feed_watch", body)["found"]
    return {keys[n]: _read(*asked[n], signed=signed) for n in found if n < len(keys)}


def _read(live: LiveSubfeed, position: int, *, signed: bool) -> list[Any]:
    return live.read(position, 0, 0.0, signed=signed).values


def _watched(watch: Any) -> tuple[LiveSubfeed, int]:
    from kachery_p2p.client.feeds import Feed
    from kachery_p2p.content.hashes import FeedId

    if not isinstance(watch, Subfeed):
        try:
            name = watch["subfeedName"] if "subfeedName" in watch else "~" + watch["subfeedHash"]
            feed = Feed(FeedId.parse(watch["feedId"]))
            watch = feed.get_subfeed(name, watch.get("position", 0))
        except (TypeError, KeyError, AttributeError):
            raise UnsupportedValueError(
                'a watch is a Subfeed, or {"feedId", "subfeedName" or "subfeedHash", "position"}'
            ) from None
    return watch.live, watch.position
