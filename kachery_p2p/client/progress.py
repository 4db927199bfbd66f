"""Progress, for people: a line on a terminal, a bar in a notebook, else nothing.

It never breaks a load or a store: whatever goes wrong here ends the showing, not the work.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kachery_p2p.client.wording import human_bytes, human_seconds, printable

if TYPE_CHECKING:
    from typing import Self

# What takes no longer than this is not worth a line.
QUIET_S = 1.0
# Nobody reads faster; and ten thousand small files a second would be slowed down by it.
SHOWN_EVERY_S = 0.1


class Reporter:
    """Told how far it is; shows it once it has taken more than a second."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._next_s = QUIET_S
        self._shown: _Line | _Bar | None = None
        self._silent = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._shown is not None:
            with contextlib.suppress(Exception):
                self._shown.close()

    def tell(self, update: dict[str, Any]) -> None:
        """One update, as the daemon sends them."""
        elapsed_s = time.monotonic() - self._started_s
        if self._silent or elapsed_s < self._next_s or update.get("bytes") is None:
            return
        self._next_s = elapsed_s + SHOWN_EVERY_S
        try:
            if self._shown is None:
                self._shown = _choose()
            if self._shown is None:
                self._silent = True
            else:
                self._shown.show(update, elapsed_s)
        except Exception:
            self._silent = True


class StoreReporter(Reporter):
    """A Reporter of our own storing: called with each further number of bytes taken."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self._bytes = 0

    def __call__(self, count: int) -> None:
        self._bytes += count
        self.tell({"bytes": self._bytes, "size": max(self._size, self._bytes)})


def _choose() -> _Line | _Bar | None:
    if "ipykernel" in sys.modules:
        return _Bar()
    return _Line() if sys.stderr is not None and sys.stderr.isatty() else None


class _Line:
    """One line on the terminal, written over again and wiped in the end."""

    def show(self, update: dict[str, Any], elapsed_s: float) -> None:
        # 0 is what a terminal says that was never told its size.
        width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        sys.stderr.write("\r\x1b[K" + describe(update, elapsed_s)[: width - 1])
        sys.stderr.flush()

    def close(self) -> None:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


class _Bar:
    """tqdm's bar for notebooks."""

    def __init__(self) -> None:
        from tqdm.auto import tqdm

        self._bar = tqdm(unit="B", unit_scale=True)

    def show(self, update: dict[str, Any], elapsed_s: float) -> None:
        self._bar.total = update.get("size")
        if "sources" in update:
            self._bar.set_description_str(_serving(update["sources"] or []), refresh=False)
        self._bar.update(update["bytes"] - self._bar.n)

    def close(self) -> None:
        self._bar.close()


def describe(update: dict[str, Any], elapsed_s: float) -> str:
    """`212.4 MB of 1.0 GB, 88.0 MB/s, 9 s left, from lab-pc`."""
    done, size = update["bytes"], update.get("size")
    rate = done / elapsed_s
    parts = [human_bytes(done) + (f" of {human_bytes(size)}" if size else "")]
    parts.append(f"{human_bytes(rate)}/s")
    if size and rate > 0:
        parts.append(f"{human_seconds((size - done) / rate)} left")
    if sources := update.get("sources"):
        parts.append(_serving(sources))
    return ", ".join(parts)


def _serving(sources: Sequence[str]) -> str:
    """Who serves. Labels are other people's words: nothing in them may steer the terminal."""
    if not sources:
        return "waiting"
    names = [printable(name)[:24] for name in sources[:3]]
    more = f" and {len(sources) - 3} more" if len(sources) > 3 else ""
    return "from " + ", ".join(names) + more
