"""Files that are kept for some days only: STORE/.scratch/<sha1>, linked as their contents.

A file there is to be removed when its time of modification has come, which lies ahead:
whoever put it there (`compat.scratch`) has set it so. Then it is no more, and its link
neither; what stands in the store as an object of its own is another file, and stays.
"""

from __future__ import annotations

import contextlib
import os

from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.limits import TEMP_AGE_S_MAX
from kachery_p2p.store.index import Index
from kachery_p2p.store.links import Links


def scratch_dir(store: str) -> str:
    """The directory of files that are kept for some days."""
    return f"{store}/.scratch"


def sweep_scratch(store: str, state_dir: str, now: float) -> int:
    """Remove the files whose time has come by `now`; how many. Those of other users too.

    `state_dir` is where this user's links are noted. Raises a StoreError if they cannot be read.
    """
    removed = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(scratch_dir(store)) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                # Of a file that is being written the name is another, and its time is that of now.
                grace_s = 0.0 if _is_named(entry.name) else TEMP_AGE_S_MAX
                if entry.stat(follow_symlinks=False).st_mtime + grace_s < now:
                    os.unlink(entry.path)
                    removed += 1
                    _end_link(entry.name, entry.path, store, state_dir)
    return removed


def _is_named(name: str) -> bool:
    return len(name) == ContentHash.CHARS


def _end_link(name: str, path: str, store: str, state_dir: str) -> None:
    """Forget that the file stood for its content; what the user linked elsewhere stays."""
    if not _is_named(name):
        return
    index = Index(f"{state_dir}/index.db")
    links = Links(f"{state_dir}/links.db", store, index)
    try:
        link = links.get(ContentHash(name))
        if link is not None and link.path == path:
            links.drop(link.content)
    finally:
        links.close()
        index.close()
