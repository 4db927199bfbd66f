"""What people see of progress, on terminals of any width, whatever others are called."""

from __future__ import annotations

import builtins
import io
import sys
import types
import unicodedata
import warnings
from typing import Any

import pytest

from kachery_p2p.client import bars
from kachery_p2p.client.bars import Line, NotebookBar, bar_for_now, columns_of, fitted, is_notebook
from kachery_p2p.client.events import Progress, ProgressSource

MB = 1_000_000


def source(name: str | None, state: str = "serving") -> ProgressSource:
    return ProgressSource("ab" * 32, name, "lab", state, 1.0, 1, 0)


HALF = Progress(
    "fetching",
    bytes=50 * MB,
    size=150 * MB,
    rate=50.0 * MB,
    eta_s=2.0,
    sources=tuple(map(source, ("a\x1b[2J", "b", "c", "d"))),
)


def test_a_line_says_bytes_rate_time_left_and_who_serves() -> None:
    said = "50.0 MB of 150.0 MB, 50.0 MB/s, 2 s left, from a\\x1b[2J, b, c and 1 more"
    assert fitted(HALF, 79) == said
    assert fitted(HALF, 120) == "[######--------------] " + said


def test_on_a_narrow_terminal_it_says_less_and_never_wraps() -> None:
    for columns in range(200):
        assert columns_of(fitted(HALF, columns)) <= columns
    assert fitted(HALF, 60) == "50.0 MB of 150.0 MB, 50.0 MB/s, 2 s left, from 4 peers"
    assert fitted(HALF, 45) == "50.0 MB of 150.0 MB, 50.0 MB/s, 2 s left"
    assert fitted(HALF, 30) == "50.0 MB of 150.0 MB, 2 s left"
    assert fitted(HALF, 20) == "50.0 MB of 150.0 MB"
    assert fitted(HALF, 10) == "50.0 MB"


def test_wide_and_combining_characters_do_not_make_a_line_longer_than_the_terminal() -> None:
    wide = HALF._replace(sources=(source("実験室" * 30), source("e\u0301" * 40)))
    for columns in range(20, 200):
        text = fitted(wide, columns)
        assert sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text) <= columns
    assert "実験室" in fitted(wide, 150)


@pytest.mark.parametrize("hostile", ["\x1b]0;title\x07", "a\rb", "a\nb", "\u202eabc", "\x9b2J"])
def test_no_label_steers_the_terminal(hostile: str) -> None:
    text = fitted(HALF._replace(sources=(source(hostile),)), 150)
    assert text.isprintable() and "from " in text
    waiting = fitted(HALF._replace(waiting_for=hostile), 150)
    assert waiting.isprintable() and "waiting for" in waiting


@pytest.mark.parametrize(
    "progress,said",
    [
        (Progress("asking"), "asking who has it"),
        (Progress("asking", files=0, files_total=7), "asking who has it, 0 of 7 files"),
        (HALF._replace(waiting_for="a source", sources=()), "waiting for a source"),
        (HALF._replace(phase="hashing", sources=()), "hashing what is here: 50.0 MB of"),
        (HALF._replace(phase="finishing", sources=()), "finishing: 50.0 MB of"),
        (HALF._replace(files=3, files_total=9), "150.0 MB, 3 of 9 files, 50.0 MB/s"),
        (HALF._replace(sources=(source("gone", "left"), source("b"))), "left, from b"),
        # Who serves a guest is not told, but how many.
        (HALF._replace(sources=(source(None), source(None))), "from 2 peers"),
        (Progress("fetching", bytes=5), "5 B, 0 B/s"),
    ],
)
def test_it_says_what_goes_on(progress: Progress, said: str) -> None:
    assert said in fitted(progress, 150)


# --- the line ---------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 99


def test_a_line_is_written_over_and_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.get_terminal_size", lambda fd: types.SimpleNamespace(columns=0))
    terminal = Terminal()
    line = Line(terminal)
    line.show(HALF)
    line.show(HALF._replace(bytes=60 * MB))
    line.close()
    pieces = terminal.getvalue().split("\r\x1b[K")
    assert [piece[:7] for piece in pieces] == ["", "50.0 MB", "60.0 MB", ""]


def test_a_line_that_never_appeared_leaves_nothing_to_wipe() -> None:
    terminal = Terminal()
    Line(terminal).close()
    assert terminal.getvalue() == ""


def test_a_terminal_without_accents_gets_them_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.get_terminal_size", lambda fd: types.SimpleNamespace(columns=150))
    terminal = Terminal("ascii")
    Line(terminal).show(HALF._replace(sources=(source("Jürgen"),)))
    assert "from J\\xfcrgen" in terminal.getvalue()


def test_where_there_is_no_terminal_a_line_has_no_escapes_and_stays() -> None:
    file = io.StringIO()
    line = Line(file)
    line.show(HALF)
    line.show(Progress("fetching", bytes=1))
    line.close()
    text = file.getvalue()
    assert "\x1b" not in text and text.endswith("\n")
    _, first, second = text.rstrip("\n").split("\r")
    assert len(second) == len(first), "nothing of the longer line is left"


# --- notebooks --------------------------------------------------------------------------------


class Bar:
    """Stands for tqdm's."""

    made: list[Bar]

    def __init__(self, **options: Any) -> None:
        self.n = 0
        self.total: int | None = None
        self.options = options
        self.description = ""
        self.resets = 0
        self.closed = False
        self.made.append(self)

    def reset(self, total: int | None) -> None:
        self.n, self.total, self.resets = 0, total, self.resets + 1

    def set_description_str(self, text: str, refresh: bool) -> None:
        self.description = text

    def update(self, count: int) -> None:
        self.n += count

    def refresh(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process looks like the kernel of one."""
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=1)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)


@pytest.fixture
def fake_tqdm(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    Bar.made = []
    auto = types.ModuleType("tqdm.auto")
    auto.tqdm = Bar  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tqdm.auto", auto)
    return Bar.made


def test_a_notebook_has_tqdms_bar(notebook: None, fake_tqdm: list[Bar]) -> None:
    bar = bar_for_now()
    assert isinstance(bar, NotebookBar)
    bar.show(HALF)
    bar.show(HALF._replace(bytes=60 * MB))
    (made,) = fake_tqdm
    assert (made.n, made.total, made.resets) == (60 * MB, 150 * MB, 1)
    assert made.description == "from a\\x1b[2J, b, c and 1 more"
    bar.show(Progress("copying", bytes=1, size=10))
    assert (made.n, made.total, made.description) == (1, 10, "copying")
    bar.close()
    assert made.closed


def test_the_real_tqdm_takes_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bar = NotebookBar()
        for count in range(0, 160, 10):
            bar.show(HALF._replace(bytes=count * MB))
        bar.close()
    assert "150M/150M" in screen.getvalue() and "from a\\x1b[2J" in screen.getvalue()


def test_a_notebook_without_tqdm_is_silent_unless_asked(
    notebook: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    assert bar_for_now() is None
    assert isinstance(bar_for_now(always=True), Line)


def test_ipython_on_a_terminal_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert not is_notebook()


def test_looking_for_a_notebook_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)

    def refuse(name: str, *_: Any) -> None:
        raise AssertionError(name)

    monkeypatch.setattr(builtins, "__import__", refuse)
    found = is_notebook()
    monkeypatch.undo()
    assert not found


def test_a_process_without_a_standard_error_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert bar_for_now(always=True) is None


def test_a_script_shows_nothing_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert bar_for_now() is None
    assert isinstance(bar_for_now(always=True), bars.Line)
