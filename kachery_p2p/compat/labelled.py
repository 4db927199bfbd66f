"""What kachery-cloud and kachery 2 have in common: contents with labels, zones, a sandbox.

Both modules are their signatures, and one `Labelled` each. `cache_locally` needs nothing: what is
stored is always here too. (The originals put the copy over the user's own file instead.)
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple
from urllib.parse import quote

from kachery_p2p.compat import systems
from kachery_p2p.compat.loading import (
    Source,
    load,
    load_range,
    load_value,
    size_elsewhere,
    write_out,
)
from kachery_p2p.compat.placing import PRIVATE, Place, place_of, put_bytes, put_file
from kachery_p2p.compat.systems import System
from kachery_p2p.compat.uri_forms import format_named, format_zone
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.content.uris import encoded
from kachery_p2p.errors import NotFoundError, UnsupportedValueError

# Where nobody said another style of URIs; both wrote this one at their ends.
CLOUD_STYLE = "cloud"


class Form(NamedTuple):
    """How the URI is to be written, as the arguments of the call say."""

    label: str | None = None
    # 1 or 2, as kachery 2 counts; None leaves it to KACHERY_URI_STYLE.
    uri_type: int | None = None
    # Style when the environment says none.
    style: str = CLOUD_STYLE


class Labelled:
    """The calls of one of the two packages, with the settings of `system`."""

    def __init__(self, system: System) -> None:
        self.system = system
        # What `set_custom_storage_backend` was given: an object that stores files its own way.
        self.backend: Any = None

    # --- storing ----------------------------------------------------------------------------

    def store_file(self, filename: str, form: Form, local: bool = False) -> str:
        """The URI of a file, stored where zone, sandbox and environment say; `local`: privately."""
        if not local:
            if (where := systems.store_file_dir()) is not None:
                return to_web_directory(self._path(filename), form, *where)
            if hasattr(self.backend, "store_file"):
                return str(self.backend.store_file(filename, label=form.label))
        place = self.place(local)
        return _uri(put_file(self._path(filename), place), form, place, local)

    def store_bytes(self, data: bytes, form: Form, local: bool = False) -> str:
        """The same for bytes that are in memory."""
        if not local and (systems.store_file_dir() or hasattr(self.backend, "store_file")):
            return self._store_as_file(data, form)
        place = self.place(local)
        return _uri(put_bytes(data, place), form, place, local)

    def _store_as_file(self, data: bytes, form: Form) -> str:
        from kachery_p2p.client.temporary import TemporaryDirectory

        with TemporaryDirectory() as directory:
            path = os.path.join(directory, "file.dat")
            with open(path, "wb") as file:
                file.write(data)
            return self.store_file(path, form)

    def link_file(self, filename: str, form: Form) -> str:
        """The URI of a file that stands for its content, without a copy."""
        place = self.place(local=False)
        if place.sandbox is None and place.keep_days is None:
            place = place._replace(linked=True)
        return _uri(put_file(filename, place), form, place, False)

    def refer_to(self, filename: str, form: Form) -> str:
        """The URI of a file that stays where it is, and is found there on this computer only."""
        from kachery_p2p.compat.old_stores import hash_of

        path = os.path.abspath(self._path(filename))
        uri = f"sha1://{hash_of(path)}"
        if form.label is not None:
            uri += f"?label={quote(form.label)}"
        return f"{uri}{'&' if '?' in uri else '?'}location={encoded(path, safe='/')}"

    def place(self, local: bool) -> Place:
        """Where this call stores."""
        sandbox = systems.sandbox_of(self.system)
        if sandbox is not None:
            return Place([], sandbox=sandbox)
        systems.share_store(self.system)
        if local:
            return PRIVATE
        from kachery_p2p.compat.zones import zone_to_store

        return place_of(zone_to_store(systems.zone_name()))

    def _path(self, filename: str) -> str:
        """The file that is meant: also one that was stored before, given by its URI."""
        filename = os.fspath(filename)
        if not filename.startswith(("sha1://", "kachery:")):
            return filename
        path = self.load(filename)
        if path is None:
            raise NotFoundError(f"{filename} is not stored here, and nobody has it")
        return path

    # --- loading ----------------------------------------------------------------------------

    def source(self, local_only: bool = False, zone: str | None = None) -> Source:
        """Where this call looks."""
        sandbox = systems.sandbox_of(self.system)
        if local_only:
            return Source(local_only=True, sandbox=sandbox)
        from kachery_p2p.compat.zones import channel_to_load

        return Source(channel=channel_to_load(zone or systems.zone_name()), sandbox=sandbox)

    def load(self, uri: str, local_only: bool = False, dest: str | None = None) -> str | None:
        """The path of the content, or `dest`; None if nobody has it."""
        return load(uri, self.source(local_only), dest)

    def load_value(self, uri: str, local_only: bool) -> bytes | None:
        """The bytes of a value, or None."""
        return load_value(uri, self.source(local_only))

    def load_range(
        self, uri: str, start: int | None, end: int | None, write_to_stdout: bool
    ) -> bytes | None:
        """Bytes of the content, or None; with `write_to_stdout` they are written, and None."""
        return told(load_range(uri, start, end, self.source()), write_to_stdout)

    def cat(self, uri: str) -> None:
        """Write the content to stdout; nothing if nobody has it."""
        write_out(uri, self.source())

    def info(self, uri: str) -> dict[str, Any] | None:
        """`found` and `size`, as the server of the originals said it; None if nobody has it."""
        size, _ = self.find(uri)
        return None if size is None else {"found": True, "size": size}

    def find(self, uri: str) -> tuple[int | None, bool]:
        """The size of a content, None if nobody has it; and whether it is on this computer."""
        path = self.load(uri, local_only=True)
        if path is not None:
            return os.path.getsize(path), True
        return size_elsewhere(uri, self.source()), False


def told(data: bytes | None, write_to_stdout: bool) -> bytes | None:
    """`data`, or None after writing it to stdout."""
    import sys

    if data is None or not write_to_stdout:
        return data
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    return None


def _uri(content: ContentHash, form: Form, place: Place, local: bool) -> str:
    if form.uri_type == 2:
        return format_zone(content, form.label, "" if local else systems.zone_name())
    if form.uri_type not in (None, 1):
        raise UnsupportedValueError(f"uri_type must be 1 or 2, not {form.uri_type!r}")
    style = form.style if form.uri_type == 1 else systems.uri_style() or form.style
    return format_named(content, form.label, style, place)


def to_web_directory(filename: str, form: Form, directory: str, prefix: str | None) -> str:
    """Copy the file to DIR/sha1/H, where a web server will find it; its URI, or URL.

    It is stored here too, so that the URI can be loaded, and shared with nobody.
    """
    from kachery_p2p.client.files import load_file, open_stored
    from kachery_p2p.store.copying import copy_whole
    from kachery_p2p.store.durable import DurableDirectories, writing_to

    content = put_file(filename, PRIVATE)
    target = os.path.join(os.path.abspath(directory), "sha1", content)
    if not os.path.exists(target):
        with writing_to(directory):
            DurableDirectories(os.path.abspath(directory)).make(os.path.dirname(target))
        # Of what was stored, which has the hash: the file may have been changed since.
        descriptor = open_stored(load_file(f"sha1://{content}"))
        try:
            copy_whole(descriptor, target)
        finally:
            os.close(descriptor)
    if prefix is None:
        return _uri(content, form, PRIVATE, local=True)
    return f"{prefix}/sha1/{content}" + (
        "" if form.label is None else f"?label={quote(form.label)}"
    )
