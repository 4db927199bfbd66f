from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import ADDRESSES_PER_NODE_MAX, PEERS_MAX
from kachery_p2p.network.files import load_peers, save_peers

NODE = NodeId.of_raw(b"\1" * 32)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = str(tmp_path / "peers.json")
    save_peers(path, {NODE: ("/ip4/10.0.0.1/tcp/1/p2p/x",)})
    assert load_peers(path) == {NODE: ("/ip4/10.0.0.1/tcp/1/p2p/x",)}
    assert os.listdir(tmp_path) == ["peers.json"]
    assert os.stat(path).st_mode & 0o077 == 0


def test_no_file_is_no_peers(tmp_path: Path) -> None:
    assert load_peers(str(tmp_path / "peers.json")) == {}


DAMAGED = {
    "empty": "",
    "cut off": '{"schema": 1, "peers": {',
    "not JSON": "\0\1\2",
    "nested": "[" * 100_000,
    "a list": "[]",
    "null": "null",
    "no schema": '{"peers": {}}',
    "peers are a list": '{"schema": 1, "peers": [1]}',
    "a bad node": '{"schema": 1, "peers": {"xyz": []}}',
    "addresses are a map": json.dumps({"schema": 1, "peers": {NODE: {"a": 1}}}),
    "addresses are text": json.dumps({"schema": 1, "peers": {NODE: "/ip4"}}),
    "addresses are numbers": json.dumps({"schema": 1, "peers": {NODE: [1]}}),
    "another version": json.dumps({"schema": 2, "peers": {NODE: []}}),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, what: str) -> None:
    path = tmp_path / "peers.json"
    path.write_text(DAMAGED[what])
    assert load_peers(str(path)) == {}


def test_bytes_that_are_no_text_and_a_directory_are_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    path.write_bytes(b"\xff\xfe\xff")
    assert load_peers(str(path)) == {}
    assert load_peers(str(tmp_path)) == {}


def test_a_long_file_is_read_up_to_our_bounds(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    peers = {n.to_bytes(32, "big").hex(): ["/a"] * 100 for n in range(2 * PEERS_MAX)}
    path.write_text(json.dumps({"schema": 1, "peers": peers}))
    loaded = load_peers(str(path))
    assert len(loaded) == PEERS_MAX
    assert {len(addresses) for addresses in loaded.values()} == {ADDRESSES_PER_NODE_MAX}


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "peers.json")
    save_peers(path, {NODE: ("/old",)})

    def fail(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        save_peers(path, {NODE: ("/new",)})
    assert load_peers(path) == {NODE: ("/old",)}
    assert os.listdir(tmp_path) == ["peers.json"]
