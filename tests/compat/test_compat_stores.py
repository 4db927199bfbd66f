"""Directories that older packages wrote are read, and what is stored here has their layout."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path

import pytest

import kachery_p2p as kp
from kachery_p2p.compat import kachery as ka
from kachery_p2p.compat import kachery_client as kc
from kachery_p2p.compat import kachery_cloud as kcl
from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.errors import PathNotFoundError, ResolutionError

DIRECTORY = "sha1dir://e1694cf2ef62e2cccdd13d62d064a8769a54bcfe.ds001"
MD5_DIRECTORY = "md5dir://e016f3f1309957443ba8673a10eb4d46.ds001"
TEST_CONTENT = "b971c6ef19b1d70ae8f0feb989b106c319b36230"
CID = "bafkreiajr6u7obg3mpunezz2mwarr2sptwr3zaedia665vdayvw6mpn5ga"


def snapshot(directory: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in directory.rglob("*"))


def test_a_directory_of_kachery_cloud_is_read_in_place(
    fixtures: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = home / ".kachery-cloud"
    shutil.copytree(fixtures / "kachery-cloud", theirs)
    before = snapshot(theirs)
    assert kcl.load_file(f"sha1://{TEST_CONTENT}?label=test_content.txt") == (
        f"{theirs}/sha1/b9/71/c6/{TEST_CONTENT}"
    )
    assert kcl.load_file(f"ipfs://{CID}") == f"{theirs}/ipfs/mp/n5/ga/{CID}"
    assert kcl.load_text(f"ipfs://{CID}") == "test-content\n"
    assert kcl.load_json("sha1://d0d9555e376ff13a08c6d56072808e27ca32d54a") == {"example": "dict"}
    assert kcl.get_mutable_local("@lab/session") == "41"
    assert kcl.load_bytes(f"sha1://{TEST_CONTENT}", 5, 12) == b"content"
    assert snapshot(theirs) == before


def test_the_directory_is_that_of_the_environment_at_each_call(
    fixtures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sha1://{TEST_CONTENT}"
    assert kcl.load_text(uri, local_only=True) is None
    monkeypatch.setenv("KACHERY_CLOUD_DIR", str(fixtures / "kachery-cloud"))
    assert kcl.load_text(uri, local_only=True) == "test-content\n"
    monkeypatch.delenv("KACHERY_CLOUD_DIR")
    assert kcl.load_text(uri, local_only=True) is None


def test_a_directory_of_kachery_2_is_read(fixtures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KACHERY_DIR", str(fixtures / "kachery-2"))
    uri = "kachery:default:sha1:f2fdaa0ba2bd4192ae3c90af5cbad96289631ac3:x.txt"
    assert ka.load_text(uri) == "written by kachery 2\n"
    assert ka.get_mutable_local("key") == "value"


@pytest.mark.parametrize("variable", ["KACHERY_STORAGE_DIR", "KACHERY_STORAGE_DIR_ALT"])
def test_a_store_of_the_first_kachery_is_read_with_its_directories(
    variable: str, fixtures: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(fixtures / "kachery-2019", home / "old")
    monkeypatch.setenv(variable, str(home / "old"))
    listed = ka.read_dir(DIRECTORY)
    assert listed is not None
    assert sorted(listed["files"]) == ["file2.csv", "old.txt"]
    shallow = ka.read_dir(DIRECTORY, recursive=False)
    assert shallow is not None
    assert shallow["dirs"] == {"subdir1": {}}
    assert ka.load_text(f"{DIRECTORY}/subdir1/other_file1.txt") == "Content of other_file1.txt\n"
    assert ka.load_text(f"{DIRECTORY}/old.txt") == "by its md5\n"
    assert ka.load_text(f"{MD5_DIRECTORY}/old.txt") == "by its md5\n"
    assert ka.load_text("md5://335dca81f7aad732b3139e5b3c09189d/old.txt") == "by its md5\n"
    assert ka.load_text(f"{DIRECTORY}/nothing") is None
    assert ka.get_file_info(f"{DIRECTORY}/file2.csv")["size"] == 4  # type: ignore[index]
    ka.load_dir(DIRECTORY, str(home / "copy"))
    assert (home / "copy/subdir1/other_file1.txt").read_text() == "Content of other_file1.txt\n"
    assert (home / "copy/old.txt").read_text() == "by its md5\n"
    with pytest.raises(ResolutionError):
        ka.load_dir(DIRECTORY, str(home / "copy"))


def test_the_listing_is_that_of_kachery_ls(fixtures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kachery_p2p.compat.directories import listing
    from kachery_p2p.compat.loading import Source

    monkeypatch.setenv("KACHERY_STORAGE_DIR_ALT", str(fixtures / "kachery-2019"))
    here = Source(local_only=True)
    assert listing(DIRECTORY, here) == ["subdir1/", "file2.csv", "old.txt"]
    assert listing(f"{DIRECTORY}/subdir1", here) == ["other_file1.txt"]
    with pytest.raises(PathNotFoundError):
        listing(f"{DIRECTORY}/old.txt", here)


@pytest.mark.parametrize(
    "variable", ["SHA1_CACHE_DIR", "KBUCKET_CACHE_DIR", "KACHERY_BOOTSTRAP_MOUNTAINTOOLS_DIR"]
)
def test_a_cache_of_hashes_in_its_first_layout_is_read(
    variable: str, fixtures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = "sha1://5ea6227b0869bdf17156805a9f04ec6a592018cb"
    assert ka.load_text(uri, fr="") is None
    monkeypatch.setenv(variable, str(fixtures / "sha1-cache"))
    assert ka.load_text(uri, fr="") == "in the cache\n"


def test_an_offline_directory_of_kachery_client_is_read(
    fixtures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KACHERY_OFFLINE_STORAGE_DIR", str(fixtures / "kachery-client"))
    uri = "sha1://58c3a504f91dab6ade375c69d9f78e312520f1b4/msg.txt"
    assert kc.load_text(uri) == "Here is my message"
    assert kc.load_text(f"sha1://{'1' * 40}", channel="*local*") is None


def test_what_is_stored_has_the_layout_that_all_of_them_read(home: Path) -> None:
    kcl.store_text("example text")
    path = home / "store/sha1/d9/e9/89/d9e989f651cdd269d7f9bb8a215d024d8d283688"
    assert path.read_text() == "example text"


# --- links ------------------------------------------------------------------------------------


def link_record(directory: Path, content: str, record: dict[str, object], suffix: str) -> None:
    folder = directory / content[:2] / content[2:4] / content[4:6]
    folder.mkdir(parents=True)
    (folder / f"{content}{suffix}").write_text(json.dumps(record))


@pytest.mark.parametrize("form", ["kachery-cloud", "kachery-client"])
def test_links_of_both_old_forms_are_followed_until_the_file_changes(
    form: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, theirs = home / "linked.txt", home / "theirs"
    file.write_text("linked")
    content = sha1_of(b"linked")
    state = {"size": 6, "mtime": file.stat().st_mtime}
    if form == "kachery-cloud":
        record = {"path": str(file), **state, "sha1": str(content)}
        link_record(theirs / "linked_files/sha1", content, record, "")
    else:
        record = {"path": str(file), "manifest_hash": None, "stat": state}
        link_record(theirs / "sha1", content, record, ".link")
    monkeypatch.setenv("KACHERY_CLOUD_DIR", str(theirs))
    assert kcl.load_file(f"sha1://{content}", local_only=True) == str(file)
    file.write_text("edited")
    with pytest.warns(UserWarning, match="has other bytes now") as seen:
        assert kcl.load_file(f"sha1://{content}", local_only=True) is None
    assert seen[0].filename == __file__


@pytest.mark.parametrize("link", [kcl.link_file, kc.link_file])
def test_a_linked_file_that_changes_is_noticed_and_its_link_ended(link: object, home: Path) -> None:
    file = home / "linked.txt"
    file.write_text("linked")
    uri = link(str(file))  # type: ignore[operator]
    assert kcl.load_file(uri, local_only=True) == str(file)
    assert not (home / "store/sha1").exists()
    file.write_text("edited")
    with pytest.warns(UserWarning, match="has other content now"):
        assert kcl.load_file(uri, local_only=True) is None
    assert kcl.load_file(uri, local_only=True) is None


@pytest.mark.parametrize("where", ["store", "alternative", "cache"])
@pytest.mark.parametrize("algorithm", ["sha1", "md5"])
def test_files_that_the_first_kachery_had_noted_are_found_until_they_change(
    where: str, algorithm: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "alternative":
        monkeypatch.setenv("KACHERY_STORAGE_DIR_ALT", str(home / "old"))
    if where == "cache":
        monkeypatch.setenv(f"{algorithm.upper()}_CACHE_DIR", str(home / f"old/{algorithm}"))
    directory = home / ("store" if where == "store" else "old")
    file = home / "recording.dat"
    file.write_bytes(b"noted\n")
    name = hashlib.new(algorithm, b"noted\n", usedforsecurity=False).hexdigest()
    status = {"size": 6, "ino": 7, "mtime": 1.5, "ctime": 1.5}
    noted = [
        {"stat": {**status, "path": str(path)}, algorithm: name}
        for path in (file, home / "gone", "relative")
    ]
    record: dict[str, object] = {"files": [*noted, 7, {}, {"stat": 7, algorithm: name}]}
    link_record(directory / algorithm, name, record, ".hints.json")
    uri = f"{algorithm}://{name}/recording.dat"
    assert ka.load_file(uri, fr="") == str(file)
    if (where, algorithm) == ("store", "sha1"):
        # The node's own look finds it too, so it can be shared.
        assert kp.load_file(uri) == str(file)
    file.write_bytes(b"other\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert ka.load_file(uri, fr="") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 7}', '{"files": {}}', "[" * 99_999])
def test_notes_that_are_none_are_passed_over(text: str, home: Path) -> None:
    name = sha1_of(b"noted")
    folder = home / "store/sha1" / name[:2] / name[2:4] / name[4:6]
    folder.mkdir(parents=True)
    (folder / f"{name}.hints.json").write_text(text)
    (folder / f"{name}.record.json").write_text(text)
    assert ka.load_file(f"sha1://{name}", fr="") is None


def test_hard_links_of_the_first_kachery_are_links_that_notice_changes(home: Path) -> None:
    file = home / "large.dat"
    file.write_bytes(b"large")
    uri = ka.store_file(str(file), use_hard_links=True)
    assert ka.load_file(uri) == str(file)


def test_a_uri_with_a_location_finds_the_file_there_if_it_has_the_hash(home: Path) -> None:
    file = home / "here.txt"
    file.write_text("here")
    uri = kcl.store_file_local(str(file), label="here.txt", reference=True)
    assert uri == f"sha1://{sha1_of(b'here')}?label=here.txt&location={file}"
    assert kcl.load_file(uri, local_only=True) == str(file)
    assert not (home / "store").exists()
    file.write_text("else")
    assert kcl.load_file(uri, local_only=True) is None


def test_a_location_may_hold_any_character(home: Path) -> None:
    file = home / "a&b %41?.txt"
    file.write_text("odd")
    uri = kcl.store_file_local(str(file), reference=True)
    assert kcl.load_file(uri, local_only=True) == str(file)


def test_storing_with_cache_locally_leaves_the_users_file_alone(home: Path) -> None:
    file = home / "mine.txt"
    file.write_text("mine")
    before = os.stat(file)
    for store in (kcl.store_file, ka.store_file):
        uri = store(str(file), label="mine.txt", cache_locally=True)
        assert kcl.load_text(uri) == "mine"
    after = os.stat(file)
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_stored_content_is_stored_again_by_its_uri() -> None:
    uri = ka.store_text("again", basename="a.txt")
    assert ka.store_file(uri, basename="a.txt") == uri
    assert kcl.store_file_local(f"sha1://{sha1_of(b'again')}") == f"sha1://{sha1_of(b'again')}"


def test_a_copy_is_written_to_dest(home: Path) -> None:
    uri = kcl.store_text("copied")
    dest = str(home / "dest.txt")
    assert kcl.load_file(uri, dest=dest) == dest
    assert kc.load_file(uri, dest) == dest
    assert Path(dest).read_text() == "copied"
    with pytest.raises(ResolutionError):
        ka.load_file(uri, str(home))


def test_plain_paths_are_themselves(home: Path) -> None:
    from kachery_p2p.errors import NotFoundError

    file = home / "plain.txt"
    file.write_text("plain")
    for load in (kcl.load_text, kc.load_text, ka.load_text):
        assert load(str(file)) == "plain"
    assert kcl.load_file(str(home / "none")) is None
    assert ka.load_file(str(home / "none")) is None
    with pytest.raises(NotFoundError):
        kc.load_file(str(home / "none"))


def test_what_nobody_can_be_asked_for_is_none_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="no daemon is running"):
        assert kcl.load_text(f"sha1://{'1' * 40}") is None
    assert kc.load_text(f"sha1://{'1' * 40}") is None
    assert kcl.load_text(f"sha1://{'1' * 40}", local_only=True) is None


def test_ranges_and_files_are_read_of_what_is_here(home: Path) -> None:
    uri = ka.store_text("0123456789", basename="d.txt")
    assert ka.load_bytes(uri, start=2, end=5) == b"234"
    assert ka.load_bytes(uri) == b"0123456789"
    assert kcl.load_bytes(uri, None, 3) == b"012"
    with ka.open_file(uri, block_size=4) as file:
        file.seek(8)
        assert file.read(10) == b"89"
    for start, end in ((5, 2), (-1, 2), (0, 99)):
        with pytest.raises(ValueError):
            kcl.load_bytes(uri, start, end)


def test_bytes_are_written_to_stdout(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    uri = kcl.store_text("0123456789")
    assert kcl.load_bytes(uri, 2, 5, write_to_stdout=True) is None
    kcl.cat_file(uri)
    ka.cat_file(uri)
    assert capfdbinary.readouterr().out == b"23401234567890123456789"


def test_a_directory_on_this_computer_is_read_without_storing_it(home: Path) -> None:
    (home / "d/sub").mkdir(parents=True)
    (home / "d/sub/x").write_text("x")
    (home / "d/y").write_text("yy")
    found = ka.read_dir(str(home / "d"))
    assert found == {
        "files": {"y": {"size": 2, "sha1": str(sha1_of(b"yy"))}},
        "dirs": {"sub": {"files": {"x": {"size": 1, "sha1": str(sha1_of(b"x"))}}, "dirs": {}}},
    }
    assert not (home / "store").exists()
    assert ka.get_file_hash(str(home / "d/y")) == str(sha1_of(b"yy"))
