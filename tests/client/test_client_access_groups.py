"""Storing and loading for an access group: by who holds its key, and by who does not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import kachery_p2p as kp
from kachery_p2p.client import opened
from kachery_p2p.client.encrypted_uris import Disclosed, conceal, disclose
from kachery_p2p.errors import (
    AccessGroupError,
    InvalidRangeError,
    NotInAccessGroupError,
    SealError,
    SourceFileError,
)
from kachery_p2p.identity.frames import FRAME_BYTES, is_sealed
from kachery_p2p.identity.group_files import HeldGroup, find_by_id
from kachery_p2p.limits import CHUNK_BYTES, OPENED_KEPT_S

if TYPE_CHECKING:
    from tests.client.conftest import FakeDaemon

LARGE = bytes(range(256)) * (3 * CHUNK_BYTES // 256) + b"the end"


@pytest.fixture
def lab(environment: Path) -> str:
    return kp.create_access_group("wet-lab").id


@pytest.fixture
def as_stranger(lab: str, environment: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, another user's configuration with the same store."""

    def become() -> None:
        monkeypatch.setenv("KACHERY_P2P_CONFIG_DIR", str(environment / "stranger"))

    return become


def large_file(tmp_path: Path) -> str:
    source = tmp_path / "recording.dat"
    source.write_bytes(LARGE)
    return kp.store_file(source, access_group="wet-lab")


def stored_objects(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "store" / "sha1").rglob("*") if path.is_file()]


# --- contents ---------------------------------------------------------------------------------


def test_values_come_back_as_they_went_to_a_member(lab: str) -> None:
    array = np.arange(12.0).reshape(3, 4)
    assert kp.load_text(kp.store_text("häufig", access_group="wet-lab")) == "häufig"
    assert kp.load_json(kp.store_json({"a": [1]}, access_group=lab)) == {"a": [1]}
    assert (kp.load_npy(kp.store_npy(array, access_group=lab)) == array).all()
    assert kp.load_pkl(kp.store_pkl({"a": 1}, access_group=lab)) == {"a": 1}


def test_what_others_get_is_a_sealed_file_and_its_uri_shows_nothing(
    lab: str, tmp_path: Path
) -> None:
    uri = large_file(tmp_path)
    assert uri.startswith("sha1-enc://kpe1")
    assert uri.endswith(f".ag_{lab}")
    assert "recording" not in uri
    (stored,) = stored_objects(tmp_path)
    data = stored.read_bytes()
    assert is_sealed(data)
    assert LARGE[:64] not in data
    assert stored.name not in uri
    assert kp.decrypt_uri(uri).startswith(f"sha1://{stored.name}/recording.dat.sealed?root=")


@pytest.mark.parametrize("size", [0, 1, FRAME_BYTES, FRAME_BYTES + 1, CHUNK_BYTES + 5])
def test_a_file_of_any_size_comes_back_by_every_way(lab: str, tmp_path: Path, size: int) -> None:
    content = LARGE[:size]
    (tmp_path / "a.bin").write_bytes(content)
    uri = kp.store_file(tmp_path / "a.bin", access_group="wet-lab")
    assert Path(kp.load_file(uri)).read_bytes() == content
    assert kp.load_bytes(uri, 0, size) == content
    with kp.open(uri) as file:
        assert file.read() == content


def test_two_copies_of_one_content_have_nothing_in_common(lab: str, tmp_path: Path) -> None:
    assert large_file(tmp_path) != large_file(tmp_path)
    assert len(stored_objects(tmp_path)) == 2


def test_who_does_not_hold_the_key_gets_an_error_that_says_what_to_do(
    lab: str, as_stranger: Callable[[], None], tmp_path: Path
) -> None:
    uri = large_file(tmp_path)
    as_stranger()
    loads: tuple[Callable[[], object], ...] = (
        lambda: kp.load_file(uri),
        lambda: kp.load_bytes(uri, 0, 1),
        lambda: kp.load_text(uri),
        lambda: kp.open(uri),
        lambda: kp.decrypt_uri(uri),
        lambda: kp.find_file(uri),
    )
    for load in loads:
        with pytest.raises(NotInAccessGroupError, match=lab) as caught:
            load()
        assert isinstance(caught.value, kp.LoadFileError)
        assert "group card" in (caught.value.hint or "")
    with pytest.raises(AccessGroupError, match="holds no access group 'wet-lab'"):
        kp.store_text("x", access_group="wet-lab")


def test_nothing_is_stored_for_a_group_that_is_not_there(environment: Path) -> None:
    with pytest.raises(AccessGroupError):
        kp.store_text("x", access_group="wet-lab")
    with pytest.raises(SourceFileError):
        kp.create_access_group("wet-lab")
        kp.store_file(environment / "missing", access_group="wet-lab")
    assert not stored_objects(environment)


# --- where it lies in clear -------------------------------------------------------------------


def test_a_loaded_file_lies_in_clear_for_this_user_only(lab: str, tmp_path: Path) -> None:
    uri = large_file(tmp_path)
    path = Path(kp.load_file(uri))
    assert path.parent == tmp_path / "store" / f".opened-{os.geteuid()}"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert kp.load_file(uri) == str(path)
    # No store knows it: not by its own hash either.
    assert len(stored_objects(tmp_path)) == 1


def test_values_and_ranges_never_lie_in_clear(lab: str, tmp_path: Path) -> None:
    text, uri = kp.store_text("secret", access_group=lab), large_file(tmp_path)
    kp.load_text(text)
    kp.load_bytes(uri, 5, 70_000)
    with kp.open(uri) as file:
        file.read(100)
    assert not list((tmp_path / "store").glob(".opened*"))
    assert not (tmp_path / "config" / "state" / "opened").exists()


def test_a_directory_that_others_may_enter_gets_nothing_in_clear(lab: str, tmp_path: Path) -> None:
    uri = large_file(tmp_path)
    place = tmp_path / "store" / f".opened-{os.geteuid()}"
    place.mkdir(mode=0o755)
    place.chmod(0o755)
    path = Path(kp.load_file(uri))
    assert path.parent == tmp_path / "config" / "state" / "opened"
    assert path.read_bytes() == LARGE
    assert list(place.iterdir()) == []


def test_what_was_not_loaded_for_long_is_removed(lab: str, tmp_path: Path) -> None:
    uri, other = large_file(tmp_path), large_file(tmp_path)
    path = Path(kp.load_file(uri))
    left = path.with_name(".writing-0011")
    left.write_bytes(b"half")
    long_ago = time.time() - OPENED_KEPT_S - 60
    for old in (path, left):
        os.utime(old, (long_ago, long_ago))
    kp.load_file(other)
    assert not path.exists()
    assert not left.exists()
    assert Path(kp.load_file(uri)).read_bytes() == LARGE


def test_a_copy_is_written_to_dest_and_nowhere_else(lab: str, tmp_path: Path) -> None:
    uri = large_file(tmp_path)
    (tmp_path / "out").mkdir()
    assert kp.load_file(uri, tmp_path / "out") == str(tmp_path / "out" / "recording.dat")
    assert (tmp_path / "out" / "recording.dat").read_bytes() == LARGE
    assert os.listdir(tmp_path / "out") == ["recording.dat"]
    assert not list((tmp_path / "store").glob(".opened*"))


def test_verified_is_what_is_given(lab: str, tmp_path: Path) -> None:
    uri = large_file(tmp_path)
    path = Path(kp.load_file(uri))
    path.write_bytes(bytes(len(LARGE)))
    assert Path(kp.load_file(uri, verify=True)).read_bytes() == LARGE


def test_a_cut_file_in_clear_is_made_anew(lab: str, tmp_path: Path) -> None:
    uri = large_file(tmp_path)
    path = Path(kp.load_file(uri))
    path.write_bytes(LARGE[:-1])
    assert Path(kp.load_file(uri)).read_bytes() == LARGE


# --- attacks ----------------------------------------------------------------------------------


def damaged(tmp_path: Path, change: Callable[[bytearray], None]) -> None:
    (stored,) = stored_objects(tmp_path)
    data = bytearray(stored.read_bytes())
    change(data)
    stored.chmod(0o600)
    stored.write_bytes(data)


def flip(data: bytearray) -> None:
    data[200_000] ^= 1


def cut(data: bytearray) -> None:
    del data[-1]


def swap(data: bytearray) -> None:
    first, second = (slice(80 + n * 65_552, 80 + (n + 1) * 65_552) for n in (2, 3))
    data[first], data[second] = data[second], data[first]


@pytest.mark.parametrize("change", [flip, cut, swap])
def test_a_sealed_file_that_was_touched_is_never_given(
    lab: str, tmp_path: Path, change: Callable[[bytearray], None]
) -> None:
    uri = large_file(tmp_path)
    damaged(tmp_path, change)
    with pytest.raises(SealError):
        kp.load_file(uri)
    with pytest.raises(SealError):
        kp.load_file(uri, tmp_path / "out.dat")
    with pytest.raises(SealError), kp.open(uri) as file:
        file.read()
    assert not (tmp_path / "out.dat").exists()
    place = tmp_path / "store" / f".opened-{os.geteuid()}"
    assert not place.exists() or list(place.iterdir()) == []


def test_the_sealed_file_of_another_uri_is_not_opened(lab: str, tmp_path: Path) -> None:
    """A member could name any file of others in a URI of its own."""
    held = find_by_id(str(tmp_path / "config"), lab)
    assert held is not None
    first, second = (disclose(large_file(tmp_path)) for _ in range(2))
    crossed = conceal(Disclosed(first.uri, second.seal), held)
    kp.load_file(conceal(first, held))
    with pytest.raises(SealError):
        kp.load_file(crossed)
    with pytest.raises(SealError):
        kp.load_bytes(crossed, 0, 10)


def test_a_uri_of_one_group_is_not_read_with_the_key_of_another(lab: str) -> None:
    other = kp.create_access_group("dry-lab").id
    uri = kp.store_text("x", access_group=lab)
    with pytest.raises(SealError):
        kp.load_text(uri.replace(f".ag_{lab}", f".ag_{other}"))


@pytest.mark.parametrize("start,end", [(-1, 5), (5, 4), (0, len(LARGE) + 1)])
def test_a_range_outside_of_the_content_is_refused(
    lab: str, tmp_path: Path, start: int, end: int
) -> None:
    with pytest.raises(InvalidRangeError):
        kp.load_bytes(large_file(tmp_path), start, end)


def test_a_removed_member_reads_what_it_could_and_nothing_new(
    lab: str, as_stranger: Callable[[], None], environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = os.environ["KACHERY_P2P_CONFIG_DIR"]
    as_stranger()
    stranger = os.environ["KACHERY_P2P_CONFIG_DIR"]
    card, node = kp.access_group_card(), kp.get_node_id()
    monkeypatch.setenv("KACHERY_P2P_CONFIG_DIR", owner)
    text = kp.add_to_access_group("wet-lab", card)
    before = kp.store_text("before", access_group=lab)
    assert kp.remove_from_access_group("wet-lab", node) is None
    after = kp.store_text("after", access_group=lab)
    monkeypatch.setenv("KACHERY_P2P_CONFIG_DIR", stranger)
    kp.accept_access_group(text)
    assert kp.load_text(before) == "before"
    with pytest.raises(NotInAccessGroupError, match="newer key"):
        kp.load_text(after)


# --- with a daemon, and without ---------------------------------------------------------------


def test_only_the_frames_that_are_read_are_asked_for(
    lab: str, daemon: FakeDaemon, tmp_path: Path
) -> None:
    uri = large_file(tmp_path)
    content = disclose(uri).wanted.content
    data = daemon.blobs.find(content)
    assert data is not None
    daemon.give_network(Path(data).read_bytes())
    daemon.blobs.remove(content)
    asked: list[tuple[int, int]] = []

    async def note(call: Any) -> None:
        asked.append((call.body["start"], call.body["end"]))

    daemon.on_load = note
    assert kp.load_bytes(uri, 70_000, 70_010) == LARGE[70_000:70_010]
    assert asked == [(80 + 65_552, 80 + 2 * 65_552)]


def test_a_daemon_with_another_store_is_handed_a_sealed_file(
    lab: str, daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KACHERY_STORAGE_DIR", str(tmp_path / "mine"))
    uri = large_file(tmp_path)
    (stored,) = stored_objects(tmp_path)
    assert is_sealed(stored.read_bytes())
    assert daemon.shared == [(stored.name, None)]
    assert Path(kp.load_file(uri)).read_bytes() == LARGE


def test_forked_processes_read_one_open_file(lab: str, tmp_path: Path) -> None:
    with kp.open(large_file(tmp_path)) as file:
        file.seek(100_000)
        pid = os.fork()
        if pid == 0:
            ok = all(file.read(50_000) == LARGE[at : at + 50_000] for at in (100_000, 150_000))
            os._exit(0 if ok else 1)
        for at in (100_000, 150_000):
            assert file.read(50_000) == LARGE[at : at + 50_000]
        assert os.waitpid(pid, 0)[1] == 0


def test_an_open_file_moves_like_any_other(lab: str, tmp_path: Path) -> None:
    with kp.open(large_file(tmp_path)) as file:
        assert file.seek(-7, os.SEEK_END) == len(LARGE) - 7
        assert file.read(100) == b"the end"
        assert file.read() == b""
        assert file.seek(10) == file.tell() == 10
        assert file.seek(65_530, os.SEEK_CUR) == 65_540
        assert file.read(70_000) == LARGE[65_540:135_540]
        with pytest.raises((ValueError, OSError)):
            file.seek(-1)
    with pytest.raises(ValueError, match="closed"):
        file.read()


def test_memory_stays_small_however_large_the_file(lab: str, tmp_path: Path) -> None:
    source = tmp_path / "large.dat"
    with source.open("wb") as file:
        for _ in range(64):
            file.write(os.urandom(1 << 20))
    code = (
        "import sys, resource, kachery_p2p as kp\n"
        "kp.load_text(kp.store_text('x', access_group='wet-lab'))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "uri = kp.store_file(sys.argv[1], access_group='wet-lab')\n"
        "path = kp.load_file(uri)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
        "assert open(path, 'rb').read() == open(sys.argv[1], 'rb').read()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(source)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 32 << 10


def test_nothing_of_cryptography_is_imported_before_a_group_is_used(environment: Path) -> None:
    code = (
        "import sys, kachery_p2p as kp\n"
        "kp.load_text(kp.store_text('x'))\n"
        "print([name for name in ('cryptography', 'hmac', 'kachery_p2p.client.encrypted_uris')\n"
        "       if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_is_opened_by_hand_is_found_by_its_key(lab: str, tmp_path: Path) -> None:
    disclosed = disclose(large_file(tmp_path))
    assert disclosed.seal is not None
    content = disclosed.wanted.content
    assert opened.find(content, disclosed.seal.header) is None
    path = kp.load_file(conceal(disclosed, held_of(tmp_path, lab)))
    assert opened.find(content, disclosed.seal.header) == path
    other = disclosed.seal._replace(content_key=bytes(32))
    assert opened.find(content, other.header) is None
    opened.forget(content)
    assert opened.find(content, disclosed.seal.header) is None


def held_of(tmp_path: Path, group_id: str) -> HeldGroup:
    found = find_by_id(str(tmp_path / "config"), group_id)
    assert found is not None
    return found
