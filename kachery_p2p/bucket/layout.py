"""Where things lie in a bucket, under the prefix of its channel.

    sha1/aa/bb/cc/HASH     a content, as every kachery has laid them out
    root/aa/bb/cc/ROOT     of a content above one chunk: its root object and all its pages
    kachery-p2p-channel    the id of the channel that keeps its files here

A content's object has the metadata `root` (the content's root, from whoever put it there
and had hashed the bytes) and `label` (its name, percent-encoded). Any browser and any older
tool can read a public bucket; what lacks `root` is loaded as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.manifests import (
    HASH_BYTES,
    HEADER_BYTES,
    PAGE_BYTES_MAX,
    Manifest,
    page_count,
    page_length,
)
from kachery_p2p.content.uris import check_label, decoded, encoded
from kachery_p2p.errors import InvalidNameError, UriError

MARKER = "kachery-p2p-channel"
CONTENTS = "sha1"
TABLES = "root"
UNKNOWN_TYPE = "application/octet-stream"
_TYPES = {
    "csv": "text/csv",
    "gz": "application/gzip",
    "h5": "application/x-hdf5",
    "html": "text/html",
    "jpg": "image/jpeg",
    "json": "application/json",
    "md": "text/markdown",
    "nwb": "application/x-hdf5",
    "pdf": "application/pdf",
    "png": "image/png",
    "tif": "image/tiff",
    "txt": "text/plain",
    "zip": "application/zip",
}


def key_of(content: ContentHash) -> str:
    """The key of a content below the prefix."""
    return f"{CONTENTS}/{content[:2]}/{content[2:4]}/{content[4:6]}/{content}"


def content_of(key: str) -> ContentHash | None:
    """The content whose key this is; None for anything else that lies in a bucket."""
    try:
        content = ContentHash.parse(key.rpartition("/")[2])
    except UriError:
        return None
    return content if key == key_of(content) else None


def tables_key(root: Root) -> str:
    """The key of the chunk hashes of a content with this root."""
    return f"{TABLES}/{root[:2]}/{root[2:4]}/{root[4:6]}/{root}"


def tables_of(manifest: Manifest) -> bytes:
    """What lies there: the root object, then each page."""
    return b"".join((manifest.root_object.encode(), *manifest.pages))


def root_object_span(size: int) -> tuple[int, int]:
    """Which bytes of it are the root object of a content of `size` bytes."""
    return 0, HEADER_BYTES + HASH_BYTES * page_count(size)


def page_span(size: int, number: int) -> tuple[int, int]:
    """Which bytes of it are page `number`."""
    start = root_object_span(size)[1] + number * PAGE_BYTES_MAX
    return start, start + page_length(size, number)


def content_type(label: str | None) -> str:
    """How a browser is to show a file of that name."""
    return _TYPES.get((label or "").rpartition(".")[2].lower(), UNKNOWN_TYPE)


def attributes(root: Root, label: str | None) -> dict[str, str]:
    """What is noted with a content's object."""
    told = {"Content-Type": content_type(label), "root": root}
    return told if label is None else {**told, "label": encoded(label)}


def told_root(metadata: Mapping[str, str]) -> Root | None:
    """The root that is noted there, if one is: the claim of whoever put it there."""
    try:
        return Root.parse(metadata.get("root", ""))
    except UriError:
        return None


def told_label(metadata: Mapping[str, str]) -> str | None:
    """The name that is noted there, if it can be the name of a file."""
    try:
        return check_label(decoded(metadata.get("label", "")))
    except InvalidNameError:
        return None
