"""The share list is what it is now, however often it was asked for."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kachery_p2p.channels import joined as joined_module
from kachery_p2p.channels import share_lists
from kachery_p2p.channels.channel import generate_secret
from kachery_p2p.channels.files import join_shared, joined, leave
from kachery_p2p.channels.share_lists import current_share_list
from kachery_p2p.errors import KacheryError

SECRET = generate_secret(bytes(20))


@pytest.fixture
def config(tmp_path: Path) -> Iterator[str]:
    share_lists._kept = None
    yield str(tmp_path / "config")
    share_lists._kept = None


def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The configurations that are read from now on."""
    told: list[str] = []
    really = joined_module.share_list

    def share_list(config_dir: str) -> list[str]:
        told.append(config_dir)
        return really(config_dir)

    monkeypatch.setattr(share_lists, "share_list", share_list)
    return told


def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every change so far is long ago."""
    later = time.time_ns() + 1_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)


def test_with_no_channel_it_is_empty_and_nothing_is_made(config: str) -> None:
    assert current_share_list(config) == ()
    assert not os.path.exists(config)


def test_what_has_not_changed_is_not_read_again(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = join_shared(config, "lab", SECRET)
    settled(monkeypatch)
    told = readings(monkeypatch)
    assert [current_share_list(config) for _ in range(3)] == [(made.id,)] * 3
    assert told == [config]


def test_what_was_changed_a_moment_ago_is_read_each_time(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    join_shared(config, "lab", SECRET)
    changed = os.stat(f"{config}/channels").st_ctime_ns
    monkeypatch.setattr(time, "time_ns", lambda: changed + 1_000_000)
    told = readings(monkeypatch)
    current_share_list(config)
    current_share_list(config)
    assert told == [config] * 2


def test_joining_and_leaving_show_at_once(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settled(monkeypatch)
    assert current_share_list(config) == ()
    lab = join_shared(config, "lab", SECRET)
    assert current_share_list(config) == (lab.id,)
    leave(config, "lab")
    assert current_share_list(config) == ()
    again = join_shared(config, "again", SECRET)
    assert current_share_list(config) == (again.id,)


def test_a_file_that_is_edited_in_place_shows(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    join_shared(config, "lab", SECRET)
    settled(monkeypatch)
    assert len(current_share_list(config)) == 1
    path = Path(config) / "channels" / "lab.toml"
    path.write_text(path.read_text().replace("shared_list = true", "shared_list = false"))
    assert current_share_list(config) == ()
    assert len(joined(config)) == 1


def test_a_directory_that_others_may_read_is_refused_each_time(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    join_shared(config, "lab", SECRET)
    settled(monkeypatch)
    current_share_list(config)
    os.chmod(f"{config}/channels", 0o755)
    for _ in range(2):
        with pytest.raises(KacheryError):
            current_share_list(config)


def test_another_configuration_has_its_own(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = join_shared(config, "lab", SECRET)
    there = join_shared(f"{config}-2", "other", SECRET)
    settled(monkeypatch)
    for _ in range(2):
        assert current_share_list(config) == (here.id,)
        assert current_share_list(f"{config}-2") == (there.id,)
