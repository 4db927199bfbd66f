"""What damage does to a log on the disk: it is found, mended, passed over, cut off or refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kachery_p2p.errors import (
    EntryDamagedError,
    LogError,
    ProofError,
    StateCorruptError,
)
from kachery_p2p.feeds import opened as opened_module
from kachery_p2p.feeds.derived import Derived
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.log_files import LogFiles
from kachery_p2p.log.proofs import prove_consistency
from tests.feeds.feed_logs import all_of, copied, crashed, flip, grown, path_of, reopened
from tests.feeds.feed_parts import LOG, messages


@pytest.fixture
def other(quick_path: Path) -> LogFiles:
    """The subfeeds of another node."""
    (quick_path / "other").mkdir()
    return LogFiles(f"{quick_path}/other/feeds")


@pytest.mark.parametrize("position", [0, 7, 19, 20, 33, 49])
def test_a_flipped_bit_is_found_when_it_is_read_and_mended(own: LogFile, position: int) -> None:
    entries = grown(own)
    at = path_of(own, "entries").read_bytes().index(entries[position]) + 15
    for restart in (False, True):
        flip(path_of(own, "entries"), at)
        if restart:
            reopened(own)
        assert position == 0 or own.entries(0, 100, 1 << 20) == entries[:position]
        with pytest.raises(EntryDamagedError) as caught:
            own.entries(position, 1, 1 << 20)
        assert caught.value.positions == (position,)
        assert list(own.damaged) == [position]
        assert own.entries(position + 1, 100, 1 << 20) == entries[position + 1 :]
        with pytest.raises(ProofError):
            own.mend(position, entries[position - 1])
        own.mend(position, entries[position])
        assert not own.damaged
        assert all_of(own) == entries
        assert own.check() == ()
    assert all_of(reopened(own)) == entries


def test_a_check_finds_every_damaged_entry(own: LogFile) -> None:
    entries = grown(own)
    data = path_of(own, "entries").read_bytes()
    for position in (3, 21, 22, 48):
        flip(path_of(own, "entries"), data.index(entries[position]) + 14)
    assert own.check() == (3, 21, 22, 48)
    for position in own.damaged:
        own.mend(position, entries[position])
    assert own.check() == ()


@pytest.mark.parametrize("name", ["hashes", "offsets"])
@pytest.mark.parametrize("restart", [False, True])
def test_what_is_derived_is_made_anew_when_a_bit_of_it_flips(
    own: LogFile, name: str, restart: bool
) -> None:
    entries = grown(own)
    sound = path_of(own, name).read_bytes()
    for at in range(0, len(sound), 37):
        flip(path_of(own, name), at, 64)
        if restart:
            reopened(own)
        assert own.check() == ()
        assert all_of(own) == entries
        assert path_of(own, name).read_bytes() == sound


@pytest.mark.parametrize("name", ["hashes", "offsets"])
@pytest.mark.parametrize("position", [0, 3, 19, 20, 32, 49])
def test_a_flipped_bit_in_what_is_derived_does_not_make_an_entry_damaged(
    own: LogFile, name: str, position: int
) -> None:
    entries = grown(own)
    place = 32 * (2 * position - position.bit_count()) if name == "hashes" else 12 * position
    flip(path_of(own, name), place + 7)
    assert own.entries(position, 1, 1 << 20) == entries[position : position + 1]
    assert not own.damaged


@pytest.mark.parametrize("name", ["hashes", "offsets", "checkpoint"])
@pytest.mark.parametrize("left", [0, 1, 33, 100])
def test_what_is_derived_is_made_anew_when_it_is_short(
    own: LogFile, name: str, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened_module, "FEED_CHECKPOINT_ENTRIES", 8)
    entries = grown(own)
    own.close()
    path = path_of(own, name)
    path.write_bytes(path.read_bytes()[:left])
    own.open()
    assert all_of(own) == entries
    assert own.check() == ()
    assert own.append(messages(1, 50), 1) == 50


def test_a_damaged_record_is_passed_over_where_the_hashes_know_its_entries(own: LogFile) -> None:
    entries = grown(own)
    crashed(own)
    sound = path_of(own, "entries").read_bytes()
    starts = [at for at in range(len(sound)) if sound.startswith(b"kpfr", at)]
    # Header and lengths of the first, a middle and the last record with entries.
    for start in (starts[0], starts[9], starts[-1]):
        for at in (0, 5, 13, 19, 22, 25, 30, 32 + 2):
            flip(path_of(own, "entries"), start + at)
            own.open()
            assert own.size == 50
            assert all_of(own) == entries
            own.append([], 2)
            crashed(own)
            path_of(own, "entries").write_bytes(sound)


@pytest.mark.parametrize("known", [True, False])
def test_an_own_log_whose_last_head_is_damaged_is_refused_not_cut(
    own: LogFile, known: bool
) -> None:
    grown(own)
    assert own.signed is not None  # closing puts it behind the last entries
    own.close()
    path_of(own, "checkpoint").unlink()
    sound = path_of(own, "entries").read_bytes()
    hashes = path_of(own, "hashes").read_bytes()
    last = sound.rindex(b"kpfr")
    for at in (1, 20, 31, 40, 150, 228):
        flip(path_of(own, "entries"), last + at)
        path_of(own, "hashes").write_bytes(hashes if known else b"")
        with pytest.raises(StateCorruptError) as caught:
            own.open()
        assert caught.value.hint
        assert len(path_of(own, "entries").read_bytes()) == len(sound)
        path_of(own, "entries").write_bytes(sound)
    own.open()
    assert own.size == 50


def test_a_copy_whose_records_are_damaged_is_cut_and_fetched_again(
    own: LogFile, other: LogFiles
) -> None:
    entries = grown(own)
    copy = other.copy(LOG)
    copied(own, copy)
    copy.close()
    sound = path_of(copy, "entries").read_bytes()
    flip(path_of(copy, "entries"), sound.rindex(b"kpfr") + 1)
    path_of(copy, "hashes").unlink()
    copy.open()
    assert copy.size == 49
    assert copy.signed == own.signed
    copied(own, copy)
    assert all_of(copy) == entries


@pytest.mark.parametrize("owned", [True, False])
def test_a_torn_record_is_cut_off_wherever_it_was_torn(
    own: LogFile, other: LogFiles, owned: bool
) -> None:
    grown(own, 3, 5)
    log_file = own
    if not owned:
        log_file = other.copy(LOG)
        copied(own, log_file, batch=3)
    crashed(log_file)
    sound = path_of(log_file, "entries").read_bytes()
    last = sound.rindex(b"kpfr")
    kept = 3 if owned else 6
    for left in range(last, len(sound)):
        path_of(log_file, "entries").write_bytes(sound[:left])
        log_file.open()
        assert log_file.size == kept
        assert all_of(log_file) == messages(kept)
        assert path_of(log_file, "entries").read_bytes() == sound[:last]
        crashed(log_file)


@pytest.mark.parametrize("written", [0, 10, 32, 300])
def test_a_record_whose_end_was_never_written_is_torn_too(own: LogFile, written: int) -> None:
    grown(own, 3, 50)
    crashed(own)
    sound = path_of(own, "entries").read_bytes()
    last = sound.rindex(b"kpfr")
    tail = sound[last : last + written]
    path_of(own, "entries").write_bytes(sound[:last] + tail.ljust(len(sound) - last, b"\0"))
    path_of(own, "hashes").write_bytes(path_of(own, "hashes").read_bytes()[: 32 * 4])
    own.open()
    assert own.size == 3
    assert own.append(messages(1, 3), 1) == 3


def test_opening_a_long_log_reads_little_of_it(
    own: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened_module, "FEED_CHECKPOINT_ENTRIES", 2_000)
    for first in range(0, 20_000, 500):
        own.append(messages(500, first), 1)
    size = path_of(own, "entries").stat().st_size
    own.close()
    read = 0
    really = os.pread

    def counted(fd: int, count: int, offset: int) -> bytes:
        nonlocal read
        data = really(fd, count, offset)
        read += len(data)
        return data

    monkeypatch.setattr(os, "pread", counted)
    own.open()
    assert own.size == 20_000
    # Twice what lies behind the last checkpoint: it is read, and the last record written anew.
    assert read < 2 * size / 10 + 10_000


def test_a_failed_sync_of_what_is_derived_costs_nothing_but_time(
    own: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened_module, "FEED_CHECKPOINT_ENTRIES", 4)

    def sync(derived: Derived) -> None:
        raise OSError(5, "input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Derived, "sync", sync)
        entries = grown(own)
    assert not path_of(own, "checkpoint").exists()
    assert all_of(reopened(own)) == entries


def test_the_consistency_of_a_grown_log_is_provable_from_every_size(own: LogFile) -> None:
    grown(own)
    for size in range(1, 51):
        path = prove_consistency(size, 50, own.read_hash)
        assert all(len(hashed) == 32 for hashed in path)
    with pytest.raises(LogError):
        prove_consistency(51, 50, own.read_hash)
