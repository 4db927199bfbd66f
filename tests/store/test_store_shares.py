from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.errors import StoreError
from kachery_p2p.store.grants import Grants
from kachery_p2p.store.shares import (
    Share,
    Taken,
    append_share,
    append_shares,
    shares_path,
    take_shares,
)

LAB = "1a" * 32
A, B = sha1_of(b"a"), sha1_of(b"b")


@pytest.fixture
def config(tmp_path: Path) -> str:
    return str(tmp_path / "config")


def taken(config: str) -> list[Share]:
    shares: list[Share] = []
    take_shares(config, shares.extend)
    return shares


def test_what_is_written_down_is_taken_once(config: str) -> None:
    append_share(config, A, [LAB], "store", 1.5)
    append_share(config, B, None, "store", 2.5)
    assert taken(config) == [Share(A, (LAB,), "store", 1.5), Share(B, None, "store", 2.5)]
    assert taken(config) == []
    append_share(config, A, [], "store", 3.0)
    assert taken(config) == [Share(A, (), "store", 3.0)]


def test_the_file_is_private_and_readable_by_people(config: str) -> None:
    append_share(config, A, [LAB], "store", 1.0)
    path = Path(shares_path(config))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert json.loads(path.read_text()) == {
        "content": A,
        "channels": [LAB],
        "why": "store",
        "time": 1.0,
    }


def test_without_a_file_there_is_nothing_to_take_and_none_is_made(config: str) -> None:
    assert take_shares(config, lambda _: None) == Taken(0, 0)
    assert not os.path.exists(config)


def test_shares_stay_until_they_are_durable_elsewhere(config: str) -> None:
    append_share(config, A, [LAB], "store", 1.0)

    def keep(shares: list[Share]) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError):
        take_shares(config, keep)
    assert taken(config) == [Share(A, (LAB,), "store", 1.0)]


def test_a_torn_line_is_set_aside_and_does_not_swallow_the_next(config: str) -> None:
    append_share(config, A, [LAB], "store", 1.0)
    path = Path(shares_path(config))
    line = path.read_bytes()
    for length in range(1, len(line)):
        path.write_bytes(line + line[:length])
        append_share(config, B, None, "store", 2.0)
        shares: list[Share] = []
        answer = take_shares(config, shares.extend)
        whole = length == len(line) - 1
        assert answer == Taken(3 if whole else 2, 0 if whole else 1)
        assert shares[0].content == A
        assert shares[-1].content == B
    assert len(Path(shares_path(config) + ".bad").read_bytes().splitlines()) == len(line) - 2


@pytest.mark.parametrize(
    "line",
    [
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 5000,
        b'{"content":"zz","channels":null,"why":"x","time":1}',
        b'{"content":"%s","channels":"lab","why":"x","time":1}' % A.encode(),
        b'{"content":"%s","channels":[1],"why":"x","time":1}' % A.encode(),
        b'{"content":"%s","channels":["../x"],"why":"x","time":1}' % A.encode(),
        b'{"content":"%s","channels":null,"why":"\\ud800","time":1}' % A.encode(),
        b'{"content":"%s","channels":null,"why":"x","time":NaN}' % A.encode(),
        b'{"content":"%s","channels":null,"why":"x","time":1e400}' % A.encode(),
        b'{"content":"%s","channels":null,"why":"x","time":%s}' % (A.encode(), b"9" * 400),
        b"x" * 100_000,
    ],
)
def test_nonsense_never_blocks_the_rest(config: str, line: bytes, tmp_path: Path) -> None:
    append_share(config, A, [LAB], "store", 1.0)
    with open(shares_path(config), "ab") as file:
        file.write(line + b"\n")
    append_share(config, B, [LAB], "store", 1.0)
    grants = Grants(str(tmp_path / "grants.db"))
    answer = take_shares(config, grants.keep)
    assert answer.shares == 2
    assert answer.unreadable >= 1
    assert grants.count(LAB) == 2
    grants.close()


def test_processes_append_while_a_daemon_takes(config: str) -> None:
    code = (
        "import sys; from kachery_p2p.store.shares import append_share;"
        "from kachery_p2p.content.hashes import sha1_of;"
        "[append_share(sys.argv[1], sha1_of(f'{sys.argv[2]} {n}'.encode()), None, 'store', 1.0)"
        " for n in range(20)]"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, config, str(number)]) for number in range(4)
    ]
    shares: list[Share] = []
    while any(writer.poll() is None for writer in writers):
        shares += taken(config)
    shares += taken(config)
    assert all(writer.returncode == 0 for writer in writers)
    expected = {sha1_of(f"{a} {n}".encode()) for a in range(4) for n in range(20)}
    assert len(shares) == 80
    assert {share.content for share in shares} == expected
    assert not os.path.exists(shares_path(config) + ".bad")


def test_a_long_log_is_taken_in_batches(config: str) -> None:
    append_shares(config, [Share(A, None, "store", float(n)) for n in range(10_000)])
    sizes: list[int] = []
    assert take_shares(config, lambda batch: sizes.append(len(batch))) == Taken(10_000, 0)
    assert sizes == [4096, 4096, 1808]


def test_an_append_is_on_disk_when_it_returns(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    really = os.fsync

    def fsync(fd: int) -> None:
        told.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        really(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    append_share(config, A, None, "store", 1.0)
    assert told == ["config", "shares.log"]
    append_share(config, A, None, "store", 1.0)
    assert told == ["config", "shares.log", "shares.log"]


def test_a_symbolic_link_is_not_written_through(config: str, tmp_path: Path) -> None:
    os.mkdir(config)
    (tmp_path / "victim").write_bytes(b"victim")
    os.symlink(tmp_path / "victim", shares_path(config))
    with pytest.raises(StoreError):
        append_share(config, A, None, "store", 1.0)
    assert (tmp_path / "victim").read_bytes() == b"victim"
