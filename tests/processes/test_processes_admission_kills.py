"""`kill -9` at any change of the disk while a node is let in, on either side.

The process ends right before the rename or the unlink of each file of a channel: between two of
these nothing changes that anybody will read. Afterwards the same invite lets in the same node and
no other, and no channel is half joined.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from tests.processes.test_processes_channels import invite, poll, wait_for_peer

if TYPE_CHECKING:
    from tests.processes.conftest import Lab, NodeProcess

pytestmark = pytest.mark.processes

# In their order: the invite, the secret, the history and what says that it is joined; the invite's
# end. On the other side the invite used up, and the member recorded.
JOINER_CHANGES = [
    ("rename", "lab.join"),
    ("rename", "lab.secret"),
    ("rename", "lab.history"),
    ("rename", "lab.toml"),
    ("unlink", "lab.join"),
]
KEEPER_CHANGES = ["lab.invites", "lab.history"]


# Runs the command that follows it, which kills itself before that change.
KILLED = """
import os, runpy, signal, sys
call, path, _, _, module, *arguments = sys.argv[1:]
real = getattr(os, call)
def changed(*paths):
    if paths[-1] == path:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*paths)
setattr(os, call, changed)
sys.argv[1:] = arguments
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def killed_at(call: str, node: NodeProcess, name: str) -> list[str]:
    """What to launch the node under, so that it dies at that change."""
    return [sys.executable, "-c", KILLED, call, str(node.config_dir / "channels" / name)]


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


def test_a_joiner_killed_at_any_change_enters_with_the_same_invite(
    lab: Lab, owner: NodeProcess, thief: NodeProcess
) -> None:
    for number, (call, name) in enumerate(JOINER_CHANGES):
        text = invite(owner)
        bob = lab.node(f"bob-{number}", secret="")
        bob.launch(channel=text, under=killed_at(call, bob, name))
        poll(lambda bob=bob: has_ended(bob), 30)
        assert bob.process is not None
        assert bob.process.returncode == -signal.SIGKILL
        check_whole(bob)
        bob.start(channel=text)
        entered(bob, owner)
        check_whole(bob)
        assert not list((bob.config_dir / "channels").glob("*.join"))
        check_refused(thief, text)
        bob.kill()


def is_ready(node: NodeProcess) -> bool:
    return any(line.startswith("ready") for line in node.lines)


def test_a_keeper_killed_at_any_change_lets_in_the_same_node_and_no_other(
    lab: Lab, owner: NodeProcess, thief: NodeProcess
) -> None:
    place = re.search(r"/ip4/([\d.]+)/tcp/(\d+)/", owner.address)
    assert place is not None
    listen = ("--listen", f"{place[1]}:{place[2]}")
    for name in KEEPER_CHANGES:
        text = invite(owner)
        owner.kill(signal.SIGTERM)
        owner.launch(*listen, channel=None, under=killed_at("rename", owner, name))
        poll(lambda: has_ended(owner) or is_ready(owner), 30)
        bob = lab.node(f"bob-{name}", secret="").start(channel=text)
        poll(lambda: has_ended(owner), 30)
        owner.start(*listen, channel=None)
        entered(bob, owner)
        check_refused(thief, text)
        assert bob.node_id in owner.cli("channel", "members", "lab").stdout
        bob.kill()
