"""A directory that somebody else has been at: typed errors, bounded memory, nothing followed."""

from __future__ import annotations

import contextlib
import os
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import pytest

from kachery_p2p.errors import (
    ConfigError,
    EntryDamagedError,
    KacheryError,
    StateCorruptError,
    StoreError,
)
from kachery_p2p.feeds.derived import Checkpoint
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.log_files import LogFiles
from kachery_p2p.feeds.records import MAGIC, Header
from kachery_p2p.feeds.tombstones import Tombstone
from kachery_p2p.log.forks import ForkProof
from kachery_p2p.log.heads import Head, sign_head
from kachery_p2p.log.tree import EMPTY_ROOT, leaf_hash
from tests.feeds.feed_parts import KEY, LOG, messages

NAMES = ["log", "entries", "hashes", "offsets", "checkpoint", "place", "fork", "tombstone"]
JUNK: dict[str, bytes] = {
    "nothing": b"",
    "a byte": b"\0",
    "text": b"kachery" * 50,
    "zeros": bytes(5_000),
    "ones": b"\xff" * 5_000,
    "noise": random.Random(1).randbytes(20_000),
    "magic": MAGIC * 2_000,
    "long": bytes(1_000_000),
}


@pytest.fixture
def home(own: LogFile, files: LogFiles) -> Path:
    """The directory of an own log that has all its files."""
    own.append(messages(5), 1)
    assert own.signed is not None
    heads = [sign_head(Head(LOG, 90, leaf_hash(what), 1), KEY) for what in (b"1", b"2")]
    own.convict(ForkProof.of_one_size(*heads))
    own.end(Tombstone(LOG, 5, own.frontier().root, None, 1).signed(KEY))
    files.close()
    return Path(own.path)


def use(files: LogFiles, *, owned: bool) -> LogFile:
    """Open the log anew, and read it."""
    again = LogFiles(files.directory)
    log_file = again.own(LOG, KEY) if owned else again.copy(LOG)
    try:
        log_file.entries(0, 100, 1 << 20)
        log_file.check()
    finally:
        again.close()
    return log_file


@pytest.mark.parametrize("owned", [True, False])
@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("name", NAMES)
def test_junk_in_any_file_is_a_typed_error_or_none(
    home: Path, files: LogFiles, name: str, junk: str, owned: bool
) -> None:
    (home / name).write_bytes(JUNK[junk])
    try:
        log_file = use(files, owned=owned)
    except (ConfigError, StoreError, EntryDamagedError) as error:
        assert error.hint
        assert not isinstance(error, StoreError) or name == "entries"
    else:
        # What is derived is made anew; what was damaged counts for nothing.
        assert log_file.size == (5 if name != "entries" else 0)
        assert name not in ("fork", "tombstone", "log")
        # What was signed is never forgotten.
        assert not (owned and name == "entries")


@pytest.mark.parametrize("seed", range(3))
def test_random_changes_of_random_files_are_typed_errors_or_none(
    home: Path, files: LogFiles, seed: int
) -> None:
    rng = random.Random(seed)
    sound = {name: (home / name).read_bytes() for name in NAMES}
    for _ in range(100):
        changed = rng.sample(NAMES, rng.randrange(1, 4))
        for name in changed:
            data = bytearray(sound[name] * rng.choice([1, 1, 1, 2]))
            for _ in range(rng.randrange(1, 4) if data else 0):
                data[rng.randrange(len(data))] = rng.randrange(256)
            (home / name).write_bytes(data[: rng.choice([len(data), rng.randrange(len(data) + 1)])])
        try:
            log_file = use(files, owned=rng.random() < 0.5)
            assert log_file.size <= 5
        except (ConfigError, StoreError) as error:
            assert error.hint
        except EntryDamagedError:
            # Records whose entries the hashes know are passed over, and not cut off.
            assert "entries" in changed
        for name in NAMES:
            (home / name).write_bytes(sound[name])
        assert use(files, owned=True).size == 5


def planted(kind: str) -> Callable[[Path, Path], None]:
    def plant(path: Path, aside: Path) -> None:
        path.unlink(missing_ok=True)
        if kind == "symlink":
            aside.write_bytes(b"precious")
            path.symlink_to(aside)
        elif kind == "dangling symlink":
            path.symlink_to(aside)
        elif kind == "directory":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path, 0o600)
        elif kind == "open to others":
            path.write_bytes(b"")
            path.chmod(0o666)

    return plant


KINDS = ["symlink", "dangling symlink", "directory", "fifo", "open to others"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_private_file_is_not_used(
    home: Path, files: LogFiles, name: str, kind: str, quick_path: Path
) -> None:
    planted(kind)(home / name, quick_path / "aside")
    with pytest.raises((ConfigError, StoreError)) as caught:
        use(files, owned=True)
    assert caught.value.hint
    if kind == "symlink":
        assert (quick_path / "aside").read_bytes() == b"precious"
    else:
        assert not (quick_path / "aside").exists()


@pytest.mark.parametrize("kind", ["symlink", "open to others", "file"])
def test_a_directory_that_is_not_private_is_not_used(
    home: Path, files: LogFiles, kind: str, quick_path: Path
) -> None:
    home.rename(quick_path / "aside")
    if kind == "symlink":
        home.symlink_to(quick_path / "aside")
    elif kind == "file":
        home.write_bytes(b"")
    else:
        (quick_path / "aside").rename(home)
        home.chmod(0o755)
    with pytest.raises((ConfigError, StoreError)) as caught:
        use(files, owned=True)
    assert caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", ["", *NAMES])
def test_what_belongs_to_another_user_is_not_used(home: Path, files: LogFiles, name: str) -> None:
    os.chown(home / name, 12_345, 12_345)
    with pytest.raises(ConfigError) as caught:
        use(files, owned=True)
    assert caught.value.hint


def test_a_log_in_the_directory_of_another_is_not_used(home: Path, files: LogFiles) -> None:
    text = (home / "log").read_text()
    (home / "log").write_text(text.replace(KEY.node_id, "ab" * 32))
    with pytest.raises(StateCorruptError):
        use(files, owned=True)
    assert [log for log in files.known() if log == LOG] == []


def test_a_header_cannot_make_us_read_more_than_a_record(home: Path, files: LogFiles) -> None:
    """A sparse file of a terabyte whose first record claims the largest body there can be."""
    fields = MAGIC + b"\0\0\0\0" + bytes(8) + (1 << 16).to_bytes(4, "big")
    fields += (8 << 20).to_bytes(4, "big") + bytes(4)
    header = fields + crc32(fields).to_bytes(4, "big")
    assert Header.decode(header) is not None
    (home / "entries").write_bytes(header)
    for name in ("entries", "hashes", "offsets"):
        os.truncate(home / name, 1 << 40)
    tracemalloc.start()
    try:
        with pytest.raises(StateCorruptError):
            use(files, owned=True)
        with contextlib.suppress(KacheryError):
            use(files, owned=False)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_an_own_log_that_has_become_shorter_is_refused_and_left_alone(
    home: Path, files: LogFiles
) -> None:
    sound = (home / "entries").read_bytes()
    for left in (0, 40, len(sound) - 1):
        (home / "entries").write_bytes(sound[:left])
        with pytest.raises(StateCorruptError):
            use(files, owned=True)
        assert (home / "entries").read_bytes() == sound[:left]
    (home / "entries").write_bytes(sound)
    assert use(files, owned=True).size == 5


@pytest.mark.parametrize("owned", [True, False])
def test_numbers_in_a_checkpoint_are_not_believed(home: Path, files: LogFiles, owned: bool) -> None:
    length = (home / "entries").stat().st_size
    for size in (1, 5, 6, 1 << 40, 1 << 62):
        for end in (0, 1, length, 1 << 20, 1 << 62):
            data = Checkpoint(size, EMPTY_ROOT, end, b"\x01" * 197).encode()
            (home / "checkpoint").write_bytes(data)
            (home / "checkpoint").chmod(0o600)
            if owned and end > length:
                with pytest.raises(StateCorruptError):
                    use(files, owned=True)
            else:
                assert use(files, owned=owned).size == 5
            (home / "checkpoint").unlink(missing_ok=True)
