"""Real nodes, a real S3 server, and a bucket whose operator is to learn nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kachery_p2p.bucket.credentials import find_credentials
from kachery_p2p.bucket.home import Home
from kachery_p2p.bucket.key_objects import KEYS, KeyObject
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.sealed_objects import SealedObjects
from kachery_p2p.bucket.sealed_opening import sealed
from kachery_p2p.bucket.urls import parse_bucket_url
from kachery_p2p.channels.bucket_settings import BucketSettings
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import BucketKeysError
from tests.bucket.ceph import ACCESS_KEY, SECRET_KEY, Ceph, missing_programs, running_ceph
from tests.processes.test_processes_channels import MIB, invite, poll, stored

if TYPE_CHECKING:
    from tests.processes.conftest import Lab, NodeProcess

pytestmark = pytest.mark.processes

CREDENTIALS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}


@pytest.fixture(scope="module")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    missing = missing_programs()
    if missing:
        pytest.skip(f"Ceph's S3 server is not installed here: {', '.join(missing)} are missing")
    with running_ceph(tmp_path_factory.mktemp("ceph")) as running:
        running.make_bucket("lab")
        yield running


@pytest.fixture
def url(ceph: Ceph, tmp_path: Path) -> str:
    return f"s3://lab/{tmp_path.name}?endpoint={ceph.endpoint}"


@pytest.fixture
def bucket(url: str) -> Objects:
    """What the operator sees."""
    return Objects(parse_bucket_url(url), find_credentials("environment", "s3", CREDENTIALS))


def run(node: NodeProcess, *arguments: str) -> str:
    done = node.cli(*arguments)
    assert done.returncode == 0, (arguments, done.stderr)
    return done.stdout.strip() + done.stderr


def started(lab: Lab, name: str, url: str, owner: NodeProcess | None = None) -> NodeProcess:
    """A member with the bucket, or the owner itself."""
    node = lab.node(name, secret="")
    node.environment.update(CREDENTIALS)
    node.start(channel="lab" if owner is None else None)
    if owner is not None:
        run(node, "channel", "join", invite(owner))
    run(node, "bucket", "add", "lab", url, "--encrypt")
    return node


def put_there(node: NodeProcess, path: Path) -> str:
    uri = stored(node, path)
    assert run(node, "bucket", "push", uri).startswith("done")
    return uri


def with_keys_of(node: NodeProcess, bucket: Objects, url: str) -> SealedObjects:
    home = Home(str(node.config_dir), "lab")
    return sealed(bucket, BucketSettings((url,), encrypt=True), home)


def epoch_of_keys(bucket: Objects) -> int:
    return KeyObject.decode(bucket.read_whole(KEYS, 1 << 20)).epoch


def seen(bucket: Objects) -> Iterator[bytes]:
    for one in bucket.list():
        _, attributes = bucket.head(one.key)
        yield one.key.encode() + b"\n" + repr(attributes).encode() + b"\n"
        yield b"".join(bucket.read_key(one.key, 0, one.size))


def test_only_members_read_what_is_there_and_who_left_nothing_newer(
    lab: Lab, url: str, bucket: Objects
) -> None:
    owner = started(lab, "owner", url)
    text = b"subject seven, left hippocampus. "
    first, second = lab.directory / "subject-seven.txt", lab.directory / "subject-eight.bin"
    first.write_bytes(text * 10_000)
    second.write_bytes(lab.file("noise", 12 * MIB).read_bytes() + text)
    old = put_there(owner, first)
    feed = owner.cli("feed", "create", "work", "--channel", "lab").stdout.strip() + "/main"
    run(owner, "feed", "append", feed, '"session seven is sorted"')
    carol, dave = (started(lab, name, url, owner) for name in ("carol", "dave"))
    poll(lambda: len(KeyObject.decode(bucket.read_whole(KEYS, 1 << 20)).wraps) == 3, 30)
    assert "epoch 1" in run(carol, "bucket", "check", "lab")

    run(owner, "channel", "remove", "lab", carol.node_id)
    poll(lambda: epoch_of_keys(bucket) == 2, 30)
    new = put_there(owner, second)
    mine = with_keys_of(owner, bucket, url)
    poll(lambda: sum(one.key.endswith("/head") for one in mine.list("log")) == 2, 30)
    for node in (owner, carol):
        node.kill()

    # From the bucket alone, all other nodes being dead.
    for uri, path in ((old, first), (new, second)):
        loaded = dave.cli("load", uri)
        assert Path(loaded.stdout.strip()).read_bytes() == path.read_bytes(), loaded.stderr
    assert run(dave, "feed", "read", feed).startswith('"session seven is sorted"')
    told = run(dave, "bucket", "verify", "lab")
    assert "2 files" in told and "0 bad" in told and "encrypted, epoch 2" in told
    assert "encrypted, epoch 2" in run(dave, "bucket", "status")
    # It may have looked before the keeper made new keys.
    poll(lambda: json.loads(dave.cli("status", "--json").stdout)["problems"] == [], 30)

    # Carol still has the credentials, and all that her node ever knew.
    with pytest.raises(BucketKeysError):
        with_keys_of(carol, bucket, url).look(ContentHash.parse(old[7:47]))

    everything = b"\n".join(seen(bucket))
    for uri in (old, new):
        for part in (uri[7:47], *([uri.rpartition("=")[2]] if "root=" in uri else [])):
            assert part.encode() not in everything
            assert bytes.fromhex(part) not in everything
    for word in (b"subject", b"seven", b"hippocampus", b"sorted", feed[7:71].encode(), b"sha1/"):
        assert word not in everything


def test_a_node_that_does_not_know_that_it_is_encrypted_is_told(lab: Lab, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/bucket"
    (tmp_path / "bucket").mkdir()
    node = lab.node("node").start()
    run(node, "bucket", "add", "lab", url, "--encrypt")
    put_there(node, lab.file("x.dat", MIB))

    run(node, "bucket", "add", "lab", url)
    checked = node.cli("bucket", "check", "lab")
    assert checked.returncode != 0
    assert "is encrypted" in checked.stdout and "--encrypt" in checked.stderr
    assert node.cli("load", "sha1://" + "ab" * 20).returncode == 3
    problems = json.loads(node.cli("status", "--json").stdout)["problems"]
    assert any("is encrypted" in problem for problem in problems)

    run(node, "bucket", "add", "lab", url, "--encrypt")
    assert "0 bad" in run(node, "bucket", "verify", "lab")
