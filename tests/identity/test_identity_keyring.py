from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kachery_p2p.errors import KeyFileError, StateVersionError
from kachery_p2p.identity.keyring import key_path, keys_dir, load, load_or_create


@pytest.fixture
def config(tmp_path: Path) -> str:
    return str(tmp_path / "home" / "config")


def test_the_key_is_made_once_and_found_again(config: str) -> None:
    first = load_or_create(config)
    again = load_or_create(config)
    assert again.node_id == first.node_id == load(config).node_id
    assert again.seed == first.seed
    assert again.exchange_secret == first.exchange_secret


def test_nobody_else_may_look_at_the_key(config: str) -> None:
    old = os.umask(0)
    try:
        load_or_create(config)
    finally:
        os.umask(old)
    assert os.stat(config).st_mode & 0o777 == 0o700
    assert os.stat(keys_dir(config)).st_mode & 0o777 == 0o700
    assert os.stat(key_path(config)).st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o660])
def test_a_key_that_others_may_touch_is_refused(config: str, mode: int) -> None:
    load_or_create(config)
    os.chmod(key_path(config), mode)
    with pytest.raises(KeyFileError, match=f"mode {mode:o}") as caught:
        load_or_create(config)
    assert caught.value.hint == f"chmod 600 {key_path(config)}"


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777])
def test_a_key_directory_that_others_may_enter_is_refused(config: str, mode: int) -> None:
    load_or_create(config)
    os.chmod(keys_dir(config), mode)
    with pytest.raises(KeyFileError) as caught:
        load(config)
    assert caught.value.hint == f"chmod 700 {keys_dir(config)}"


def test_no_key_is_written_into_a_directory_that_others_may_enter(config: str) -> None:
    os.makedirs(keys_dir(config))
    os.chmod(keys_dir(config), 0o755)
    with pytest.raises(KeyFileError):
        load_or_create(config)
    assert os.listdir(keys_dir(config)) == []


def test_a_key_of_another_user_is_refused(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load_or_create(config)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(KeyFileError, match="belongs to another user"):
        load(config)


def test_a_symbolic_link_is_not_followed(config: str, tmp_path: Path) -> None:
    load_or_create(config)
    os.rename(key_path(config), tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", key_path(config))
    with pytest.raises(KeyFileError, match="symbolic link"):
        load_or_create(config)


def test_a_dangling_link_is_not_written_through(config: str, tmp_path: Path) -> None:
    os.makedirs(keys_dir(config), 0o700)
    os.symlink(tmp_path / "elsewhere", key_path(config))
    with pytest.raises(KeyFileError):
        load_or_create(config)
    assert not (tmp_path / "elsewhere").exists()


def test_a_linked_key_directory_is_refused(config: str, tmp_path: Path) -> None:
    load_or_create(config)
    os.rename(keys_dir(config), tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", keys_dir(config))
    with pytest.raises(KeyFileError, match="symbolic link"):
        load(config)


def test_a_pipe_in_its_place_does_not_hang(config: str) -> None:
    os.makedirs(keys_dir(config), 0o700)
    os.mkfifo(key_path(config), 0o600)
    with pytest.raises(KeyFileError, match="is not a file"):
        load_or_create(config)


def test_a_missing_key_says_how_one_is_made(config: str) -> None:
    with pytest.raises(KeyFileError, match="no node key") as caught:
        load(config)
    assert "start" in str(caught.value.hint)


def test_damage_anywhere_is_noticed_and_the_secret_never_quoted(config: str) -> None:
    key = load_or_create(config)
    text = Path(key_path(config)).read_text()
    # All but the exchange key, which nothing but itself vouches for.
    for at in range(text.index("x25519")):
        if text[at] == "\n":
            continue
        Path(key_path(config)).write_text(text[:at] + "?" + text[at + 1 :])
        with pytest.raises(KeyFileError) as caught:
            load(config)
        assert key.seed.hex()[:16] not in str(caught.value)
    for length in (0, 1, 100, 200):
        Path(key_path(config)).write_text(text[:length])
        with pytest.raises(KeyFileError):
            load_or_create(config)


def test_a_key_of_a_newer_version_is_refused(config: str) -> None:
    load_or_create(config)
    text = Path(key_path(config)).read_text()
    Path(key_path(config)).write_text(text.replace("node-key 1", "node-key 2"))
    with pytest.raises(StateVersionError, match="another version") as caught:
        load_or_create(config)
    assert "upgrade" in str(caught.value.hint)


def test_processes_that_start_at_once_end_with_one_key(config: str) -> None:
    code = (
        "import sys; from kachery_p2p.identity.keyring import load_or_create;"
        "sys.stdin.read(); print(load_or_create(sys.argv[1]).node_id)"
    )
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", code, config],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.close()
        starter.stdin = None
    answers = {starter.communicate(timeout=30)[0].strip() for starter in starters}
    assert answers == {load(config).node_id}
    assert os.listdir(keys_dir(config)) == ["node.key"]


def test_the_key_is_durable_before_it_has_its_name(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    really_fsync, really_link = os.fsync, os.link

    def fsync(fd: int) -> None:
        told.append("fsync " + os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))[:10])
        really_fsync(fd)

    def link(src: str, dst: str) -> None:
        told.append("link")
        really_link(src, dst)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    load_or_create(config)
    assert told == ["fsync home", "fsync config", "fsync .node.key.", "link", "fsync keys"]


def test_what_a_killed_process_left_is_swept(config: str) -> None:
    load_or_create(config)
    Path(keys_dir(config), ".node.key.0123456789abcdef").write_text("half a sec")
    load_or_create(config)
    assert os.listdir(keys_dir(config)) == ["node.key"]
