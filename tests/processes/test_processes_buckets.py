"""Real nodes and a real S3 server: what was put into the bucket outlives everybody's sleep."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kachery_p2p.bucket.credentials import find_credentials
from kachery_p2p.bucket.layout import content_of
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.urls import parse_bucket_url
from tests.bucket.ceph import ACCESS_KEY, SECRET_KEY, Ceph, free_ports, missing_programs
from tests.bucket.ceph import running_ceph as start_ceph

if TYPE_CHECKING:
    from tests.processes.conftest import Lab, NodeProcess

pytestmark = pytest.mark.processes

MIB = 1 << 20
KEYS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}


@pytest.fixture(scope="module")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    missing = missing_programs()
    if missing:
        pytest.skip(f"Ceph's S3 server is not installed here: {', '.join(missing)} are missing")
    with start_ceph(tmp_path_factory.mktemp("ceph")) as running:
        running.make_bucket("lab")
        yield running


@pytest.fixture
def url(ceph: Ceph, tmp_path: Path) -> str:
    return f"s3://lab/{tmp_path.name}?endpoint={ceph.endpoint}"


@pytest.fixture
def with_keys(lab: Lab) -> Callable[..., NodeProcess]:
    """A node that is not started yet, whose user has the keys of the bucket."""

    def make(name: str, **changes: str) -> NodeProcess:
        node = lab.node(name)
        node.environment.update(KEYS | changes)
        return node

    return make


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.05)


def run(node: NodeProcess, *arguments: str) -> str:
    done = node.cli(*arguments)
    assert done.returncode == 0, (arguments, done.stderr)
    return done.stdout.strip()


def contents(url: str) -> set[str]:
    parsed = parse_bucket_url(url)
    listed = Objects(parsed, find_credentials("environment", "s3", KEYS)).list("sha1")
    return {content for one in listed if (content := content_of(one.key)) is not None}


def counts(node: NodeProcess) -> dict[str, object]:
    (told,) = json.loads(run(node, "bucket", "status", "--json"))
    assert isinstance(told, dict)
    return told


def test_a_reader_alone_loads_what_sleeping_members_have_shared(
    lab: Lab, url: str, with_keys: Callable[..., NodeProcess]
) -> None:
    author = with_keys("author").start()
    run(author, "bucket", "add", "lab", url)
    run(author, "bucket", "check", "lab")
    recording, folder = lab.file("recording.dat", 50 * MIB + 7), lab.directory / "folder"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}.csv").write_text(f"row {number}\n" * 100)
    uri, directory = run(author, "store", str(recording)), run(author, "store", str(folder))
    until(lambda: counts(author)["waiting"] == 0 and counts(author)["done"] == 22)
    author.kill()

    reader = with_keys("reader").start()
    run(reader, "bucket", "add", "lab", url)
    loaded = Path(run(reader, "load", uri))
    assert loaded.read_bytes() == recording.read_bytes()
    run(reader, "load", directory, "--dest", str(lab.directory / "copy"))
    assert (lab.directory / "copy/7.csv").read_bytes() == (folder / "7.csv").read_bytes()
    assert json.loads(run(reader, "status", "--json"))["problems"] == []


def test_a_reader_without_keys_reads_a_part_of_what_was_pushed_into_a_directory(
    lab: Lab, tmp_path: Path
) -> None:
    (tmp_path / "public").mkdir()
    author = lab.node("author").start()
    run(author, "bucket", "add", "lab", f"file://{tmp_path}/public", "--mirror", "requested")
    uri = run(author, "store", str(lab.file("x.dat", 3 * MIB)))
    assert counts(author)["done"] == 0, "only what is pushed goes there"
    assert run(author, "bucket", "push", uri).startswith("done")
    author.kill()
    reader = lab.node("reader").start()
    run(reader, "bucket", "add", "lab", f"file://{tmp_path}/public", "--mirror", "none")
    code = f"import kachery_p2p as kp; f = kp.open({uri!r}); f.seek(7); print(f.read(9).hex())"
    part = (lab.directory / "x.dat").read_bytes()[7:16]
    assert reader.python(code).stdout.strip() == part.hex()


def test_a_push_without_a_node_is_done_by_the_command(
    lab: Lab, url: str, with_keys: Callable[..., NodeProcess]
) -> None:
    author = with_keys("author").start()
    run(author, "bucket", "add", "lab", url, "--mirror", "requested")
    uri = run(author, "store", str(lab.file("x.dat", 2 * MIB)))
    author.kill()
    assert run(author, "bucket", "push", uri).startswith("done")
    assert len(contents(url)) == 1
    code = f"import kachery_p2p as kp; print(kp.upload_file({str(lab.directory / 'x.dat')!r}))"
    assert author.python(code).stdout.strip() == uri
    assert "checked  1 file" in run(author, "bucket", "verify", "lab")
    run(author, "bucket", "gc", "lab", "--dry-run")


def test_a_killed_node_goes_on_and_nothing_partial_was_ever_seen(
    lab: Lab, url: str, with_keys: Callable[..., NodeProcess]
) -> None:
    author = with_keys("author").start()
    # Slow enough to be killed in the middle of it.
    run(author, "bucket", "add", "lab", url, "--max-rate", "10MB/s")
    uri = run(author, "store", str(lab.file("x.dat", 40 * MIB)))
    until(lambda: counts(author)["waiting"] == 1)
    time.sleep(0.5)
    author.kill(signal.SIGKILL)
    assert contents(url) == set()
    run(author, "bucket", "add", "lab", url)
    author.start()
    until(lambda: counts(author)["done"] == 1)
    assert uri[7:47] in contents(url)
    assert "0 bad" in run(author, "bucket", "verify", "lab")


def test_what_is_wrong_with_a_bucket_is_said_and_local_work_goes_on(
    lab: Lab, url: str, ceph: Ceph, with_keys: Callable[..., NodeProcess]
) -> None:
    (port,) = free_ports(1)
    wrong = {
        "secret": (url, "refused: the secret key is wrong", "check the credentials"),
        "missing": (f"s3://nowhere/x?endpoint={ceph.endpoint}", "no bucket", "create it where"),
        "route": (f"s3://lab/x?endpoint=http://127.0.0.1:{port}", "not answer", "check the end"),
    }
    secret = {"AWS_SECRET_ACCESS_KEY": "not-the-secret-key"}
    for name, (address, said, mends) in wrong.items():
        node = with_keys(name, **(secret if name == "secret" else {})).start()
        run(node, "bucket", "add", "lab", address)
        checked = node.cli("bucket", "check", "lab")
        assert checked.returncode != 0
        assert said in checked.stdout
        assert mends in checked.stderr
        doctor = node.cli("doctor").stdout.splitlines()
        assert any(f"{said}" in line and f"mend: {mends}" in line for line in doctor), doctor
        uri = run(node, "store", str(lab.file(f"{name}.dat", 1000)))
        assert Path(run(node, "load", uri)).stat().st_size == 1000

        def problems(node: NodeProcess = node, said: str = said, mends: str = mends) -> bool:
            told = json.loads(run(node, "status", "--json"))["problems"]
            return any(said in line and mends in line for line in told)

        until(problems)
        everything = checked.stdout + checked.stderr + node.errors() + run(node, "status")
        assert "not-the-secret-key" not in everything
        assert SECRET_KEY not in everything
        for path in node.config_dir.rglob("*"):
            if path.is_file():
                assert b"not-the-secret-key" not in path.read_bytes()
        node.kill()


def test_a_second_channel_on_the_prefix_is_refused(
    lab: Lab, url: str, with_keys: Callable[..., NodeProcess]
) -> None:
    author = with_keys("author").start("--channel", "other")
    run(author, "bucket", "add", "lab", url)
    first = run(author, "store", str(lab.file("x.dat", 1000)), "--channel", "lab")
    until(lambda: first[7:47] in contents(url))
    run(author, "bucket", "add", "other", url, "--mirror", "requested")
    pushed = author.cli("bucket", "push", "--channel", "other", first)
    assert pushed.returncode != 0
    assert "belongs to another channel" in pushed.stdout


def test_a_bucket_of_a_channel_file_is_used(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (lab.directory / "channels").mkdir()
    for name in ("author", "reader"):
        node = lab.node(name)
        channels = node.directory / "channels"
        channels.mkdir()
        (channels / "lab.toml").write_text(
            f'kind = "shared-secret"\nname = "lab"\n\n[bucket]\nurl = "file://{tmp_path}/shared"\n'
        )
        os.chmod(channels / "lab.toml", 0o600)
    author, reader = lab.nodes
    author.start()
    uri = run(author, "store", str(lab.file("x.dat", 1000)))
    until(lambda: counts(author)["done"] == 1)
    author.kill()
    reader.start()
    assert Path(run(reader, "load", uri)).stat().st_size == 1000


def test_a_member_without_keys_stores_through_one_who_has_them_and_reads_through_another(
    lab: Lab, url: str, with_keys: Callable[..., NodeProcess]
) -> None:
    provider = with_keys("provider").start()
    run(provider, "bucket", "add", "lab", url, "--mirror", "requested")
    member = lab.node("member").start("--bootstrap", provider.address)
    run(member, "bucket", "add", "lab", url, "--credentials", "members", "--mirror", "shared")
    recording = lab.file("recording.dat", 9 * MIB + 7)
    code = f"import kachery_p2p as kp; print(kp.upload_file({str(recording)!r}))"
    done = member.python(code)
    uri = done.stdout.strip()
    assert uri[7:47] in contents(url), done.stderr
    # What is shared goes there by itself; a push waits for it.
    note = run(member, "store", str(lab.file("note.txt", 1000)))
    until(lambda: note[7:47] in contents(url))
    assert run(member, "bucket", "push", note).startswith("done")
    assert json.loads(run(member, "status", "--json"))["problems"] == []
    member.kill()

    borrower = lab.node("borrower").start("--bootstrap", provider.address)
    run(borrower, "bucket", "add", "lab", url, "--credentials", "members")
    # Not from its store, which is gone, but through what it signs.
    run(provider, "rm", uri, note)
    loaded = Path(run(borrower, "load", uri))
    assert loaded.read_bytes() == recording.read_bytes()
    provider.kill()

    reader = with_keys("reader").start()
    run(reader, "bucket", "add", "lab", url)
    assert Path(run(reader, "load", uri)).read_bytes() == recording.read_bytes()
    assert Path(run(reader, "load", note)).stat().st_size == 1000
    pushed = borrower.cli("bucket", "push", run(borrower, "store", str(lab.file("x", 10))))
    assert pushed.returncode != 0
    assert "no member that has the credentials" in pushed.stdout
