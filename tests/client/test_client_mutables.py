"""Mutables: any JSON under any JSON, kept by many processes and threads at once."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kachery_p2p as kp
from kachery_p2p.client import mutables
from kachery_p2p.errors import (
    DataFormatError,
    StateCorruptError,
    StateVersionError,
    StoreError,
    UnsupportedValueError,
)
from kachery_p2p.limits import MUTABLE_KEY_BYTES_MAX, MUTABLE_VALUE_BYTES_MAX

VALUES = [
    None,
    True,
    0,
    -1.5,
    "",
    "æ\n\x00",
    "NaN Infinity",
    [],
    [1, [2]],
    {},
    {"a": {"b": [None]}},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config" / "state" / "mutables.db"


@pytest.mark.parametrize("value", VALUES)
def test_any_json_comes_back_under_any_json(value: Any) -> None:
    key = {"key": value}
    assert kp.get(key, default="none") == "none"
    assert kp.set(key, value) is True
    assert kp.get(key, default="none") == value
    assert kp.delete(key) is True
    assert kp.get(key, default="none") == "none"


def test_a_value_is_replaced_unless_it_was_asked_not_to() -> None:
    assert kp.set("key", 1, update=False) is True
    assert kp.set("key", 2, update=False) is False
    assert kp.get("key") == 1
    assert kp.set("key", 3) is True
    assert kp.get("key") == 3


def test_what_is_not_there_is_none_and_makes_no_file(file: Path) -> None:
    assert kp.get("key") is None
    assert kp.get_string("key") is None
    assert kp.delete("key") is False
    assert not file.exists()


def test_get_string_gives_texts_only() -> None:
    kp.set("text", "spikes")
    kp.set("number", 1)
    assert kp.get_string("text") == "spikes"
    with pytest.raises(DataFormatError, match="int, not a text"):
        kp.get_string("number")


def test_keys_that_are_one_json_are_one_key() -> None:
    kp.set({"b": 1, "a": (2, 3.0)}, "x")
    assert kp.get({"a": [2.0, 3], "b": 1}) == "x"
    assert kp.get("1") is None
    kp.set(1, "number")
    assert kp.get("1") is None
    assert kp.get(True) is None


def test_a_key_is_kept_under_the_sha1_of_its_sorted_compact_json(file: Path) -> None:
    # As kachery-p2p and kachery-client named it, for keys of those programs (feedIdForName).
    kp.set({"type": "feedIdForName", "feedName": "æ"}, "id")
    spelled = '{"feedName":"æ","type":"feedIdForName"}'
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT hash, key, value FROM mutables").fetchall()
    connection.close()
    assert rows == [(hashlib.sha1(spelled.encode()).digest(), spelled, '"id"')]


@pytest.mark.parametrize(
    "bad", [object(), b"x", {1, 2}, float("nan"), [float("inf")], {"a": float("-inf")}, {(1,): 2}]
)
def test_what_is_not_json_is_refused_as_key_and_as_value(bad: object, file: Path) -> None:
    for call in (lambda: kp.set(bad, 1), lambda: kp.set("key", bad), lambda: kp.get(bad)):
        with pytest.raises(UnsupportedValueError):
            call()
    assert not file.exists()


def test_what_is_too_large_or_deep_is_refused() -> None:
    kp.set("most", "x" * (MUTABLE_VALUE_BYTES_MAX - 2))
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    for key, value in (
        ("key", "x" * (MUTABLE_VALUE_BYTES_MAX - 1)),
        ("x" * MUTABLE_KEY_BYTES_MAX, 1),
        ("key", deep),
        (deep, 1),
    ):
        with pytest.raises(UnsupportedValueError):
            kp.set(key, value)
    with pytest.raises(UnsupportedValueError, match="half a character"):
        kp.set("\ud800", 1)
    kp.set("half", "\ud800")
    assert kp.get("half") == "\ud800"


def test_only_its_user_may_read_the_file(file: Path) -> None:
    kp.set("key", 1)
    for path in file.parent.iterdir():
        if path.name.startswith("mutables.db"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(file.parent.parent.stat().st_mode) == 0o700


def test_a_file_of_a_newer_version_is_refused(file: Path) -> None:
    kp.set("key", 1)
    mutables._kept.clear()
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(StateVersionError, match=r"mutables\.db"):
        kp.get("key")


@pytest.mark.parametrize("damage", [b"not a database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_file_is_named_and_left_as_it_is(file: Path, damage: bytes) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(damage)
    for call in (lambda: kp.get("key"), lambda: kp.set("key", 1), lambda: kp.delete("key")):
        with pytest.raises(StateCorruptError, match=r"mutables\.db") as error:
            call()
        assert error.value.hint is not None
    assert file.read_bytes() == damage


def test_a_value_that_is_no_json_any_more_is_damage(file: Path) -> None:
    kp.set("key", 1)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE mutables SET value = '{'")
    connection.close()
    with pytest.raises(StateCorruptError):
        kp.get("key")


@pytest.mark.parametrize("place", ["/dev/null/x", "/proc/x"])
def test_a_configuration_that_cannot_be_made_is_said(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("KACHERY_P2P_CONFIG_DIR", place)
    assert kp.get("key") is None
    calls: tuple[Callable[[], object], ...] = (
        lambda: kp.set("key", 1),
        lambda: kp.store_text("x"),
    )
    for call in calls:
        with pytest.raises(StoreError, match=place):
            call()


def test_a_file_that_was_removed_or_replaced_is_not_written_to(file: Path) -> None:
    kp.set("key", 1)
    for path in list(file.parent.iterdir()):
        path.unlink()
    assert kp.get("key") is None
    kp.set("key", 2)
    assert file.exists()
    assert kp.get("key") == 2


def test_the_configuration_of_the_moment_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kp.set("key", "first")
    monkeypatch.setenv("KACHERY_P2P_CONFIG_DIR", str(tmp_path / "other"))
    assert kp.get("key") is None
    kp.set("key", "second")
    monkeypatch.setenv("KACHERY_P2P_CONFIG_DIR", str(tmp_path / "config"))
    assert kp.get("key") == "first"


CHILD = """
import sys, json
import kachery_p2p as kp
number = int(sys.argv[1])
sys.stdin.readline()
won = sum(kp.set(["race", n], number, update=False) for n in range(20))
for n in range(10):
    kp.set({"mine": number, "n": n}, [number, n])
    kp.set("shared", {"by": number})
    assert kp.get({"n": n, "mine": number}) == [number, n]
    assert set(kp.get("shared")) == {"by"}
print(json.dumps(won))
"""


def test_sixteen_processes_set_and_get_at_once(tmp_path: Path) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )
        for number in range(16)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    won = [json.loads(child.communicate(timeout=100)[0]) for child in children]
    assert [child.returncode for child in children] == [0] * 16
    assert sum(won) == 20
    assert all(
        kp.get({"mine": number, "n": n}) == [number, n] for number in range(16) for n in range(10)
    )


def test_threads_and_forks_share_it() -> None:
    def fill(number: int) -> None:
        for n in range(5):
            kp.set([number, n], n)

    threads = [threading.Thread(target=fill, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    child = os.fork()
    if child == 0:
        ok = kp.get([7, 4]) == 4 and kp.set("child", True)
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert kp.get("child") is True
    assert all(kp.get([number, n]) == n for number in range(8) for n in range(5))


def test_what_was_set_survives_a_kill_right_after(tmp_path: Path) -> None:
    code = "import kachery_p2p as kp, os; kp.set('key', 'kept'); os.kill(os.getpid(), 9)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == -9
    assert kp.get("key") == "kept"
