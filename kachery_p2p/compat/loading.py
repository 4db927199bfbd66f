"""Loading as the older packages did: any of their URIs, the path of the content, or None.

Looked for, in this order: the sandbox if there is one, our store, what older packages
stored in directories of their own, and the members of the channels. None means that
nobody has it, as it always did; if nobody could be asked, a warning says so. Anything
else that goes wrong, like bytes that are not those of the hash, is raised.
"""

from __future__ import annotations

import os
import sys
from typing import BinaryIO, NamedTuple

from kachery_p2p.client.files import (
    find_local,
    is_directory_uri,
    load_file,
    read_range,
)
from kachery_p2p.compat import old_stores
from kachery_p2p.compat.warned import warn
from kachery_p2p.content.hashes import Md5
from kachery_p2p.content.uris import Uri, ZoneUri, format_uri
from kachery_p2p.errors import (
    DaemonDownError,
    InvalidRangeError,
    LinkChangedError,
    NotFoundError,
    PathNotFoundError,
    ResolutionError,
    ServiceGoneError,
    UriError,
)

_COPY_BYTES = 1 << 20
# Schemes whose URIs only a server could read that is no more.
_GONE = ("jot", "kachery-feed")


class Source(NamedTuple):
    """Where a call may look."""

    # Ask nobody else.
    local_only: bool = False
    # Ask only the members of this channel.
    channel: str | None = None
    # Look here first.
    sandbox: str | None = None
    # Ask only this node.
    node: str | None = None


def load(uri: str, source: Source, dest: str | None = None) -> str | None:
    """The path of the content; or `dest`, a copy. None if nobody has it.

    A path with no scheme is itself, and None if there is no file. Raises as `load_file` does
    for all but what is not found.
    """
    path = _found(uri, source)
    if path is None or dest is None:
        return path
    return _copied(path, dest)


def load_value(uri: str, source: Source) -> bytes | None:
    """All bytes of a value, or None. DataFormatError if it is too large to be one."""
    from kachery_p2p.errors import DataFormatError
    from kachery_p2p.limits import VALUE_BYTES_MAX

    path = load(uri, source)
    if path is None:
        return None
    size = os.path.getsize(path)
    if size > VALUE_BYTES_MAX:
        raise DataFormatError(
            f"the content has {size} bytes, more than the {VALUE_BYTES_MAX} of a value",
            hint="use load_file or load_bytes",
        )
    with open(path, "rb") as file:
        return file.read()


def load_range(uri: str, start: int | None, end: int | None, source: Source) -> bytes | None:
    """Bytes `start` (None: the first) up to `end` (None: all); None if nobody has the content.

    Of what is not here, only they are fetched, if the URI has a root or a chunk list that
    vouches for them.
    """
    first = 0 if start is None else start
    if end is not None and not 0 <= first <= end:
        raise InvalidRangeError(f"{first} to {end} is not a range of bytes")
    here = source._replace(local_only=True)
    path = _found(uri, here)
    if path is None and not source.local_only:
        if end is not None and _is_content(uri):
            return _fetched_range(uri, first, end, source)
        path = _found(uri, source)
    if path is None:
        return None
    return read_range(path, first, os.path.getsize(path) if end is None else end)


def write_out(uri: str, source: Source) -> bool:
    """Write the content to stdout; False, and nothing is written, if nobody has it."""
    path = load(uri, source)
    if path is None:
        return False
    sys.stdout.flush()
    with open(path, "rb") as file:
        while piece := file.read(_COPY_BYTES):
            sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
    return True


def open_content(uri: str, source: Source) -> BinaryIO | None:
    """The content as a file object, of which only what is read is fetched; None."""
    from kachery_p2p.client.opening import open as open_uri

    path = _found(uri, source._replace(local_only=True))
    if path is not None:
        return open(path, "rb")
    if source.local_only or not _is_content(uri):
        path = _found(uri, source)
        return None if path is None else open(path, "rb")
    try:
        return open_uri(_plain(uri), from_channel=source.channel, from_node=source.node)
    except NotFoundError as error:
        _warn_unasked(error)
        return None


def size_elsewhere(uri: str, source: Source) -> int | None:
    """The size of a content that is not here, as members of the channels say; None if nobody does.

    Only of URIs that say a SHA-1 themselves: by other names nobody can be asked.
    """
    from kachery_p2p.client.files import find_file, is_encrypted_uri

    if is_encrypted_uri(uri):
        from kachery_p2p.compat import encrypted

        return encrypted.size_elsewhere(uri, source)
    if not _is_content(uri):
        return None
    found = find_file(_plain(uri), from_channel=source.channel, from_node=source.node)
    return None if found.local else found.size


# --- finding --------------------------------------------------------------------------------


def _found(uri: str, source: Source) -> str | None:
    try:
        return find(uri, source)
    except (NotFoundError, PathNotFoundError) as error:
        _warn_unasked(error)
        return None


def find(uri: str, source: Source) -> str | None:
    """As `load`, but a LoadFileError says why nobody has it; None where there is no more to say."""
    if not _has_scheme(uri):
        return uri if os.path.isfile(uri) else None
    scheme, _, rest = uri.strip().partition("://")
    if scheme in ("zenodo", "zenodo-sandbox"):
        from kachery_p2p.compat import web

        return None if source.local_only else web.load_zenodo(scheme, rest)
    if scheme in _GONE:
        raise ServiceGoneError(
            f"URIs with {scheme}:// could only be read by a server that no longer exists",
            hint="ask its author for the sha1:// URI of the content",
        )
    if is_directory_uri(uri) or scheme.lower() == "md5dir":
        from kachery_p2p.compat import directories

        return directories.find_file(uri, source)
    return _find_parsed(uri, source)


def _find_parsed(uri: str, source: Source) -> str | None:
    from kachery_p2p.content import schemes

    named = schemes.parse_any(uri)
    if isinstance(named, Uri):
        return find_content(named, source)
    if isinstance(named, ZoneUri):
        return find_content(named.uri, _in_zone(named.zone, source))
    if isinstance(named, schemes.Md5Uri):
        return find_md5(named.md5, source)
    if isinstance(named, schemes.IpfsUri):
        return _find_cid(named, source)
    if isinstance(named, schemes.GithubUri | schemes.WebUri):
        from kachery_p2p.compat import web

        # As the originals: the web is where such files are, whatever was asked for.
        url = named.url if isinstance(named, schemes.WebUri) else web.github_url(named)
        return web.load_page(url)
    if isinstance(named, schemes.EncryptedUri):
        from kachery_p2p.compat import encrypted

        return encrypted.find(uri, source)
    raise UriError("the URI names a feed, not a file", hint="use load_feed or load_subfeed")


def find_content(wanted: Uri, source: Source) -> str | None:
    """The path of a content. NotFoundError, or None, if it cannot be had."""
    path = find_here(wanted, source)
    if path is not None or source.local_only:
        return path
    if wanted.chunk_of is not None:
        from kachery_p2p.compat import chunks

        return chunks.load_chunk(wanted, source)
    return load_file(
        format_uri(wanted._replace(location=None)),
        from_channel=source.channel,
        from_node=source.node,
    )


def find_here(wanted: Uri, source: Source) -> str | None:
    """The path of a content that is on this computer, or None."""
    if source.sandbox is not None:
        from kachery_p2p.compat.placing import find_in_sandbox

        if (path := find_in_sandbox(source.sandbox, wanted.content)) is not None:
            return path
    try:
        if (path := find_local(wanted)) is not None:
            return path
    except LinkChangedError as error:
        warn(str(error))
    if wanted.location is not None and old_stores.is_file_of(wanted.location, wanted.content):
        return wanted.location
    return old_stores.find(wanted.content)


def find_md5(md5: Md5, source: Source) -> str | None:
    """The path of a content by its MD5: what was stored so here, or by the first kachery."""
    from kachery_p2p.compat import names

    content = names.find(names.MD5, md5)
    if content is not None and (path := find_content(Uri(content), source)) is not None:
        return path
    return old_stores.find_md5(md5)


def _find_cid(named: object, source: Source) -> str | None:
    from kachery_p2p.compat import names
    from kachery_p2p.content.schemes import IpfsUri

    assert isinstance(named, IpfsUri)
    # What the first kachery-cloud loaded is where its own `load_file` said.
    if (path := old_stores.find_cid(named.cid)) is not None:
        return path
    content = names.find(names.CID, named.cid)
    return None if content is None else find_content(Uri(content), source)


def _in_zone(zone: str, source: Source) -> Source:
    if not zone or source.local_only or source.channel is not None:
        return source
    from kachery_p2p.compat.zones import channel_to_load

    return source._replace(channel=channel_to_load(zone))


def _has_scheme(uri: str) -> bool:
    return "://" in uri or uri.lstrip().startswith("kachery:")


def _is_content(uri: str) -> bool:
    return uri.lstrip()[:7].lower() == "sha1://" or uri.lstrip().startswith("kachery:")


def _plain(uri: str) -> str:
    """The URI as our own functions take it."""
    from kachery_p2p.content.uris import parse_uri

    return format_uri(parse_uri(uri)._replace(location=None))


def _fetched_range(uri: str, start: int, end: int, source: Source) -> bytes | None:
    from kachery_p2p.client.files import load_bytes
    from kachery_p2p.compat import chunks
    from kachery_p2p.content.uris import parse_uri

    wanted = parse_uri(uri)
    try:
        if wanted.manifest is not None and wanted.root is None:
            return chunks.load_listed_range(wanted, start, end, source)
        return load_bytes(
            _plain(uri), start, end, from_channel=source.channel, from_node=source.node
        )
    except NotFoundError as error:
        _warn_unasked(error)
        return None


def _copied(path: str, dest: str) -> str:
    from kachery_p2p.client.files import open_stored
    from kachery_p2p.store.copying import copy_whole

    if os.path.isdir(dest):
        raise ResolutionError(f"{dest} is a directory", hint="give the name of a file in it")
    descriptor = open_stored(path)
    try:
        return copy_whole(descriptor, dest)
    finally:
        os.close(descriptor)


def _warn_unasked(error: Exception) -> None:
    """Say so if nobody could be asked, or a linked file changed: None alone tells neither."""
    if isinstance(error, LinkChangedError) or isinstance(error.__cause__, DaemonDownError):
        warn(str(error))
