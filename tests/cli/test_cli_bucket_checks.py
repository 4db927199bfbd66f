"""`doctor` and `bucket check` about buckets: what is wrong, and what mends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kachery_p2p.channels.bucket_settings import BucketSettings, write_bucket
from kachery_p2p.channels.channel import generate_secret
from kachery_p2p.channels.files import join_shared
from kachery_p2p.identity.keyring import load_or_create

if TYPE_CHECKING:
    from tests.cli.conftest import Shell


def use(shell: Shell, url: str, **told: str) -> None:
    config_dir = str(shell.directory / "config")
    load_or_create(config_dir)
    join_shared(config_dir, "lab", generate_secret(bytes(range(20))))
    write_bucket(config_dir, "lab", BucketSettings((url,), **told))  # type: ignore[arg-type]


def lines(shell: Shell) -> list[str]:
    return [line for line in shell.run("doctor").stdout.splitlines() if " bucket " in line]


def test_the_doctor_says_what_is_wrong_with_a_bucket_and_what_mends_it(shell: Shell) -> None:
    place = shell.directory / "place"
    use(shell, f"file://{place}")
    (line,) = lines(shell)
    assert line.startswith("bad") and "of channel lab: there is no bucket" in line
    assert "mend: create it" in line
    place.mkdir()
    (line,) = lines(shell)
    assert line.startswith("ok") and line.endswith("answers")


def test_a_bucket_through_members_is_the_nodes_affair(shell: Shell) -> None:
    use(shell, "s3://lab/x?endpoint=http://127.0.0.1:9", credentials="members")
    (line,) = lines(shell)
    assert line.startswith("ok") and "through members" in line
    done = shell.run("bucket", "check", "lab")
    assert (done.returncode, done.stdout[:4]) == (0, "skip")
    assert "kachery-p2p status" in done.stderr
    assert "members" in shell.run("bucket", "verify", "lab").stderr
