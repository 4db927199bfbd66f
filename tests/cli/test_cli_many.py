"""`kachery-p2p load -`: URIs on stdin, one a line; paths on stdout, as they come."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kachery_p2p.cli import many
from kachery_p2p.cli.many import _groups
from kachery_p2p.errors import EXIT_NOT_FOUND, EXIT_USAGE, UriError
from kachery_p2p.limits import STDIN_LINE_BYTES_MAX

if TYPE_CHECKING:
    from tests.cli.conftest import Shell

MISSING = "sha1://" + "0" * 40
ANSWER_S = 30.0


def load(shell: Shell, lines: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kachery_p2p", "load", "-", *options],
        input=lines,
        cwd=shell.directory,
        env=shell.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def stored(shell: Shell, *texts: str) -> list[str]:
    for number, text in enumerate(texts):
        (shell.directory / f"{number}.txt").write_text(text)
    names = [f"{number}.txt" for number in range(len(texts))]
    return shell.answer("store", *names).splitlines()


def test_each_line_is_answered_with_a_path_in_its_order(shell: Shell) -> None:
    first, second = stored(shell, "first", "second")
    done = load(shell, f"{second}\n\n  {first}  \n{second}")  # the last line has no end
    assert (done.returncode, done.stderr) == (0, "")
    read = [Path(path).read_text() for path in done.stdout.splitlines()]
    assert read == ["second", "first", "second"]


def test_no_line_is_no_answer(shell: Shell) -> None:
    done = load(shell, "")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_cannot_be_had_leaves_an_empty_line_and_the_code_of_the_first(shell: Shell) -> None:
    (good,) = stored(shell, "good")
    done = load(shell, f"{MISSING}\n{good}\nnonsense\n")
    assert done.returncode == EXIT_NOT_FOUND
    lines = done.stdout.split("\n")
    assert (lines[0], lines[2], lines[3]) == ("", "", "")
    assert Path(lines[1]).read_text() == "good"
    errors = done.stderr.splitlines()
    assert errors[0].startswith(f"kachery-p2p: error: {MISSING}: ")
    assert errors[1].startswith("kachery-p2p: error: nonsense: ")
    assert "2 files of 3 were not loaded" in errors[2]
    assert load(shell, "nonsense\n").returncode == EXIT_USAGE


def test_with_json_each_line_says_all_there_is_to_say(shell: Shell) -> None:
    (good,) = stored(shell, "good")
    done = load(shell, f"{good}\n{MISSING}\n", "--json")
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["uri"], first["error"]) == (good, None)
    assert Path(first["path"]).read_text() == "good"
    assert (second["uri"], second["path"]) == (MISSING, None)
    assert second["error"]["name"] == "NotFoundError"
    assert second["error"]["exit_code"] == done.returncode == EXIT_NOT_FOUND
    assert second["error"]["hint"]


@pytest.mark.parametrize(
    "arguments",
    [("-", "--dest", "x"), ("-", "--verify"), (MISSING, "--json")],
    ids=["dest", "verify", "json of one"],
)
def test_options_that_do_not_go_with_it_are_refused(
    shell: Shell, arguments: tuple[str, ...]
) -> None:
    assert "usage" not in shell.fails(EXIT_USAGE, "load", *arguments)


def test_a_line_is_answered_before_the_next_one_is_there(shell: Shell) -> None:
    uris = stored(shell, "first", "second")
    with subprocess.Popen(
        [sys.executable, "-m", "kachery_p2p", "load", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=shell.directory,
        env=shell.environment,
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            for uri, text in zip(uris, ("first", "second"), strict=True):
                process.stdin.write(uri.encode() + b"\n")
                process.stdin.flush()
                assert select.select([process.stdout], [], [], ANSWER_S)[0], "no answer came"
                path = process.stdout.readline().decode().strip()
                assert Path(path).read_text() == text
            process.stdin.close()
            assert process.wait(ANSWER_S) == 0
        finally:
            process.kill()


# --- lines --------------------------------------------------------------------------------------


def groups_of(data: bytes) -> list[list[str]]:
    reading, writing = os.pipe()
    try:
        os.write(writing, data)
        os.close(writing)
        return list(_groups(reading))
    finally:
        os.close(reading)


def test_lines_that_are_there_are_taken_together_but_not_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = b"".join(b"%d\n" % number for number in range(10))
    assert groups_of(data) == [[str(number) for number in range(10)]]
    monkeypatch.setattr(many, "LOAD_MANY_MAX", 4)
    assert [len(group) for group in groups_of(data)] == [4, 4, 2]
    assert groups_of(b"\n \n\r\n") == []
    assert groups_of(b"a\r\nb") == [["a", "b"]]


def test_a_line_without_end_is_refused_before_it_fills_memory() -> None:
    with pytest.raises(UriError, match="longer than any URI"):
        groups_of(b"sha1://" + b"a" * STDIN_LINE_BYTES_MAX)


def test_bytes_that_are_no_text_are_a_uri_that_is_none(shell: Shell) -> None:
    assert groups_of(b"\xff\xfe\n") == [["\udcff\udcfe"]]
    done = subprocess.run(
        [sys.executable, "-m", "kachery_p2p", "load", "-", "--json"],
        input=b"\xff\x1b[31m\n",
        cwd=shell.directory,
        env=shell.environment,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == EXIT_USAGE
    assert json.loads(done.stdout)["error"]["name"]
    assert b"\x1b" not in done.stdout + done.stderr
