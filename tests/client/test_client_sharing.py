"""find_file, share, unshare, shared and get_channels: with the daemon's own handlers, and alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import kachery_p2p as kp
from kachery_p2p.channels.channel import Channel, generate_secret, parse_secret
from kachery_p2p.channels.files import join_shared
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import (
    ConfigError,
    DaemonDownError,
    NotFoundError,
    UnknownChannelError,
    UnsupportedValueError,
)
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeKey
from kachery_p2p.limits import SHARED_PAGE_MAX
from kachery_p2p.network.memberships import Memberships
from kachery_p2p.node.api import Api
from kachery_p2p.node.config import NodeConfig
from kachery_p2p.node.parts import Parts
from kachery_p2p.node.unix_door import serve_unix_door
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.grants import Grants
from kachery_p2p.store.index import Index

KEY = NodeKey.generate(b"n" * NODE_KEY_BYTES)
SECRETS = {name: generate_secret(name.encode().ljust(20, b"x")) for name in ("lab", "field")}


class Daemon:
    """A daemon of this configuration without a network, in a thread."""

    def __init__(self, config: Path, store: Path) -> None:
        self.grants = Grants(str(config / "state" / "grants.db"))
        channels = [Channel.shared(parse_secret(text), name) for name, text in SECRETS.items()]
        blobs = BlobStore(str(store), Index(str(config / "state" / "index.db")), 0)
        node_config = NodeConfig(str(config), str(store))
        self._config = config
        self._made: Any = (node_config, KEY, Memberships(channels), (), blobs, self.grants)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._serve,))

    def __enter__(self) -> Daemon:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._trio.run_sync_soon(self._scope.cancel)
        self._thread.join(10)
        self.grants.close()
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._trio = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as self._scope:
            async with trio.open_nursery() as nursery:
                handlers = Api(Parts(*self._made)).handlers()
                await nursery.start(serve_unix_door, str(self._config), handlers)
                self._ready.set()


@pytest.fixture
def config(environment: Path) -> Path:
    """A configuration that has joined two channels; what is stored is shared in the first."""
    config = environment / "config"
    config.mkdir(mode=0o700)
    (environment / "store").mkdir()
    for name, secret in SECRETS.items():
        join_shared(str(config), name, secret)
    return config


@pytest.fixture
def running(config: Path) -> Iterator[Daemon]:
    with Daemon(config, config.parent / "store") as daemon:
        yield daemon


@pytest.fixture(params=["daemon", "alone"])
def either(request: pytest.FixtureRequest, config: Path) -> Iterator[None]:
    """Everything here is the same for the caller with and without a daemon."""
    if request.param == "alone":
        yield
        return
    with Daemon(config, config.parent / "store"):
        yield


def listed(channel: str | None = None) -> list[tuple[str, str]]:
    return [(one.uri, one.channel) for one in kp.shared(channel)]


def bare(uri: str) -> str:
    return uri.rpartition("/")[0]


def test_what_is_shared_is_listed_and_can_be_ended(either: None) -> None:
    one, two = (kp.store_text(text, channels=[]) for text in ("one", "two"))
    assert listed() == []
    assert kp.share([one, two], "field").files == 2
    assert kp.share(one, "lab").files == 1
    both = [(bare(one), "field"), (bare(one), "lab"), (bare(two), "field")]
    assert sorted(listed()) == sorted(both)
    assert listed("lab") == [(bare(one), "lab")]
    assert kp.unshare(one, "field") == 1
    assert kp.unshare([one, two]) == 2
    assert kp.unshare(one) == 0
    assert listed() == []
    assert kp.load_text(one) == "one"


def test_without_a_channel_it_is_the_share_list(either: None) -> None:
    uri = kp.store_text("x", channels=[])
    kp.share(uri)
    assert listed() == [(bare(uri), "lab")]


def test_only_what_is_stored_here_can_be_shared(either: None) -> None:
    with pytest.raises(NotFoundError, match="not stored here"):
        kp.share("sha1://" + "0" * 40)
    assert kp.unshare("sha1://" + "0" * 40) == 0


def test_a_channel_that_was_not_joined_is_an_error(either: None) -> None:
    uri = kp.store_text("x")
    for call in (kp.share, kp.unshare):
        with pytest.raises(UnknownChannelError):
            call(uri, "nowhere")
    with pytest.raises(UnknownChannelError):
        list(kp.shared("nowhere"))


def test_more_than_a_page_is_listed_without_a_gap(running: Daemon) -> None:
    contents = [ContentHash(f"{number:040x}") for number in range(2 * SHARED_PAGE_MAX + 1)]
    lab = kp.get_channels()[0].id
    running.grants.grant(contents, [lab], "test", 1.0)
    assert [one.uri for one in kp.shared()] == [f"sha1://{content}" for content in contents]
    assert len(list(kp.shared("lab"))) == len(contents)
    assert kp.unshare([f"sha1://{content}" for content in contents], "lab") == len(contents)


def test_the_channels_of_this_node(running: Daemon) -> None:
    lab, field = kp.get_channels()
    assert (lab.name, lab.kind, lab.shared_list) == ("lab", "shared-secret", True)
    assert (field.name, field.shared_list) == ("field", False)
    assert (lab.members, lab.peers) == (1, 0)


def test_the_channels_are_known_without_a_daemon_too(config: Path) -> None:
    known = {one.name: one for one in kp.get_channels()}
    assert {name: (one.members, one.peers, one.shared_list) for name, one in known.items()} == {
        "lab": (None, None, True),
        "field": (None, None, False),
    }


def test_who_has_what_is_stored_here(running: Daemon) -> None:
    found = kp.find_file(kp.store_text("hello"), timeout=0)
    assert found == (True, 5, (), True)


def test_nobody_has_it_is_no_error(running: Daemon) -> None:
    found = kp.find_file("sha1://" + "0" * 40, timeout=0)
    assert (found.local, found.size, found.providers, found.asked) == (False, None, (), True)


def test_without_a_daemon_nobody_else_is_asked(config: Path) -> None:
    assert kp.find_file(kp.store_text("hello")) == (True, 5, (), False)
    assert kp.find_file("sha1://" + "0" * 40) == (False, None, (), False)


def test_the_daemon_of_somebody_else_is_not_confused_with_ours(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = kp.store_text("x")
    monkeypatch.setenv("KACHERY_P2P_DAEMON_SOCKET", str(config / "other" / "their.sock"))
    for call in (kp.get_channels, lambda: kp.unshare(uri), lambda: list(kp.shared())):
        with pytest.raises(DaemonDownError):
            call()


def test_a_socket_can_be_named(
    running: Daemon, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KACHERY_P2P_CONFIG_DIR", str(environment / "mine"))
    monkeypatch.setenv("KACHERY_P2P_DAEMON_SOCKET", str(environment / "config" / "daemon.sock"))
    assert kp.get_node_id() == KEY.node_id
    assert kp.load_text(kp.store_text("x")) == "x"
    assert len(listed()) == 1
    # What is one's own stays in one's own configuration.
    kp.set("key", "value")
    assert (environment / "mine" / "state" / "mutables.db").exists()


def test_offline_nothing_is_shared(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KACHERY_OFFLINE_STORAGE_DIR", str(config))
    for call in (lambda: kp.unshare("sha1://" + "0" * 40), lambda: list(kp.shared())):
        with pytest.raises(ConfigError, match="KACHERY_OFFLINE_STORAGE_DIR"):
            call()


@pytest.mark.parametrize(
    "wrong", [{"timeout": -1}, {"timeout": "5"}, {"timeout": float("nan")}, {"from_node": 7}]
)
def test_a_restriction_that_cannot_be_meant_is_refused(config: Path, wrong: Any) -> None:
    uri = kp.store_text("x")
    for load in (kp.load_file, kp.load_text, kp.open, kp.find_file):
        with pytest.raises(UnsupportedValueError):
            load(uri, **wrong)


def test_a_restricted_load_of_what_is_stored_here_asks_nobody(config: Path) -> None:
    uri = kp.store_json({"a": 1})
    assert kp.load_json(uri, from_channel="nowhere", from_node="x", timeout=0) == {"a": 1}


def test_a_load_from_a_channel_that_was_not_joined_is_refused(running: Daemon) -> None:
    with pytest.raises(UnknownChannelError, match="'nowhere'"):
        kp.load_file("sha1://" + "0" * 40, from_channel="nowhere")


def test_a_load_ends_in_the_time_allowed(running: Daemon) -> None:
    """The node of this daemon never gets its network."""
    with pytest.raises(kp.LoadFileError, match="within 0.1 s"):
        kp.load_file("sha1://" + "0" * 40, timeout=0.1)
    with pytest.raises(kp.LoadFileError, match="within 0.1 s"):
        kp.load_bytes("sha1://" + "0" * 40 + "?root=" + "0" * 64, 0, 1, timeout=0.1)
