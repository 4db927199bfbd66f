"""Progress of one call: what the daemon tells and what is counted here, for whoever looks.

A bar never breaks a load or a store: whatever goes wrong there ends the showing, not the
work. A function of the user's does: what it raises is what the call raises.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from kachery_p2p.client.bars import Shown, bar_for_now
from kachery_p2p.client.events import (
    Progress,
    ProgressArg,
    ProgressSource,
    check_progress_arg,
)

if TYPE_CHECKING:
    from typing import Self

# The phases of what is done here.
STORING = "storing"
SENDING = "sending"
COPYING = "copying"
LOCAL = "local"

# What takes no longer than this is not worth a line.
QUIET_S = 1.0
# Nobody reads faster; and ten thousand small files a second would be slowed down by it.
SHOWN_EVERY_S = 0.1


class _Ended(BaseException):
    """What a user's function raised, on its way out through everything that handles errors."""

    def __init__(self, raised: BaseException) -> None:
        super().__init__()
        self.raised = raised


class Reporter:
    """Told how far a call is; shows it as the argument `progress` says. Used with `with`.

    `files_total` is for calls about many files. Counts may come from any thread; they are shown,
    and a function called, in the thread that made it.
    """

    def __init__(self, progress: ProgressArg = None, *, files_total: int | None = None) -> None:
        """UnsupportedValueError for a `progress` that is none."""
        check_progress_arg(progress)
        self._function = progress if callable(progress) else None
        self._bars = progress is None or progress is True
        self._always = progress is True
        self._thread = threading.get_ident()
        self._shown: Shown | None = None
        self._began_s = time.monotonic()
        self._next_s = self._began_s + (QUIET_S if progress is None else 0.0)
        self._latest = Progress("asking", files_total=files_total)
        # Of files that were told of one by one.
        self._files = None if files_total is None else 0
        self._files_bytes = 0
        # Of what is counted here, in this phase.
        self._counting = threading.Lock()
        self._counted_bytes, self._counts = 0, False
        self._phase_began_s = self._began_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._shown is not None:
            with contextlib.suppress(Exception):
                self._shown.close()
        if isinstance(error, _Ended):
            raise error.raised from None
        if error is None and self._function is not None:
            self._function(self._last())

    # --- what it is told ----------------------------------------------------------------

    def tell(self, update: dict[str, Any]) -> None:
        """One update, as the daemon sends them: of the call, or of one of its files."""
        if update.get("phase") is None and update.get("bytes") is None:
            return
        told = _told(update, time.monotonic() - self._began_s)
        if self._files is not None and told.files_total is None:
            told = told._replace(
                bytes=self._files_bytes + told.bytes,
                size=None,
                eta_s=None,
                files=self._files,
                files_total=self._latest.files_total,
            )
        self._show(told)

    def expect(self, files_total: int) -> None:
        """It turned out that the call is about so many files."""
        self._files = 0
        self._latest = self._latest._replace(files=0, files_total=files_total)

    def file_done(self, byte_count: int = 0) -> None:
        """One more of the files is here, with so many bytes."""
        self._files = (self._files or 0) + 1
        self._files_bytes += byte_count
        done = self._counted_bytes if self._counts else self._files_bytes
        self._show(self._latest._replace(files=self._files, bytes=done))

    def begin(self, phase: str, size: int | None = None) -> None:
        """From now on bytes are counted here, up to `size` if that is known."""
        self._phase_began_s = time.monotonic()
        self._counted_bytes, self._counts = 0, True
        last = self._latest
        self._show(Progress(phase, size=size, files=last.files, files_total=last.files_total))

    def count(self, byte_count: int) -> None:
        """So many more bytes are done; in any thread."""
        with self._counting:
            self._counted_bytes += byte_count
        if threading.get_ident() == self._thread and time.monotonic() >= self._next_s:
            self._show(self._counted())

    def counted(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """The pieces, counted as they are taken."""
        for piece in pieces:
            yield piece
            self.count(len(piece))

    def _counted(self) -> Progress:
        done, last = self._counted_bytes, self._latest
        seconds = time.monotonic() - self._phase_began_s
        rate = done / seconds if seconds > 0 else 0.0
        # What is counted may have grown since its size was looked at.
        size = None if last.size is None else max(last.size, done)
        left_s = None if size is None or not rate else (size - done) / rate
        return last._replace(bytes=done, size=size, rate=rate, eta_s=left_s)

    def _last(self) -> Progress:
        """The end of a call that succeeded."""
        last = self._latest
        done = max(last.bytes, last.size or 0, self._counted_bytes)
        return last._replace(
            phase="done",
            bytes=done,
            size=done,
            eta_s=0.0,
            elapsed_s=time.monotonic() - self._began_s,
            waiting_for=None,
            files=last.files_total,
        )

    # --- what it shows ------------------------------------------------------------------

    def _show(self, progress: Progress) -> None:
        new_phase = progress.phase != self._latest.phase
        self._latest = progress
        now = time.monotonic()
        # A function hears of every phase, however short.
        if now < self._next_s and not (new_phase and self._function is not None):
            return
        self._next_s = now + SHOWN_EVERY_S
        progress = progress._replace(elapsed_s=now - self._began_s)
        if self._function is not None:
            try:
                self._function(progress)
            except BaseException as error:
                raise _Ended(error) from None
        elif self._bars:
            self._show_bar(progress)

    def _show_bar(self, progress: Progress) -> None:
        try:
            if self._shown is None:
                self._shown = bar_for_now(always=self._always)
            if self._shown is None:
                self._bars = False
            else:
                self._shown.show(progress)
        except Exception:
            self._bars = False


def _told(update: dict[str, Any], elapsed_s: float) -> Progress:
    """What the daemon says. An older one says bytes, size and names only."""
    rate, done = update.get("rate"), update.get("bytes") or 0
    sources = update.get("by_source")
    if sources is None:
        sources = [{"name": name, "state": "serving"} for name in update.get("sources") or ()]
    return Progress(
        phase=update.get("phase") or "fetching",
        bytes=done,
        size=update.get("size"),
        rate=done / elapsed_s if rate is None and elapsed_s > 0 else rate or 0.0,
        eta_s=update.get("eta_s"),
        reused=update.get("reused") or 0,
        wasted=update.get("wasted") or 0,
        waiting_for=update.get("waiting_for"),
        sources=tuple(map(_source, sources)),
        files=update.get("files"),
        files_total=update.get("files_total"),
    )


def _source(told: dict[str, Any]) -> ProgressSource:
    return ProgressSource(
        node_id=told.get("node_id"),
        name=told.get("name"),
        channel=told.get("channel"),
        state=told["state"],
        rate=told.get("rate") or 0.0,
        bytes=told.get("bytes") or 0,
        wasted=told.get("wasted") or 0,
    )
