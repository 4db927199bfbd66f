"""Directories that are made in a thread while files are written that will go there.

To make one takes the system longer than to write a small file, and each object of a fresh
store needs one or two. Other than the files, they need not be on disk before a name is: they are
synced with the names.
"""

from __future__ import annotations

import contextlib
import queue
import threading

from kachery_p2p.errors import StoreError
from kachery_p2p.store.durable import DurableDirectories, Made


class DirectoriesAhead:
    """Makes directories, unsynced; all that were wished for are there at the end of the `with`.

    What cannot be made shows when something is to be put there.
    """

    def __init__(self, directories: DurableDirectories, made: Made) -> None:
        """`made` is not to be touched by anybody else before the end."""
        self._directories = directories
        self._made = made
        # Bounded by the group whose files go there.
        self._wishes: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="directories", daemon=True)

    def __enter__(self) -> DirectoriesAhead:
        with contextlib.suppress(RuntimeError):  # no more threads to be had: made at the end
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wishes.put(None)
        if self._thread.ident is None:
            self._run()
        else:
            self._thread.join()

    def wish(self, path: str) -> None:
        """There should be a directory at `path`, soon."""
        self._wishes.put(path)

    def _run(self) -> None:
        while (path := self._wishes.get()) is not None:
            with contextlib.suppress(OSError, StoreError):
                self._directories.make_unsynced(path, self._made)
