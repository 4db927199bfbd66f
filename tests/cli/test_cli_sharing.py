"""`find`, `unshare`, `shared`, and from whom a load fetches, as a person types them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kachery_p2p.channels.channel import generate_secret
from kachery_p2p.channels.files import join_shared

NOBODY = "sha1://" + "0" * 40


@pytest.fixture
def lab(shell: Any) -> Any:
    """A configuration in channel lab, without a daemon."""
    (shell.directory / "config").mkdir(mode=0o700)
    for name in ("lab", "field"):
        secret = generate_secret(name.encode().ljust(20, b"x"))
        join_shared(str(shell.directory / "config"), name, secret)
    (shell.directory / "a.txt").write_bytes(b"0123456789\n")
    return shell


def bare(uri: str) -> str:
    return uri.rpartition("/")[0]


def test_find_says_that_this_computer_has_it_and_who_could_not_be_asked(lab: Any) -> None:
    done = lab.run("find", lab.answer("store", "--private", "a.txt"))
    assert (done.returncode, done.stdout) == (0, "this computer\n")
    assert "11 bytes" in done.stderr and "no daemon is running" in done.stderr


def test_find_ends_with_3_when_nobody_has_it(lab: Any) -> None:
    assert "not stored here, and no daemon is running" in lab.fails(3, "find", NOBODY)


def test_find_tells_a_program_the_same(lab: Any) -> None:
    uri = lab.answer("store", "--private", "a.txt")
    done = lab.run("find", "--json", uri)
    told = {"uri": uri, "local": True, "size": 11, "providers": [], "asked": False}
    assert json.loads(done.stdout) == told
    done = lab.run("find", "--json", NOBODY)
    assert done.returncode == 3
    assert json.loads(done.stdout)["local"] is False


def test_what_is_shared_is_listed_until_it_is_ended(lab: Any) -> None:
    uri = lab.answer("store", "--channel", "lab", "--channel", "field", "a.txt")
    both = {f"{bare(uri)}  lab", f"{bare(uri)}  field"}
    assert set(lab.answer("shared").splitlines()) == both
    assert lab.answer("shared", "--channel", "field") == f"{bare(uri)}  field"
    row = json.loads(lab.answer("shared", "--json", "--channel", "lab"))
    assert (row["uri"], row["channel"], row["why"]) == (bare(uri), "lab", "store")
    done = lab.run("unshare", uri, "--channel", "lab")
    assert (done.returncode, done.stdout) == (0, "")
    assert "ended 1 share in channel lab" in done.stderr
    assert lab.answer("shared") == f"{bare(uri)}  field"
    assert "ended 1 share\n" in lab.run("unshare", uri).stderr
    assert "nothing was shared\n" in lab.run("unshare", uri).stderr
    assert lab.answer("shared") == ""


@pytest.mark.parametrize(
    "arguments", [("shared", "--channel", "nowhere"), ("unshare", NOBODY, "--channel", "nowhere")]
)
def test_a_channel_that_was_not_joined_is_an_error(lab: Any, arguments: tuple[str, ...]) -> None:
    lab.answer("store", "a.txt")
    assert "not in a channel named 'nowhere'" in lab.fails(10, *arguments)


@pytest.mark.parametrize("command", [("load",), ("cat",), ("info",), ("find", "--json")])
def test_the_sources_of_what_is_stored_here_do_not_matter(
    lab: Any, command: tuple[str, ...]
) -> None:
    uri = lab.answer("store", "--private", "a.txt")
    restricted = ("--from-channel", "lab", "--from-node", "ab" * 32, "--timeout", "1")
    assert lab.run(*command, uri, *restricted).returncode == 0


def test_a_timeout_is_a_number_of_seconds(lab: Any) -> None:
    for wrong in ("soon", "-1"):
        assert "--timeout" in lab.fails(2, "load", NOBODY, "--timeout", wrong)
