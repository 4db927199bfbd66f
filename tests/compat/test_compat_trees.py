"""More ways in which the first kachery stored directories: by MD5, in a sandbox, of git-annex."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path

import pytest

from kachery_p2p.client.sharing import shared
from kachery_p2p.compat import kachery as ka
from kachery_p2p.compat import loading, trees
from kachery_p2p.compat.placing import PRIVATE, Place
from kachery_p2p.content.hashes import ContentHash, sha1_of
from kachery_p2p.content.uris import parse_uri
from kachery_p2p.errors import NotFoundError, SourceFileError, UnsupportedValueError


def md5_of(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@pytest.fixture
def tree(home: Path) -> Path:
    top = home / "ds001"
    (top / "sub" / "empty").mkdir(parents=True)
    (top / "a.txt").write_bytes(b"first\n")
    (top / "sub" / "b.txt").write_bytes(b"second\n")
    return top


def check_loads(uri: str, home: Path) -> None:
    assert ka.load_text(f"{uri}/sub/b.txt") == "second\n"
    ka.load_dir(uri, str(home / "copy"))
    assert (home / "copy/a.txt").read_bytes() == b"first\n"
    assert (home / "copy/sub/empty").is_dir()
    shutil.rmtree(home / "copy")


def test_a_directory_is_stored_by_md5_as_the_first_kachery_wrote_it(tree: Path, home: Path) -> None:
    uri = ka.store_dir(str(tree), algorithm="md5")
    listed = {
        "files": {"a.txt": {"size": 6, "md5": md5_of(b"first\n")}},
        "dirs": {
            "sub": {
                "files": {"b.txt": {"size": 7, "md5": md5_of(b"second\n")}},
                "dirs": {"empty": {"files": {}, "dirs": {}}},
            }
        },
    }
    assert uri == f"md5dir://{md5_of(json.dumps(listed).encode())}.ds001"
    assert ka.read_dir(uri) == listed == ka.read_dir(str(tree), algorithm="md5")
    assert ka.load_text(f"md5://{md5_of(b'first' + bytes([10]))}/a.txt") == "first\n"
    check_loads(uri, home)
    assert ka.store_dir(str(tree), "other", algorithm="md5").endswith(".other")


@pytest.mark.parametrize("algorithm", ["sha1", "md5"])
def test_a_directory_is_stored_in_a_sandbox_and_leaves_nothing_outside(
    algorithm: str, tree: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = ka.store_dir(str(tree)) if algorithm == "sha1" else ""
    shutil.rmtree(home / "store", ignore_errors=True)
    monkeypatch.setenv("KACHERY_USE_SANDBOX", "1")
    monkeypatch.setenv("KACHERY_SANDBOX_DIR", str(home / "box"))
    uri = ka.store_dir(str(tree), algorithm=algorithm)
    assert outside in ("", uri)
    check_loads(uri, home)
    assert not (home / "store").exists()
    monkeypatch.delenv("KACHERY_USE_SANDBOX")
    assert ka.read_dir(uri, fr="") is None


def test_a_directory_in_scratch_is_removed_after_its_days(
    tree: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kachery_p2p.compat.scratch import sweep

    monkeypatch.setenv("KACHERY_ZONE", "scratch")
    uri = ka.store_dir(str(tree))
    check_loads(uri, home)
    assert sweep(time.time() + 15 * 86_400) == 3
    assert ka.read_dir(uri, fr="") is None


def test_what_a_daemon_keeps_in_another_store_is_found_there_or_said_not_to_be(
    tree: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()

    def put_there(path: str, place: Place) -> ContentHash:
        content = ContentHash(sha1_of(Path(path).read_bytes()))
        shutil.copyfile(path, elsewhere / content)
        return content

    def load_there(uri: str, **_: object) -> str:
        return str(elsewhere / parse_uri(uri).content)

    monkeypatch.setattr(trees, "put_file", put_there)
    with pytest.raises(NotFoundError, match="no daemon is running"):
        trees.store_directory(str(tree), "x", PRIVATE, annex=True)
    monkeypatch.setattr(loading, "load_file", load_there)
    uri = trees.store_directory(str(tree), "x", PRIVATE, annex=True)
    assert trees.store_directory(str(tree), "x", PRIVATE, md5=True, annex=True).startswith("md5dir")
    listed = ka.read_dir(uri)
    assert listed is not None
    assert listed["files"] == {"a.txt": {"size": 6, "sha1": sha1_of(b"first\n")}}


# --- git-annex ----------------------------------------------------------------------------


def annexed(tree: Path, name: str, key: str, data: bytes | None) -> None:
    target = tree / ".git/annex/objects/Gx/pw" / key / key
    target.parent.mkdir(parents=True)
    if data is not None:
        target.write_bytes(data)
    (tree / name).symlink_to(target)


def test_links_of_git_annex_stand_for_what_their_keys_say(tree: Path, home: Path) -> None:
    here = b"annexed\n"
    key = f"MD5E-s{len(here)}--{md5_of(here)}.mat"
    annexed(tree, "here.mat", key, here)
    annexed(tree, "away.mat", f"MD5E-s167484154--{'c' * 32}.mat", None)
    annexed(tree, "sha1.bin", f"SHA1-s5--{sha1_of(b'other')}", b"other")
    uri = ka.store_dir(str(tree), git_annex_mode=True)
    found = ka.read_dir(uri)
    assert found is not None
    assert found["files"] == {
        "a.txt": {"size": 6, "sha1": sha1_of(b"first\n")},
        "away.mat": {"size": 167484154, "md5": "c" * 32},
        "here.mat": {"size": 8, "md5": md5_of(here)},
        "sha1.bin": {"size": 5, "sha1": sha1_of(b"other")},
    }
    assert list(found["dirs"]) == ["sub"]
    assert found == ka.read_dir(str(tree), git_annex_mode=True)
    # What is here is loaded from where it lies.
    assert ka.load_file(f"{uri}/here.mat") == str((tree / "here.mat").resolve())
    with pytest.raises(NotFoundError):
        ka.load_dir(uri, str(home / "copy"))


@pytest.mark.parametrize(
    ("key", "error", "why"),
    [
        (f"SHA256E-s8--{'0' * 64}.x", UnsupportedValueError, "neither MD5 nor SHA-1"),
        (f"MD5E-s8--{'0' * 40}.x", UnsupportedValueError, "neither MD5 nor SHA-1"),
        (f"MD5E-s8--{'0' * 32}.x", SourceFileError, "bytes of its key"),
        (f"SHA1-s8--{'0' * 40}", SourceFileError, "bytes of its key"),
    ],
)
def test_a_link_of_git_annex_that_says_nothing_of_use_or_is_wrong_is_refused(
    tree: Path, key: str, error: type[Exception], why: str
) -> None:
    annexed(tree, "x", key, b"annexed\n")
    with pytest.raises(error, match=why):
        ka.store_dir(str(tree), git_annex_mode=True)


def test_other_links_are_refused_as_in_every_directory(tree: Path) -> None:
    (tree / "link").symlink_to(tree / "a.txt")
    for mode in (False, True):
        with pytest.raises(SourceFileError, match="link"):
            ka.store_dir(str(tree), git_annex_mode=mode)


def test_what_is_stored_by_md5_is_shared_where_the_zone_says(tree: Path) -> None:
    ka.store_dir(str(tree), algorithm="md5", to="")
    assert list(shared()) == []
