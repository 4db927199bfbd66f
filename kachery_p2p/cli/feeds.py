"""Commands about feeds: signed lists of messages that one node writes, and others read live."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from kachery_p2p.cli.outcome import answer, note
from kachery_p2p.client.wording import counted, printable
from kachery_p2p.errors import UriError

if TYPE_CHECKING:
    from kachery_p2p.client.feeds import Feed
    from kachery_p2p.client.subfeeds import Subfeed

SUBFEED_HELP = (
    "A SUBFEED is feed://ID/NAME, or FEED/NAME with the name of one of this node's feeds."
)

CHANNEL_OPTION = click.option(
    "--channel",
    "channels",
    multiple=True,
    help="In this channel (repeatable; default: the share list).",
)
PRIVATE_OPTION = click.option("--private", is_flag=True, help="In no channel.")
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(epilog=SUBFEED_HELP)
def feed() -> None:
    """Write lists of messages that others in a channel read as they grow."""


# --- feeds ----------------------------------------------------------------------------------------


@feed.command()
@click.argument("name", required=False)
@CHANNEL_OPTION
@PRIVATE_OPTION
def create(name: str | None, channels: tuple[str, ...], private: bool) -> None:
    """Create a feed, called NAME on this computer, and print its URI."""
    from kachery_p2p.client.feeds import create_feed

    answer(create_feed(name, chosen(channels, private)).uri)


@feed.command("list")
@click.option("--followed", is_flag=True, help="The subfeeds of others that are kept up to date.")
@JSON_OPTION
def list_feeds(followed: bool, as_json: bool) -> None:
    """Print the feeds of this node: URI, names, and the channels where they are shared."""
    from kachery_p2p.client import feeds
    from kachery_p2p.client.feed_calls import call

    if followed:
        for one in call("feed_followed", {})["subfeeds"]:
            uri = "feed://{}/~{}".format(*one.split("/"))
            answer(json.dumps({"uri": uri}) if as_json else uri)
        return
    for row in feeds.list_feeds():
        uri = f"feed://{row['feed']}"
        if as_json:
            answer(json.dumps({"uri": uri, "names": row["names"], "channels": row["channels"]}))
            continue
        where = ", ".join(map(printable, row["channels"])) or "private"
        names = ", ".join(map(printable, row["names"])) or "no name"
        answer(f"{uri}  {names}  {where}")


@feed.command()
@click.argument("uri", metavar="FEED")
@CHANNEL_OPTION
def share(uri: str, channels: tuple[str, ...]) -> None:
    """Let the members of channels read FEED, one of this node's."""
    from kachery_p2p.client.feeds import load_feed

    load_feed(uri).share(list(channels) or None)


@feed.command()
@click.argument("uri", metavar="FEED")
@click.option("--channel", required=True, help="The channel.")
def unshare(uri: str, channel: str) -> None:
    """Let the members of a channel read FEED no more. What they have read they keep."""
    from kachery_p2p.client.feeds import load_feed

    load_feed(uri).unshare(channel)


@feed.command()
@click.argument("uri", metavar="FEED")
@click.option("--yes", is_flag=True, help="Of a feed of this node: nobody can ever write it again.")
def delete(uri: str, yes: bool) -> None:
    """Remove FEED from this node: one of its own with its key, or the copy of another's."""
    from kachery_p2p.client.feeds import load_feed

    found = load_feed(uri)
    if found.is_writeable and not yes:
        raise click.UsageError("this deletes the feed's key for good: say --yes if you mean it")
    found.delete()


# --- messages -------------------------------------------------------------------------------------


@feed.command()
@click.argument("uri", metavar="SUBFEED")
@click.argument("message", required=False, metavar="[JSON|-]")
def append(uri: str, message: str | None) -> None:
    """Append a message, any JSON, and print its position; with - each line of stdin is one.

    What is printed is on the disk. Of stdin it prints how many messages were appended.
    """
    from kachery_p2p.cli.feed_lines import write_messages

    write_messages(subfeed_of(uri).append_messages, message, "appended")


@feed.command()
@click.argument("uri", metavar="SUBFEED")
@click.argument("message", required=False, metavar="[JSON|-]")
def submit(uri: str, message: str | None) -> None:
    """Have the feed's owner append a message, as `append` does, if the owner has granted it."""
    from kachery_p2p.cli.feed_lines import write_messages

    write_messages(subfeed_of(uri).submit_messages, message, "submitted")


@feed.command()
@click.argument("uri", metavar="SUBFEED")
@click.option("--from", "first", type=click.IntRange(min=0), default=0, help="First (default 0).")
@click.option("--count", type=click.IntRange(min=1), help="So many at most (default: all).")
@click.option("--follow", is_flag=True, help="Wait for later ones too, until interrupted.")
@click.option("--signed", is_flag=True, help="With the objects around the messages.")
@click.option("--json", "as_json", is_flag=True, help="With position, time and submitter of each.")
def read(
    uri: str, first: int, count: int | None, follow: bool, signed: bool, as_json: bool
) -> None:
    """Print the messages of SUBFEED, each a line of JSON.

    On a terminal whatever is not ASCII is escaped, because others wrote it.
    """
    from kachery_p2p.cli.feed_lines import print_messages

    subfeed = subfeed_of(uri)
    subfeed.set_position(first)
    print_messages(subfeed, count=count, follow=follow, signed=signed, as_json=as_json)


@feed.command()
@click.argument("uri", metavar="SUBFEED")
@click.argument("node")
def grant(uri: str, node: str) -> None:
    """Let NODE (its id, as its `kachery-p2p node-id` prints) submit messages."""
    subfeed_of(uri).grant_write_access(node_id=node)


@feed.command()
@click.argument("uri", metavar="SUBFEED")
@click.argument("node")
def revoke(uri: str, node: str) -> None:
    """Let NODE submit messages no more."""
    subfeed_of(uri).revoke_write_access(node_id=node)


# --- as it is, and as it was ----------------------------------------------------------------------


@feed.command()
@click.argument("uri", required=False, metavar="[FEED|SUBFEED]")
@JSON_OPTION
def status(uri: str | None, as_json: bool) -> None:
    """Print what this node knows of a subfeed, of all of a feed, or of all feeds it has or follows.

    The exit code is 7 if one of them has forked.
    """
    from kachery_p2p.cli.feed_lines import live_status, status_lines
    from kachery_p2p.errors import FeedForkedError

    told = [live_status(one.live, one.uri) for one in subfeeds_of(uri)]
    if as_json:
        answer(json.dumps(told))
    else:
        for number, one in enumerate(told):
            answer(("\n" if number else "") + "\n".join(status_lines(one["uri"], one)))
    forked = [one for one in told if one["forked_at"] is not None]
    if forked:
        raise FeedForkedError(
            f"{counted(len(forked), 'subfeed')} forked: a key was used twice, or was copied",
            hint=f"`kachery-p2p feed export-proof {printable(forked[0]['uri'])}` is the proof",
        )


@feed.command()
@click.argument("uri", metavar="FEED|SUBFEED")
@click.argument("names", nargs=-1, metavar="[NAME...]")
@CHANNEL_OPTION
@PRIVATE_OPTION
def snapshot(uri: str, names: tuple[str, ...], channels: tuple[str, ...], private: bool) -> None:
    """Store subfeeds as they are now, and print the sha1:// URI, which `feed read` reads.

    Those of FEED with these NAMEs (default: all that are known here), or the one SUBFEED.
    """
    from kachery_p2p.client.snapshots import write_snapshot

    found = subfeeds_of(uri)
    if names:
        found = [found_feed(uri).get_subfeed(name) for name in names]
    feed_id = found_feed(uri).feed_id
    answer(write_snapshot(feed_id, found, chosen(channels, private)))
    note(f"a snapshot of {counted(len(found), 'subfeed')}")


@feed.command("export-proof")
@click.argument("uri", metavar="SUBFEED")
def export_proof(uri: str) -> None:
    """Print the proof, in hex, that the feed's key signed two histories of SUBFEED.

    It convinces whoever knows the feed's id. It is verified before it is printed.
    """
    from kachery_p2p.content.hashes import ContentHash, FeedId
    from kachery_p2p.feeds.names import HEAD_TAG, subfeed_log
    from kachery_p2p.log.forks import ForkProof

    live = subfeed_of(uri).live
    proof = live.proof()
    found = ForkProof.decode(proof, HEAD_TAG)
    found.verify(subfeed_log(FeedId(live.feed_id), ContentHash(live.name_hash)))
    answer(proof.hex())
    note(f"verified: both histories share {counted(found.common_entries_max, 'message')} at most")


@feed.command()
@click.argument("uri", metavar="FEED|SUBFEED")
@click.option("--only-copy", is_flag=True, help="No other copy of the feed's key is in use.")
def resume(uri: str, only_copy: bool) -> None:
    """Append again to a feed that was restored from a backup, with no member to confirm its end.

    If another copy has gone on, the feed splits for ever: this is yours to know.
    """
    if not only_copy:
        raise click.UsageError("say --only-copy if no other copy of this feed is in use")
    for one in subfeeds_of(uri):
        one.live.resume()


@feed.command()
@click.argument("uri", metavar="SUBFEED")
@click.option("--successor", metavar="FEED", help="The feed that goes on.")
@click.option("--yes", is_flag=True, help="Nothing can ever be appended to it again.")
def end(uri: str, successor: str | None, yes: bool) -> None:
    """End SUBFEED for good, and tell all its readers so."""
    if not yes:
        raise click.UsageError("this ends the subfeed for good: say --yes if you mean it")
    live = subfeed_of(uri).live
    live.end(None if successor is None else found_feed(successor).feed_id)


@feed.command("import-legacy")
@click.argument("directory", type=click.Path(), metavar="DIR")
@CHANNEL_OPTION
@PRIVATE_OPTION
@JSON_OPTION
def import_legacy(directory: str, channels: tuple[str, ...], private: bool, as_json: bool) -> None:
    """Take over the feeds and mutables of an older kachery: DIR has feeds.db and mutables.db.

    Every old signature is verified. A feed whose key is there goes on as a feed of this node; one
    of somebody else becomes a snapshot, whose URI is printed. Who might submit to an own feed may
    do so again. The old files are only read. The exit code is 7 if something did not verify: it is
    said, and what precedes it is taken.
    """
    from kachery_p2p.client.legacy_import import import_feeds
    from kachery_p2p.client.legacy_mutables import import_mutables
    from kachery_p2p.errors import VerificationError

    wrong = 0
    for one in import_feeds(directory, chosen(channels, private)):
        wrong += one.problem is not None
        if as_json:
            answer(json.dumps(one._asdict()))
            continue
        if one.uri is not None:
            granted = f", {counted(one.writers, 'node')} may submit" if one.writers else ""
            answer(f"{one.uri}  {counted(one.messages, 'message')}, {one.kind}{granted}")
        if one.problem is not None:
            note(f"{one.what}: {one.problem}")
    if taken := import_mutables(directory):
        note(f"{counted(taken, 'mutable')} taken over")
    sys.stdout.flush()
    if wrong:
        raise VerificationError(
            f"{counted(wrong, 'old subfeed')} did not verify, or only in part",
            hint="what was not taken is still in the old files",
        )


# --- which ----------------------------------------------------------------------------------------


def subfeed_of(text: str) -> Subfeed:
    """The subfeed that `text` names: a URI, or NAME/SUBFEED of a feed of this node."""
    from kachery_p2p.client.feeds import load_feed, load_subfeed

    if is_uri(text):
        return load_subfeed(text)
    name, _, subfeed = text.partition("/")
    if not subfeed:
        raise UriError(f"{text!a} names no subfeed", hint="write FEED/NAME or feed://ID/NAME")
    return load_feed(name).get_subfeed(subfeed)


def found_feed(text: str) -> Feed:
    """The feed that `text` names, or whose subfeed it names."""
    from kachery_p2p.client.feeds import Feed, feed_uri, load_feed

    if text.lower().startswith("feed://"):
        return Feed(feed_uri(text).feed)
    return load_feed(text if is_uri(text) else text.partition("/")[0])


def subfeeds_of(text: str | None) -> list[Subfeed]:
    """The one subfeed, or all of a feed, or all of all feeds, that this node knows."""
    from kachery_p2p.client.feed_calls import call
    from kachery_p2p.client.feeds import Feed, feed_uri, list_feeds, load_subfeed

    if text is None:
        own = [Feed(row["feed"]) for row in list_feeds()]
        found = [one for feed in own for one in _subfeeds_in(feed)]
        for row in call("feed_followed", {})["subfeeds"]:
            found.append(load_subfeed("feed://{}/~{}".format(*row.split("/"))))
        return found
    names_one = feed_uri(text).subfeed is not None if is_uri(text) else "/" in text
    return [subfeed_of(text)] if names_one else _subfeeds_in(found_feed(text))


def _subfeeds_in(feed: Feed) -> list[Subfeed]:
    return [
        feed.get_subfeed("~" + row["name_hash"] if row["name"] is None else row["name"])
        for row in feed.info()["subfeeds"]
    ]


def is_uri(text: str) -> bool:
    return "://" in text


def chosen(channels: tuple[str, ...], private: bool) -> list[str] | None:
    """What `channels=` of the API is for these options."""
    if private and channels:
        raise click.UsageError("--private and --channel exclude each other")
    return [] if private else list(channels) or None
