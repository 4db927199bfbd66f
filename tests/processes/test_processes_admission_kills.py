"""`kill -9` at any change of the disk while a node is let in, on either side.

strace ends the process at one rename or unlink after the other: between two of these nothing
changes that anybody will read. Afterwards the same invite lets in the same node and no other,
and no channel is half joined.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from tests.processes.test_processes_channels import invite, poll, wait_for_peer

if TYPE_CHECKING:
    from tests.processes.conftest import Lab, NodeProcess

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]

# More changes than letting in has, on either side.
CHANGES_MAX = 12


def killed_at(call: str, number: int) -> list[str]:
    """strace, so that its child (not it) is ours to wait for, and dies at that change."""
    command = ["strace", "-D", "-f", "-qq", "-o", "/dev/null"]
    injected = f"inject={call}:signal=KILL:when={number}"
    return [*command, "-e", f"trace={call}", "-e", injected]


def has_ended(node: NodeProcess) -> bool:
    return node.process is not None and node.process.poll() is not None


def check_whole(node: NodeProcess) -> None:
    """A channel is joined with all that belongs to it, or not at all."""
    channels = node.config_dir / "channels"
    done = node.cli("channel", "list", "--json")
    assert done.returncode == 0, done.stderr
    for known in json.loads(done.stdout):
        assert (channels / f"{known['name']}.secret").is_file()
        assert (channels / f"{known['name']}.history").is_file()


def entered(node: NodeProcess, owner: NodeProcess) -> None:
    poll(lambda: node.call("status")["channels"], 30)
    wait_for_peer(node, owner)


@pytest.fixture
def owner(lab: Lab) -> NodeProcess:
    return lab.node("owner", secret="").start()


@pytest.fixture
def thief(lab: Lab) -> NodeProcess:
    """Somebody who found the invite, and tries it after each kill."""
    return lab.node("thief", secret="").start(channel=None)


def check_refused(thief: NodeProcess, text: str) -> None:
    done = thief.cli("channel", "join", text)
    assert done.returncode == 10, done
    assert "another node has entered with this invite" in done.stderr


@pytest.mark.parametrize("call", ["rename", "unlink"])
def test_a_joiner_killed_at_any_change_enters_with_the_same_invite(
    lab: Lab, owner: NodeProcess, thief: NodeProcess, call: str
) -> None:
    kills = 0
    for number in itertools.count(1):
        assert number <= CHANGES_MAX
        text = invite(owner)
        bob = lab.node(f"bob-{number}", secret="")
        channels = bob.config_dir / "channels"
        bob.environment["PYTHONDONTWRITEBYTECODE"] = "1"
        bob.launch(channel=text, under=killed_at(call, number))
        poll(lambda: has_ended(bob) or (bob.lines and is_in(bob)), 30)
        if not has_ended(bob):
            break
        kills += 1
        assert bob.process is not None
        assert bob.process.returncode == -signal.SIGKILL
        check_whole(bob)
        bob.start(channel=text)
        entered(bob, owner)
        check_whole(bob)
        assert not list(channels.glob("*.join"))
        check_refused(thief, text)
        bob.kill()
    # The invite, the secret, the history and what says that it is joined; or the invite's end.
    assert kills >= (4 if call == "rename" else 1)


def is_ready(node: NodeProcess) -> bool:
    return any(line.startswith("ready") for line in node.lines)


def is_in(node: NodeProcess) -> bool:
    """True when the channel is entered and the invite is gone."""
    channels = node.config_dir / "channels"
    return (channels / "lab.toml").exists() and not list(channels.glob("*.join"))


def test_a_keeper_killed_at_any_change_lets_in_the_same_node_and_no_other(
    lab: Lab, owner: NodeProcess, thief: NodeProcess
) -> None:
    place = re.search(r"/ip4/([\d.]+)/tcp/(\d+)/", owner.address)
    assert place is not None
    listen = ("--listen", f"{place[1]}:{place[2]}")
    owner.environment["PYTHONDONTWRITEBYTECODE"] = "1"
    kills = 0
    for number in itertools.count(1):
        assert number <= CHANGES_MAX
        text = invite(owner)
        owner.kill(signal.SIGTERM)
        owner.launch(*listen, channel=None, under=killed_at("rename", number))
        poll(lambda: has_ended(owner) or is_ready(owner), 30)
        bob = lab.node(f"bob-{number}", secret="").start(channel=text)
        poll(lambda: has_ended(owner) or is_in(bob), 30)
        # (A change after he was let in may end it a moment later.)
        ended = has_ended(owner)
        if not ended:
            break
        kills += 1
        owner.start(*listen, channel=None)
        entered(bob, owner)
        check_refused(thief, text)
        assert bob.node_id in owner.cli("channel", "members", "lab").stdout
        bob.kill()
    # The invite used up, and the member recorded.
    assert kills >= 2
