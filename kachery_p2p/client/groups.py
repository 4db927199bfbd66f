"""Access groups: who may read what is stored with `access_group=`, or named by an encrypted URI.

A group is a key that its members hold. The node that made it lets others in, by a text that
only they can use, and puts them out. Nothing of cryptography is imported before a group is
used.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from kachery_p2p.client import settings

if TYPE_CHECKING:
    from kachery_p2p.channels.access_groups import AccessGroup


def create_access_group(name: str) -> AccessGroup:
    """Make a group of which this node is the owner and, so far, the only member."""
    from kachery_p2p.channels import access_groups

    return access_groups.create(settings.config_dir(), name)


def add_to_access_group(name: str, node: str | Iterable[str]) -> str:
    """Let a node, or several, into a group of this node: the text for `accept_access_group` there.

    A node is given by its card (`access_group_card` there); or by its id, if it is connected
    to this one or in an owned channel with it. The text may be sent by any way: nobody else
    can use it.
    """
    from kachery_p2p.channels import access_groups

    nodes = [node] if isinstance(node, str) else list(node)
    met = _cards_of_peers() if not all(map(access_groups.is_card, nodes)) else []
    text = access_groups.add(settings.config_dir(), name, nodes, time.time(), met).text
    assert text is not None
    return text


def _cards_of_peers() -> list[str]:
    """The cards of the nodes that the daemon is connected to, which proved who they are."""
    from kachery_p2p.client.daemon import connect
    from kachery_p2p.errors import DaemonError

    try:
        peers = connect().call("status", {})[0].get("peers") or []
    except DaemonError:
        # The rest are known without it, and who is not is named.
        return []
    return [peer["card"] for peer in peers if peer.get("card")]


def invite_to_access_group(name: str) -> str:
    """The text that gives the newest key of a group of this node to all its members."""
    from kachery_p2p.channels import access_groups

    text = access_groups.invite(settings.config_dir(), name, time.time()).text
    assert text is not None
    return text


def remove_from_access_group(name: str, node: str) -> str | None:
    """Put a node out of a group of this node: the text that gives the others the new key.

    None if no others are left. What is encrypted from now on is not for the node; what was
    before it can still read.
    """
    from kachery_p2p.channels import access_groups

    return access_groups.remove(settings.config_dir(), name, node, time.time()).text


def accept_access_group(text: str, name: str | None = None) -> AccessGroup:
    """Take the key that an invitation has for this node; `name` is what to call the group here."""
    from kachery_p2p.channels import access_groups

    return access_groups.accept(settings.config_dir(), text, name)


def list_access_groups() -> list[AccessGroup]:
    """The groups that this node holds the key of, by name."""
    from kachery_p2p.channels import access_groups

    return access_groups.groups(settings.config_dir())


def leave_access_group(name: str) -> None:
    """Forget the key of a group, for good: what is encrypted for it cannot be read here then."""
    from kachery_p2p.channels import access_groups

    access_groups.leave(settings.config_dir(), name)


def access_group_card() -> str:
    """What the owner of a group needs to let this node in: its id and its key, signed."""
    from kachery_p2p.channels import access_groups

    return access_groups.card(settings.config_dir())


def encrypt_uri(uri: str, *, access_group: str) -> str:
    """The URI, readable for the members of a group of this node only: `sha1-enc://...`.

    The content stays as it is: who is allowed to, and knows its SHA-1, can load it without.
    A URI that is encrypted already is encrypted for this group instead, and what is behind it
    need not be stored again.
    """
    from kachery_p2p.client import encrypted_uris

    return encrypted_uris.encrypt(uri, access_group)


def decrypt_uri(uri: str) -> str:
    """The URI in clear. NotInAccessGroupError if this node does not hold the group's key.

    Of a content that is encrypted too, it is that of the encrypted file, and its name ends in
    `.sealed`; the `load_*` functions take the encrypted URI, and decrypt.
    """
    from kachery_p2p.client import encrypted_uris

    return encrypted_uris.disclose(uri).clear_uri
