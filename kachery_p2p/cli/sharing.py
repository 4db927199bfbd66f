"""Commands about who has what: find, unshare, shared."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from kachery_p2p.cli.outcome import answer, note
from kachery_p2p.cli.sources import origin_of, source_options
from kachery_p2p.client.wording import counted, human_bytes, printable
from kachery_p2p.content.uris import Uri, format_uri, parse_uri
from kachery_p2p.errors import NotFoundError

if TYPE_CHECKING:
    from kachery_p2p.client.asking import Found

NO_DAEMON = "no daemon is running, so nobody else was asked"


@click.command()
@click.argument("uri")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@source_options
def find(uri: str, as_json: bool, **source: Any) -> None:
    """Print who has the content of URI: this computer, and which nodes in which channel.

    The exit code is 3 when nobody has it.
    """
    from kachery_p2p.client.asking import find as find_holders
    from kachery_p2p.client.files import is_encrypted_uri, wanted_by

    wanted = wanted_by(uri) if is_encrypted_uri(uri) else parse_uri(uri)
    found = find_holders(wanted, origin_of(source))
    if as_json:
        answer(json.dumps(_told(wanted, found)))
    else:
        _print(found)
    if not found.local and not found.providers:
        raise NotFoundError(
            f"nobody has sha1://{wanted.content}"
            if found.asked
            else f"sha1://{wanted.content} is not stored here, and {NO_DAEMON}",
            hint="ask the owner to start their node, and to share it in a channel"
            if found.asked
            else "start one with `kachery-p2p start --channel NAME`",
        )
    if not found.asked:
        note(NO_DAEMON)


def _told(wanted: Uri, found: Found) -> dict[str, Any]:
    return {
        "uri": format_uri(wanted),
        **found._asdict(),
        "providers": [provider._asdict() for provider in found.providers],
    }


def _print(found: Found) -> None:
    if found.local:
        answer("this computer")
    for node_id, label, channel in found.providers:
        name = f"{printable(label)}  " if label else ""
        answer(f"{name}{node_id}  in channel {printable(channel)}")
    if found.size is not None:
        note(f"{found.size} bytes ({human_bytes(found.size)})")


@click.command()
@click.argument("uris", nargs=-1, required=True, metavar="URI...")
@click.option("--channel", metavar="CHANNEL", help="In this channel only (default: in all).")
def unshare(uris: tuple[str, ...], channel: str | None) -> None:
    """Let nobody load the content of each URI from this node any more.

    It stays stored here, and what others have loaded stays theirs.
    """
    from kachery_p2p.client.sharing import unshare as end_sharing

    ended = end_sharing(uris, channel)
    where = f" in channel {channel}" if channel is not None else ""
    note(f"ended {counted(ended, 'share')}{where}" if ended else f"nothing was shared{where}")


@click.command()
@click.option("--channel", metavar="CHANNEL", help="In this channel only.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each.")
def shared(channel: str | None, as_json: bool) -> None:
    """Print what this node shares, a line for each content and channel."""
    from kachery_p2p.client.sharing import shared as list_shared

    for one in list_shared(channel):
        answer(json.dumps(one._asdict()) if as_json else f"{one.uri}  {printable(one.channel)}")
