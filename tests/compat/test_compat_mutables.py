"""Texts that kachery-cloud and kachery 2 kept in files, where the originals have them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kachery_p2p.compat import kachery as ka
from kachery_p2p.compat import kachery_cloud as kcl
from kachery_p2p.errors import InvalidNameError, NotFoundError, UnsupportedValueError
from kachery_p2p.limits import TEXT_MUTABLE_CHARS_MAX


def test_a_text_is_kept_where_the_originals_have_it(home: Path) -> None:
    kcl.set_mutable_local("@a/@b/key", "value")
    assert (home / ".kachery-cloud/mutables/@a/@b/key").read_text() == "value"
    assert kcl.get_mutable_local("@a/@b/key") == "value"
    kcl.set_mutable_local("@a/@b/key", "newer")
    assert kcl.get_mutable_local("@a/@b/key") == "newer"
    assert [path.name for path in (home / ".kachery-cloud/mutables/@a/@b").iterdir()] == ["key"]


def test_the_packages_have_their_own(home: Path) -> None:
    kcl.set_mutable_local("key", "cloud")
    ka.set_mutable_local("key", "kachery")
    assert kcl.get_mutable_local("key") == "cloud"
    assert (home / ".kachery/mutables/key").read_text() == "kachery"


def test_a_text_or_a_folder_is_forgotten() -> None:
    for key in ("@a/1", "@a/@b/2", "@c/3"):
        kcl.set_mutable_local(key, key)
    kcl.delete_mutable_local("@c/3")
    kcl.delete_mutable_folder_local("@a")
    for key in ("@a/1", "@a/@b/2", "@c/3"):
        assert kcl.get_mutable_local(key) is None
    assert kcl.get_mutable_local("@c/3", "default") == "default"
    with pytest.raises(NotFoundError):
        kcl.delete_mutable_local("@c/3")
    with pytest.raises(NotFoundError):
        kcl.delete_mutable_folder_local("@a")


@pytest.mark.parametrize(
    "key", ["", "a/b", "@a", "@a/../b", "..", "@a/@..\x00/b", "@a//b", "/etc/passwd", "@/../x"]
)
def test_keys_that_are_no_keys_are_refused(key: str, home: Path) -> None:
    calls: tuple[Callable[[], object], ...] = (
        lambda: kcl.set_mutable_local(key, "x"),
        lambda: kcl.get_mutable_local(key),
        lambda: kcl.delete_mutable_local(key),
    )
    for call in calls:
        with pytest.raises(InvalidNameError):
            call()
    with pytest.raises(InvalidNameError):
        kcl.delete_mutable_folder_local("a")


def test_values_that_are_no_texts_or_too_long_are_refused() -> None:
    with pytest.raises(UnsupportedValueError):
        kcl.set_mutable_local("key", 7)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedValueError):
        kcl.set_mutable_local("key", "x" * (TEXT_MUTABLE_CHARS_MAX + 1))


def test_with_many_users_the_group_may_write(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KACHERY_CLOUD_MULTI_USER", "1")
    before = os.umask(0o077)
    try:
        kcl.set_mutable_local("@a/key", "value")
    finally:
        os.umask(before)
    top = home / ".kachery-cloud/mutables"
    assert (top / "@a/key").stat().st_mode & 0o777 == 0o664
    assert (top / "@a").stat().st_mode & 0o7777 == 0o2775
