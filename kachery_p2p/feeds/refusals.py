"""Why a subfeed takes or gives nothing, as it is said to people."""

from __future__ import annotations

from kachery_p2p.errors import (
    EntryDamagedError,
    FeedBehindError,
    FeedEndedError,
    FeedForkedError,
    FeedReadOnlyError,
    FeedRestoredError,
    FeedStoppedError,
)
from kachery_p2p.feeds.writers import Standing


def read_only() -> FeedReadOnlyError:
    """It is somebody else's."""
    return FeedReadOnlyError(
        # The first words are those that programs of the older packages look for.
        "Cannot append messages to a readonly feed",
        hint="only the node that made the feed appends; submit the message to it",
    )


def restored() -> FeedRestoredError:
    """Another copy with the key may have gone on."""
    return FeedRestoredError(
        "this copy of the feed was restored or cloned, and another may have gone on",
        hint="start the node where its members are, or, if no other copy is in use, "
        "say so with `kachery-p2p feed resume --only-copy`",
    )


def behind(known: int, here: int) -> FeedBehindError:
    """Another copy with the key has gone on."""
    return FeedBehindError(
        f"a copy of the feed with {known} messages exists, this one has {here}",
        hint="let it catch up; if both copies still write, stop one of them",
    )


def shut(standing: Standing) -> FeedBehindError | FeedForkedError | FeedEndedError:
    """The same, and why else nobody may append, as far as it can be said without the node."""
    if standing is Standing.FORKED:
        return FeedForkedError(
            "the feed's key has signed two histories",
            hint="start the node, and see `kachery-p2p feed status`",
        )
    if standing is Standing.ENDED:
        return FeedEndedError(
            "the feed was ended", hint="start the node, which knows the feed that goes on"
        )
    return FeedBehindError(
        "a longer copy of the feed exists",
        hint="start the node, and let it catch up; if both copies still write, stop one of them",
    )


def stopped() -> FeedStoppedError:
    """The disk failed."""
    return FeedStoppedError(
        "the disk failed while the last messages were written, so no more are taken",
        hint="see that the disk is well, then restart the node",
    )


def damaged(position: int) -> EntryDamagedError:
    """A bit has flipped."""
    return EntryDamagedError(
        f"message {position} on this disk is damaged",
        hint="it is fetched anew as soon as a node that has it is connected",
        positions=[position],
    )
