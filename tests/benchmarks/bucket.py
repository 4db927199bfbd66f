"""A big file into a bucket of a real S3 server and out of it again, beside the library alone.

The server is Ceph's radosgw on this computer, with its data in memory, so it takes a good part
of the processors; where it is not installed nothing is measured. Whoever loads is the only
node that runs, and verifies every byte; the library alone verifies nothing.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import NamedTuple

from bucket_encrypted import encrypted_rows
from node import new_secret
from processes import KACHERY_P2P, NodeProcess, child, run
from settings import MIB, Settings, settle
from table import Row, Sample, at_least, figure, median_text, sample

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from tests.bucket.ceph import (  # noqa: E402 - found from the top of the repository
    ACCESS_KEY,
    SECRET_KEY,
    Ceph,
    missing_programs,
    running_ceph,
)

ROUNDS = 3
# Of what the library alone reaches in the same run.
PART_MIN = 0.8
SMALL_BYTES = 10_000
SMALL_GETS = 1_024
SMALL_PER_S_MIN = 500
# Two big objects at a time, and what the server has not yet given back of those before.
MEMORY_BYTES = 10 << 30
KEYS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
BARE_KEY = "bench/bare"


class Round(NamedTuple):
    """Seconds of one round: by our code and by the library alone, in turn."""

    put: float
    put_bare: float
    get: float
    get_bare: float
    get_cpu_s: float


def measure(settings: Settings) -> list[Row]:
    """Put, get, and small gets."""
    missing = missing_programs()
    if missing:
        return [Row("a bucket", Sample((), ""), f"not installed here: {', '.join(missing)}")]
    room = settings.room("bucket")
    with running_ceph(room / "ceph", MEMORY_BYTES) as server:
        server.make_bucket("lab")
        bench = _Bench(settings, room, server)
        try:
            rounds = [bench.round(number) for number in settings.times(ROUNDS)]
            encrypted = encrypted_rows(settings, server.endpoint, KEYS)
            return [*_big_rows(settings, bench, rounds), bench.small(), *encrypted]
        finally:
            bench.end()


class _Bench:
    """One file, its author's store, and a node that has nothing but the bucket."""

    def __init__(self, settings: Settings, room: Path, server: Ceph) -> None:
        self._settings = settings
        self._room = room
        self._server = server
        self.url = f"s3://lab/bench?endpoint={server.endpoint}"
        secret = new_secret()
        self._author = NodeProcess(room / "author", secret)
        self.reader = NodeProcess(room / "reader", secret)
        for node in (self._author, self.reader):
            node.environment.update(KEYS)
        self._source = settings.random_file("bucket.dat")
        stored = child(self._author.environment, "clients.store_file", str(self._source))
        self._uri: str = stored["uri"]
        self._content = hashlib.sha1(self._source.read_bytes(), usedforsecurity=False).hexdigest()
        self.reader.start()
        run([*KACHERY_P2P, "bucket", "add", "lab", self.url], self.reader.environment)

    def end(self) -> None:
        self.reader.stop()
        self._source.unlink()

    def round(self, number: int) -> Round:
        author, reader, url = self._author.environment, self.reader, self.url
        bare_file = str(self._room / "bare.dat")
        settle()
        put_bare = child(author, "bucket_clients.put_bare", url, BARE_KEY, str(self._source))
        settle()
        put = child(author, "bucket_clients.put_file", url, self._content)
        settle()
        get_bare = child(author, "bucket_clients.get_bare", url, BARE_KEY, bare_file)
        settle()
        before = reader.cpu_s()
        got = child(reader.environment, "clients.load_files", [self._uri])
        cpu_s = reader.cpu_s() - before + got["cpu_s"]
        (path,) = got["paths"]
        assert Path(path).name == self._content, "the file that was loaded is another one"
        os.unlink(path)
        content = self._content
        key = f"bench/sha1/{content[:2]}/{content[2:4]}/{content[4:6]}/{content}"
        child(author, "bucket_clients.delete", url, [key, BARE_KEY])
        self._server.give_back()
        return Round(
            put["seconds"], put_bare["seconds"], got["seconds"], get_bare["seconds"], cpu_s
        )

    def small(self) -> Row:
        """Small objects, 64 at a time."""
        count = 128 if self._settings.quick else SMALL_GETS
        texts = [f"{number:{SMALL_BYTES}}" for number in range(count)]
        author = self._author.environment
        stored = child(author, "load_clients.store_shared", texts)
        contents = [uri.removeprefix("sha1://") for uri in stored["uris"]]
        child(author, "bucket_clients.put_many", self.url, contents)
        ours, bare = [], []
        for _ in self._settings.times(ROUNDS):
            arguments = (self.url, contents, SMALL_BYTES)
            bare.append(child(author, "bucket_clients.get_many_bare", *arguments)["seconds"])
            ours.append(child(author, "bucket_clients.get_many", *arguments)["seconds"])
        rates = sample([count / seconds for seconds in ours], "/s")
        alone = sample([count / seconds for seconds in bare], "/s")
        return Row(
            f"gets of {SMALL_BYTES:,} bytes, 64 at once",
            rates,
            f"obstore alone {alone}",
            budget=at_least(SMALL_PER_S_MIN, rates.median, "/s"),
        )


def _big_rows(settings: Settings, bench: _Bench, rounds: list[Round]) -> list[Row]:
    size = settings.big_bytes / MIB
    whole = f"{figure(size / 1024)} GiB" if size >= 1024 else f"{figure(size)} MiB"
    rows = []
    for what, ours, bare in (
        (f"put {whole} into a bucket", "put", "put_bare"),
        (f"load {whole} from a bucket alone, no other node running", "get", "get_bare"),
    ):
        seconds = [(getattr(one, ours), getattr(one, bare)) for one in rounds]
        parts = sample([theirs / mine for mine, theirs in seconds], "")
        rates = sample([size / mine for mine, _ in seconds], "MiB/s")
        alone = sample([size / theirs for _, theirs in seconds], "MiB/s")
        cpu = median_text([one.get_cpu_s for one in rounds]) if ours == "get" else ""
        rows.append(
            Row(
                what,
                rates,
                f"obstore alone {alone}: {figure(parts.median)} of it",
                cpu=cpu,
                peak=figure(bench.reader.peak_mib() or 0.0) if ours == "get" else "",
                budget=at_least(PART_MIN, parts.median, "of it"),
            )
        )
    return rows
