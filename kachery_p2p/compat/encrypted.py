"""Access groups of kachery-cloud: the groups are this node's, the URIs have the same form.

Theirs were encrypted by a server that no longer exists: to read one is a ServiceGoneError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kachery_p2p.client import encrypted_uris, groups
from kachery_p2p.content.uris import parse_uri

if TYPE_CHECKING:
    from kachery_p2p.compat.loading import Source


def encrypt_uri(uri: str, *, access_group: str) -> str:
    """`sha1-enc://CODE.ag_GROUP?label=LABEL`, for a group of this node by its name or id.

    As there, what stands after the `?` stays readable, and one URI has one code. A URI that
    is encrypted for the group already is returned as it is.
    """
    encrypted = groups.encrypt_uri(uri, access_group=access_group)
    _, mark, query = uri.strip().partition("?")
    return encrypted if mark in encrypted else f"{encrypted}?{query}"


def decrypt_uri(uri: str) -> str:
    """The URI in clear. NotInAccessGroupError if this node does not hold the group's key."""
    return groups.decrypt_uri(uri)


def find(uri: str, source: Source) -> str | None:
    """The path of the content in clear. NotFoundError, or None, if it cannot be had."""
    from kachery_p2p.compat.loading import find_content

    disclosed = encrypted_uris.disclose(uri)
    wanted = disclosed.wanted
    path = find_content(wanted, source)
    if path is None or disclosed.seal is None:
        return path
    from kachery_p2p.client.unsealing import open_stored

    return open_stored(wanted, disclosed.seal, path)


def size_elsewhere(uri: str, source: Source) -> int | None:
    """The size of a content that is not here, as members of the channels say; None if nobody does.

    That of the content in clear.
    """
    from kachery_p2p.client.files import find_file
    from kachery_p2p.content.uris import format_uri

    disclosed = encrypted_uris.disclose(uri)
    wanted = parse_uri(disclosed.uri)._replace(location=None)
    found = find_file(format_uri(wanted), from_channel=source.channel)
    if found.local or found.size is None:
        return None
    return found.size if disclosed.seal is None else disclosed.seal.size
