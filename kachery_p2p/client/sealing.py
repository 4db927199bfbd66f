"""Storing for an access group: what is stored, and what others get, is a sealed file.

Each content gets a key of its own, which is in its encrypted URI with its name and size, and
nowhere else. So one content stored twice is two files that have nothing in common, whoever
holds a file learns its length, and to lose the URI is to lose the content.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from kachery_p2p.client import settings, storing
from kachery_p2p.client.encrypted_uris import Disclosed, Seal, conceal
from kachery_p2p.client.events import ProgressArg
from kachery_p2p.client.files import Channels
from kachery_p2p.client.progress import STORING, Reporter
from kachery_p2p.client.spooling import spooled
from kachery_p2p.content.uris import check_label, format_uri, parse_uri
from kachery_p2p.errors import SourceFileError
from kachery_p2p.identity.frames import CONTENT_KEY_BYTES, FRAME_BYTES
from kachery_p2p.limits import SEALED_CONTENT_BYTES_MAX, SEALED_STREAM_FRAMES

if TYPE_CHECKING:
    from kachery_p2p.identity.group_files import HeldGroup

# What the sealed file is called on its way: its real name is in the encrypted URI only.
_NAME = "sealed"
_PIECE_BYTES = SEALED_STREAM_FRAMES * FRAME_BYTES


def store_path(
    path: str, label: str | None, channels: Channels, progress: ProgressArg, access_group: str
) -> str:
    """Store the file at `path`, sealed; its encrypted URI. Raises as `storing.store_path` does."""
    label = storing.label_of(path, label)
    group = _group(access_group)
    source = storing.open_source(path)
    try:
        with Reporter(progress) as reporter:
            before = os.fstat(source)
            seal = _new_seal(before.st_size)
            reporter.begin(STORING, seal.size)
            # Read once, by whichever of the two is called: the file would be another one twice.
            pieces = _sealed_file(seal, source, before, reporter.count)
            uri = storing.store_by(
                lambda store: store.put_stream(pieces, None, seal.file_size),
                lambda: spooled(pieces),
                _NAME,
                channels,
                reporter,
            )
    finally:
        os.close(source)
    return _named(uri, label, seal, group)


def store_value(data: bytes, label: str, channels: Channels, access_group: str) -> str:
    """Store bytes that are in memory, sealed; their encrypted URI."""
    check_label(label)
    group = _group(access_group)
    seal = _new_seal(len(data))
    sealer = seal.sealer()
    sealed = sealer.header + sealer.seal_frames(0, data)
    return _named(storing.store_value(sealed, _NAME, channels), label, seal, group)


def _group(access_group: str) -> HeldGroup:
    from kachery_p2p.channels.access_groups import held

    return held(settings.config_dir(), access_group)


def _new_seal(size: int) -> Seal:
    if size > SEALED_CONTENT_BYTES_MAX:
        raise SourceFileError(f"a sealed content has at most {SEALED_CONTENT_BYTES_MAX} bytes")
    return Seal(os.urandom(CONTENT_KEY_BYTES), size)


def _sealed_file(
    seal: Seal, source: int, before: os.stat_result, count: Callable[[int], None]
) -> Iterator[bytes]:
    """The sealed file of `source`, a MiB at a time. SourceChangedError if it is written to."""
    from kachery_p2p.store.sources import check_unchanged, source_changed, unreadable

    sealer = seal.sealer()
    yield sealer.header
    for start in range(0, max(1, seal.size), _PIECE_BYTES):
        wanted = min(_PIECE_BYTES, seal.size - start)
        try:
            plain = _pread_some(source, start, wanted)
        except OSError as error:
            raise unreadable(error) from error
        if len(plain) < wanted:
            raise source_changed()
        yield sealer.seal_frames(start // FRAME_BYTES, plain)
        count(wanted)
    check_unchanged(before, source)


def _pread_some(source: int, offset: int, length: int) -> bytes:
    """`length` bytes, or fewer at the end."""
    parts = []
    while length and (part := os.pread(source, length, offset)):
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return b"".join(parts)


def _named(uri: str, label: str, seal: Seal, group: HeldGroup) -> str:
    """The encrypted URI of a sealed file that was stored as `uri`."""
    return conceal(Disclosed(format_uri(parse_uri(uri)._replace(name=label)), seal), group)
