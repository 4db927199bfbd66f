"""Directories on the command line: what is printed, what is written, how it ends."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kachery_p2p.limits import CHUNK_BYTES

if TYPE_CHECKING:
    from tests.cli.conftest import Shell

BIG = bytes(range(256)) * (CHUNK_BYTES // 256) + b"end"


def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def session(shell: Shell) -> Path:
    top = shell.directory / "session"
    (top / "sub" / "nothing").mkdir(parents=True)
    (top / "a b.txt").write_bytes(b"test-content\n")
    (top / "sub" / "rec.bin").write_bytes(BIG)
    return top


@pytest.fixture
def uri(shell: Shell, session: Path) -> str:
    return shell.answer("store", "session")


def test_store_prints_the_uri_of_a_directory(shell: Shell, session: Path, uri: str) -> None:
    assert uri.startswith("sha1dir://") and uri.endswith(".session")
    assert shell.answer("store", "session/") == uri
    assert shell.answer("store", "--label", "mouse 1", "session") == f"{uri[:50]}.mouse%201"
    log = shell.directory / "config" / "shares.log"
    noted = log.read_text()
    assert uri[10:50] in noted
    assert shell.answer("store", "--private", "session") == uri
    assert log.read_text() == noted
    assert "not joined a channel 'lab'" in shell.fails(10, "store", "--channel", "lab", "session")


def test_files_and_directories_are_stored_in_the_order_given(
    shell: Shell, session: Path, uri: str
) -> None:
    (shell.directory / "x").write_bytes(b"x")
    (shell.directory / "bad").mkdir()
    (shell.directory / "bad" / "link").symlink_to("x")
    lines = shell.answer("store", "session", "x", "session/sub", "x").splitlines()
    x = f"sha1://{sha1(b'x')}/x"
    assert (lines[0], lines[1], lines[3]) == (uri, x, x)
    assert lines[2].startswith("sha1dir://") and lines[2].endswith(".sub")
    done = shell.run("store", "x", "bad", "session", "missing")
    assert done.stdout.splitlines() == [x, uri]
    assert done.returncode == 2
    assert "2 files were not stored (of 4): missing: there is no file" in done.stderr


def test_what_cannot_be_stored_is_two_lines_and_a_code(shell: Shell, session: Path) -> None:
    (session / "sub" / "link").symlink_to("rec.bin")
    told = shell.fails(2, "store", "session")
    assert "session/sub/link is a symbolic link" in told and "find DIR -type l" in told
    assert not (shell.directory / "store").exists()


def test_ls_prints_directories_and_then_files(shell: Shell, uri: str) -> None:
    assert shell.answer("ls", uri) == "sub/\na b.txt"
    assert shell.answer("ls", "-r", uri) == "sub/\nsub/nothing/\nsub/rec.bin\na b.txt"
    assert shell.answer("ls", f"{uri}/sub") == "nothing/\nrec.bin"
    assert shell.answer("ls", f"{uri}/sub/nothing") == ""
    assert shell.answer("ls", f"{uri}/a b.txt") == "a b.txt"


def test_ls_tells_scripts_where_to_load_each_from(shell: Shell, uri: str) -> None:
    rows = [json.loads(line) for line in shell.answer("ls", "--json", "-r", uri).splitlines()]
    assert [row["path"] for row in rows] == ["sub", "sub/nothing", "sub/rec.bin", "a b.txt"]
    assert [row["size"] for row in rows] == [None, None, len(BIG), 13]
    assert rows[1]["uri"] == f"{uri}/sub/nothing"
    assert rows[2]["uri"].startswith(f"sha1://{sha1(BIG)}/rec.bin?root=")
    assert shell.answer("ls", rows[1]["uri"]) == ""
    assert Path(shell.answer("load", rows[2]["uri"])).read_bytes() == BIG
    (row,) = [
        json.loads(line) for line in shell.answer("ls", "--json", f"{uri}/sub/rec.bin").split("\n")
    ]
    assert row == {**rows[2], "path": "rec.bin"}


def test_ls_lists_what_an_older_package_named_by_md5(shell: Shell) -> None:
    file = {"size": 5, "md5": "0" * 32}
    (shell.directory / "list").write_text(json.dumps({"files": {"a": file}, "dirs": {}}))
    uri = f"sha1dir://{shell.answer('store', 'list')[7:47]}"
    row = json.loads(shell.answer("ls", "--json", uri))
    assert row == {"path": "a", "size": 5, "uri": f"md5://{'0' * 32}/a"}
    assert "md5" in shell.fails(2, "load", uri)


def test_load_writes_a_directory(shell: Shell, session: Path, uri: str) -> None:
    for _ in "12":
        assert shell.answer("load", uri, "--dest", "copy") == "copy"
    assert (shell.directory / "copy/sub/rec.bin").read_bytes() == BIG
    assert (shell.directory / "copy/sub/nothing").is_dir()
    assert sorted(os.listdir(shell.directory / "copy")) == ["a b.txt", "sub"]
    assert shell.answer("load", f"{uri}/sub", "--dest=sub", "--verify") == "sub"
    assert sorted(os.listdir(shell.directory / "sub")) == ["nothing", "rec.bin"]
    (shell.directory / "copy/a b.txt").write_text("mine")
    assert "copy/a b.txt is there already" in shell.fails(2, "load", uri, "--dest", "copy")


def test_load_prints_where_the_files_of_a_directory_are(shell: Shell, uri: str) -> None:
    lines = [line.split("  ", 1) for line in shell.answer("load", uri).splitlines()]
    assert [name for _, name in lines] == ["sub/rec.bin", "a b.txt"]
    assert Path(lines[0][0]).read_bytes() == BIG


def test_a_file_in_a_directory_is_loaded_and_written_out(shell: Shell, uri: str) -> None:
    path = shell.answer("load", f"{uri}/a%20b.txt")
    assert Path(path).read_bytes() == b"test-content\n"
    assert shell.answer("load", f"{uri}/sub/rec.bin", "--dest", ".") == "./rec.bin"
    assert shell.run("cat", f"{uri}/a b.txt").stdout == "test-content\n"
    assert shell.run("cat", f"{uri}/sub/rec.bin", "--start", str(CHUNK_BYTES)).stdout == "end"
    assert shell.run("cat", f"{uri}/a b.txt", "--start", "5", "--end", "8").stdout == "con"


def test_info_tells_how_much_is_in_it_and_how_much_is_here(shell: Shell, uri: str) -> None:
    told = json.loads(shell.run("info", "--json", uri).stdout)
    assert (told["uri"], told["files"], told["directories"]) == (uri, 2, 2)
    assert (told["size"], told["stored_files"]) == (13 + len(BIG), 2)
    assert shell.run("rm", f"sha1://{sha1(BIG)}").returncode == 0
    text = shell.run("info", uri).stdout
    assert "2 in it and in 2 below" in text and "1 of 2 files" in text
    assert json.loads(shell.run("info", "--json", f"{uri}/a b.txt").stdout)["size"] == 13


def test_share_and_unshare_mean_all_of_a_directory(shell: Shell, session: Path) -> None:
    uri = shell.answer("store", "--private", "session")
    done = shell.run("share", uri)
    assert done.returncode == 0 and "3 files" in done.stderr
    assert (shell.directory / "config" / "shares.log").read_text().count("\n") == 3


def test_what_is_not_there_has_its_exit_code(shell: Shell, uri: str) -> None:
    assert "there is no 'x' in 'sub'" in shell.fails(3, "load", f"{uri}/sub/x")
    assert "did you mean 'sub'" in shell.fails(3, "ls", f"{uri}/SUB")
    assert "names a directory, not a file" in shell.fails(3, "cat", f"{uri}/sub")
    assert "is a file" in shell.fails(3, "cat", f"{uri}/a b.txt/x")
    shell.fails(3, "ls", "sha1dir://" + "0" * 40)
    shell.fails(2, "ls", "sha1dir://abc")
    assert "names no directory" in shell.fails(2, "ls", "sha1://" + "0" * 40)


def test_names_of_others_steer_no_terminal(shell: Shell) -> None:
    file = {"size": 4, "sha1": sha1(b"evil")}
    for name, code in (("\x1b[31m", 2), ("zero\u200bwidth", 0)):
        (shell.directory / "list").write_text(json.dumps({"files": {name: file}, "dirs": {}}))
        uri = f"sha1dir://{shell.answer('store', 'list')[7:47]}"
        done = shell.run("ls", uri)
        assert done.returncode == code
        assert (done.stdout + done.stderr).replace("\n", "").isprintable()
