"""What a node knows of feeds beside their entries: the register, the keys, the set of logs."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from kachery_p2p.content.hashes import ContentHash, FeedId, sha1_of
from kachery_p2p.errors import (
    InvalidNameError,
    KeyFileError,
    LogError,
    StateCorruptError,
    StateVersionError,
    UnknownFeedError,
)
from kachery_p2p.feeds import keys
from kachery_p2p.feeds import register as register_module
from kachery_p2p.feeds.keys import FeedKey
from kachery_p2p.feeds.log_files import LogFiles
from kachery_p2p.feeds.messages import Submission
from kachery_p2p.feeds.names import subfeed_log
from kachery_p2p.feeds.register import Register, Subfeed
from kachery_p2p.identity import backup
from kachery_p2p.identity.keys import NodeId
from tests.feeds.feed_parts import FEED, KEY, LOG, messages

OTHER = FeedId("ab" * 32)
MAIN = Subfeed(FEED, sha1_of(b"main"), "main")
NODE, STRANGER = NodeId("11" * 32), NodeId("22" * 32)


@pytest.fixture
def register(tmp_path: Path) -> Iterator[Register]:
    register = Register(f"{tmp_path}/state/feeds.db")
    yield register
    register.close()


def reopened(register: Register) -> Register:
    register.close()
    return register


def test_own_feeds_and_their_names_are_there_after_a_restart(register: Register) -> None:
    register.add_feed(FEED, b"here", 1.0, "lab")
    register.add_feed(OTHER, b"here", 2.0)
    register.set_name("alias", FEED)
    reopened(register)
    assert register.own_feeds() == [FEED, OTHER]
    assert register.named("lab") == register.named("alias") == FEED
    assert register.names_of(FEED) == ("alias", "lab")
    assert register.is_own(FEED)
    assert not register.is_own(FeedId("cd" * 32))


def test_a_name_stands_for_one_feed(register: Register) -> None:
    register.add_feed(FEED, b"here", 1.0, "lab")
    register.set_name("lab", FEED)
    with pytest.raises(LogError):
        register.add_feed(OTHER, b"here", 2.0, "lab")
    assert register.own_feeds() == [FEED]
    with pytest.raises(UnknownFeedError) as caught:
        register.named("lob")
    assert caught.value.hint
    for name in ("", "x" * 5_000, "\ud800"):
        with pytest.raises(InvalidNameError):
            register.set_name(name, FEED)


def test_there_are_not_more_feeds_than_a_bound(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(register_module, "FEEDS_MAX", 1)
    register.add_feed(FEED, b"here", 1.0)
    with pytest.raises(LogError):
        register.add_feed(OTHER, b"here", 1.0)


def test_a_key_that_lies_elsewhere_is_not_at_home(register: Register) -> None:
    register.add_feed(FEED, b"here", 1.0)
    assert register.is_at_home(FEED, b"here")
    assert not register.is_at_home(FEED, b"there")
    assert not register.is_at_home(OTHER, b"here")
    register.add_feed(FEED, b"there", 2.0)
    assert register.is_at_home(FEED, b"there")


def test_a_feed_is_served_where_it_is_shared_and_a_copy_where_it_came(register: Register) -> None:
    copy = Subfeed(OTHER, sha1_of(b"main"))
    register.share(FEED, ["lab", "hall"], 1.0)
    register.share(FEED, ["lab"], 2.0)
    register.note_copy(copy, "lab", 1.0)
    reopened(register)
    assert register.channels_of(FEED) == ("hall", "lab")
    assert register.copied_in(copy) == ("lab",)
    assert register.is_served(MAIN, "hall")
    assert register.is_served(copy, "lab")
    assert not register.is_served(copy, "hall")
    assert not register.is_served(copy._replace(name_hash=sha1_of(b"x")), "lab")
    register.unshare(FEED, "hall")
    register.move_channel("lab", "new")
    assert register.channels_of(FEED) == ("new",)
    assert register.is_served(copy, "new")


def test_names_of_subfeeds_are_kept_as_they_were_told(register: Register) -> None:
    register.note_subfeed(MAIN._replace(name=None))
    register.note_subfeed(MAIN)
    register.note_subfeed(MAIN._replace(name=None))
    for number in range(5):
        register.note_subfeed(Subfeed(FEED, ContentHash(f"{number:040x}")))
    reopened(register)
    known = register.subfeeds(FEED)
    assert MAIN in known
    assert [one.name_hash for one in known] == sorted(one.name_hash for one in known)
    assert register.subfeeds(FEED, known[2].name_hash) == known[3:]
    assert register.subfeeds(OTHER) == []
    with pytest.raises(InvalidNameError):
        register.note_subfeed(MAIN._replace(name="x" * 5_000))


def test_who_may_write_is_what_was_granted_last(register: Register) -> None:
    register.grant_writing(MAIN, NODE, 1.0)
    register.grant_writing(MAIN, STRANGER, 1.0)
    register.revoke_writing(MAIN, STRANGER)
    reopened(register)
    assert register.writers(MAIN) == (NODE,)
    assert register.may_write(MAIN, NODE)
    assert not register.may_write(MAIN, STRANGER)
    assert not register.may_write(MAIN._replace(name_hash=sha1_of(b"x")), NODE)
    register.set_writers(MAIN, [STRANGER], 2.0)
    assert register.writers(MAIN) == (STRANGER,)


def test_a_submission_is_found_by_who_sent_it_and_its_id(register: Register) -> None:
    one, two = Submission(NODE, bytes(16)), Submission(STRANGER, bytes(16))
    register.note_submissions(LOG.name, [(one, 3)], 4)
    register.note_submissions(LOG.name, [(one, 9)], 10)
    register.note_submissions(LOG.name, [], 7)
    reopened(register)
    assert register.submitted_at(LOG.name, one) == 3
    assert register.submitted_at(LOG.name, two) is None
    assert register.submissions_noted(LOG.name) == 10
    register.forget_submissions(LOG.name)
    assert register.submitted_at(LOG.name, one) is None
    assert register.submissions_noted(LOG.name) == 0


def test_what_is_followed_and_what_is_forgotten(register: Register) -> None:
    copy = Subfeed(OTHER, sha1_of(b"x"))
    register.add_feed(FEED, b"here", 1.0, "lab")
    register.note_subfeed(MAIN)
    register.follow(MAIN, 1.0)
    register.follow(copy, 2.0)
    register.note_copy(copy, "lab", 1.0)
    assert register.followed() == [copy, MAIN]
    register.forget_subfeed(copy)
    assert register.followed() == [MAIN]
    assert register.copied_in(copy) == ()
    register.unfollow(MAIN)
    assert register.followed() == []
    register.forget_feed(FEED)
    assert register.own_feeds() == []
    assert register.names_of(FEED) == ()
    assert register.subfeeds(FEED) == []


def test_what_is_registered_survives_a_kill(tmp_path: Path) -> None:
    path = f"{tmp_path}/state/feeds.db"
    child = os.fork()
    if not child:
        Register(path).share(FEED, ["lab"], 1.0)
        os._exit(9)
    os.waitpid(child, 0)
    register = Register(path)
    assert register.channels_of(FEED) == ("lab",)
    register.close()


def test_a_damaged_register_is_said_and_not_replaced(tmp_path: Path, register: Register) -> None:
    register.add_feed(FEED, b"here", 1.0)
    register.close()
    path = tmp_path / "state" / "feeds.db"
    path.write_bytes(b"junk" * 5_000)
    with pytest.raises(StateCorruptError) as caught:
        register.own_feeds()
    assert caught.value.hint
    assert path.read_bytes() == b"junk" * 5_000


# --- keys -----------------------------------------------------------------------------------


def test_a_key_is_kept_privately_and_never_replaced(tmp_path: Path) -> None:
    key = FeedKey(bytes(range(32)))
    assert keys.load(str(tmp_path), key.feed) is None
    assert keys.kept(str(tmp_path)) == []
    keys.save(str(tmp_path), key)
    keys.save(str(tmp_path), key)
    path = Path(keys.feed_key_path(str(tmp_path), key.feed))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    loaded = keys.load(str(tmp_path), key.feed)
    assert loaded is not None
    assert loaded.sign(bytes(16), b"x") == key.sign(bytes(16), b"x")
    assert keys.kept(str(tmp_path)) == [key.feed]
    assert repr(loaded) == f"<FeedKey of {key.feed}>"
    sound = path.read_bytes()
    path.write_bytes(sound.replace(b"ed25519 00", b"ed25519 01"))
    with pytest.raises(KeyFileError) as caught:
        keys.load(str(tmp_path), key.feed)
    assert "0102" not in str(caught.value)
    with pytest.raises(KeyFileError):
        keys.save(str(tmp_path), key)
    path.write_bytes(sound.replace(b"-key 1", b"-key 2"))
    with pytest.raises(StateVersionError):
        keys.load(str(tmp_path), key.feed)
    path.write_bytes(sound)
    path.chmod(0o644)
    with pytest.raises(KeyFileError):
        keys.load(str(tmp_path), key.feed)
    keys.remove(str(tmp_path), key.feed)
    assert keys.kept(str(tmp_path)) == []


def test_a_backup_has_the_keys_of_feeds_and_a_restored_one_is_not_at_home(
    tmp_path: Path, register: Register
) -> None:
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    key = FeedKey.generate()
    keys.save(old, key)
    register.add_feed(key.feed, keys.place(old, key.feed), 1.0)
    assert register.is_at_home(key.feed, keys.place(old, key.feed))
    backup.restore(new, backup.backup(old, "a long passphrase"), "a long passphrase")
    restored = keys.load(new, key.feed)
    assert restored is not None
    assert restored.encode() == key.encode()
    assert not register.is_at_home(key.feed, keys.place(new, key.feed))


# --- the set of logs --------------------------------------------------------------------------


def test_a_node_knows_its_logs_after_a_restart(files: LogFiles) -> None:
    logs = [subfeed_log(FEED, sha1_of(b"%d" % number)) for number in range(5)]
    for log in logs:
        files.own(log, KEY).append(messages(1), 1)
    Path(files.directory, "ab", "junk").mkdir(parents=True)
    Path(files.directory, "README").write_text("not a log")
    again = LogFiles(files.directory)
    assert sorted(again.known()) == sorted(logs)
    assert list(LogFiles(f"{files.directory}/none").known()) == []


def test_only_so_many_logs_are_open_at_once(files: LogFiles) -> None:
    few = LogFiles(files.directory, open_max=3)
    before = len(os.listdir("/proc/self/fd"))
    logs = [few.own(subfeed_log(FEED, sha1_of(b"%d" % number)), KEY) for number in range(20)]
    for number in range(3):
        for log_file in logs:
            assert few.own(log_file.log, KEY) is log_file
            assert log_file.append(messages(1, number), 1) == number
        assert len(os.listdir("/proc/self/fd")) <= before + 3 * 4
    assert all(log_file.entries(0, 9, 999) == messages(3) for log_file in logs)
    few.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_a_killed_delete_left_is_removed(files: LogFiles) -> None:
    own = files.own(LOG, KEY)
    own.append(messages(1), 1)
    files.close()
    left = Path(files.directory, ".deleted-ab")
    Path(own.path).rename(left)
    again = LogFiles(files.directory)
    assert not left.exists()
    assert again.get(LOG) is None
