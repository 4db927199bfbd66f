"""`sha1-enc://CODE.ag_GROUP`: URIs that only the members of an access group can read.

What the code says, after `Group.decrypt`:

    u8 1 ‖ URI                                  of a content as it is
    u8 2 ‖ content key 32 ‖ u64 size ‖ URI      of a sealed file (`identity.frames`) with it

kachery-cloud wrote such URIs too. Its codes are AES-256-CBC, in hex, of 40 hex digits, with
one key and one IV for each group that never left its server; the name stood beside them in
clear. They are known by their form, and explained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kachery_p2p.client import settings
from kachery_p2p.content.schemes import EncryptedUri, format_any, parse_any
from kachery_p2p.content.uris import COPY_HINT, Uri, format_uri, parse_uri
from kachery_p2p.errors import NotInAccessGroupError, SealError, ServiceGoneError, UriError
from kachery_p2p.identity.access_groups import code_epoch, expand
from kachery_p2p.identity.frames import (
    CONTENT_KEY_BYTES,
    Header,
    Opener,
    Sealer,
    key_id,
    sealed_size,
)
from kachery_p2p.identity.group_files import find_by_id
from kachery_p2p.limits import LABEL_BYTES_MAX, SEALED_CONTENT_BYTES_MAX, URI_CHARS_MAX

if TYPE_CHECKING:
    from kachery_p2p.identity.group_files import HeldGroup

_AS_IT_IS = b"\x01"
_SEALED = b"\x02"
_SIZE_BYTES = 8
_SALT_INFO = b"kachery-p2p sealed file salt 1"
# Codes of this version and of those to come; what is hex does not begin so.
_OURS = "kpe"
SEALED_SUFFIX = ".sealed"


class Seal(NamedTuple):
    """What opens a sealed file: its key is no other file's, so its salt follows from it."""

    content_key: bytes
    # Of the content.
    size: int

    def __repr__(self) -> str:
        return f"<Seal of {self.size} bytes>"

    @property
    def _salt(self) -> bytes:
        return expand(self.content_key, _SALT_INFO)

    @property
    def header(self) -> Header:
        """How the file begins: whoever has the key need not read it to open a frame."""
        return Header(key_id(self.content_key), self._salt, self.size)

    @property
    def file_size(self) -> int:
        """How long the sealed file is."""
        return sealed_size(self.size)

    def sealer(self) -> Sealer:
        """To make the file with, once."""
        return Sealer(self.content_key, self.size, self._salt)

    def opener(self) -> Opener:
        """To read the file with."""
        return Opener(self.content_key, self.header)


class Disclosed(NamedTuple):
    """What an encrypted URI says to a member of its group."""

    # A URI in clear; of the sealed file, if there is a seal.
    uri: str
    seal: Seal | None = None

    @property
    def wanted(self) -> Uri:
        """The content that members and buckets have."""
        return parse_uri(self.uri)

    @property
    def clear_uri(self) -> str:
        """The URI in clear; of a sealed file, with a name that says that it is one."""
        if self.seal is None:
            return self.uri
        sealed = self.wanted
        name = (sealed.name or "content") + SEALED_SUFFIX
        if len(name.encode()) > LABEL_BYTES_MAX:
            name = "content" + SEALED_SUFFIX
        return format_uri(sealed._replace(name=name))


def encrypt(uri: str, access_group: str) -> str:
    """The URI, readable for members of the group only: name, hash and root are hidden.

    Takes URIs in clear, as they are, and those encrypted for this or another group. Raises
    UriError, AccessGroupError, NotInAccessGroupError.
    """
    from kachery_p2p.channels.access_groups import held

    group = held(settings.config_dir(), access_group)
    named = parse_any(uri)
    if not isinstance(named, EncryptedUri):
        parse_uri(uri)
        return conceal(Disclosed(uri.strip()), group)
    disclosed = disclose(uri)
    same = named.group == group.group.id and code_epoch(named.code) == group.group.epoch
    return uri.strip() if same else conceal(disclosed, group)


def conceal(disclosed: Disclosed, held_group: HeldGroup) -> str:
    """The encrypted URI that says this to members of the group, in its newest epoch."""
    text = disclosed.uri.encode("utf-8", "surrogateescape")
    if disclosed.seal is None:
        text = _AS_IT_IS + text
    else:
        key, size = disclosed.seal
        text = _SEALED + key + size.to_bytes(_SIZE_BYTES, "big") + text
    group = held_group.group
    found = format_any(EncryptedUri(group.encrypt(text), group.id))
    if len(found) > URI_CHARS_MAX:
        raise UriError(f"encrypted, the URI would be longer than {URI_CHARS_MAX} characters")
    return found


def disclose(uri: str) -> Disclosed:
    """What the encrypted URI says.

    NotInAccessGroupError if this node does not hold the key; SealError if the URI was changed;
    ServiceGoneError if it is one of kachery-cloud.
    """
    named = parse_any(uri)
    if not isinstance(named, EncryptedUri):
        raise UriError("the URI is not encrypted: it does not begin with sha1-enc://")
    if not named.code.startswith(_OURS):
        raise ServiceGoneError(
            f"the hash in this URI was encrypted for the access group {named.group} by a server"
            " of kachery-cloud, which alone could read it and no longer exists",
            hint="ask its author for the sha1:// URI",
        )
    held_group = find_by_id(settings.config_dir(), named.group)
    if held_group is None:
        raise NotInAccessGroupError(
            f"the URI is encrypted for the access group {named.group}, whose key this node does"
            " not hold",
            hint="ask who gave it to you to add this node to the group: `kachery-p2p group card`"
            " prints what they need",
        )
    return _read(held_group.group.decrypt(named.code))


def _read(text: bytes) -> Disclosed:
    """Written by a member of the group, and still not trusted."""
    kind, rest = text[:1], text[1:]
    seal = None
    if kind == _SEALED:
        key, rest = rest[:CONTENT_KEY_BYTES], rest[CONTENT_KEY_BYTES:]
        size, rest = int.from_bytes(rest[:_SIZE_BYTES], "big"), rest[_SIZE_BYTES:]
        if not rest or size > SEALED_CONTENT_BYTES_MAX:
            raise _unreadable()
        seal = Seal(key, size)
    elif kind != _AS_IT_IS:
        raise _unreadable()
    try:
        disclosed = Disclosed(rest.decode("utf-8"), seal)
    except UnicodeDecodeError:
        raise _unreadable() from None
    parse_uri(disclosed.uri)
    return disclosed


def _unreadable() -> SealError:
    return SealError(
        "the encrypted URI says something that this version does not understand", hint=COPY_HINT
    )
