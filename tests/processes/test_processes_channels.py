"""Owned channels among real node processes: invited, put out, and kept out."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.processes.conftest import Lab, NodeProcess

pytestmark = pytest.mark.processes

MIB = 1 << 20


@pytest.fixture
def keeper(lab: Lab) -> NodeProcess:
    """A running node that owns the channel `lab`."""
    return lab.node("keeper", secret="").start()


def invite(node: NodeProcess, *options: str) -> str:
    done = node.cli("channel", "invite", "lab", *options)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def entered(lab: Lab, name: str, keeper: NodeProcess) -> NodeProcess:
    """A node that was let into the keeper's channel."""
    node = lab.node(name, secret="").start(channel=None)
    done = node.cli("channel", "join", "-", input=invite(keeper))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "lab\n"
    assert "not let in" not in done.stderr
    wait_for_peer(node, keeper)
    return node


def wait_for_peer(node: NodeProcess, other: NodeProcess) -> None:
    poll(lambda: other.node_id in {peer["node_id"] for peer in node.call("status")["peers"]})


def poll(happened: object, within_s: float = 15.0) -> float:
    """Seconds until `happened()`; another process is looked at, it does not tell."""
    assert callable(happened)
    begun = time.monotonic()
    while not happened():
        assert time.monotonic() - begun < within_s, "it did not happen in time"
        time.sleep(0.02)
    return time.monotonic() - begun


def stored(node: NodeProcess, path: Path) -> str:
    done = node.cli("store", str(path))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_three_nodes_by_invite_share_and_an_outsider_gets_nothing(
    lab: Lab, keeper: NodeProcess
) -> None:
    bob, carol = entered(lab, "bob", keeper), entered(lab, "carol", keeper)
    path = lab.file("recording.h5", 3 * MIB + 5)
    uri = stored(keeper, path)
    for node in (bob, carol):
        done = node.cli("load", uri, "--dest", str(node.directory / "copy"))
        assert done.returncode == 0, done.stderr
        assert (node.directory / "copy").read_bytes() == path.read_bytes()
    assert json.loads(bob.cli("channel", "members", "lab", "--json").stdout)
    # Carol and Bob know each other, though both were invited by the keeper alone.
    wait_for_peer(bob, carol)

    show = json.loads(keeper.cli("channel", "show", "lab", "--json").stdout)
    outsider = lab.node("outsider", secret="").start("--bootstrap", keeper.address)
    done = outsider.cli("load", uri)
    assert done.returncode != 0
    assert show["id"] not in json.dumps(outsider.call("status"))
    assert not outsider.call("status")["peers"]


def test_two_strangers_who_both_start_the_channel_lab_do_not_meet(
    lab: Lab, keeper: NodeProcess
) -> None:
    stranger = lab.node("stranger", secret="").start("--bootstrap", keeper.address)
    first = json.loads(keeper.cli("channel", "list", "--json").stdout)
    second = json.loads(stranger.cli("channel", "list", "--json").stdout)
    assert first[0]["name"] == second[0]["name"] == "lab"
    assert first[0]["id"] != second[0]["id"]
    stranger.cli("status", "--wait", "10")
    assert not stranger.call("status")["peers"]
    assert not keeper.call("status")["peers"]


def test_a_removed_member_is_cut_off_within_five_seconds_in_the_middle_of_a_transfer(
    lab: Lab, keeper: NodeProcess
) -> None:
    bob = entered(lab, "bob", keeper)
    uri = stored(keeper, lab.file("big", 512 * MIB))
    with subprocess.Popen(
        [*bob.command, "load", uri], env=bob.environment, stderr=subprocess.DEVNULL
    ) as loading:
        poll(lambda: any(load["bytes"] > MIB for load in bob.call("status")["loads"]))
        assert keeper.cli("channel", "remove", "lab", bob.node_id).returncode == 0
        took_s = poll(lambda: not keeper.call("status")["peers"], 5.0)
        assert took_s < 5.0
        served = keeper.call("status")["bytes_served"]
        assert loading.wait(30) != 0
    assert served < 512 * MIB
    assert keeper.call("status")["bytes_served"] == served
    poll(lambda: "removed" in " ".join(bob.call("status")["problems"]))
    assert bob.cli("load", uri).returncode != 0


def test_an_invite_lets_in_one_node_and_no_second(lab: Lab, keeper: NodeProcess) -> None:
    text = invite(keeper)
    bob = lab.node("bob", secret="").start(channel=None)
    assert bob.cli("channel", "join", text).returncode == 0
    carol = lab.node("carol", secret="").start(channel=None)
    done = carol.cli("channel", "join", text)
    assert done.returncode == 10
    assert "another node has entered with this invite" in done.stderr
    # And the one that entered may say so again.
    assert bob.cli("channel", "join", text).returncode == 0


def test_invites_that_are_cut_expired_or_for_another_node_are_refused(
    lab: Lab, keeper: NodeProcess
) -> None:
    bob = lab.node("bob", secret="").start(channel=None)
    text = invite(keeper)
    done = bob.cli("channel", "join", text[:-3])
    assert (done.returncode, "mistyped" in done.stderr) == (10, True)
    flipped = text[:60] + ("A" if text[60] != "A" else "B") + text[61:]
    assert "mistyped" in bob.cli("channel", "join", flipped).stderr
    other = invite(keeper, "--node", keeper.node_id)
    done = bob.cli("channel", "join", other)
    assert (done.returncode, "is for the node" in done.stderr) == (10, True)
    own = invite(keeper, "--node", bob.node_id)
    assert bob.cli("channel", "join", own).returncode == 0


def test_an_admitter_that_is_asleep_is_awaited_and_lets_in_when_it_is_awake(
    lab: Lab, keeper: NodeProcess
) -> None:
    text = invite(keeper)
    listen = re.search(r"/ip4/([\d.]+)/tcp/(\d+)/", keeper.address)
    assert listen is not None
    keeper.kill()
    bob = lab.node("bob", secret="").start(channel=text)
    poll(lambda: "is awaited" in " ".join(bob.call("status")["problems"]))
    keeper.start("--listen", f"{listen[1]}:{listen[2]}")
    poll(lambda: bob.call("status")["channels"], 30)
    wait_for_peer(bob, keeper)
    # By a member, the same invite is a way of saying the channel's name.
    bob.kill()
    bob.start(channel=text)
    wait_for_peer(bob, keeper)


def test_a_reader_may_load_and_what_it_has_is_asked_for_by_nobody(
    lab: Lab, keeper: NodeProcess
) -> None:
    reader = lab.node("reader", secret="").start(channel=None)
    assert reader.cli("channel", "join", invite(keeper, "--role", "read")).returncode == 0
    wait_for_peer(reader, keeper)
    uri = stored(keeper, lab.file("theirs", 100))
    assert reader.cli("load", uri).returncode == 0
    secret = stored(reader, lab.file("ours", 100))
    assert keeper.cli("load", secret).returncode == 3


def test_an_admin_invites_and_the_keeper_signs(lab: Lab, keeper: NodeProcess) -> None:
    bob = entered(lab, "bob", keeper)
    assert (
        keeper.cli("channel", "roles", "lab", bob.node_id, "read", "provide", "admin").returncode
        == 0
    )
    poll(lambda: "admin" in bob.cli("channel", "show", "lab").stdout)
    carol = lab.node("carol", secret="").start(channel=None)
    done = carol.cli("channel", "join", invite(bob))
    assert done.returncode == 0, done.stderr
    assert "not let in" not in done.stderr
    wait_for_peer(carol, keeper)
    # Who is no admin lets nobody in.
    done = carol.cli("channel", "invite", "lab")
    assert (done.returncode, "no admin" in done.stderr) == (5, True)
    done = carol.cli("channel", "remove", "lab", bob.node_id)
    assert done.returncode == 5


def test_a_member_that_leaves_is_not_asked_any_more(lab: Lab, keeper: NodeProcess) -> None:
    bob = entered(lab, "bob", keeper)
    done = bob.cli("channel", "leave", "lab")
    assert done.returncode == 0, done.stderr
    poll(lambda: not keeper.call("status")["peers"])
    assert not bob.call("status")["channels"]
    assert bob.cli("channel", "list").stdout == ""


def test_the_channel_goes_on_under_another_key_and_members_follow(
    lab: Lab, keeper: NodeProcess
) -> None:
    bob = entered(lab, "bob", keeper)
    uri = stored(keeper, lab.file("kept", 200_000))
    before = json.loads(keeper.cli("channel", "show", "lab", "--json").stdout)["id"]
    done = keeper.cli("channel", "successor", "lab", "--take-over")
    assert done.returncode == 0, done.stderr
    after = done.stdout.strip()
    assert after != before

    def bobs_id() -> str:
        return str(json.loads(bob.cli("channel", "show", "lab", "--json").stdout)["id"])

    poll(lambda: bobs_id() == after)
    wait_for_peer(bob, keeper)
    poll(lambda: bob.cli("load", uri).returncode == 0)


def test_a_channel_that_is_waited_for_can_be_given_up(lab: Lab, keeper: NodeProcess) -> None:
    text = invite(keeper)
    keeper.kill()
    bob = lab.node("bob", secret="").start(channel=text)
    poll(lambda: "is awaited" in " ".join(bob.call("status")["problems"]))
    assert bob.cli("channel", "leave", "lab").returncode == 0
    assert bob.call("status")["problems"] == []
    assert not list((bob.config_dir / "channels").glob("*.join"))
