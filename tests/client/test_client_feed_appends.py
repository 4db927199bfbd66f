"""Appending by the client itself: beside its daemon, without one, and what the daemon notices."""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kachery_p2p as kp
from kachery_p2p.client import feed_appends
from kachery_p2p.client.daemon import UnixDaemon
from kachery_p2p.content.hashes import ContentHash, FeedId
from kachery_p2p.errors import (
    DaemonDownError,
    FeedEndedError,
    FeedReadOnlyError,
    FeedRestoredError,
)
from kachery_p2p.feeds.names import subfeed_id
from tests.client.feed_daemon import TOKEN, FeedDaemon

WAIT_MS = 20_000


@pytest.fixture
def own(environment: Path) -> Iterator[FeedDaemon]:
    """The daemon of this configuration."""
    config = environment / "config"
    config.mkdir(mode=0o700)
    with FeedDaemon(config, environment / "store") as daemon:
        yield daemon


@pytest.fixture
def main(own: FeedDaemon) -> kp.Subfeed:
    """A subfeed with one message, which the daemon has opened."""
    subfeed = kp.create_feed().get_subfeed("main")
    subfeed.append_message(0)
    return subfeed


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the daemon is asked from now on."""
    told: list[str] = []
    really = UnixDaemon.call

    def call(daemon: UnixDaemon, op: str, *args: object, **options: object) -> object:
        told.append(op)
        return really(daemon, op, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(UnixDaemon, "call", call)
    return told


def files_of(config: Path, subfeed: kp.Subfeed) -> Path:
    feed = FeedId(subfeed.uri.split("/")[2])
    name = subfeed_id(feed, ContentHash(subfeed.subfeed_hash)).hex()
    return config / "feeds" / name[:2] / name


def forget() -> None:
    """As a program that has just begun."""
    feed_appends._known.clear()


# --- with the daemon ------------------------------------------------------------------------------


def test_after_the_first_message_the_daemon_is_not_asked(
    main: kp.Subfeed, asked: list[str]
) -> None:
    assert main.append_messages([1, 2]) == [1, 2]
    assert kp.load_subfeed(main.uri).append_message(3) == 3
    assert asked == []
    assert main.get_num_messages() == 4
    assert main.get_next_messages(max_num_messages=0) == [0, 1, 2, 3]
    assert main.get_num_local_messages() == 4
    forget()
    assert main.append_message(4) == 4
    assert asked.count("feed_append") == 1


def test_what_is_appended_is_read_at_once_by_whoever_waits(main: kp.Subfeed) -> None:
    for number in range(1, 30):
        main.append_message(number)
        reader = kp.load_subfeed(main.uri)
        reader.set_position(number)
        assert reader.get_next_messages(wait_msec=WAIT_MS) == [number]


def test_a_reader_that_waits_is_woken(main: kp.Subfeed, own: FeedDaemon) -> None:
    script = (
        "import sys, time, kachery_p2p as kp\n"
        "s = kp.load_subfeed(sys.argv[1]); s.set_position(1); print('waiting', flush=True)\n"
        "print(s.get_next_messages(wait_msec=20_000), flush=True)"
    )
    command = [sys.executable, "-c", script, main.uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "waiting\n"
        main.append_message("news")
        assert reader.stdout.readline() == "['news']\n"


def test_large_batches_and_large_messages_go_the_same_way(
    main: kp.Subfeed, asked: list[str]
) -> None:
    assert main.append_messages(list(range(1, 10_001))) == list(range(1, 10_001))
    assert main.append_message("x" * 1_000_000) == 10_001
    assert asked == []
    assert main.get_next_messages() == [*range(10_001), "x" * 1_000_000]


def test_another_way_to_the_daemon_is_gone_and_another_configuration_is_not_mixed_up(
    main: kp.Subfeed,
    own: FeedDaemon,
    asked: list[str],
    environment: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("KACHERY_DAEMON_HOST", "127.0.0.1")
        patch.setenv("KACHERY_DAEMON_PORT", str(own.port))
        patch.setenv("KACHERY_DAEMON_TOKEN", TOKEN)
        assert main.append_message(1) == 1
    with monkeypatch.context() as patch:
        patch.setenv("KACHERY_P2P_CONFIG_DIR", str(environment / "other"))
        with pytest.raises(DaemonDownError):
            main.append_message(2)
    with monkeypatch.context() as patch:
        patch.setenv("KACHERY_OFFLINE_STORAGE_DIR", str(environment / "offline"))
        with pytest.raises(DaemonDownError):
            main.append_message(2)
    with monkeypatch.context() as patch:
        patch.setenv("KACHERY_P2P_DAEMON_SOCKET", str(environment / "config" / "daemon.sock"))
        assert main.append_message(2) == 2
    assert asked.count("feed_append") >= 1
    assert main.get_next_messages() == [0, 1, 2]


def test_forked_processes_append_like_others(main: kp.Subfeed) -> None:
    main.append_message(1)
    children = []
    for number in range(4):
        child = os.fork()
        if not child:
            try:
                for count in range(10):
                    main.append_message([number, count])
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    for count in range(10):
        main.append_message([9, count])
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    found = main.get_next_messages()
    assert len(found) == 52
    for number in (0, 1, 2, 3, 9):
        assert [m for m in found[2:] if m[0] == number] == [[number, count] for count in range(10)]


def test_many_feeds_are_appended_to_in_turns(own: FeedDaemon, asked: list[str]) -> None:
    subfeeds = [kp.create_feed().get_subfeed("main") for _ in range(20)]
    before = len(os.listdir("/proc/self/fd"))
    for number in range(3):
        for subfeed in subfeeds:
            assert subfeed.append_message(number) == number
    assert all(subfeed.get_next_messages() == [0, 1, 2] for subfeed in subfeeds)
    forget()
    assert len(os.listdir("/proc/self/fd")) <= before + 4 * 20


# --- what may not be appended to ------------------------------------------------------------------


def test_an_ended_feed_says_so_with_the_daemon_and_without(environment: Path) -> None:
    config = environment / "config"
    config.mkdir(mode=0o700)
    with FeedDaemon(config, environment / "store"):
        main = kp.create_feed().get_subfeed("main")
        assert main.append_messages([0]) + main.append_messages([1]) == [0, 1]
        main.live.end(None)
        for _ in range(2):
            with pytest.raises(FeedEndedError):
                main.append_message(2)
        assert main.get_next_messages() == [0, 1]
    with pytest.raises(FeedEndedError):
        main.append_message(2)


def test_a_deleted_feed_is_read_only(main: kp.Subfeed) -> None:
    main.append_message(1)
    kp.delete_feed(main.uri.rpartition("/")[0])
    for _ in range(2):
        with pytest.raises(FeedReadOnlyError):
            main.append_message(2)


# --- without the daemon ---------------------------------------------------------------------------


def test_without_a_daemon_it_goes_on_and_the_next_daemon_finds_it(environment: Path) -> None:
    config = environment / "config"
    config.mkdir(mode=0o700)
    with FeedDaemon(config, environment / "store"):
        main = kp.create_feed().get_subfeed("main")
        main.append_message(0)
        other = kp.create_feed().get_subfeed("main")
    assert main.append_message(1) == 1
    forget()
    assert main.append_message(2) == 2
    with pytest.raises(DaemonDownError):
        other.append_message(0)
    with FeedDaemon(config, environment / "store"):
        assert main.append_message(3) == 3
        assert main.get_next_messages() == [0, 1, 2, 3]
        assert main.append_message(4) == 4
        assert main.get_next_messages(wait_msec=WAIT_MS) == [4]


def test_a_restored_feed_is_refused_without_a_daemon_too(environment: Path) -> None:
    config = environment / "config"
    config.mkdir(mode=0o700)
    with FeedDaemon(config, environment / "store"):
        main = kp.create_feed().get_subfeed("main")
        main.append_message(0)
    entries = files_of(config, main) / "entries"
    copied = entries.read_bytes()
    entries.rename(f"{entries}.old")
    entries.write_bytes(copied)
    entries.chmod(0o600)
    forget()
    with pytest.raises(FeedRestoredError):
        main.append_message(1)
    assert entries.read_bytes() == copied


# --- words that the daemon does not believe -------------------------------------------------------


def test_junk_and_floods_do_not_disturb_the_daemon(own: FeedDaemon, main: kp.Subfeed) -> None:
    path = str(own.config / "feeds.sock")
    words = [b"", b"x", b"kpg1", b"kpg1" + bytes(51), b"kpg1" + bytes(52), b"kpg1" + bytes(53)]
    words += [os.urandom(56), b"kpg1" + os.urandom(52), os.urandom(60_000)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as telling:
        telling.settimeout(10)
        telling.connect(path)
        for _ in range(300):
            for word in words:
                telling.send(word)
    before = sorted(str(found) for found in (own.config / "feeds").rglob("*"))
    main.append_message("still")
    assert main.get_next_messages(wait_msec=WAIT_MS) == [0, "still"]
    assert sorted(str(found) for found in (own.config / "feeds").rglob("*")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_can_neither_tell_the_daemon_nor_append(
    own: FeedDaemon, main: kp.Subfeed
) -> None:
    # Even if the directories above let everybody in.
    opened = [own.config, *own.config.parents]
    modes = [path.stat().st_mode for path in opened]
    script = (
        "import os, socket, sys\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "def tried(do):\n"
        "    try: do(); return 'done'\n"
        "    except OSError as error: return type(error).__name__\n"
        "told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "print(tried(lambda: told.connect(sys.argv[1])),\n"
        "      tried(lambda: os.open(sys.argv[2] + '/writers', os.O_RDWR)),\n"
        "      tried(lambda: os.open(sys.argv[2] + '/entries', os.O_RDONLY)))"
    )
    try:
        for path in opened:
            if path.stat().st_uid == 0 and path != Path("/"):
                path.chmod(0o755)
        arguments = [str(own.config / "feeds.sock"), str(files_of(own.config, main))]
        said = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
        )
    finally:
        for path, mode in zip(opened, modes, strict=True):
            if path.stat().st_mode != mode:
                path.chmod(mode & 0o7777)
    assert said.stdout.split() == ["PermissionError"] * 3
    assert oct((own.config / "feeds.sock").stat().st_mode)[-3:] == "600"


def test_words_that_were_lost_are_not_needed(
    own: FeedDaemon, main: kp.Subfeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_appends, "_tell", lambda *about: None)
    script = (
        "import sys, kachery_p2p as kp\n"
        "s = kp.load_subfeed(sys.argv[1]); s.set_position(1); print('waiting', flush=True)\n"
        "print(s.get_next_messages(wait_msec=20_000), flush=True)"
    )
    command = [sys.executable, "-c", script, main.uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "waiting\n"
        main.append_message("unheard")
        assert reader.stdout.readline() == "['unheard']\n"


# --- what it costs --------------------------------------------------------------------------------


def test_appending_imports_nothing_heavy(own: FeedDaemon, main: kp.Subfeed) -> None:
    script = (
        "import sys, kachery_p2p as kp\n"
        "s = kp.load_subfeed(sys.argv[1]); s.append_message(1); s.append_message(2)\n"
        "from kachery_p2p.client import feed_appends\n"
        "assert next(iter(feed_appends._known.values()))._log is not None\n"
        "assert not {'trio', 'libp2p', 'cryptography', 'numpy', 'sqlite3'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, main.uri], check=True)


def calls_of(do: Callable[[], object]) -> list[str]:
    """The names of the functions of `os` and `fcntl` that `do` calls."""
    told: list[str] = []

    def note(frame: object, event: str, function: object) -> None:
        if event == "c_call" and getattr(function, "__module__", None) in ("posix", "fcntl"):
            told.append(getattr(function, "__name__", ""))

    # What is collected could close files.
    gc.disable()
    sys.setprofile(note)
    try:
        do()
    finally:
        sys.setprofile(None)
        gc.enable()
    return told


def test_an_append_is_one_write_and_one_sync(
    main: kp.Subfeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Until there is room.
    main.append_messages(["x" * 100] * 100)
    for number in range(3):
        main.append_message(number)
    monkeypatch.setattr("kachery_p2p.feeds.direct.FEED_PLACE_S", 3_600.0)
    calls = calls_of(lambda: main.append_message(json.dumps(list(range(50)))))
    # Who finds the lock taken tries it again.
    while calls[:2] == ["flock", "flock"]:
        del calls[0]
    assert calls == ["flock", "pread", "pread", "pwrite", "pwrite", "flock", "fdatasync"]


def test_the_daemon_is_told_once_in_a_while(main: kp.Subfeed) -> None:
    sent: list[bytes] = []
    main.append_message(1)
    really = feed_appends._Line.send

    def send(line: feed_appends._Line, datagram: bytes) -> bool:
        sent.append(datagram)
        return really(line, datagram)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed_appends._Line, "send", send)
        began = time.monotonic()
        for number in range(200):
            main.append_message(number)
        seconds = time.monotonic() - began
    assert 1 <= len(sent) <= seconds / 0.002 + 2
