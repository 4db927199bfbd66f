"""Progress for people to look at: a line on a terminal, tqdm's bar in a notebook.

What others chose (labels) is escaped: nothing of it steers a terminal or a page.
"""

from __future__ import annotations

import os
import sys
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TextIO

from kachery_p2p.client.events import Progress, ProgressSource
from kachery_p2p.client.wording import counted, human_bytes, human_seconds, printable

# Of a name so much is shown: labels may have 64 characters.
NAME_COLUMNS_MAX = 24
# A drawn bar has so many columns, on terminals that have so many to spare.
BAR_COLUMNS = 20
BAR_FROM_COLUMNS = 100
# What a terminal has that does not say.
COLUMNS = 80

_DOING = {
    "asking": "asking who has it",
    "hashing": "hashing what is here: ",
    "finishing": "finishing: ",
    "copying": "copying: ",
    "sending": "sending to the daemon: ",
}
_AT_WORK = ("serving", "late")


class Shown(Protocol):
    """Something that people look at."""

    def show(self, progress: Progress) -> None: ...

    def close(self) -> None:
        """Nothing of it stays that would be in the way."""


def bar_for_now(*, always: bool = False) -> Shown | None:
    """What fits where this process speaks to people; None if it does not, unless `always`."""
    if is_notebook():
        try:
            return NotebookBar()
        except ImportError:
            return Line(sys.stderr) if always else None
    if sys.stderr is None:
        return None
    return Line(sys.stderr) if always or sys.stderr.isatty() else None


def is_notebook() -> bool:
    """Whether this is the kernel of a notebook. Imports nothing."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")


class Line:
    """One line, written over again, and wiped in the end if it is on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._on_terminal = stream.isatty()
        self._begun = False
        self._width = 0

    def show(self, progress: Progress) -> None:
        text = fitted(progress, self._columns() - 1)
        padding = " " * (self._width - columns_of(text))
        # Before it is written: Ctrl-C may come at any moment, and then it is to be wiped.
        self._begun, self._width = True, columns_of(text)
        self._write("\r\x1b[K" + text if self._on_terminal else "\r" + text + padding)

    def close(self) -> None:
        if self._begun:
            self._write("\r\x1b[K" if self._on_terminal else "\n")

    def _columns(self) -> int:
        if not self._on_terminal:
            return COLUMNS
        # 0 is what a terminal says that was never told its size.
        return os.get_terminal_size(self._stream.fileno()).columns or COLUMNS

    def _write(self, text: str) -> None:
        # A terminal that knows no accents gets them escaped, not an error.
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        self._stream.flush()


class NotebookBar:
    """tqdm's bar. ImportError if it is not installed."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            # Without ipywidgets it warns, and is a line of text.
            warnings.simplefilter("ignore")
            from tqdm.auto import tqdm

            self._bar: Any = tqdm(unit="B", unit_scale=True)
        self._phase = ""

    def show(self, progress: Progress) -> None:
        if progress.phase != self._phase:
            self._phase = progress.phase
            self._bar.reset(total=progress.size)
        self._bar.total = progress.size
        self._bar.set_description_str(_described(progress), refresh=False)
        self._bar.update(progress.bytes - self._bar.n)
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()


def _described(progress: Progress) -> str:
    what = _DOING.get(progress.phase, "").rstrip(": ")
    return ", ".join(part for part in (what, _files(progress), _serving(progress)) if part)


# --- one line -----------------------------------------------------------------------------


def fitted(progress: Progress, columns: int) -> str:
    """As much of what there is to say as fits on a line of that width."""
    for text in _shorter_and_shorter(progress):
        if columns_of(text) <= columns:
            return f"{_drawn(progress, columns - columns_of(text))}{text}"
    return text[: max(columns, 0)] if text.isascii() else ""


def _shorter_and_shorter(progress: Progress) -> Iterator[str]:
    doing, done = _DOING.get(progress.phase, ""), _done(progress)
    if progress.phase == "asking" and not progress.bytes:
        yield ", ".join(part for part in (doing, _files(progress)) if part)
        yield "asking"
        return
    files, rate, left = _files(progress), f"{human_bytes(progress.rate)}/s", _left(progress)
    variants: tuple[tuple[str, ...], ...] = (
        (doing + done, files, rate, left, _serving(progress)),
        (doing + done, files, rate, left, _serving_count(progress)),
        (done, files, rate, left),
        (done, files, left),
        (done,),
        (human_bytes(progress.bytes),),
    )
    for parts in variants:
        yield ", ".join(part for part in parts if part)


def _done(progress: Progress) -> str:
    of = "" if progress.size is None else f" of {human_bytes(progress.size)}"
    return human_bytes(progress.bytes) + of


def _files(progress: Progress) -> str:
    if progress.files_total is None:
        return ""
    return f"{progress.files or 0} of {counted(progress.files_total, 'file')}"


def _left(progress: Progress) -> str:
    if progress.waiting_for is not None:
        return f"waiting for {printable(progress.waiting_for)}"
    return "" if progress.eta_s is None else f"{human_seconds(progress.eta_s)} left"


def _drawn(progress: Progress, room: int) -> str:
    if not progress.size or room < BAR_COLUMNS + 3 or room + columns_of(_done(progress)) < 40:
        return ""
    full = min(BAR_COLUMNS * progress.bytes // progress.size, BAR_COLUMNS)
    return f"[{'#' * full}{'-' * (BAR_COLUMNS - full)}] "


# --- who serves ---------------------------------------------------------------------------


def _at_work(progress: Progress) -> list[ProgressSource]:
    return [source for source in progress.sources if source.state in _AT_WORK]


def _serving(progress: Progress) -> str:
    names = [source.name for source in _at_work(progress)]
    known = [_cut(printable(name)) for name in names if name is not None]
    if len(known) < len(names) or not names:
        return _serving_count(progress)
    more = f" and {len(known) - 3} more" if len(known) > 3 else ""
    return "from " + ", ".join(known[:3]) + more


def _serving_count(progress: Progress) -> str:
    count = len(_at_work(progress))
    return f"from {counted(count, 'peer')}" if count else ""


def _cut(text: str) -> str:
    while columns_of(text) > NAME_COLUMNS_MAX:
        text = text[:-1]
    return text


def columns_of(text: str | Sequence[str]) -> int:
    """How wide it is on a terminal: characters of East Asia take two columns."""
    return sum(1 + (unicodedata.east_asian_width(char) in "WF") for char in text)
