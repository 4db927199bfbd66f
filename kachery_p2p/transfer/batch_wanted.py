"""What a load of many wants, what of it is here already, and how far the load is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.store.blobs import BlobStore


class Wanted(NamedTuple):
    """One of many contents, and its root if that is known."""

    content: ContentHash
    root: Root | None = None


class Progress(NamedTuple):
    """How far a load of many is: files that are here or failed, bytes that came, from whom."""

    files: int
    bytes: int
    sources: tuple[str, ...]


class Running:
    """A load of so many files that runs since `began`, and how far it is."""

    def __init__(self, files_total: int, began: float) -> None:
        self.files_total = files_total
        self.began = began
        self.progress = Progress(0, 0, ())


def look_for(blobs: BlobStore, wanted: Sequence[Wanted]) -> list[bool | None]:
    """Whether each is here; None for what takes a closer look than is taken here."""
    found = list[bool | None]()
    paths = blobs.find_each(content for content, _ in wanted)
    for (content, root), path in zip(wanted, paths, strict=True):
        if path is None:
            found.append(False)
        else:
            known = blobs.known(content)
            found.append(True if known and root in (None, known.root) else None)
    return found
