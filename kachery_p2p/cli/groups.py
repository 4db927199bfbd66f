"""Commands about access groups, and about what is encrypted for them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from kachery_p2p.cli.outcome import answer, note, write_bytes
from kachery_p2p.client.events import ProgressArg
from kachery_p2p.client.wording import counted, human_bytes
from kachery_p2p.errors import InvalidRangeError
from kachery_p2p.limits import GROUP_INVITE_CHARS_MAX

if TYPE_CHECKING:
    from kachery_p2p.channels.access_groups import AccessGroup
    from kachery_p2p.client.asking import Info

_PIECE_BYTES = 4 << 20
_CAN_STILL_READ = "what was encrypted for the group before can be read with the old key still"


@click.group()
def group() -> None:
    """Say who may read what is encrypted: an access group is a key that its members hold."""


@group.command()
@click.argument("name")
def create(name: str) -> None:
    """Make the access group NAME, of which this node is the owner; print its id."""
    from kachery_p2p.client.groups import create_access_group

    answer(create_access_group(name).id)
    note(f"`kachery-p2p group add {name} NODE` lets others in")
    note("`kachery-p2p keys backup FILE` keeps its key safe: without it nobody can read")


@group.command()
@click.argument("name")
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
def add(name: str, nodes: tuple[str, ...]) -> None:
    """Let each NODE into the access group NAME; print the invitation that they accept.

    A NODE is what `kachery-p2p group card` prints there; or its id, if it is connected to
    this node, or in an owned channel with it. The invitation is one line, of no use to others.
    """
    from kachery_p2p.client.groups import add_to_access_group

    answer(add_to_access_group(name, nodes))
    note("send them this line by any way; there: `kachery-p2p group accept LINE`")


@group.command()
@click.argument("name")
def invite(name: str) -> None:
    """Print the invitation with the newest key of NAME, for all of its members at once."""
    from kachery_p2p.client.groups import invite_to_access_group

    answer(invite_to_access_group(name))


@group.command()
@click.argument("invitation")
@click.option("--as", "name", metavar="NAME", help="What to call the group on this node.")
def accept(invitation: str, name: str | None) -> None:
    """Take the key that an INVITATION has for this node; - reads it from stdin."""
    from kachery_p2p.client.groups import accept_access_group

    text = sys.stdin.read(2 * GROUP_INVITE_CHARS_MAX) if invitation == "-" else invitation
    accepted = accept_access_group(text, name)
    answer(accepted.name)
    note(f"this node holds the key of the access group {accepted.name} of node {accepted.owner}")


@group.command()
@click.argument("name")
@click.argument("node")
def remove(name: str, node: str) -> None:
    """Put NODE out of the access group NAME: the others get a new key.

    Prints the invitation with it, which they accept as they did the first one. What is
    encrypted from now on is not for NODE; what was encrypted before it can still read.
    """
    from kachery_p2p.client.groups import remove_from_access_group

    text = remove_from_access_group(name, node)
    note(_CAN_STILL_READ)
    if text is None:
        note("no other members are left")
        return
    answer(text)
    note("send this line to the other members; there: `kachery-p2p group accept LINE`")


@group.command("list")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def list_groups(name: str | None, as_json: bool) -> None:
    """Print the access groups that this node holds; of NAME, its members."""
    from kachery_p2p.client.groups import list_access_groups

    found = [one for one in list_access_groups() if name in (None, one.name, one.id)]
    if name is not None and not found:
        from kachery_p2p.channels.access_groups import unknown_group

        raise unknown_group(name)
    if as_json:
        answer(json.dumps([one._asdict() for one in found]))
    elif name is not None:
        _answer_members(found[0])
    else:
        for one in found:
            answer(f"{one.name}  {one.id}  {_members_told(one)}")
        if not found:
            note("this node holds no access group: `kachery-p2p group create NAME` makes one")


def _members_told(one: AccessGroup) -> str:
    if one.members is None:
        return f"of node {one.owner[:16]}, epoch {one.epoch}"
    return f"own, {counted(len(one.members), 'other member')}, epoch {one.epoch}"


def _answer_members(one: AccessGroup) -> None:
    answer(f"{one.owner}  (owner)")
    for node in one.members or ():
        answer(node)
    if one.members is None:
        note("only the owner's node knows the other members")


@group.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Needed: what is encrypted for it is lost here then.")
def leave(name: str, yes: bool) -> None:
    """Forget the key of the access group NAME, for good; for its owner, the whole group."""
    from kachery_p2p.client.groups import leave_access_group

    if not yes:
        raise click.UsageError(
            "what is encrypted for the group cannot be read here then: say --yes if you mean it"
        )
    leave_access_group(name)
    note(f"the key of {name} is gone from this node")


@group.command()
def card() -> None:
    """Print what the owner of a group needs to let this node in: its id and its key, signed."""
    from kachery_p2p.client.groups import access_group_card

    answer(access_group_card())


# --- URIs -------------------------------------------------------------------------------------


@click.command()
@click.argument("uri")
@click.option("--access-group", metavar="GROUP", required=True, help="Its name here, or its id.")
def encrypt_uri(uri: str, access_group: str) -> None:
    """Print URI, readable for the members of an access group only.

    The content stays as it is; `store --access-group` encrypts that as well.
    """
    from kachery_p2p.client.groups import encrypt_uri as encrypt

    answer(encrypt(uri, access_group=access_group))


@click.command()
@click.argument("uri")
def decrypt_uri(uri: str) -> None:
    """Print the URI in clear of one that is encrypted for a group of this node."""
    from kachery_p2p.client.encrypted_uris import disclose

    disclosed = disclose(uri)
    answer(disclosed.clear_uri)
    if disclosed.seal is not None:
        note("the content is encrypted as well: load it with the encrypted URI")


# --- contents -----------------------------------------------------------------------------------


def store_encrypted(
    files: tuple[str, ...],
    label: str | None,
    channels: list[str] | None,
    access_group: str,
    progress: ProgressArg,
) -> None:
    """Store each file, encrypted for the group, and print its URI."""
    from kachery_p2p.client.files import store_file

    for file in files:
        answer(
            store_file(file, label, channels=channels, access_group=access_group, progress=progress)
        )


def cat_encrypted(uri: str, start: int, end: int | None, source: Mapping[str, Any]) -> None:
    """Write the content in clear, or bytes of it, to stdout; none of it lies on the disk."""
    from kachery_p2p.client.opening import open as open_uri

    with open_uri(uri, **source) as file:
        size = file.seek(0, 2)
        end = size if end is None else end
        if not start <= end <= size:
            raise InvalidRangeError(
                f"{start} to {end} does not lie inside the {size} bytes of the file"
            )
        file.seek(start)
        while start < end and (data := file.read(min(_PIECE_BYTES, end - start))):
            write_bytes(data)
            start += len(data)


def describe_encrypted(uri: str, known: Info, as_json: bool) -> None:
    """What is known about a content whose URI is encrypted, with what only members know."""
    from kachery_p2p.cli.files import answer_whereabouts
    from kachery_p2p.client.encrypted_uris import disclose

    disclosed = disclose(uri)
    wanted, seal = disclosed.wanted, disclosed.seal
    size = known.size if seal is None else seal.size
    if as_json:
        told = {
            "uri": disclosed.clear_uri,
            "content": wanted.content,
            "root": wanted.root,
            "name": wanted.name,
            **known._asdict(),
            "size": size,
            "encrypted": seal is not None,
            "encrypted_size": None if seal is None else known.size,
        }
        answer(json.dumps(told))
        return
    answer(f"uri        {disclosed.clear_uri}")
    answer(f"name       {wanted.name or 'none'}")
    answer(f"size       {size} bytes ({human_bytes(size)})")
    if seal is not None:
        answer(f"encrypted  {known.size} bytes, which is what others have")
    answer_whereabouts(known)
