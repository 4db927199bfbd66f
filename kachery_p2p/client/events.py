"""What the argument `progress` of loads and stores may be, and what a function there is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from kachery_p2p.errors import UnsupportedValueError


class ProgressSource(NamedTuple):
    """A node that serves a load, or did. Of another user's daemon, who it is is None."""

    node_id: str | None
    # The label that it gave itself, with the beginning of its id.
    name: str | None
    # The name of the channel in which it serves.
    channel: str | None
    # "serving", "late" (nothing has come for two seconds), "left", "stalled" or "lied".
    state: str
    # Bytes a second as of late, and in all; and those that came for nothing: twice, or wrong.
    rate: float
    bytes: int
    wasted: int


class Progress(NamedTuple):
    """How far a load or a store is."""

    # "asking" (members who has it), "fetching", "hashing" (what an earlier try left, or what was
    # never hashed), "finishing" (the disk), "copying" (to where you want it), "storing",
    # "sending" (to the daemon), and at last "done".
    phase: str
    # Bytes that are there, verified, those of an earlier try (`reused`) among them; and in all,
    # None as long as that is not known. Of each phase.
    bytes: int = 0
    size: int | None = None
    # Bytes a second as of late, and seconds left at that rate; None if nobody can tell.
    rate: float = 0.0
    eta_s: float | None = None
    # Seconds since the call began.
    elapsed_s: float = 0.0
    reused: int = 0
    # Bytes that came for nothing: twice, or wrong.
    wasted: int = 0
    # What is waited for if nothing comes, like "a source"; None when all goes on.
    waiting_for: str | None = None
    # Everybody who served this, and what each brought.
    sources: tuple[ProgressSource, ...] = ()
    # Of many files in one call: those that are there, and all; None for a single one.
    files: int | None = None
    files_total: int | None = None

    @property
    def finished(self) -> bool:
        """True for the last of a call that succeeded."""
        return self.phase == "done"


# None: a bar on a terminal or in a notebook after a second, nothing in scripts. True: a bar, at
# once, wherever. False: nothing. A function is called with a Progress, in the thread of the call:
# at first, about five times a second, and in the end; what it raises ends the call.
ProgressArg: TypeAlias = bool | Callable[[Progress], object] | None


def check_progress_arg(progress: ProgressArg) -> None:
    """UnsupportedValueError for what is none."""
    if progress is not None and not isinstance(progress, bool) and not callable(progress):
        raise UnsupportedValueError(
            f"progress must be None, True, False or a function, not a {type(progress).__name__}"
        )
