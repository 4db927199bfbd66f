"""Feeds among real node processes: written, followed, submitted to, mirrored, restored, forked."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from kachery_p2p.content.hashes import FeedId, sha1_of
from kachery_p2p.feeds.names import HEAD_TAG, subfeed_log
from kachery_p2p.log.forks import ForkProof
from tests.processes.test_processes_channels import entered, poll, wait_for_peer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.processes.conftest import Lab, NodeProcess

pytestmark = pytest.mark.processes

# What a reader does that lists what it gets as it comes.
FOLLOW = ("feed", "read", "--follow")
APPEND_FOR_EVER = """
import sys, kachery_p2p as kp
subfeed = kp.load_subfeed(sys.argv[1])
number = 0
while True:
    number = subfeed.append_message({"n": number}) + 1
    print(number, flush=True)
"""


def answer(node: NodeProcess, *arguments: str, **options: Any) -> str:
    done = node.cli("feed", *arguments, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def lines(node: NodeProcess, uri: str, *options: str) -> list[Any]:
    return [json.loads(line) for line in answer(node, "read", uri, *options).splitlines()]


def status(node: NodeProcess, uri: str) -> dict[str, Any]:
    done = node.cli("feed", "status", uri, "--json")
    assert done.stdout, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)[0]
    return told


def new_subfeed(node: NodeProcess, *messages: Any) -> str:
    """The URI of subfeed `main` of a new feed, with these messages."""
    uri = answer(node, "create") + "/main"
    if messages:
        text = "".join(json.dumps(one) + "\n" for one in messages)
        assert answer(node, "append", uri, "-", input=text) == str(len(messages))
    return uri


def copied(lab: Lab, node: NodeProcess, name: str) -> NodeProcess:
    """A node that was restored from a backup of another's configuration directory, as it is now."""
    copy = lab.node(name)
    shutil.copytree(node.config_dir, copy.config_dir, symlinks=True)
    return copy


class Follower:
    """`kachery-p2p feed read --follow`."""

    def __init__(self, node: NodeProcess, uri: str) -> None:
        self._process = subprocess.Popen(
            [*node.command, *FOLLOW, uri], env=node.environment, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def next(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def interrupted(self) -> int:
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(10)


def test_two_collaborators_write_follow_submit_and_part(lab: Lab) -> None:
    owner = lab.node("owner", secret="").start()
    bob = entered(lab, "bob", owner)
    uri = new_subfeed(owner, {"job": 1}, "two")
    assert lines(bob, uri) == [{"job": 1}, "two"]
    with Follower(bob, uri) as follower:
        assert [follower.next(), follower.next()] == [{"job": 1}, "two"]
        assert answer(owner, "append", uri, '"three"') == "2"
        assert follower.next() == "three"
        assert follower.interrupted() == 130

    refused = bob.cli("feed", "append", uri, "1")
    assert refused.returncode == 5
    assert "Cannot append messages to a readonly feed" in refused.stderr
    refused = bob.cli("feed", "submit", uri, "1")
    assert refused.returncode == 5
    assert "Permission denied" in refused.stderr
    answer(owner, "grant", uri, bob.node_id)
    assert answer(bob, "submit", uri, '{"by":"bob"}') == "3"
    (told,) = lines(owner, uri, "--from", "3", "--json")
    assert (told["message"], told["submitter"]) == ({"by": "bob"}, bob.node_id)
    answer(owner, "revoke", uri, bob.node_id)
    assert bob.cli("feed", "submit", uri, "1").returncode == 5

    assert owner.cli("channel", "remove", "lab", bob.node_id).returncode == 0
    poll(lambda: not owner.call("status")["peers"])
    assert answer(owner, "append", uri, '"secret"') == "4"
    assert lines(bob, uri) == [{"job": 1}, "two", "three", {"by": "bob"}]
    assert status(bob, uri)["size"] == 4
    # Another subfeed of the feed he has nothing of.
    other = bob.cli("feed", "read", uri.replace("main", "other"))
    assert other.returncode == 3
    assert "no connected node has feed" in other.stderr


def test_a_private_feed_is_not_answered_for(lab: Lab) -> None:
    alice, bob = lab.pair()
    uri = answer(alice, "create", "--private") + "/main"
    answer(alice, "append", uri, "1")
    assert bob.cli("feed", "read", uri).returncode == 3
    answer(alice, "share", uri.removesuffix("/main"), "--channel", "lab")
    poll(lambda: bob.cli("feed", "read", uri).stdout == "1\n")
    snapshot = answer(alice, "snapshot", uri)
    assert lines(bob, snapshot + "?subfeedName=main") == [1]


def test_nothing_acknowledged_is_lost_when_the_author_is_killed(lab: Lab) -> None:
    alice = lab.node("alice").start()
    uri, before = new_subfeed(alice), 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", APPEND_FOR_EVER, uri],
            env=alice.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as appending:
            assert appending.stdout is not None
            try:
                for _ in range(30):
                    assert appending.stdout.readline()
                alice.kill()
                # It goes on without its node, and is killed too.
                for _ in range(30):
                    assert appending.stdout.readline()
            finally:
                appending.kill()
            said = appending.stdout.read().split("\n")[:-1]
        alice.start(channel=None)
        found = lines(alice, uri)
        before += 60 + len(said)
        assert len(found) - before in (0, 1)
        before = len(found)
        # One that was on its way may be there or not, but none is there twice.
        assert [one["n"] for one in found] in (list(range(len(found))), _restarted(found))


def _restarted(found: list[dict[str, int]]) -> list[int]:
    """The numbers when each new appender begins again at 0 and goes on at its position."""
    return [0 if one["n"] == 0 else position for position, one in enumerate(found)]


def test_a_mirror_serves_a_late_reader_while_the_author_is_dead(lab: Lab) -> None:
    alice, bob = lab.pair()
    messages = list(range(5_000))
    uri = new_subfeed(alice, *messages)
    assert lines(bob, uri) == messages
    alice.kill()
    carol = lab.node("carol").start("--bootstrap", bob.address)
    wait_for_peer(carol, bob)
    assert lines(carol, uri) == messages
    # And she, who never met the author, serves what she has.
    bob.kill(signal.SIGTERM)
    dave = lab.node("dave").start("--bootstrap", carol.address)
    wait_for_peer(dave, carol)
    assert lines(dave, uri, "--from", "4990") == messages[4990:]
    offline = dave.cli("feed", "submit", uri, "1")
    assert offline.returncode == 3
    assert "hint" in offline.stderr


def test_a_restored_backup_appends_only_when_its_end_is_known(lab: Lab) -> None:
    alice, bob = lab.pair()
    uri = new_subfeed(alice, "a", "b")
    assert lines(bob, uri) == ["a", "b"]
    alice.kill(signal.SIGTERM)
    alone = copied(lab, alice, "alone")
    alice.start(channel=None)
    assert answer(alice, "append", uri, '"c"') == "2"
    poll(lambda: status(bob, uri)["local_size"] == 3)
    alice.kill(signal.SIGTERM)

    # With bob there, who has what was appended after the backup, it goes on behind that.
    helped = copied(lab, alone, "helped").start(channel=None)
    wait_for_peer(helped, bob)
    assert answer(helped, "append", uri, '"d"') == "3"
    assert lines(helped, uri) == ["a", "b", "c", "d"]
    poll(lambda: status(bob, uri)["local_size"] == 4)
    helped.kill(signal.SIGTERM)
    bob.kill(signal.SIGTERM)

    alone.start(channel=None)
    refused = alone.cli("feed", "append", uri, '"x"')
    assert refused.returncode == 9
    assert "--only-copy" in refused.stderr
    assert status(alone, uri)["restored"]
    answer(alone, "resume", uri, "--only-copy")
    assert answer(alone, "append", uri, '"x"') == "2"


def test_a_fork_by_a_copied_directory_is_found_shown_and_proved(lab: Lab) -> None:
    alice, bob = lab.pair()
    uri = new_subfeed(alice, "a", "b")
    alice.kill(signal.SIGTERM)
    clone = copied(lab, alice, "clone")
    alice.start(channel=None)
    answer(alice, "append", uri, '"of alice"')
    poll(lambda: bob.cli("feed", "read", uri).stdout.count("\n") == 3)
    alice.kill(signal.SIGTERM)
    bob.kill(signal.SIGTERM)
    clone.start(channel=None)
    answer(clone, "resume", uri, "--only-copy")
    answer(clone, "append", uri, '"of the clone"')

    bob.start("--bootstrap", clone.address, channel=None)
    poll(lambda: status(bob, uri)["forked_at"] == 2, 30)
    shown = bob.cli("feed", "status", uri)
    assert shown.returncode == 7
    assert "forked" in shown.stdout
    assert "export-proof" in shown.stdout
    assert lines(bob, uri, "--count", "2") == ["a", "b"]
    assert bob.cli("feed", "read", uri, "--from", "2").returncode == 7
    proof = ForkProof.decode(bytes.fromhex(answer(bob, "export-proof", uri)), HEAD_TAG)
    proof.verify(subfeed_log(FeedId(uri[7:71]), sha1_of(b"main")))
    # The one that signed the second history is told, and stops.
    poll(lambda: status(clone, uri)["forked_at"] == 2, 30)
    stopped = clone.cli("feed", "append", uri, "1")
    assert stopped.returncode == 7, stopped.stderr


def test_feeds_of_an_older_kachery_are_taken_over(lab: Lab, tmp_path: Path) -> None:
    from tests.client.test_client_legacy_feeds import OldDirectory, OldFeed

    old = OldDirectory(tmp_path / "old")
    own, foreign, forged = OldFeed(1), OldFeed(2, hashed=True), OldFeed(3)
    old.add(own, own.messages(["mine", 2]))
    old.add_key(own, own.seed.hex(), "jobs")
    old.add(foreign, foreign.messages(["theirs"]))
    old.add(forged, [OldFeed(4).messages(["forged"])[0]])
    alice, bob = lab.pair()
    done = alice.cli("feed", "import-legacy", str(tmp_path / "old"), "--json")
    assert done.returncode == 7, done.stderr
    told = {one["what"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert told[f"feed://{forged.id}"]["uri"] is None
    assert "signature is wrong" in told[f"feed://{forged.id}"]["problem"]
    assert lines(alice, "jobs/main") == ["mine", 2]
    assert lines(bob, f"feed://{own.id}/main") == ["mine", 2]
    signed = lines(bob, f"feed://{own.id}/main", "--signed")
    assert signed == own.messages(["mine", 2])
    archive = told[f"feed://{foreign.id}"]["uri"]
    assert lines(bob, archive + "?subfeedName=main") == ["theirs"]
    # Nobody can make a log under a key that is not here.
    assert bob.cli("feed", "read", f"feed://{foreign.id}/main").returncode == 3
