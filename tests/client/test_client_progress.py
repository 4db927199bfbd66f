"""`progress=` of loads and stores: what a function is told, and what becomes of its errors."""

from __future__ import annotations

import io
import os
import sys
import threading
import time
import types
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import kachery_p2p as kp
from kachery_p2p.client import progress as client_progress
from kachery_p2p.client.progress import Reporter
from kachery_p2p.errors import (
    DaemonDownError,
    LoadFilesError,
    NotFoundError,
    UnsupportedValueError,
)
from kachery_p2p.limits import CHUNK_BYTES
from kachery_p2p.store.hashing import hash_bytes

Fake = Any
Call = Any
DATA = os.urandom(3 * CHUNK_BYTES)
SOURCE = {
    "node_id": "ab" * 32,
    "name": "lab-pc (abababab)",
    "channel": "lab",
    "state": "serving",
    "rate": 2.0e6,
    "bytes": 1 << 20,
    "wasted": 5,
}
UPDATE = {
    "phase": "fetching",
    "waiting_for": None,
    "bytes": 1 << 20,
    "size": 3 << 20,
    "reused": 7,
    "wasted": 5,
    "rate": 2.0e6,
    "eta_s": 1.5,
    "by_source": [SOURCE],
}


class Stop(Exception):
    """Raised by a function of the user's."""


class Events(list[kp.Progress]):
    """A function that keeps what it is told, and where it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()

    def __call__(self, event: kp.Progress) -> None:
        self.append(event)
        self.threads.add(threading.get_ident())

    @property
    def phases(self) -> list[str]:
        return list(dict.fromkeys(event.phase for event in self))


def telling(*updates: dict[str, Any]) -> Callable[[Call], Awaitable[None]]:
    """The daemon tells these, and waits until each is sent."""

    async def tell(call: Call) -> None:
        for update in updates:
            call.progress(update)
            await trio.sleep(0.25)

    return tell


# --- loads ------------------------------------------------------------------------------------


def test_a_function_is_told_at_first_meanwhile_and_in_the_end(daemon: Fake) -> None:
    uri = f"sha1://{daemon.give_network(DATA)}"
    daemon.on_load = telling(UPDATE, {**UPDATE, "phase": "finishing", "bytes": 3 << 20})
    events = Events()
    assert Path(kp.load_file(uri, progress=events)).read_bytes() == DATA
    assert events.phases == ["fetching", "finishing", "done"]
    told = next(event for event in events if event.eta_s == 1.5)
    assert (told.bytes, told.size, told.reused, told.wasted) == (1 << 20, 3 << 20, 7, 5)
    (source,) = told.sources
    assert source._asdict() == SOURCE
    last = events[-1]
    assert (last.finished, last.bytes, last.size, last.eta_s) == (True, 3 << 20, 3 << 20, 0.0)
    assert [event.finished for event in events[:-1]] == [False] * (len(events) - 1)
    assert events.threads == {threading.get_ident()}
    assert [e.elapsed_s for e in events] == sorted(e.elapsed_s for e in events)


def test_an_event_cannot_be_changed(daemon: Fake) -> None:
    events = Events()
    kp.store_text("x", channels=[])
    kp.load_text(kp.store_text("x", channels=[]), progress=events)
    with pytest.raises(AttributeError):
        events[0].bytes = 5  # type: ignore[misc]


def test_an_older_daemon_that_tells_less_is_understood(daemon: Fake) -> None:
    uri = f"sha1://{daemon.give_network(DATA)}"
    daemon.on_load = telling({"bytes": 9, "size": 10, "sources": ["lab-pc"], "verified": 9})
    events = Events()
    kp.load_file(uri, progress=events)
    assert (events[0].phase, events[0].sources[0].name) == ("fetching", "lab-pc")


def test_what_is_stored_here_is_told_once_more_at_the_end_and_asks_nobody(daemon: Fake) -> None:
    uri = kp.store_text("here", channels=[])
    daemon.operations.clear()
    events = Events()
    assert kp.load_text(uri, progress=events) == "here"
    assert events[-1].finished and events[-1].bytes == 4
    assert daemon.operations == []


@pytest.mark.parametrize("load", [kp.load_text, kp.load_json, kp.load_npy, kp.load_pkl])
def test_values_tell_too(daemon: Fake, load: Callable[..., Any]) -> None:
    store = {
        "load_text": lambda: kp.store_text("x", channels=[]),
        "load_json": lambda: kp.store_json([1], channels=[]),
        "load_npy": lambda: kp.store_npy(__import__("numpy").zeros(3), channels=[]),
        "load_pkl": lambda: kp.store_pkl({"a": 1}, channels=[]),
    }
    events = Events()
    load(store[load.__name__](), progress=events)
    assert events[-1].finished


def test_a_range_tells_its_own_bytes(daemon: Fake) -> None:
    uri = f"sha1://{daemon.give_network(DATA)}?root={hash_bytes(DATA).root}"
    daemon.on_load = telling({**UPDATE, "bytes": 10, "size": 100})
    events = Events()
    assert kp.load_bytes(uri, 0, 100, progress=events) == DATA[:100]
    assert (events[0].bytes, events[0].size) == (10, 100)
    assert (events[-1].bytes, events[-1].finished) == (100, True)


def test_a_daemon_with_another_store_tells_of_the_copy_as_well(distant: Fake) -> None:
    uri = f"sha1://{distant.give_network(DATA)}"
    distant.on_load = telling(UPDATE)
    events = Events()
    kp.load_file(uri, progress=events)
    assert events.phases == ["fetching", "copying", "done"]
    assert events[-1].bytes == len(DATA)


def test_a_daemon_on_another_machine_tells_as_well(remote: Fake) -> None:
    uri = f"sha1://{remote.give_network(DATA)}"
    remote.on_load = telling(UPDATE)
    events = Events()
    kp.load_file(uri, progress=events)
    assert events.phases == ["fetching", "copying", "done"]


# --- what a function raises -------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        Stop("enough"),
        OSError("a full disk of the user's"),
        TimeoutError("the user's own"),
        DaemonDownError("ours, but raised by them"),
        KeyboardInterrupt(),
        ValueError("x"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("where", ["daemon", "distant", "remote"])
def test_what_a_function_raises_ends_the_load_and_is_raised(
    request: pytest.FixtureRequest, where: str, error: BaseException
) -> None:
    fake: Fake = request.getfixturevalue(where)
    uri = f"sha1://{fake.give_network(DATA)}"
    left = threading.Event()

    async def on_load(call: Call) -> None:
        try:
            call.progress(UPDATE)
            await trio.sleep_forever()
        finally:
            left.set()

    fake.on_load = on_load

    def fail(event: kp.Progress) -> None:
        if event.bytes == UPDATE["bytes"]:
            raise error

    with pytest.raises(type(error)) as raised:
        kp.load_file(uri, progress=fail)
    assert raised.value is error
    assert raised.traceback[-1].name == "fail", "it says where it was raised"
    assert left.wait(10), "the daemon's part of the call has ended"
    fake.on_load = None
    assert Path(kp.load_file(uri)).read_bytes() == DATA


def test_it_is_no_error_of_one_file_among_many(daemon: Fake) -> None:
    uris = [f"sha1://{daemon.give_network(bytes([n]) * 9)}" for n in range(3)]

    def fail(event: kp.Progress) -> None:
        raise NotFoundError("raised by the user's function")

    with pytest.raises(NotFoundError) as raised:
        kp.load_files(uris, progress=fail)
    assert not isinstance(raised.value, LoadFilesError)


def test_a_store_ends_too_and_leaves_nothing_half_done(
    daemon: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_progress, "SHOWN_EVERY_S", 0)
    (tmp_path / "big").write_bytes(os.urandom(40 * CHUNK_BYTES))

    def fail(event: kp.Progress) -> None:
        if event.bytes:
            raise Stop

    with pytest.raises(Stop):
        kp.store_file(tmp_path / "big", channels=[], progress=fail)
    assert not [path for path in (tmp_path / "store" / "sha1").rglob("*") if path.is_file()]
    assert not [path for path in (tmp_path / "store" / ".tmp").rglob("*") if path.is_file()]
    assert kp.load_file(kp.store_file(tmp_path / "big", channels=[]))


def test_a_function_may_ask_the_daemon_something_meanwhile(daemon: Fake) -> None:
    uri = f"sha1://{daemon.give_network(DATA)}"
    other = f"sha1://{daemon.give_network(b'another')}"
    daemon.on_load = telling(UPDATE)
    asked: list[str] = []

    def ask(event: kp.Progress) -> None:
        if not asked:
            asked.append(kp.get_node_id())
            daemon.on_load = None
            asked.append(kp.load_text(other))

    assert Path(kp.load_file(uri, progress=ask)).read_bytes() == DATA
    assert asked == ["12" * 32, "another"]


def test_a_function_that_is_slow_gets_the_newest_and_holds_up_nobody(daemon: Fake) -> None:
    uri = f"sha1://{daemon.give_network(DATA)}"
    released, done = threading.Event(), threading.Event()
    last = 400

    async def on_load(call: Call) -> None:
        for count in range(last + 1):
            call.progress({**UPDATE, "bytes": count})
            await trio.lowlevel.checkpoint()
            if count == 1:
                # The function has it now, and does not return before all is told.
                await trio.to_thread.run_sync(released.wait)
        done.set()

    daemon.on_load = on_load
    seen: list[int] = []

    def slow(event: kp.Progress) -> None:
        seen.append(event.bytes)
        if event.bytes == 1 and not event.finished:
            released.set()
            assert done.wait(10), "the daemon waited for the client"

    kp.load_file(uri, progress=slow)
    assert len(seen) < 20, "what was told meanwhile is gone"


# --- many -------------------------------------------------------------------------------------


def test_many_files_are_counted(daemon: Fake) -> None:
    uris = [f"sha1://{daemon.give_network(bytes([n]) * 1000)}" for n in range(5)]
    events = Events()
    kp.load_files(uris, progress=events)
    assert {event.files_total for event in events} == {5}
    counts = [event.files or 0 for event in events]
    assert counts == sorted(counts) and counts[-1] == 5
    assert events[-1].finished


def test_stored_files_are_counted(daemon: Fake, tmp_path: Path) -> None:
    names = [tmp_path / f"{number}.bin" for number in range(80)]
    for name in names:
        name.write_bytes(os.urandom(1000))
    events = Events()
    kp.store_files(names, channels=[], progress=events)
    assert events.phases == ["storing", "done"]
    last = events[-1]
    assert (last.files, last.files_total, last.bytes) == (80, 80, 80_000)
    assert events.threads == {threading.get_ident()}


def test_a_directory_tells_of_its_files_there_and_back(daemon: Fake, tmp_path: Path) -> None:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    for number in range(4):
        (tmp_path / "tree" / "sub" / str(number)).write_bytes(os.urandom(500 + number))
    stored, loaded = Events(), Events()
    uri = kp.store_dir(tmp_path / "tree", channels=[], progress=stored)
    assert (stored[-1].files_total, stored[-1].bytes, stored[-1].finished) == (4, 2006, True)
    kp.load_dir(uri, tmp_path / "out", progress=loaded)
    assert "copying" in loaded.phases
    assert (loaded[-1].files, loaded[-1].files_total, loaded[-1].finished) == (4, 4, True)
    assert loaded[-1].bytes == 2006


def test_a_store_by_a_daemon_with_another_store_is_told_by_it(
    distant: Fake, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(DATA)
    events = Events()
    kp.store_file(tmp_path / "file", channels=[], progress=events)
    assert events[-1].finished and events[-1].bytes == len(DATA)


def test_what_is_sent_to_another_machine_is_counted(remote: Fake, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    events = Events()
    kp.store_file(tmp_path / "file", progress=events)
    assert events.phases == ["storing", "sending", "done"]
    assert events[-1].bytes == len(DATA) and remote.put_in


# --- what else it may be ----------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [1, "yes", 0, [], object()])
def test_anything_else_is_refused_before_anything_is_done(
    daemon: Fake, tmp_path: Path, wrong: Any
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    uri = "sha1://" + "0" * 40
    with pytest.raises(UnsupportedValueError):
        kp.load_file(uri, progress=wrong)
    with pytest.raises(UnsupportedValueError):
        kp.load_files([uri], progress=wrong)
    with pytest.raises(UnsupportedValueError):
        kp.load_bytes(uri, 0, 1, progress=wrong)
    with pytest.raises(UnsupportedValueError):
        kp.store_file(tmp_path / "file", channels=[], progress=wrong)
    assert "load" not in daemon.operations and "store" not in daemon.operations


class Shown:
    """Stands for a line or a bar."""

    def __init__(self) -> None:
        self.seen: list[kp.Progress] = []
        self.closed = 0

    def show(self, progress: kp.Progress) -> None:
        self.seen.append(progress)

    def close(self) -> None:
        self.closed += 1


def test_the_first_second_is_silent_and_then_little_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown, now = Shown(), 50.0
    monkeypatch.setattr(client_progress, "bar_for_now", lambda always: shown)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Reporter() as reporter:
        reporter.begin("storing", 300)
        for _ in range(300):
            now += 0.01
            reporter.count(1)
    told = [progress.bytes for progress in shown.seen]
    assert told[0] in (100, 101)
    assert 18 <= len(told) <= 21
    assert shown.closed == 1


def test_true_shows_at_once_false_never(monkeypatch: pytest.MonkeyPatch) -> None:
    for progress, count in ((True, 1), (False, 0), (None, 0)):
        shown = Shown()
        monkeypatch.setattr(client_progress, "bar_for_now", lambda always, s=shown: s)
        with Reporter(progress) as reporter:
            reporter.begin("storing", 5)
        assert len(shown.seen) == count


def test_a_bar_that_fails_never_breaks_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Shown):
        def show(self, progress: kp.Progress) -> None:
            super().show(progress)
            raise OSError("the terminal is gone")

        def close(self) -> None:
            raise OSError("still gone")

    broken = Broken()
    monkeypatch.setattr(client_progress, "bar_for_now", lambda always: broken)
    monkeypatch.setattr(client_progress, "SHOWN_EVERY_S", 0)
    with Reporter(True) as reporter:
        reporter.begin("storing", 5)
        reporter.count(1)
        reporter.count(1)
    assert len(broken.seen) == 1, "it is left alone after that"


def test_counts_of_other_threads_are_shown_in_the_one_that_calls() -> None:
    events = Events()
    with Reporter(events) as reporter:
        reporter.begin("storing", 8000)

        def work() -> None:
            for _ in range(1000):
                reporter.count(1)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert events.threads == {threading.get_ident()}
    assert events[-1].bytes == 8000


def test_in_a_script_there_is_nothing(
    daemon: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(client_progress, "QUIET_S", 0)
    (tmp_path / "file").write_bytes(DATA)
    kp.store_file(tmp_path / "file", channels=[])
    kp.load_file(f"sha1://{daemon.give_network(b'over there')}")
    assert screen.getvalue() == ""


def test_a_notebook_has_one_bar_for_a_call(daemon: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Bar:
        def __init__(self, **_: Any) -> None:
            self.n, self.total, self.closed = 0, None, False
            made.append(self)

        def reset(self, total: int | None) -> None:
            self.n = 0

        def set_description_str(self, text: str, refresh: bool) -> None:
            self.text = text

        def update(self, count: int) -> None:
            self.n += count

        def refresh(self) -> None:
            pass

        def close(self) -> None:
            self.closed = True

    ipython, auto = types.ModuleType("IPython"), types.ModuleType("tqdm.auto")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=1)  # type: ignore[attr-defined]
    auto.tqdm = Bar  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "tqdm.auto", auto)
    monkeypatch.setattr(client_progress, "QUIET_S", 0)
    daemon.on_load = telling(UPDATE)
    kp.load_file(f"sha1://{daemon.give_network(DATA)}")
    (bar,) = made
    assert (bar.n, bar.total, bar.closed) == (1 << 20, 3 << 20, True)
    assert bar.text == "from lab-pc (abababab)"
