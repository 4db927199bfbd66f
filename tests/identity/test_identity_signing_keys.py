"""The key files of channels and feeds: made once, private, and never one for the other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kachery_p2p.errors import KeyFileError, StateVersionError
from kachery_p2p.identity.signing_keys import SigningKey


class OneKey(SigningKey):
    __slots__ = ()
    KIND = "channel"


class OtherKey(SigningKey):
    __slots__ = ()
    KIND = "feed"


@pytest.fixture
def place(tmp_path: Path) -> tuple[str, str]:
    """A configuration directory, and where a key goes."""
    return str(tmp_path / "config"), str(tmp_path / "config" / "keys" / "one.key")


def test_a_key_comes_back_from_its_file_and_from_no_other_kind(place: tuple[str, str]) -> None:
    config, path = place
    key = OneKey(bytes(range(32)))
    assert OneKey.load(path, key.node_id) is None
    key.save(config, path)
    found = OneKey.load(path, key.node_id)
    assert found is not None
    assert found.sign(b"t" * 16, b"body") == key.sign(b"t" * 16, b"body")
    assert found.derive(b"one") == key.derive(b"one") != key.derive(b"other")
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert bytes(range(32)).hex() not in repr(key)
    with pytest.raises(KeyFileError, match="no key of this feed"):
        OtherKey.load(path, key.node_id)
    with pytest.raises(KeyFileError, match="no key of this channel"):
        OneKey.load(path, OneKey(bytes(32)).node_id)


def test_a_key_is_never_replaced(place: tuple[str, str]) -> None:
    config, path = place
    first, second = OneKey(bytes(32)), OneKey(bytes(range(32)))
    first.save(config, path)
    first.save(config, path)
    with pytest.raises(KeyFileError):
        second.save(config, path)
    assert OneKey.load(path, first.node_id) is not None
    assert os.listdir(os.path.dirname(path)) == ["one.key"]


def test_damage_and_a_newer_version_are_told_apart(place: tuple[str, str]) -> None:
    config, path = place
    key = OneKey(bytes(32))
    sound = key.encode()
    newer = sound.replace(b"-key 1\n", b"-key 2\n")
    with pytest.raises(StateVersionError):
        OneKey.decode(newer, key.node_id, path)
    for at in range(len(sound)):
        damaged = sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :]
        try:
            found = OneKey.decode(damaged, key.node_id, path)
        except (KeyFileError, StateVersionError) as error:
            assert key.encode().split()[-1].decode() not in str(error)
        else:  # the line end of the last line says nothing
            assert found.encode() == sound


def test_what_a_killed_process_left_goes_and_a_removed_key_is_gone(place: tuple[str, str]) -> None:
    config, path = place
    key = OneKey(bytes(32))
    key.save(config, path)
    directory = Path(path).parent
    (directory / ".channel.key.0011").write_bytes(b"half a key")
    (directory / ".feed.key.0011").write_bytes(b"of another kind")
    OneKey.sweep(str(directory))
    assert sorted(os.listdir(directory)) == [".feed.key.0011", "one.key"]
    OneKey.remove(path)
    OneKey.remove(path)
    assert OneKey.load(path, key.node_id) is None
