"""What the kachery of 2019 did: contents with names in the path, by SHA-1 or by MD5."""

from __future__ import annotations

import os
from typing import Any

from kachery_p2p.client.files import find_local
from kachery_p2p.compat import names, systems
from kachery_p2p.compat.loading import Source, load, size_elsewhere
from kachery_p2p.compat.placing import Place, put_bytes, put_file, put_into_bucket
from kachery_p2p.compat.servers import Call
from kachery_p2p.compat.uri_forms import format_named
from kachery_p2p.content.directories import FileEntry
from kachery_p2p.content.hashes import ContentHash, Md5
from kachery_p2p.content.uris import Uri, parse_uri
from kachery_p2p.errors import NotFoundError

STYLE = "2019"


def store_file(path: str, basename: str | None, call: Call, style: str = STYLE) -> str:
    """Store a copy of a file, given by its path or a URI; `sha1://H/BASENAME`."""
    path = os.fspath(path)
    name = os.path.basename(path) if basename is None else basename
    if "://" in path or path.startswith("kachery:"):
        name = name.partition("?")[0]
        found = load(path, call.source())
        if found is None:
            raise NotFoundError(f"{path} is not stored here, and nobody has it")
        path = found
    place = call.place()
    content = put_file(path, place)
    if call.algorithm == "md5":
        from kachery_p2p.compat.old_stores import hash_of

        # Of the copy: the user may still be writing to the file.
        stored = find_local(Uri(content)) or path
        return _md5_uri(Md5(hash_of(stored, "md5")), name, content)
    return _uri(content, name, place, style)


def store_bytes(data: bytes, basename: str, call: Call) -> str:
    """The same for bytes that are in memory."""
    place = call.place()
    content = put_bytes(data, place)
    if call.algorithm == "md5":
        import hashlib

        found = hashlib.md5(data, usedforsecurity=False).hexdigest()
        return _md5_uri(Md5(found), basename, content)
    return _uri(content, basename, place, STYLE)


def _uri(content: ContentHash, name: str, place: Place, style: str) -> str:
    return format_named(content, name, systems.uri_style() or style, place)


def _md5_uri(md5: Md5, name: str, content: ContentHash) -> str:
    names.put(names.MD5, md5, content)
    return f"md5://{md5}/{name}"


def store_dir(dirpath: str, label: str | None, call: Call, annex: bool = False) -> str:
    """Store a directory; `sha1dir://H.LABEL`, or `md5dir://`. `annex` is `git_annex_mode`."""
    place = call.place()
    plain = place.sandbox is None and place.keep_days is None
    if plain and not annex and call.algorithm == "sha1":
        from kachery_p2p.client.directories import store_dir as store

        uri = store(dirpath, label, channels=place.channels)
        if place.bucket is not None:
            put_into_bucket([uri], place.bucket)
        return uri
    from kachery_p2p.client.storing import label_of
    from kachery_p2p.compat import trees

    label = label_of(os.fspath(dirpath), label)
    return trees.store_directory(dirpath, label, place, md5=call.algorithm == "md5", annex=annex)


def file_info(path: str, call: Call) -> dict[str, Any] | None:
    """What `get_file_info` answers."""
    source = call.source()
    here = load(path, source._replace(local_only=True))
    if here is None:
        return None if source.local_only else _info_elsewhere(path, source)
    return {"path": here, "size": os.path.getsize(here), **_hash(path, here, call.algorithm)}


def _hash(path: str, here: str, algorithm: str) -> dict[str, str]:
    """The hash by which the file is known; of a path, computed."""
    from kachery_p2p.compat.old_stores import hash_of

    scheme = path.partition(":")[0].lower()
    if scheme == "md5":
        return {"md5": path[6:38].lower()}
    if scheme in ("sha1", "kachery"):
        return {"sha1": str(parse_uri(path).content)}
    return {algorithm: hash_of(here, algorithm)}


def _info_elsewhere(path: str, source: Source) -> dict[str, Any] | None:
    """What members say of a content that is not here; None if nobody has it, or could be asked."""
    from kachery_p2p.client.files import is_directory_uri

    if is_directory_uri(path):
        from kachery_p2p.compat import directories

        found = directories.look_up(path, source)
        if not isinstance(found, FileEntry) or isinstance(found.content, Md5):
            return None
        return _info_elsewhere(f"sha1://{found.content}", source)
    size = size_elsewhere(path, source)
    if size is None:
        return None
    sha1 = str(parse_uri(path).content)
    return {"url": f"sha1://{sha1}", "size": size, "sha1": sha1}
