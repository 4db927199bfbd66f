"""For the tests of buckets: a real S3 server, a faulty one, and buckets in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kachery_p2p.bucket.credentials import find_credentials
from kachery_p2p.bucket.log_book import LogBook
from kachery_p2p.bucket.member_keys import SecretKeys
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.rings import ring_of_secret
from kachery_p2p.bucket.sealed_objects import SealedObjects
from kachery_p2p.bucket.urls import parse_bucket_url
from tests.bucket.ceph import ACCESS_KEY, SECRET_KEY, Ceph, missing_programs, running_ceph
from tests.bucket.faulty import Faulty, running_faulty

SECRET = bytes(range(20))

_numbers = itertools.count()


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    missing = missing_programs()
    if missing:
        pytest.skip(f"Ceph's S3 server is not installed here: {', '.join(missing)} are missing")
    with running_ceph(tmp_path_factory.mktemp("ceph")) as running:
        running.make_bucket("lab")
        yield running


@pytest.fixture
def aws(ceph: Ceph) -> dict[str, str]:
    """The environment in which a node may use the real server."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    }


@pytest.fixture
def s3_url(ceph: Ceph) -> str:
    """The URL of a prefix of the real server that no other test uses."""
    return f"s3://lab/test-{next(_numbers)}?endpoint={ceph.endpoint}"


@pytest.fixture
def faulty() -> Iterator[Faulty]:
    with running_faulty() as server:
        yield server


@pytest.fixture(params=["memory", "file", "s3", "encrypted"])
def any_bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    """A bucket of each kind that can be had here."""
    if request.param == "memory":
        return opened(f"memory:test-{next(_numbers)}")
    if request.param == "file":
        (tmp_path / "bucket").mkdir()
        return opened(f"file://{tmp_path}/bucket")
    if request.param == "encrypted":
        return encrypted(opened(f"memory:test-{next(_numbers)}"))
    return opened(request.getfixturevalue("s3_url"), request.getfixturevalue("aws"))


@pytest.fixture
def memory_bucket() -> Objects:
    return opened(f"memory:test-{next(_numbers)}")


@pytest.fixture
def open_bucket() -> Callable[..., Objects]:
    return opened


def encrypted(bucket: Objects) -> SealedObjects:
    """The same for the members of a channel with a shared secret."""
    return SealedObjects(bucket, SecretKeys(ring_of_secret(SECRET, "lab")))


def opened(url: str, environ: dict[str, str] | None = None) -> Objects:
    parsed = parse_bucket_url(url)
    return Objects(parsed, find_credentials("auto", parsed.scheme, environ or {}))


@pytest.fixture
def book(tmp_path: Path) -> Iterator[LogBook]:
    opened = LogBook(str(tmp_path / "logs.db"))
    yield opened
    opened.close()


@pytest.fixture
def other_book(tmp_path: Path) -> Iterator[LogBook]:
    opened = LogBook(str(tmp_path / "others.db"))
    yield opened
    opened.close()
