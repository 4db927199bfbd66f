"""Commands about the cloud buckets of channels."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import click

from kachery_p2p.cli.outcome import answer, note
from kachery_p2p.cli.upkeep import Percentage
from kachery_p2p.client import settings
from kachery_p2p.client.wording import counted, human_bytes, printable
from kachery_p2p.errors import BucketError, CorruptObjectError

if TYPE_CHECKING:
    from kachery_p2p.bucket.objects import Objects

POLICIES = ("shared", "requested", "none")
_THOUSANDS = ("", "K", "M", "G", "T")


class Size(click.ParamType[int]):
    """`10GB`, as a number of bytes."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?) ?([KMGT]?)(I?)B?", str(value).upper())
        if found is None:
            self.fail(f"{value!r} is not a size, such as 10GB or 500MiB", param, ctx)
        base = 1024 if found[3] else 1000
        return int(float(found[1]) * base ** _THOUSANDS.index(found[2]))


class Rate(click.ParamType[int]):
    """`20MB/s`, as bytes a second; 0 for no limit."""

    name = "rate"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        from kachery_p2p.node.config import parse_rate

        return value if isinstance(value, int) else parse_rate(str(value)) or 0


@click.group()
def bucket() -> None:
    """Keep a channel's files in a cloud bucket, where they are found when nobody is awake."""


@bucket.command()
@click.argument("channel")
@click.argument("urls", nargs=-1, required=True, metavar="URL...")
@click.option(
    "--mirror",
    type=click.Choice(POLICIES),
    default="shared",
    show_default=True,
    help="What goes there by itself: all that this node shares in the channel, only what is"
    " pushed, or nothing.",
)
@click.option(
    "--credentials",
    metavar="WHERE",
    default="auto",
    show_default=True,
    help="auto, environment, chain, none, file:/PATH (mode 600), or members: those that have"
    " them are asked.",
)
@click.option("--size-min", type=Size(), default=0, metavar="SIZE", help="Leave out smaller files.")
@click.option("--size-max", type=Size(), default=0, metavar="SIZE", help="Leave out larger files.")
@click.option(
    "--max-rate", type=Rate(), default=0, metavar="RATE", help="As much a second at most."
)
@click.option(
    "--provide/--no-provide",
    default=True,
    show_default=True,
    help="Use it for members without credentials too, as the channel's roles allow.",
)
@click.option(
    "--encrypt",
    is_flag=True,
    help="Let only members of the channel read what is there: names, hashes and contents are"
    " encrypted. Say so on every node, from the beginning.",
)
def add(channel: str, urls: tuple[str, ...], max_rate: int, **told: Any) -> None:
    """Use the bucket at URL in CHANNEL: load from it, and put there what --mirror says.

    s3://BUCKET/PREFIX?endpoint=https://HOST, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX?account=A,
    file:///DIRECTORY, or (only to load) one or several https:// addresses below which files lie
    as sha1/aa/bb/cc/HASH, or with {hash} where the hash stands. A running node notices.
    """
    from kachery_p2p.bucket.opening import check_urls
    from kachery_p2p.channels.bucket_settings import BucketSettings, check_settings, write_bucket

    wanted = BucketSettings(urls=urls, max_upload=max_rate, **told)
    wanted = check_urls(check_settings(wanted, "the bucket"))
    write_bucket(settings.config_dir(), channel, wanted)
    for url in wanted.urls:
        answer(url)
    if wanted.encrypt:
        note("what is there already in clear stays so; take a prefix of its own")
    note(f"`kachery-p2p bucket check {channel}` tries out whether it works")


@bucket.command()
@click.argument("channel")
def remove(channel: str) -> None:
    """Use no bucket in CHANNEL any more. What is in it stays there."""
    from kachery_p2p.channels.bucket_settings import remove_bucket
    from kachery_p2p.channels.joined import joined_one

    joined_one(settings.config_dir(), channel)
    was_there = remove_bucket(settings.config_dir(), channel)
    note(f"channel {channel} has no bucket {'any more' if was_there else 'here'}")


@bucket.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def list_buckets(as_json: bool) -> None:
    """Print the buckets of this node's channels."""
    from kachery_p2p.client.uploading import buckets

    found = buckets()
    if as_json:
        rows = [{"channel": one.channel.name, **one.settings._asdict()} for one in found]
        answer(json.dumps(rows))
        return
    for one in found:
        for url in one.settings.urls:
            how = "  encrypted" if one.settings.encrypt else ""
            answer(f"{one.channel.name}  {printable(url)}  mirror {one.settings.mirror}{how}")
    if not found:
        note("no channel has a bucket here: `kachery-p2p bucket add CHANNEL URL`")


@bucket.command()
@click.argument("channel", required=False)
@click.option("--read-only", is_flag=True, help="Try out nothing that writes.")
def check(channel: str | None, read_only: bool) -> None:
    """Try out what the bucket of CHANNEL can do, with the credentials of this shell.

    Reach, credentials, put-if-absent, parts of files, uploads in parts, the clock.
    """
    from kachery_p2p.bucket.opening import open_places
    from kachery_p2p.bucket.probe import check_place
    from kachery_p2p.client.uploading import bucket_of, home_of

    known = bucket_of(channel)
    if known.settings.credentials == "members":
        answer("skip  reach: members that have the credentials are asked, by the node")
        note("`kachery-p2p status` says whether one is there")
        return
    writes = known.settings.mirror != "none" and not read_only
    failed = 0
    for place in open_places(known.settings, home=home_of(known)):
        for probe in check_place(place, known.channel.id, writes=writes):
            answer(f"{probe.state:4}  {probe.name}: {printable(probe.said)}")
            if probe.hint:
                note(probe.hint)
            failed += probe.state == "fail"
    if failed:
        raise BucketError(
            f"{counted(failed, 'check')} of the bucket of channel {known.channel.name} failed"
        )


@bucket.command("push")
@click.argument("uris", nargs=-1, required=True, metavar="URI...")
@click.option("--channel", metavar="CHANNEL", help="Whose bucket (default: the only one).")
@click.option("--no-wait", is_flag=True, help="Leave it to the node, and do not wait.")
def push_uris(uris: tuple[str, ...], channel: str | None, no_wait: bool) -> None:
    """Put what is stored here into the bucket of a channel, whatever --mirror says.

    The URI of a directory stands for all files in it. It is put there by the node, or by
    this command if no node runs.
    """
    from kachery_p2p.client.uploading import push

    told = push(uris, channel, wait=not no_wait)
    for one in told:
        why = f"  {printable(one.said)}" if one.said else ""
        answer(f"{one.state}  {one.uri}{why}")
    missing = sum(one.state != "done" for one in told)
    if missing and not no_wait:
        raise BucketError(
            f"{counted(missing, 'file')} of {len(told)} could not be put into the bucket",
            hint="the node tries again; `kachery-p2p bucket status` shows how it goes",
        )


@bucket.command()
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def status(as_json: bool) -> None:
    """Print how far each bucket is, its files, feeds and members, and why what waits does so."""
    from kachery_p2p.client.bucket_logs import logs_of, summed
    from kachery_p2p.client.uploading import buckets, counts_of, epoch_of

    found = [(one, counts_of(one)) for one in buckets()]
    if as_json:
        rows = [
            {
                "channel": one.channel.name,
                **counts._asdict(),
                "epoch": epoch_of(one),
                "logs": [log._asdict() for log in logs_of(one)],
            }
            for one, counts in found
        ]
        answer(json.dumps(rows))
        return
    for one, counts in found:
        answer(
            f"{one.channel.name}  {counts.done} there, {counts.waiting} waiting,"
            f" {counts.left_out} left out{_encryption(epoch_of(one))}"
        )
        logs = logs_of(one)
        for line in summed(logs):
            answer(f"{one.channel.name}  {line}")
        for said in dict.fromkeys([counts.said, *(log.said for log in logs)]):
            if said:
                note(f"{one.channel.name}: {said}")


def _encryption(epoch: int | None) -> str:
    return "" if epoch is None else f"; encrypted, epoch {epoch}"


def _note_encryption(place: Objects) -> None:
    """Say it of what is encrypted, having asked for the keys; BucketKeysError without any."""
    from kachery_p2p.bucket.sealed_reading import keys_at

    if (keys := keys_at(place)) is not None:
        note(f"{printable(place.name)} is encrypted, epoch {keys.ring().epoch}")


@bucket.command("verify")
@click.argument("channel", required=False)
@click.option(
    "--sample", type=Percentage(), default=1.0, metavar="N%", help="Read only so many of them."
)
def verify_bucket(channel: str | None, sample: float) -> None:
    """Read what is in the bucket of CHANNEL; print what does not have the bytes of its name.

    The exit code is then 7. What is wrong there is never taken for right by a node that
    loads; to put it right, remove it there and push it again.
    """
    from kachery_p2p.bucket.verifying import verify
    from kachery_p2p.client.uploading import bucket_of, opened_objects

    count = size = bad = 0
    place = opened_objects(bucket_of(channel))
    _note_encryption(place)
    for one in verify(place, sample):
        count, size, bad = count + 1, size + one.size, bad + (not one.good)
        if not one.good:
            answer(f"corrupt  {f'sha1://{one.content}' if one.content else printable(one.key)}")
    answer(f"checked  {counted(count, 'file')}, {human_bytes(size)}; {bad} bad")
    if bad:
        raise CorruptObjectError(f"{counted(bad, 'file')} in the bucket: not the bytes of its name")


@bucket.command()
@click.argument("channel", required=False)
@click.option("--dry-run", is_flag=True, help="Print it, and remove nothing.")
def gc(channel: str | None, dry_run: bool) -> None:
    """Remove from the bucket of CHANNEL what belongs to no content, and is older than a day.

    Contents stay: no node knows what all the other members need. Uploads in parts that were
    cut off are seen by nobody; let the bucket's own rules for its life cycle end them.
    """
    from kachery_p2p.bucket.verifying import garbage
    from kachery_p2p.bucket.verifying import remove as remove_object
    from kachery_p2p.client.uploading import bucket_of, opened_objects

    place = opened_objects(bucket_of(channel))
    _note_encryption(place)
    found = list(garbage(place))
    for one in found:
        answer(f"{one.key}  {human_bytes(one.size)}")
        if not dry_run:
            remove_object(place, one)
    freed = human_bytes(sum(one.size for one in found))
    note(f"{counted(len(found), 'object')}, {freed}{', nothing was removed' if dry_run else ''}")
