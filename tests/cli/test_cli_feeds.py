"""`kachery-p2p feed` as far as no daemon is needed; the rest is in tests/processes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Shell

ID = "ab" * 32
MAIN = f"feed://{ID}/main"
NASTY = "\x1b[31mred\u202e\x9b\x7fä\ud800"


def snapshot(shell: Shell, *messages: Any) -> str:
    """The URI of subfeed `main` of a snapshot with these messages."""
    signed = [
        {"body": {"message": one, "messageNumber": number, "timestamp": 0}}
        for number, one in enumerate(messages, 1)
    ]
    name_hash = "b28b7af69320201d1cf206ebf28373980add1451"
    subfeeds = {name_hash: {"subfeedHash": name_hash, "messages": signed}}
    (shell.directory / "feed.json").write_text(json.dumps({"subfeeds": subfeeds}))
    return shell.answer("store", "feed.json") + "?subfeedName=main"


@pytest.mark.parametrize(
    "arguments",
    [
        ("create",),
        ("list",),
        ("append", MAIN, "1"),
        ("submit", MAIN, "1"),
        ("read", MAIN),
        ("read", "jobs/main"),
        ("grant", MAIN, ID),
        ("status",),
        ("export-proof", MAIN),
        ("resume", MAIN, "--only-copy"),
        ("end", MAIN, "--yes"),
        ("share", f"feed://{ID}"),
        ("delete", f"feed://{ID}", "--yes"),
    ],
)
def test_without_a_daemon_each_says_so_and_how_to_start_one(
    shell: Shell, arguments: tuple[str, ...]
) -> None:
    said = shell.fails(4, "feed", *arguments)
    assert "kachery-p2p start" in said


@pytest.mark.parametrize(
    "junk", ["feed://x/main", "feed://", MAIN.replace("main", "~"), "jobs", "ftp://a/b"]
)
def test_junk_for_a_uri_is_refused(shell: Shell, junk: str) -> None:
    shell.fails(2, "feed", "read", junk)


@pytest.mark.parametrize("text", ["x", "{", "NaN", "'a'", "\udcff"])
def test_what_is_not_json_is_refused_before_anybody_is_asked(shell: Shell, text: str) -> None:
    assert "the message is not JSON" in shell.fails(2, "feed", "append", MAIN, text)


def test_a_message_that_is_too_large_is_refused(shell: Shell) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kachery_p2p", "feed", "append", MAIN, "-"],
        input=json.dumps("x" * (1 << 20)),
        env=shell.environment,
        cwd=shell.directory,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "more than" in done.stderr


def test_a_line_that_is_not_json_is_named(shell: Shell) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kachery_p2p", "feed", "append", MAIN, "-"],
        input=b"\n\n\xff\n",
        env=shell.environment,
        cwd=shell.directory,
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"line 3 is not JSON" in done.stderr


def test_a_snapshot_is_read_as_lines_of_json(shell: Shell) -> None:
    uri = snapshot(shell, {"a": 1}, "ä", [None])
    assert shell.answer("feed", "read", uri) == '{"a":1}\n"ä"\n[null]'
    assert shell.answer("feed", "read", uri, "--from", "1", "--count", "1") == '"ä"'
    assert shell.answer("feed", "read", uri, "--from", "7") == ""
    told = [json.loads(line) for line in shell.answer("feed", "read", uri, "--json").splitlines()]
    assert told[2] == {"position": 2, "message": [None]}
    signed = json.loads(shell.answer("feed", "read", uri, "--signed", "--count", "1"))
    assert signed["body"]["message"] == {"a": 1}


def test_what_others_wrote_is_escaped_on_a_terminal_and_verbatim_in_a_pipe(shell: Shell) -> None:
    uri = snapshot(shell, NASTY)
    assert json.loads(shell.answer("feed", "read", uri)) == NASTY
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "kachery_p2p", "feed", "read", uri],
        env=shell.environment,
        stdout=theirs,
    ) as reading:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 1 << 16)
            except OSError:  # how Linux says that the other side is closed
                break
            if not piece:
                break
            shown += piece
    os.close(ours)
    assert reading.returncode == 0
    assert shown.decode() == '"\\u001b[31mred\\u202e\\u009b\\u007f\\u00e4\\ud800"\r\n'


@pytest.mark.parametrize(
    "arguments",
    [
        ("resume", MAIN),
        ("end", MAIN),
        ("create", "--private", "--channel", "lab"),
        ("read", MAIN, "--from", "-1"),
    ],
)
def test_what_is_for_good_or_contradicts_itself_is_asked_about(
    shell: Shell, arguments: tuple[str, ...]
) -> None:
    shell.fails(2, "feed", *arguments)


def test_a_directory_without_old_feeds_is_said_to_have_none(shell: Shell) -> None:
    assert "no feeds.db" in shell.fails(3, "feed", "import-legacy", str(shell.directory))
