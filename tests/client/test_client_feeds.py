"""Feeds through the API: with the daemon's own handlers at both doors, and a real disk."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kachery_p2p as kp
from kachery_p2p.client.feeds import list_feeds
from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.errors import (
    DaemonDownError,
    FeedEndedError,
    FeedReadOnlyError,
    FeedUnavailableError,
    InvalidNameError,
    InvalidRangeError,
    LogError,
    MessageTooLargeError,
    NotFoundError,
    UnknownChannelError,
    UnknownFeedError,
    UnsupportedValueError,
    UriError,
)
from kachery_p2p.limits import FEED_CALL_MESSAGES_MAX, FEED_WATCHED_MAX, MESSAGE_BYTES_MAX
from tests.client.feed_daemon import TOKEN, FeedDaemon

STRANGER = "feed://" + "ab" * 32 + "/main"


@pytest.fixture
def own(environment: Path) -> Iterator[FeedDaemon]:
    """The daemon of this configuration."""
    config = environment / "config"
    config.mkdir(mode=0o700)
    with FeedDaemon(config, environment / "store") as daemon:
        yield daemon


@pytest.fixture(params=["unix", "http"])
def daemon(
    request: pytest.FixtureRequest, own: FeedDaemon, monkeypatch: pytest.MonkeyPatch
) -> FeedDaemon:
    """The same, asked at either door."""
    if request.param == "http":
        monkeypatch.setenv("KACHERY_DAEMON_HOST", "127.0.0.1")
        monkeypatch.setenv("KACHERY_DAEMON_PORT", str(own.port))
        monkeypatch.setenv("KACHERY_DAEMON_TOKEN", TOKEN)
    return own


@pytest.fixture
def main(daemon: FeedDaemon) -> kp.Subfeed:
    """An empty subfeed of this node's."""
    return kp.create_feed().get_subfeed("main")


# --- feeds --------------------------------------------------------------------------------------


def test_a_feed_is_found_by_its_name_and_by_its_uri(daemon: FeedDaemon) -> None:
    feed = kp.create_feed("jobs")
    assert kp.load_feed("jobs").feed_id == kp.load_feed(feed.uri).feed_id == feed.feed_id
    assert kp.get_feed_id("jobs") == feed.get_feed_id()
    assert feed.uri == feed.get_uri() == f"feed://{feed.feed_id}"


def test_what_was_a_method_and_a_property_is_both(daemon: FeedDaemon) -> None:
    feed = kp.create_feed()
    subfeed = feed.get_subfeed("main")
    for one in (feed, subfeed):
        assert one.is_writeable
        assert one.is_writeable() is True
        assert not one.is_snapshot
        assert one.is_snapshot() is False
        assert repr(one.is_snapshot) == "False"
    assert not kp.load_subfeed(STRANGER).is_writeable
    assert (subfeed.uri, subfeed.position) == (subfeed.get_uri(), subfeed.get_position())
    assert subfeed.subfeed_name == subfeed.get_subfeed_name() == "main"
    assert subfeed.subfeed_hash == subfeed.get_subfeed_hash() == sha1_of(b"main")


def test_a_name_that_nobody_gave_is_unknown_unless_it_is_to_be_made(daemon: FeedDaemon) -> None:
    for load in (kp.load_feed, kp.get_feed_id, kp.delete_feed):
        with pytest.raises(UnknownFeedError):
            load("jobs")
    feed = kp.load_feed("jobs", create=True)
    assert kp.load_feed("jobs", create=True).uri == feed.uri
    assert kp.get_feed_id("jobs", create=True) == feed.feed_id
    with pytest.raises(LogError, match="that of another feed"):
        kp.create_feed("jobs")


def test_a_deleted_feed_is_gone_with_all_that_was_in_it(main: kp.Subfeed) -> None:
    main.append_message(1)
    feed = kp.load_feed(main.uri.rpartition("/")[0])
    kp.delete_feed(feed.uri)
    assert not feed.is_writeable
    assert list_feeds() == []
    with pytest.raises(FeedReadOnlyError):
        main.append_message(2)


def test_many_feeds_are_listed_in_the_order_of_making(own: FeedDaemon) -> None:
    made = [kp.create_feed(f"feed {number}").feed_id for number in range(5)]
    told = list_feeds()
    assert [one["feed"] for one in told] == made
    assert told[4]["names"] == ["feed 4"]
    assert told[4]["channels"] == []


def test_a_feed_is_shared_in_the_channels_that_are_named(daemon: FeedDaemon) -> None:
    feed = kp.create_feed(channels=["lab"])
    assert feed.info()["channels"] == ["lab"]
    feed.unshare("lab")
    assert feed.info()["channels"] == []
    feed.share(["lab"])
    assert feed.info()["channels"] == ["lab"]
    with pytest.raises(UnknownChannelError):
        feed.share(["nowhere"])
    with pytest.raises(UnknownChannelError):
        kp.create_feed(channels=["nowhere"])


@pytest.mark.parametrize("junk", ["feed://", "feed://xyz", "feed://" + "ab" * 31, "feed:// /a"])
def test_a_uri_with_junk_is_refused(own: FeedDaemon, junk: str) -> None:
    for load in (kp.load_feed, kp.load_subfeed):
        with pytest.raises(UriError):
            load(junk)


def test_a_feed_is_not_taken_for_a_subfeed_nor_the_other_way_round(own: FeedDaemon) -> None:
    with pytest.raises(UriError):
        kp.load_feed(STRANGER)
    with pytest.raises(UriError):
        kp.load_subfeed(STRANGER.removesuffix("/main"))
    with pytest.raises(UriError):
        kp.load_subfeed(STRANGER.replace("main", "~ab"))
    with pytest.raises((UriError, InvalidNameError)):
        kp.load_subfeed(STRANGER + "%ff")


def test_without_a_daemon_the_error_says_how_to_start_one(environment: Path) -> None:
    for ask in (kp.create_feed, lambda: kp.load_subfeed(STRANGER).get_next_messages()):
        with pytest.raises(DaemonDownError) as raised:
            ask()
        assert "kachery-p2p start" in (raised.value.hint or "")


# --- messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        *(None, True, 0, -1.5, "", "ä\u2028\0\x1b[31m", [], {}, {"a": [{"b": None}]}),
        *(2**31, 2**63, -(2**64), 10**400, 1e300),
    ],
)
def test_any_json_comes_back_as_it_was(main: kp.Subfeed, message: Any) -> None:
    assert main.append_message(message) == 0
    assert main.get_next_message() == message


@pytest.mark.parametrize(
    "message", [math.nan, [math.inf], {"a": -math.inf}, "\ud800", b"x", object(), {1, 2}]
)
def test_what_is_not_json_is_refused_before_anything_is_sent(
    environment: Path, message: Any
) -> None:
    subfeed = kp.load_subfeed(STRANGER)
    for write in (subfeed.append_message, subfeed.submit_message):
        with pytest.raises(UnsupportedValueError):
            write(message)


def test_what_is_nested_too_deep_is_refused(environment: Path) -> None:
    deep: Any = []
    for _ in range(250):
        deep = [deep]
    with pytest.raises(UnsupportedValueError, match="deep"):
        kp.load_subfeed(STRANGER).append_message(deep)


def test_brackets_inside_texts_nest_nothing(main: kp.Subfeed) -> None:
    message = ["[" * 500, '"{' * 300, "\\" * 301]
    main.append_message(message)
    assert main.get_next_message() == message


def test_the_largest_message_passes_and_a_larger_one_does_not(main: kp.Subfeed) -> None:
    # Of characters that take the most room in the JSON of an HTTP request.
    largest = "\x7fé" * ((MESSAGE_BYTES_MAX - 2) // 3)
    main.append_message(largest)
    assert main.get_next_message() == largest
    with pytest.raises(MessageTooLargeError):
        main.append_message("x" * (MESSAGE_BYTES_MAX - 1))
    assert main.get_num_messages() == 1


def test_more_messages_than_fit_one_call_stay_in_order(main: kp.Subfeed) -> None:
    messages = list(range(2 * FEED_CALL_MESSAGES_MAX + 10))
    assert main.append_messages(messages) == messages
    assert main.get_next_messages() == messages
    assert main.get_next_messages() == []


def test_no_messages_are_no_mistake(main: kp.Subfeed) -> None:
    assert main.append_messages([]) == []
    assert main.get_num_messages() == main.get_num_local_messages() == 0
    assert list(main) == []


def test_reading_goes_on_from_the_position(main: kp.Subfeed) -> None:
    main.append_messages(list("abcde"))
    assert main.get_next_messages(max_num_messages=2) == ["a", "b"]
    assert main.get_next_message(advance_position=False) == "c"
    assert main.get_next_message() == "c"
    assert list(main) == ["d", "e"]
    assert main.position == 5
    main.set_position(1)
    assert next(main.message_stream()) == "b"
    assert main.position == 2
    main.position = 4
    assert main.get_next_messages() == ["e"]
    assert main.get_next_message() is None


@pytest.mark.parametrize("position", [-1, 2**62, 2**64, 10**30])
def test_a_position_that_no_subfeed_has_is_refused(main: kp.Subfeed, position: int) -> None:
    with pytest.raises(InvalidRangeError):
        main.set_position(position)
    with pytest.raises(UnsupportedValueError):
        main.set_position("1")  # type: ignore[arg-type]


def test_behind_the_last_message_there_is_nothing(main: kp.Subfeed) -> None:
    main.append_message(1)
    main.set_position(2**62 - 1)
    assert main.get_next_messages() == []


def test_who_waits_gets_a_message_as_it_is_appended(main: kp.Subfeed) -> None:
    got: list[Any] = []
    reader = kp.load_subfeed(main.uri)
    thread = threading.Thread(target=lambda: got.extend(reader.get_next_messages(wait_msec=20_000)))
    thread.start()
    main.append_message({"a": 1})
    thread.join(20)
    assert got == [{"a": 1}]


def test_a_signed_message_says_its_number_and_time(main: kp.Subfeed) -> None:
    main.append_messages(["a", "b"])
    signed = main.get_next_messages(signed=True)
    assert [one["body"]["message"] for one in signed] == ["a", "b"]
    assert [one["body"]["messageNumber"] for one in signed] == [1, 2]
    assert signed[0]["body"]["timestamp"] <= signed[1]["body"]["timestamp"]


def test_printed_messages_steer_no_terminal(
    main: kp.Subfeed, capsys: pytest.CaptureFixture[str]
) -> None:
    main.append_message("\x1b[31mred\u202e")
    main.print_messages()
    printed = capsys.readouterr().out
    assert printed == '"\\u001b[31mred\\u202e"\n'
    main.set_position(0)
    main.print_signed_messages()
    assert json.loads(capsys.readouterr().out)["body"]["messageNumber"] == 1


# --- names --------------------------------------------------------------------------------------


def test_subfeeds_are_named_by_any_json_or_by_the_hash_of_the_name(daemon: FeedDaemon) -> None:
    feed = kp.create_feed()
    name = {"b": 1, "a": [None]}
    feed.get_subfeed(name).append_message("here")
    assert feed.get_subfeed({"a": [None], "b": 1}).get_next_message() == "here"
    hashed = sha1_of(b'{"a":[null],"b":1}')
    assert feed.get_subfeed(name).uri == f"{feed.uri}/~{hashed}"
    assert kp.load_subfeed(f"{feed.uri}/~{hashed}").get_next_message() == "here"
    spaced = feed.load_subfeed("two words/ä", position=3)
    assert kp.load_subfeed(spaced.uri).subfeed_hash == spaced.subfeed_hash
    assert spaced.position == 3
    with pytest.raises(InvalidNameError):
        feed.get_subfeed({1, 2})
    with pytest.raises(InvalidNameError):
        feed.get_subfeed("x" * 5_000)


def test_names_of_subfeeds_are_listed_where_they_were_told(daemon: FeedDaemon) -> None:
    feed = kp.create_feed()
    feed.get_subfeed("main").append_message(1)
    feed.get_subfeed(7).append_message(1)
    names = {one["name_hash"]: one["name"] for one in feed.info()["subfeeds"]}
    assert names == {sha1_of(b"main"): "main", sha1_of(b"7"): None}


# --- others -------------------------------------------------------------------------------------


def test_somebody_elses_feed_is_not_appended_to(own: FeedDaemon) -> None:
    with pytest.raises(FeedReadOnlyError, match="Cannot append messages to a readonly feed"):
        kp.load_subfeed(STRANGER).append_message(1)


def test_a_feed_that_nobody_has_says_so(own: FeedDaemon) -> None:
    with pytest.raises(FeedUnavailableError, match="no connected node has feed"):
        kp.load_subfeed(STRANGER).get_next_messages(wait_msec=0)
    with pytest.raises(FeedUnavailableError, match="not connected"):
        kp.load_subfeed(STRANGER).submit_message(1)


def test_who_may_write_is_set_and_told(main: kp.Subfeed) -> None:
    one, two = "12" * 32, "34" * 32
    main.grant_write_access(node_id=one)
    main.grant_write_access(node_id=two)
    main.revoke_write_access(node_id=one)
    assert main.get_access_rules() == {"rules": [{"nodeId": two, "write": True}]}
    rules = [{"nodeId": one, "write": True}, {"nodeId": two, "write": False}]
    main.set_access_rules({"rules": rules})
    assert main.get_access_rules() == {"rules": rules[:1]}
    with pytest.raises(UnsupportedValueError):
        main.set_access_rules({"rules": [7]})
    with pytest.raises(UnknownFeedError):
        kp.load_subfeed(STRANGER).grant_write_access(node_id=one)


def test_an_owner_submits_to_its_own_feed_and_a_repeated_id_once(main: kp.Subfeed) -> None:
    id = "5a" * 16
    assert main.submit_message("a", id=id) == 0
    assert main.submit_messages(["a", "b"], ids=[id, "5b" * 16]) == [0, 1]
    assert main.get_next_messages() == ["a", "b"]
    main.set_position(0)
    body = main.get_next_messages(signed=True)[0]["body"]
    assert len(body["metaData"]["submittedByNodeId"]) == 64


def test_an_ended_subfeed_is_read_to_its_end_and_says_what_goes_on(own: FeedDaemon) -> None:
    feed, later = kp.create_feed(), kp.create_feed()
    main = feed.get_subfeed("main")
    main.append_messages([1, 2])
    main.live.end(later.feed_id)
    assert list(main) == [1, 2]
    assert main.get_num_messages() == 2
    for ask in (main.get_next_messages, lambda: next(main.message_stream())):
        with pytest.raises(FeedEndedError) as raised:
            ask()
        assert later.feed_id in (raised.value.hint or "")
    with pytest.raises(LogError):
        main.append_message(3)


# --- many at once -------------------------------------------------------------------------------


def test_watching_tells_the_new_messages_of_each_subfeed(daemon: FeedDaemon) -> None:
    feed = kp.create_feed()
    one, two, three = (feed.get_subfeed(name) for name in ("one", "two", "three"))
    one.append_messages([1, 2, 3])
    two.append_message("x")
    one.set_position(1)
    watches = {
        "a": one,
        2: {"feedId": feed.feed_id, "subfeedName": "two", "position": 0},
        3: {"feedId": feed.feed_id, "subfeedHash": three.subfeed_hash},
    }
    assert kp.watch_for_new_messages(watches, wait_msec=0) == {"a": [2, 3], 2: ["x"]}
    assert one.position == 1
    assert kp.watch_for_new_messages({3: three}, 10) == {}
    assert kp.watch_for_new_messages({}, wait_msec=1_000) == {}
    with pytest.raises(UnsupportedValueError):
        kp.watch_for_new_messages({"a": "nothing"}, 10)
    with pytest.raises(UnsupportedValueError):
        kp.watch_for_new_messages(dict.fromkeys(range(FEED_WATCHED_MAX + 1), one), 10)


def test_appenders_at_once_lose_nothing(main: kp.Subfeed) -> None:
    def append(name: int) -> None:
        subfeed = kp.load_subfeed(main.uri)
        for number in range(20):
            subfeed.append_message([name, number])

    threads = [threading.Thread(target=append, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    found = main.get_next_messages()
    assert sorted(found) == [[name, number] for name in range(8) for number in range(20)]
    for name in range(8):
        assert [one[1] for one in found if one[0] == name] == list(range(20))


# --- snapshots ----------------------------------------------------------------------------------


def test_a_snapshot_is_a_feed_that_stays_as_it_was(
    own: FeedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = kp.create_feed()
    for name in ("main", "a b", 7):
        feed.get_subfeed(name).append_messages([name, {"n": 1}])
    # Storing asks a daemon, too, and this one knows feeds only.
    monkeypatch.setattr("kachery_p2p.client.storing.running_daemon", lambda: None)
    uri = feed.create_snapshot(["main", "a b", 7], channels=[])
    assert uri.startswith("sha1://")
    assert uri.endswith("/feed.json")
    feed.get_subfeed("main").append_message("later")

    monkeypatch.setenv("KACHERY_P2P_CONFIG_DIR", str(own.config.parent / "elsewhere"))
    copy = kp.load_feed(uri)
    assert (copy.is_snapshot(), copy.is_writeable(), copy.feed_id) == (True, False, feed.feed_id)
    assert copy.uri == uri
    for name in ("main", "a b", 7):
        subfeed = copy.get_subfeed(name)
        assert subfeed.get_num_messages() == subfeed.get_num_local_messages() == 2
        assert kp.load_subfeed(subfeed.uri).get_next_messages() == [name, {"n": 1}]
        assert [one["body"]["messageNumber"] for one in subfeed.get_next_messages(signed=True)] == [
            1,
            2,
        ]
    with pytest.raises(FeedReadOnlyError, match="Cannot append messages to a readonly feed"):
        copy.get_subfeed("main").append_message(1)
    with pytest.raises(UnknownFeedError):
        copy.get_subfeed("other")
    with pytest.raises(UriError):
        kp.load_subfeed(uri)


def test_what_is_no_snapshot_is_not_taken_for_one(environment: Path) -> None:
    values: list[Any] = [[], {"subfeeds": []}, {"subfeeds": {"a": {}}}]
    for value in values:
        uri = kp.store_json(value, channels=[])
        with pytest.raises(kp.KacheryError, match="not a snapshot"):
            kp.load_feed(uri)
    with pytest.raises((NotFoundError, DaemonDownError)):
        kp.load_feed("sha1://" + "ab" * 20 + "/feed.json")
