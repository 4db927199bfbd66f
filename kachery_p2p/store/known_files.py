"""Objects that are served by the thousand: what is known of them is looked up many at a time.

An object is here opened only if it is the very file that this node has hashed; for all
others, those linked and those never hashed among them, the general way (`objects`) is right.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import StoreError
from kachery_p2p.store.index import FileState, Index, state_of
from kachery_p2p.store.paths import blob_path

log = logging.getLogger(__name__)

_READ_ONLY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class KnownFiles:
    """The objects below `top` as `index` knows them."""

    def __init__(self, top: str, index: Index) -> None:
        self._top = top
        self._index = index

    def open_index(self) -> None:
        """Open the index, for which a new one has to be on disk, before anybody waits for it."""
        try:
            self.states(())
        except StoreError as error:
            log.warning("the index cannot be opened: %s", error)

    def states(self, contents: Iterable[ContentHash]) -> dict[ContentHash, FileState]:
        """For `open`: of those that were hashed here, and not found changed since."""
        return self._index.known_states(contents)

    def open(self, content: ContentHash, state: FileState | None) -> tuple[int, int] | None:
        """A descriptor, which the caller closes, and the size of the object in this `state`.

        None if there is none.
        """
        if state is None:
            return None
        try:
            fd = os.open(blob_path(self._top, content), _READ_ONLY)
        except OSError:
            return None
        try:
            status = os.fstat(fd)
            if state_of(status) == state:
                found, fd = (fd, status.st_size), -1
                return found
            return None
        finally:
            if fd >= 0:
                os.close(fd)
