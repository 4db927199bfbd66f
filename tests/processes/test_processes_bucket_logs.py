"""Real nodes and a real S3 server: feeds and members of a channel outlive everybody's sleep."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kachery_p2p.bucket.credentials import find_credentials
from kachery_p2p.bucket.log_layout import log_key
from kachery_p2p.bucket.log_reading import read_head, read_segment
from kachery_p2p.bucket.log_tree import LogTree
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.urls import parse_bucket_url
from kachery_p2p.content.hashes import FeedId, sha1_of
from kachery_p2p.feeds.told import SubfeedName
from tests.processes.test_processes_buckets import KEYS, ceph, run, until, url, with_keys
from tests.processes.test_processes_channels import entered

if TYPE_CHECKING:
    from tests.processes.conftest import Lab, NodeProcess

pytestmark = pytest.mark.processes

# Fixtures of the other module, which are found by their names.
__all__ = ["ceph", "url", "with_keys"]

COUNT = 2_500
WRITE = f"""
import kachery_p2p as kp
feed = kp.create_feed("results")
subfeed = feed.load_subfeed("main")
subfeed.append_messages([{{"n": n}} for n in range({COUNT})])
print(feed.uri)
"""
READ = """
import kachery_p2p as kp
subfeed = kp.load_feed({uri!r}).load_subfeed("main")
found = []
while len(found) < {count}:
    more = subfeed.get_next_messages(wait_msec=20_000)
    assert more, len(found)
    found += more
print(sum(message["n"] for message in found), len(found))
"""


def python(node: NodeProcess, code: str) -> str:
    done = node.python(code)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def read(node: NodeProcess, uri: str, count: int = COUNT) -> None:
    assert python(node, READ.format(uri=uri, count=count)) == f"{sum(range(count))} {count}"


def logs(node: NodeProcess) -> list[dict[str, Any]]:
    told = json.loads(run(node, "bucket", "status", "--json"))
    return [log for one in told for log in one["logs"]]


def there(node: NodeProcess) -> dict[str, int]:
    return {log["kind"]: log["there"] for log in logs(node)}


def entries_there(place: Objects, uri: str) -> int:
    """How many entries of a feed the bucket has; all of them are read and judged."""
    feed = FeedId(uri.removeprefix("feed://").partition("/")[0])
    log = SubfeedName(feed, sha1_of(b"main")).log
    head = read_head(place, log)
    if head is None:
        return 0
    tree = LogTree(head)
    for first, segment in head.spans():
        tree.take(first, segment, read_segment(place, log, first, segment))
    assert head.end == head.head.size, log_key(log)
    return head.end


def cold_copy(lab: Lab, node: NodeProcess, name: str) -> NodeProcess:
    """The member on a new computer: its keys, the channel's secret and bucket, nothing else."""
    cold = lab.node(name, secret="")
    cold.environment.update(KEYS)
    cold.config_dir.mkdir(mode=0o700)
    shutil.copytree(node.config_dir / "keys", cold.config_dir / "keys")
    channels = cold.config_dir / "channels"
    channels.mkdir(mode=0o700)
    for path in (node.config_dir / "channels").iterdir():
        if path.is_file() and path.suffix != ".history":
            shutil.copy2(path, channels / path.name)
    return cold


def test_a_member_on_a_new_computer_gets_in_and_reads_from_the_bucket_alone(
    lab: Lab, url: str
) -> None:
    author = lab.node("author", secret="")
    author.environment.update(KEYS)
    author.start()
    bob = entered(lab, "bob", author)
    run(author, "bucket", "add", "lab", url)
    run(bob, "bucket", "add", "lab", url, "--mirror", "none")
    folder = lab.directory / "folder"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.csv").write_text(f"row {number}\n" * 100)
    recording = lab.file("recording.dat", 3 << 20)
    uri, directory = run(author, "store", str(recording)), run(author, "store", str(folder))
    feed = python(author, WRITE)

    def is_there() -> bool:
        (told,) = json.loads(run(author, "bucket", "status", "--json"))
        kinds = {log["kind"]: log["there"] for log in told["logs"]}
        return told["done"] == 7 and kinds == {"feed": COUNT, "history": 3}

    until(is_there)
    assert f"feeds: 1, {COUNT:,} entries there" in run(author, "bucket", "status")
    bob.kill()
    author.kill()

    cold = cold_copy(lab, bob, "cold").start(channel=None)
    assert json.loads(run(cold, "status", "--json"))["channels"][0]["members"] == 2
    assert Path(run(cold, "load", uri)).read_bytes() == recording.read_bytes()
    run(cold, "load", directory, "--dest", str(lab.directory / "copy"))
    assert (lab.directory / "copy/3.csv").read_bytes() == (folder / "3.csv").read_bytes()
    read(cold, feed)
    problems = json.loads(run(cold, "status", "--json"))["problems"]
    assert not [said for said in problems if "bucket" in said]


def test_a_killed_node_goes_on_and_only_whole_logs_are_seen(
    lab: Lab, url: str, with_keys: Callable[..., NodeProcess]
) -> None:
    author = with_keys("author").start()
    run(author, "bucket", "add", "lab", url)
    uri = python(author, WRITE)
    parsed = parse_bucket_url(url)
    place = Objects(parsed, find_credentials("environment", "s3", KEYS))
    append = (
        "import kachery_p2p as kp; s = kp.load_feed({!r}).load_subfeed('main');"
        "s.append_messages([{{'n': n}} for n in range({}, {})])"
    )
    count = COUNT
    for more in (1, 300):
        seen = entries_there(place, uri)
        author.kill(signal.SIGKILL)
        assert entries_there(place, uri) >= seen
        author.start()
        python(author, append.format(uri, count, count + more))
        count += more
    until(lambda: entries_there(place, uri) == count)
    until(lambda: there(author) == {"feed": count})
    author.kill()
    reader = with_keys("reader").start()
    run(reader, "bucket", "add", "lab", url)
    read(reader, uri, count)
