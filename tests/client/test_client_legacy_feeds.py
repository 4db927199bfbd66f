"""Feeds of older kacheries: their databases and signatures, and what is made of them here."""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha1
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import kachery_p2p as kp
from kachery_p2p.client import legacy_feeds
from kachery_p2p.client.feed_calls import call
from kachery_p2p.client.legacy_import import Imported, import_feeds
from kachery_p2p.client.legacy_mutables import import_mutables
from kachery_p2p.client.legacy_signatures import canonical, read_signed, why_not_next
from kachery_p2p.content.hashes import FeedId, sha1_of
from kachery_p2p.errors import DaemonDownError, DataFormatError, UnknownFeedError
from kachery_p2p.limits import LEGACY_ROW_BYTES_MAX
from tests.client.feed_daemon import FeedDaemon

MAIN = sha1_of(b"main")
VALUES = ["a", {"z": 1, "a": [None, True, 0.5]}, "ä\u2028\n\x7f😀", 10**16]


class OldFeed:
    """A feed as kachery-p2p signed it, or (with `hashed`) kachery-client."""

    def __init__(self, seed: int = 1, *, hashed: bool = False, first: int = 1) -> None:
        self.seed = bytes([seed]) * 32
        self.key = Ed25519PrivateKey.from_private_bytes(self.seed)
        self.id = FeedId(self.key.public_key().public_bytes_raw().hex())
        self.hashed, self.first = hashed, first

    def sign(self, body: dict[str, Any]) -> dict[str, Any]:
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        signed = sha1(text).digest() if self.hashed else text
        return {"body": body, "signature": self.key.sign(signed).hex()}

    def messages(self, values: Sequence[Any] = VALUES) -> list[dict[str, Any]]:
        """The values as signed messages, each naming the signature before it."""
        made: list[dict[str, Any]] = []
        for number, value in enumerate(values, self.first):
            body = {"message": value, "messageNumber": number, "timestamp": 1_600_000_000_000}
            if made:
                body["previousSignature"] = made[-1]["signature"]
            made.append(self.sign(body))
        return made


class OldDirectory:
    """The directory of an older kachery."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.path = directory
        with self.changing("feeds.db") as feeds:
            feeds.execute("CREATE TABLE feeds (feedId TEXT)")
            feeds.execute("CREATE TABLE subfeeds (feedId TEXT, subfeedHash TEXT, accessRules TEXT)")
            feeds.execute(
                "CREATE TABLE subfeedMessages"
                " (feedId TEXT, subfeedHash TEXT, position INTEGER, message TEXT)"
            )
        with self.changing("mutables.db") as mutables:
            mutables.execute("CREATE TABLE mutables (keyHash TEXT, key TEXT, value TEXT)")

    def changing(self, name: str) -> Any:
        return Changing(self.path / name)

    def add(self, feed: OldFeed, messages: Sequence[Any], name_hash: str = MAIN) -> None:
        with self.changing("feeds.db") as feeds:
            feeds.executemany(
                "INSERT INTO subfeedMessages VALUES (?, ?, ?, ?)",
                [
                    (feed.id, name_hash, position, one if isinstance(one, str) else spelled(one))
                    for position, one in enumerate(messages)
                ],
            )

    def set(self, key: Any, value: Any) -> None:
        with self.changing("mutables.db") as mutables:
            row = ("h", spelled(key), spelled(value))
            mutables.execute("INSERT INTO mutables VALUES (?, ?, ?)", row)

    def add_key(self, feed: OldFeed, digits: str, name: str | None = None) -> None:
        key = {"feedId": feed.id, "type": "feedConfig"}
        self.set(key, {"feedId": feed.id, "privateKey": digits})
        if name is not None:
            self.set({"feedName": name, "type": "feedIdForName"}, feed.id)


class Changing:
    """A database that is open, and closed with its changes kept."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path)

    def __enter__(self) -> sqlite3.Connection:
        return self.connection

    def __exit__(self, *error: object) -> None:
        self.connection.commit()
        self.connection.close()


def spelled(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


@pytest.fixture
def old(environment: Path) -> OldDirectory:
    return OldDirectory(environment / "old")


@pytest.fixture
def daemon(environment: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FeedDaemon]:
    monkeypatch.setattr("kachery_p2p.client.storing.running_daemon", lambda: None)
    config = environment / "config"
    config.mkdir(mode=0o700)
    with FeedDaemon(config, environment / "store") as one:
        yield one


def imported(old: OldDirectory) -> list[Imported]:
    return list(import_feeds(str(old.path), []))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# --- signatures ---------------------------------------------------------------------------------


def test_both_ways_of_signing_verify_over_the_text_as_it_is_written_here() -> None:
    # The key of RFC 8032, section 7.1, test 1.
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    key = Ed25519PrivateKey.from_private_bytes(seed)
    feed = FeedId("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    assert key.public_key().public_bytes_raw() == feed.raw
    stored = (
        '{"body":{"timestamp":1600000000000,"messageNumber":1,"message":{"b":1e-7,"a":"\\u00e4"}},'
        '"signature":"SIGNATURE"}'
    )
    body = '{"message":{"a":"ä","b":1e-7},"messageNumber":1,"timestamp":1600000000000}'.encode()
    for signed in (body, sha1(body).digest()):
        text = stored.replace("SIGNATURE", key.sign(signed).hex())
        assert why_not_next(feed, read_signed(text), None) is None
    text = stored.replace("SIGNATURE", "00" * 64)
    assert why_not_next(feed, read_signed(text), None) == "its signature is wrong"


def test_what_was_signed_is_spelled_as_javascript_spelled_it() -> None:
    # JavaScript sorts by UTF-16, in which the emoji comes before the private character.
    text = '{"body":{"message":{"\ue000":1E+21,"😀":-0,"a":"\\ud800\\u001f\\/"},"messageNumber":1,'
    text += '"timestamp":1},"signature":"' + "0" * 128 + '"}'
    assert read_signed(text).body_text == (
        '{"message":{"a":"\\ud800\\u001f/","😀":-0,"\ue000":1E+21},"messageNumber":1,"timestamp":1}'
    )
    assert canonical([None, True, False]) == "[null,true,false]"


@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize("first", [0, 1])
def test_a_chain_verifies_whoever_signed_it(hashed: bool, first: int) -> None:
    feed = OldFeed(hashed=hashed, first=first)
    signed = [read_signed(spelled(one)) for one in feed.messages()]
    for before, message in itertools.pairwise([None, *signed]):
        assert message is not None
        assert why_not_next(feed.id, message, before) is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda body: body.update(message="b"), "signature is wrong"),
        (lambda body: body.update(timestamp=5), "signature is wrong"),
        (lambda body: body.update(messageNumber=9), "its number is 9"),
        (lambda body: body.update(previousSignature="0" * 128), "does not name the signature"),
        (lambda body: body.pop("previousSignature"), "does not name the signature"),
    ],
)
def test_whatever_is_changed_shows(change: Callable[[dict[str, Any]], Any], why: str) -> None:
    feed = OldFeed()
    first, second = feed.messages(["a", "b2"])
    change(second["body"])
    before, message = read_signed(spelled(first)), read_signed(spelled(second))
    assert why in (why_not_next(feed.id, message, before) or "")


@pytest.mark.parametrize(
    "junk",
    [
        *("", "{}", "[]", "7", '"x"', "{", '{"body":{}}', '{"body":7,"signature":"x"}'),
        '{"body":{"message":NaN}}',
        "[" * 100_000,
        '{"body":{"message":1,"messageNumber":1.5,"timestamp":1},"signature":"%s"}' % ("0" * 128),
        '{"body":{"message":1,"messageNumber":1,"timestamp":1},"signature":"%s"}' % ("G" * 128),
        f'{{"body":{{"message":1,"messageNumber":{"9" * 5_000},"timestamp":1}},'
        f'"signature":"{"0" * 128}"}}',
        "x" * (2 << 20),
    ],
)
def test_junk_is_no_signed_message(junk: str) -> None:
    with pytest.raises(DataFormatError):
        read_signed(junk)


# --- what becomes of them -----------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "302e020100300506032b657004220420"])
def test_an_own_feed_goes_on_under_its_key(
    old: OldDirectory, daemon: FeedDaemon, prefix: str
) -> None:
    feed = OldFeed()
    signed = feed.messages()
    old.add(feed, signed)
    old.add(feed, feed.messages(["only"]), sha1_of(b"other"))
    old.add_key(feed, prefix + feed.seed.hex(), "jobs")
    before = contents(old.path)
    found = {one.what: one for one in imported(old)}
    assert contents(old.path) == before
    uri = f"feed://{feed.id}/~{MAIN}"
    assert found[uri] == Imported(uri, "continued under its key", uri, len(VALUES), None)
    assert len(found) == 2

    main = kp.load_feed("jobs").get_subfeed("main")
    assert main.get_next_messages() == VALUES
    main.set_position(0)
    assert main.get_next_messages(signed=True) == signed
    assert [one.text for one in main.live.read(0, 0, 0, signed=True).told] == list(
        map(spelled, signed)
    )
    assert kp.load_feed(f"feed://{feed.id}").is_writeable
    assert main.append_message("new") == len(VALUES)
    assert main.get_next_messages() == ["new"]


def test_importing_again_goes_on_where_it_ended(old: OldDirectory, daemon: FeedDaemon) -> None:
    feed = OldFeed()
    signed = feed.messages(list(range(2_500)))
    old.add(feed, signed[:1_200])
    old.add_key(feed, feed.seed.hex())
    assert imported(old)[0].messages == 1_200
    with old.changing("feeds.db") as feeds:
        feeds.execute("DELETE FROM subfeedMessages")
    old.add(feed, signed)
    for _ in range(2):
        assert imported(old)[0][3:5] == (2_500, None)
    subfeed = kp.load_subfeed(f"feed://{feed.id}/main")
    assert subfeed.get_next_messages() == list(range(2_500))


def test_a_subfeed_with_other_messages_is_left_alone(old: OldDirectory, daemon: FeedDaemon) -> None:
    feed = OldFeed()
    call("feed_adopt", {"seed": feed.seed.hex(), "channels": []})
    kp.load_subfeed(f"feed://{feed.id}/main").append_message("mine")
    old.add(feed, feed.messages())
    old.add_key(feed, feed.seed.hex())
    (one,) = imported(old)
    assert one.messages == 0
    assert "other messages" in (one.problem or "")
    assert kp.load_subfeed(f"feed://{feed.id}/main").get_next_messages() == ["mine"]


def test_a_name_that_is_taken_does_not_stop_a_feed(old: OldDirectory, daemon: FeedDaemon) -> None:
    taken, feed = kp.create_feed("jobs"), OldFeed()
    old.add(feed, feed.messages())
    old.add_key(feed, feed.seed.hex(), "jobs")
    assert imported(old)[0].problem is None
    assert kp.load_feed("jobs").feed_id == taken.feed_id


def add_rules(old: OldDirectory, feed: OldFeed, rules: Any, name_hash: str = MAIN) -> None:
    with old.changing("feeds.db") as feeds:
        text = rules if isinstance(rules, str) else spelled(rules)
        feeds.execute("INSERT INTO subfeeds VALUES (?, ?, ?)", (feed.id, name_hash, text))


def test_who_might_submit_to_an_own_feed_may_do_so_again_until_it_is_revoked(
    old: OldDirectory, daemon: FeedDaemon
) -> None:
    feed, (one, two, three) = OldFeed(), (OldFeed(n).id for n in (2, 3, 4))
    empty = sha1_of(b"without messages")
    old.add(feed, feed.messages())
    old.add_key(feed, feed.seed.hex())
    rules = [{"nodeId": one, "write": True}, {"nodeId": two, "write": True}]
    add_rules(old, feed, {"rules": [*rules, {"nodeId": three, "write": False}]})
    add_rules(old, feed, {"rules": rules[:1]}, empty)
    (found,) = imported(old)
    assert (found.writers, found.problem) == (2, None)
    subfeed = kp.load_subfeed(f"feed://{feed.id}/main")
    assert subfeed.get_access_rules() == {"rules": rules}
    assert kp.load_subfeed(f"feed://{feed.id}/~{empty}").get_access_rules()["rules"] == rules[:1]
    subfeed.revoke_write_access(node_id=one)
    assert imported(old)[0].writers == 0
    assert subfeed.get_access_rules() == {"rules": rules[1:]}


@pytest.mark.parametrize(
    "rules",
    [
        *("", "{", "[]", '{"rules": 7}', '{"rules": [7]}', '{"rules": [{"write": true}]}'),
        '{"rules": [{"nodeId": "x", "write": true}]}',
        '{"rules": [{"nodeId": 7, "write": true}]}',
        '{"rules": [{"nodeId": "NODE", "write": 1}]}',
        '{"rules": [{"nodeId": "NODE", "write": true}, {"nodeId": "x", "write": true}]}',
    ],
)
def test_rules_that_are_none_let_nobody_in(old: OldDirectory, rules: str) -> None:
    feed = OldFeed()
    add_rules(old, feed, rules.replace("NODE", feed.id))
    with legacy_feeds.LegacyFeeds(str(old.path)) as found:
        assert list(found.writers(feed.id)) == []


def test_rules_are_not_looked_for_where_there_were_none(old: OldDirectory) -> None:
    with old.changing("feeds.db") as feeds:
        feeds.execute("DROP TABLE subfeeds")
    with legacy_feeds.LegacyFeeds(str(old.path)) as found:
        assert list(found.writers(OldFeed().id)) == []


def test_a_foreign_feed_becomes_a_snapshot_and_needs_no_daemon(old: OldDirectory) -> None:
    feed = OldFeed(hashed=True)
    signed = feed.messages()
    old.add(feed, signed)
    (one,) = imported(old)
    assert (one.what, one.messages, one.problem) == (f"feed://{feed.id}", len(VALUES), None)
    assert one.uri is not None
    archive = kp.load_feed(one.uri)
    assert (archive.feed_id, archive.is_writeable()) == (feed.id, False)
    assert archive.get_subfeed("main").get_next_messages() == VALUES
    assert archive.get_subfeed("main").get_next_messages(signed=True) == signed


def test_an_own_feed_needs_a_daemon_and_says_so(old: OldDirectory) -> None:
    feed = OldFeed()
    old.add(feed, feed.messages())
    old.add_key(feed, feed.seed.hex())
    with pytest.raises(DaemonDownError):
        imported(old)


def test_a_key_of_another_feed_makes_no_feed_ours(old: OldDirectory) -> None:
    feed = OldFeed()
    old.add(feed, feed.messages())
    old.add_key(feed, OldFeed(2).seed.hex())
    assert imported(old)[0].kind == "archived as a snapshot"


def test_what_does_not_verify_is_said_and_what_precedes_it_is_taken(old: OldDirectory) -> None:
    good, bad = OldFeed(3), OldFeed(4)
    signed = bad.messages()
    signed[2]["body"]["message"] = "forged"
    old.add(good, good.messages())
    old.add(bad, signed)
    old.add(bad, ["junk"], sha1_of(b"other"))
    found = {one.what: one for one in imported(old)}
    assert found[f"feed://{good.id}"].problem is None
    one = found[f"feed://{bad.id}"]
    assert one.messages == 2
    assert f"~{MAIN}: message 2: its signature is wrong" in (one.problem or "")
    assert "message 0: it is not JSON" in (one.problem or "")
    assert one.uri is not None
    assert kp.load_feed(one.uri).get_subfeed("main").get_next_messages() == VALUES[:2]


def test_a_gap_and_a_message_too_many_are_found(old: OldDirectory) -> None:
    feed = OldFeed()
    old.add(feed, feed.messages())
    with old.changing("feeds.db") as feeds:
        feeds.execute("DELETE FROM subfeedMessages WHERE position = 1")
    assert "there is no message at position 1" in (imported(old)[0].problem or "")


def test_a_feed_of_which_nothing_verifies_leaves_nothing(old: OldDirectory) -> None:
    feed = OldFeed()
    old.add(feed, ["junk"])
    (one,) = imported(old)
    assert (one.uri, one.messages) == (None, 0)


# --- mutables ---------------------------------------------------------------------------------


def test_mutables_of_programs_are_taken_over_and_those_of_the_daemon_are_not(
    old: OldDirectory,
) -> None:
    feed = OldFeed()
    old.add_key(feed, feed.seed.hex(), "a name")
    old.set("_joined_channels_config", {"joinedChannels": []})
    old.set("key1", {"value": 1})
    old.set({"b": [1], "a": 2.0}, "text")
    old.set("known", "older")
    with old.changing("mutables.db") as mutables:
        for row in (("{", "1"), ("1", "{"), (None, None), (b"x", 7), ('"nan"', "NaN")):
            mutables.execute("INSERT INTO mutables VALUES ('h', ?, ?)", row)
    kp.set("known", "newer")
    before = contents(old.path)
    assert import_mutables(str(old.path)) == 2
    assert import_mutables(str(old.path)) == 0
    assert (kp.get("key1"), kp.get({"a": 2, "b": [1]})) == ({"value": 1}, "text")
    assert kp.get("known") == "newer"
    assert kp.get({"type": "feedConfig", "feedId": feed.id}) is None
    assert contents(old.path) == before


def test_no_mutables_or_junk_are_none_or_an_error(tmp_path: Path) -> None:
    assert import_mutables(str(tmp_path)) == 0
    (tmp_path / "mutables.db").write_bytes(b"junk" * 999)
    with pytest.raises(DataFormatError):
        import_mutables(str(tmp_path))


# --- hostile files ------------------------------------------------------------------------------


def test_a_directory_without_feeds_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(UnknownFeedError, match="no feeds.db"):
        list(import_feeds(str(tmp_path), []))


@pytest.mark.parametrize(
    "junk", [b"", b"not a database" * 100, b"SQLite format 3\0" + bytes(4_000)]
)
def test_a_file_of_junk_is_no_database(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "feeds.db").write_bytes(junk)
    with pytest.raises(DataFormatError):
        list(import_feeds(str(tmp_path), []))


def test_a_pipe_or_a_directory_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "feeds.db")
    with pytest.raises(DataFormatError, match="not a file"):
        list(import_feeds(str(tmp_path), []))


def test_bytes_flipped_anywhere_are_an_error_of_ours_or_nothing(old: OldDirectory) -> None:
    feed = OldFeed()
    old.add(feed, feed.messages(["x" * 300] * 20))
    path = old.path / "feeds.db"
    sound = path.read_bytes()
    for place in range(0, len(sound), 331):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 0x5A]) + sound[place + 1 :])
        try:
            found = imported(old)
        except DataFormatError:
            continue
        # What is taken is what was signed.
        for one in found:
            if one.uri is not None:
                subfeed = kp.load_feed(one.uri).get_subfeed("main")
                assert set(subfeed.get_next_messages()) <= {"x" * 300}


def test_a_view_that_never_ends_is_not_looked_into(old: OldDirectory) -> None:
    with old.changing("feeds.db") as feeds:
        feeds.execute("DROP TABLE subfeedMessages")
        feeds.execute(
            "CREATE VIEW subfeedMessages AS WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1"
            " FROM n) SELECT 'a' feedId, 'b' subfeedHash, i position, 'c' message FROM n"
        )
    with pytest.raises(DataFormatError, match="no table subfeedMessages"):
        imported(old)


def test_a_look_that_takes_too_long_is_given_up(
    old: OldDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = OldFeed()
    with old.changing("feeds.db") as feeds:
        feeds.executemany(
            "INSERT INTO subfeedMessages VALUES (?, ?, ?, ?)",
            ((feed.id, MAIN, position, "x") for position in range(50_000)),
        )
    monkeypatch.setattr(legacy_feeds, "LEGACY_LOOK_S_MAX", -1.0)
    monkeypatch.setattr(legacy_feeds, "_STEPS", 100)
    with pytest.raises(DataFormatError, match="interrupted"):
        imported(old)


def test_a_row_that_would_fill_the_memory_is_not_read(old: OldDirectory) -> None:
    feed = OldFeed()
    old.add(feed, [feed.messages()[0], "x" * (LEGACY_ROW_BYTES_MAX + 1)])
    (one,) = imported(old)
    assert one.uri is None
    assert "too big" in (one.problem or "")


def test_rows_that_are_no_feeds_are_passed_over(old: OldDirectory) -> None:
    feed = OldFeed()
    old.add(feed, feed.messages())
    with old.changing("feeds.db") as feeds:
        for row in ((None, None), (7, b"x"), ("xyz", "abc"), ("../../x", MAIN)):
            feeds.execute("INSERT INTO subfeedMessages VALUES (?, ?, 0, 'x')", row)
    old.set([1], 2)
    old.set({"type": "feedConfig"}, "x")
    with old.changing("mutables.db") as mutables:
        mutables.execute("INSERT INTO mutables VALUES ('h', 'feedConfig', x'ff')")
        mutables.execute("INSERT INTO mutables VALUES ('h', '{\"feedConfig\": 1', NULL)")
    assert [one.messages for one in imported(old)] == [len(VALUES)]
