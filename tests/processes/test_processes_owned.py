"""Owned channels when somebody is late, put out, restored from a backup, or in two of them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from kachery_p2p.channels.invites import Invite
from tests.processes.test_processes_channels import (
    MIB,
    entered,
    invite,
    poll,
    stored,
    wait_for_peer,
)

if TYPE_CHECKING:
    from tests.processes.conftest import Lab, NodeProcess

pytestmark = pytest.mark.processes


@pytest.fixture
def owner(lab: Lab) -> NodeProcess:
    """A running node that owns the channel `lab`."""
    return lab.node("owner", secret="").start()


def again_at(node: NodeProcess) -> tuple[str, str]:
    """Options to start it once more where the others look for it."""
    return "--listen", f"127.0.0.1:{node.address.split('/')[4]}"


def shown(node: NodeProcess) -> dict[str, Any]:
    done = node.cli("channel", "show", "lab", "--json")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def members(node: NodeProcess) -> set[str]:
    told = json.loads(node.cli("channel", "members", "lab", "--json").stdout)
    return {member["node_id"] for member in told}


def test_what_is_granted_in_one_channel_is_not_served_in_another(
    lab: Lab, owner: NodeProcess
) -> None:
    bob = entered(lab, "bob", owner)
    assert owner.cli("channel", "create", "field").returncode == 0
    text = owner.cli("channel", "invite", "field").stdout.strip()
    assert bob.cli("channel", "join", text).returncode == 0
    text = owner.cli("channel", "invite", "field").stdout.strip()
    carol = lab.node("carol", secret="").start(channel=None)
    assert carol.cli("channel", "join", text).returncode == 0
    wait_for_peer(carol, owner)
    wait_for_peer(bob, owner)
    # The first channel joined is the one that is shared with.
    uri = stored(owner, lab.file("of-lab", 2 * MIB))
    absent = "sha1://" + "ab" * 20 + uri[uri.index("?") :]

    refused, missing = carol.cli("load", uri), carol.cli("load", absent)
    assert refused.returncode == missing.returncode == 3
    assert refused.stderr.replace(uri[7:47], "X") == missing.stderr.replace("ab" * 20, "X")
    # Bob, who is in both, does not get it in the wrong one either.
    load = "import kachery_p2p as kp; print(kp.load_file({!r}, from_channel={!r}))"
    in_field = bob.python(load.format(uri, "field"))
    assert in_field.returncode != 0
    assert "NotFoundError" in in_field.stderr
    in_lab = bob.python(load.format(uri, "lab"))
    assert in_lab.returncode == 0, in_lab.stderr
    # And what he loaded in `lab` he serves there alone.
    assert carol.cli("load", uri).returncode == 3


def test_a_member_who_is_not_the_keeper_cuts_off_who_was_removed(
    lab: Lab, owner: NodeProcess
) -> None:
    bob, carol = entered(lab, "bob", owner), entered(lab, "carol", owner)
    wait_for_peer(bob, carol)
    uri = stored(carol, lab.file("big", 512 * MIB))
    with subprocess.Popen(
        [*bob.command, "load", uri], env=bob.environment, stderr=subprocess.DEVNULL
    ) as loading:
        poll(lambda: any(load["bytes"] > MIB for load in bob.call("status")["loads"]))
        assert owner.cli("channel", "remove", "lab", bob.node_id).returncode == 0
        poll(lambda: bob.node_id not in {p["node_id"] for p in carol.call("status")["peers"]}, 5.0)
        served = carol.call("status")["bytes_served"]
        assert loading.wait(30) != 0
    assert served < 512 * MIB
    assert carol.call("status")["bytes_served"] == served


def test_an_invite_that_has_expired_lets_nobody_in(lab: Lab, owner: NodeProcess) -> None:
    text = invite(owner, "--hours", "0.0003")
    expires = Invite.parse(text).expires
    bob = lab.node("bob", secret="").start(channel=None)
    poll(lambda: time.time() > expires + 0.1)
    done = bob.cli("channel", "join", text)
    assert (done.returncode, "expired" in done.stderr) == (10, True), done.stderr
    assert "kachery-p2p: hint: " in done.stderr
    assert members(owner) == {owner.node_id}
    assert not bob.call("status")["channels"]


def test_a_member_whose_history_was_rolled_back_catches_up(lab: Lab, owner: NodeProcess) -> None:
    bob = entered(lab, "bob", owner)
    poll(lambda: len(members(bob)) == 2)
    bob.kill(signal.SIGTERM)
    history = bob.config_dir / "channels" / "lab.history"
    older = history.read_bytes()
    bob.start(channel=None)
    wait_for_peer(bob, owner)
    carol = entered(lab, "carol", owner)
    poll(lambda: len(members(bob)) == 3)
    bob.kill(signal.SIGTERM)
    assert history.read_bytes() != older
    history.write_bytes(older)

    bob.start(channel=None)

    poll(lambda: members(bob) == {owner.node_id, bob.node_id, carol.node_id})
    assert not shown(bob)["forked"]
    assert shown(bob)["entries"] == shown(owner)["entries"]


@pytest.mark.parametrize("first", ["waits", "signs at once"])
def test_a_keeper_restored_from_an_older_backup_does_not_fork_its_channel(
    lab: Lab, owner: NodeProcess, first: str
) -> None:
    bob = entered(lab, "bob", owner)
    backup = lab.directory / "backup"
    listen = again_at(owner)
    owner.kill(signal.SIGTERM)
    shutil.copytree(owner.config_dir, backup)
    owner.start(*listen, channel=None)
    wait_for_peer(bob, owner)
    carol = entered(lab, "carol", owner)
    poll(lambda: carol.node_id in members(bob))
    owner.kill(signal.SIGTERM)
    shutil.rmtree(owner.config_dir)
    shutil.copytree(backup, owner.config_dir)

    # Signed on what the backup knew, this would be a second history.
    demotion = {"name": "lab", "node": bob.node_id, "roles": ["read"]}
    owner.launch(*listen, channel=None)
    if first == "waits":
        poll(lambda: carol.node_id in members(owner), 30)
    poll(lambda: (owner.config_dir / "daemon.sock").exists())
    owner.call("channel_roles", demotion)
    owner.wait_until_ready()

    everyone = {owner.node_id, bob.node_id, carol.node_id}
    for node in (owner, bob, carol):
        poll(lambda node=node: members(node) == everyone, 30)
        poll(lambda node=node: "provide" not in roles_of(bob, node), 30)
        assert not shown(node)["forked"]
        assert "two histories" not in node.errors()


def roles_of(member: NodeProcess, node: NodeProcess) -> list[str]:
    """What `node` knows of the roles of the member."""
    told = json.loads(node.cli("channel", "members", "lab", "--json").stdout)
    roles: list[str] = next(one["roles"] for one in told if one["node_id"] == member.node_id)
    return roles
