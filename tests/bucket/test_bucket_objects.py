"""Buckets in memory, in a directory and on a real S3 server: one behaviour, and typed errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from kachery_p2p.bucket import layout
from kachery_p2p.bucket.credentials import find_credentials
from kachery_p2p.bucket.faults import AbsentError
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.owner import check_prefix, owner_of, take_prefix
from kachery_p2p.bucket.probe import check_place
from kachery_p2p.bucket.urls import parse_bucket_url
from kachery_p2p.content.hashes import Root, sha1_of
from kachery_p2p.errors import (
    BucketAnswerError,
    BucketError,
    BucketMissingError,
    BucketRefusedError,
    BucketTakenError,
    BucketUnreachableError,
    ConfigError,
    KeyFileError,
)
from kachery_p2p.limits import BUCKET_PART_BYTES
from tests.bucket.ceph import SECRET_KEY, Ceph, free_ports, running_ceph

DATA = bytes(range(256)) * 1000
CONTENT = sha1_of(DATA)
KEY = layout.key_of(CONTENT)
ROOT = Root("cd" * 32)
LAB, OTHER = "1a" * 32, "2b" * 32

OpenBucket = Callable[..., Objects]


def test_what_is_put_is_read_whole_and_in_parts(any_bucket: Objects) -> None:
    assert any_bucket.look(CONTENT) is None
    assert any_bucket.put_new(KEY, DATA, layout.attributes(ROOT, "x.csv"))
    found = any_bucket.look(CONTENT)
    assert found is not None and found.size == len(DATA)
    if any_bucket.url.scheme != "file":
        assert (found.root, found.label) == (ROOT, "x.csv")
    for start, end in ((0, len(DATA)), (0, 1), (777, 70_000), (len(DATA) - 1, len(DATA)), (5, 5)):
        assert b"".join(any_bucket.read(CONTENT, start, end)) == DATA[start:end]


def test_what_is_there_is_not_overwritten(any_bucket: Objects) -> None:
    assert any_bucket.put_new(KEY, DATA, {})
    assert not any_bucket.put_new(KEY, b"other", {})
    assert b"".join(any_bucket.read(CONTENT, 0, len(DATA))) == DATA


def test_a_large_object_goes_up_in_parts(any_bucket: Objects) -> None:
    pieces = [bytes([number]) * (1 << 20) for number in range(20)]
    any_bucket.put_large("large", iter(pieces), 20 << 20, layout.attributes(ROOT, None))
    assert any_bucket.head("large")[0] == 20 << 20
    assert b"".join(any_bucket.read_key("large", 5 << 20, 7 << 20)) == pieces[5] + pieces[6]


def test_nothing_is_seen_of_an_upload_whose_source_fails(any_bucket: Objects) -> None:
    class SourceFailedError(Exception):
        pass

    def pieces() -> Iterator[bytes]:
        yield bytes(3 * BUCKET_PART_BYTES)
        raise SourceFailedError

    with pytest.raises(SourceFailedError):
        any_bucket.put_large(KEY, pieces(), 4 * BUCKET_PART_BYTES, {})
    assert any_bucket.look(CONTENT) is None
    assert list(any_bucket.list()) == []


def test_listing_gives_keys_below_the_prefix_page_by_page(
    any_bucket: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kachery_p2p.bucket.objects.BUCKET_LIST_KEYS", 7)
    keys = [f"sha1/x{number:02}" for number in range(20)]
    for key in keys:
        any_bucket.put_new(key, b"1", {})
    any_bucket.put_new("other", b"22", {})
    assert sorted(found.key for found in any_bucket.list("sha1")) == keys
    assert {found.key: found.size for found in any_bucket.list()}["other"] == 2
    assert all(abs(found.modified - time.time()) < 60 for found in any_bucket.list())


def test_removing_works_and_may_be_repeated(any_bucket: Objects) -> None:
    any_bucket.put_new(KEY, DATA, {})
    any_bucket.delete(KEY)
    any_bucket.delete(KEY)
    assert any_bucket.look(CONTENT) is None
    with pytest.raises(AbsentError):
        any_bucket.head(KEY)


def test_bytes_beyond_the_end_are_an_error_not_a_short_answer(any_bucket: Objects) -> None:
    any_bucket.put_new(KEY, DATA, {})
    with pytest.raises(BucketError):
        list(any_bucket.read(CONTENT, len(DATA) - 1, len(DATA) + 1))
    with pytest.raises(BucketError):
        list(any_bucket.read(CONTENT, len(DATA) + 5, len(DATA) + 10))
    with pytest.raises(BucketAnswerError):
        list(any_bucket.read(sha1_of(b"absent"), 0, 1))


def test_a_prefix_belongs_to_the_channel_that_took_it_first(any_bucket: Objects) -> None:
    check_prefix(any_bucket, LAB)
    take_prefix(any_bucket, LAB)
    take_prefix(any_bucket, LAB)
    check_prefix(any_bucket, LAB)
    assert owner_of(any_bucket) == LAB
    for refuse in (take_prefix, check_prefix):
        with pytest.raises(BucketTakenError):
            refuse(any_bucket, OTHER)


@pytest.mark.parametrize(
    ("where", "hint"),
    [
        ("s3://lab", "use another bucket"),
        ("s3://lab/files", "beside that one and not below it"),
        ("file:///srv/lab", "beside that one and not below it"),
    ],
)
def test_nobody_is_told_to_go_below_the_files_of_another_channel(
    memory_bucket: Objects, where: str, hint: str
) -> None:
    take_prefix(memory_bucket, LAB)
    memory_bucket.url = parse_bucket_url(where)
    take_prefix(memory_bucket, LAB)
    with pytest.raises(BucketTakenError) as refused:
        take_prefix(memory_bucket, OTHER)
    assert hint in (refused.value.hint or "") and "/NAME" not in (refused.value.hint or "")


def test_a_marker_that_nobody_can_read_lets_nobody_in(memory_bucket: Objects) -> None:
    memory_bucket.put_new(layout.MARKER, b"\xff\xfe", {})
    with pytest.raises(BucketTakenError):
        take_prefix(memory_bucket, LAB)
    memory_bucket.delete(layout.MARKER)
    memory_bucket.put_new(layout.MARKER, bytes(1_000), {})
    with pytest.raises(BucketAnswerError):
        take_prefix(memory_bucket, LAB)


def test_of_many_channels_that_take_a_prefix_at_once_one_gets_it(
    s3_url: str, aws: dict[str, str], open_bucket: OpenBucket
) -> None:
    bucket, won = open_bucket(s3_url, aws), []

    def take(number: int) -> None:
        try:
            take_prefix(bucket, f"{number:064x}")
            won.append(number)
        except BucketTakenError:
            pass

    threads = [Thread(target=take, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_a_good_bucket_passes_its_check(any_bucket: Objects) -> None:
    probes = list(check_place(any_bucket, LAB, writes=True))
    assert [probe.name for probe in probes if probe.state != "ok"] == []
    assert {"reach", "credentials", "put-if-absent", "range", "multipart", "clock"} <= {
        probe.name for probe in probes
    }
    assert list(any_bucket.list()) == [], "what the check put there is gone"


def test_a_check_that_only_reads_writes_nothing(any_bucket: Objects) -> None:
    states = {p.name: p.state for p in check_place(any_bucket, LAB, writes=False)}
    if any_bucket.is_encrypted:
        assert states.pop("encryption") == "ok"
    assert states == {"reach": "ok", "owner": "ok", "write": "skip"}
    assert list(any_bucket.list()) == []


def test_a_check_of_anothers_prefix_says_so(memory_bucket: Objects) -> None:
    take_prefix(memory_bucket, OTHER)
    probes = {probe.name: probe for probe in check_place(memory_bucket, LAB, writes=False)}
    assert probes["owner"].state == "fail"
    assert probes["owner"].hint


# --- a real server that refuses -------------------------------------------------------------------


def test_a_wrong_secret_is_refused_and_never_repeated(
    s3_url: str, aws: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in aws.items():
        monkeypatch.setenv(name, value)
    wrong = {**aws, "AWS_SECRET_ACCESS_KEY": "not-the-secret-key"}
    bucket = opened(s3_url, wrong)
    for use in (
        lambda: bucket.look(CONTENT),
        lambda: bucket.put_new(KEY, DATA, {}),
        lambda: bucket.put_large(KEY, [DATA], len(DATA), {}),
        lambda: list(bucket.list()),
        lambda: list(bucket.read(CONTENT, 0, 1)),
    ):
        with pytest.raises(BucketRefusedError) as refused:
            use()
        told = f"{refused.value} {refused.value.hint} {refused.value!r} {bucket.credentials!r}"
        assert "not-the-secret-key" not in told
        assert SECRET_KEY not in told
    probes = list(check_place(bucket, LAB, writes=True))
    assert [(probe.name, probe.state) for probe in probes] == [("reach", "fail")]
    assert "secret" in probes[0].said


def opened(url: str, environ: dict[str, str]) -> Objects:
    from kachery_p2p.bucket.urls import parse_bucket_url

    parsed = parse_bucket_url(url)
    return Objects(parsed, find_credentials("environment", parsed.scheme, environ))


def test_a_bucket_that_is_missing_is_said_to_be(ceph: Ceph, aws: dict[str, str]) -> None:
    bucket = opened(f"s3://no-such-bucket/x?endpoint={ceph.endpoint}", aws)
    assert bucket.look(CONTENT) is None, "the server does not say more to a HEAD"
    for use in (
        lambda: bucket.put_new(KEY, DATA, {}),
        lambda: bucket.put_large(KEY, [DATA], len(DATA), {}),
        lambda: list(bucket.list()),
    ):
        with pytest.raises(BucketMissingError) as missing:
            use()
        assert missing.value.hint


def test_a_server_that_is_not_there_is_said_to_be(aws: dict[str, str]) -> None:
    (port,) = free_ports(1)
    bucket = opened(f"s3://lab/x?endpoint=http://127.0.0.1:{port}", aws)
    started = time.monotonic()
    for use in (lambda: bucket.look(CONTENT), lambda: bucket.put_new(KEY, DATA, {})):
        with pytest.raises(BucketUnreachableError) as unreachable:
            use()
        assert unreachable.value.hint
    assert time.monotonic() - started < 10


def test_nothing_is_seen_of_an_upload_whose_server_freezes(
    aws: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/usr/bin/radosgw").exists():
        pytest.skip("Ceph's S3 server is not installed here")
    # A server of its own: freezing the shared one would stop the tests beside this one.
    monkeypatch.setattr("kachery_p2p.bucket.objects.BUCKET_WRITE_RETRIES_MAX", 0)
    monkeypatch.setattr("kachery_p2p.bucket.objects.STALL_S_MAX", 0.5)
    with running_ceph(tmp_path / "ceph") as own:
        own.make_bucket("lab")
        bucket = opened(f"s3://lab/x?endpoint={own.endpoint}", aws)

        def pieces() -> Iterator[bytes]:
            yield bytes(2 * BUCKET_PART_BYTES)
            own.freeze()
            yield bytes(2 * BUCKET_PART_BYTES)

        with pytest.raises(BucketUnreachableError):
            bucket.put_large(KEY, pieces(), 4 * BUCKET_PART_BYTES, {})
        own.thaw()
        assert bucket.look(CONTENT) is None
        assert list(bucket.list()) == []
        bucket.put_large(KEY, [DATA], len(DATA), {})
        found = bucket.look(CONTENT)
        assert found is not None and found.size == len(DATA)


# --- credentials ---------------------------------------------------------------------------------


def test_credentials_come_from_a_file_that_only_its_user_may_read(tmp_path: Path) -> None:
    path = tmp_path / "lab.credentials"
    path.write_text('access_key_id = "a"\nsecret_access_key = "b"\n')
    path.chmod(0o600)
    found = find_credentials(f"file:{path}", "s3", {})
    assert found.options == {"access_key_id": "a", "secret_access_key": "b"}
    assert "b" not in repr(found).replace("object", "")
    path.chmod(0o640)
    with pytest.raises(KeyFileError):
        find_credentials(f"file:{path}", "s3", {})


@pytest.mark.parametrize("text", ['access_key_id = "only"', "secret = 1", "x = [", 'account = "a"'])
def test_a_file_of_other_things_is_refused_without_quoting_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lab.credentials"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError) as refused:
        find_credentials(f"file:{path}", "s3", {})
    assert "only" not in str(refused.value)


def test_credentials_that_are_nowhere_are_asked_for(tmp_path: Path) -> None:
    for reference in ("environment", f"file:{tmp_path}/absent"):
        with pytest.raises(BucketRefusedError) as refused:
            find_credentials(reference, "s3", {})
        assert refused.value.hint
    assert find_credentials("auto", "s3", {}).options == {}
    assert find_credentials("none", "s3", {"AWS_ACCESS_KEY_ID": "a"}).options == {
        "skip_signature": True
    }
