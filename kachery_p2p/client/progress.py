"""Progress of a load, for people: a line on a terminal, a bar in a notebook, else nothing.

It never breaks a load: whatever goes wrong here ends the showing, not the loading.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from kachery_p2p.client.wording import human_bytes, human_seconds, printable

# What takes no longer than this is not worth a line.
QUIET_S = 1.0


class Reporter:
    """Told how far the daemon is; shows it once the load has taken more than a second."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._shown: _Line | _Bar | None = None
        self._silent = False

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._shown is not None:
            with contextlib.suppress(Exception):
                self._shown.close()

    def tell(self, update: dict[str, Any]) -> None:
        """One update of the daemon's."""
        elapsed_s = time.monotonic() - self._started_s
        if self._silent or elapsed_s < QUIET_S or update.get("bytes") is None:
            return
        try:
            if self._shown is None:
                self._shown = _choose()
            if self._shown is None:
                self._silent = True
            else:
                self._shown.show(update, elapsed_s)
        except Exception:
            self._silent = True


def _choose() -> _Line | _Bar | None:
    if "ipykernel" in sys.modules:
        return _Bar()
    return _Line() if sys.stderr is not None and sys.stderr.isatty() else None


class _Line:
    """One line on the terminal, written over again and wiped in the end."""

    def show(self, update: dict[str, Any], elapsed_s: float) -> None:
        width = os.get_terminal_size(sys.stderr.fileno()).columns
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
        self._bar.set_description_str(_serving(update.get("sources") or []), refresh=False)
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
