"""The store directory of this computer, opened with the index of its configuration.

Finding a stored file needs none of this (`files.find_local`); storing, linking and
checking do.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from kachery_p2p.client import settings
from kachery_p2p.client.surroundings import Surroundings, surroundings
from kachery_p2p.errors import LinkChangedError, NotFoundError, RootMismatchError
from kachery_p2p.limits import KEPT_STORES_MAX
from kachery_p2p.store.paths import old_hints_path, old_link_paths

if TYPE_CHECKING:
    from kachery_p2p.content.hashes import ContentHash
    from kachery_p2p.content.uris import Uri
    from kachery_p2p.store.blobs import BlobStore
    from kachery_p2p.store.index import Index


@contextlib.contextmanager
def open_store() -> Iterator[BlobStore]:
    """The store that the environment names, as `kept_store` has it."""
    yield kept_store()


def kept_store(here: Surroundings | None = None) -> BlobStore:
    """The store that the environment names, or did a moment ago (`here`).

    It stays open for the next call of this process: opening and closing the index
    takes 3 ms, storing a small value less than 1.
    """
    here = here or surroundings()
    # By process too: locks inherited through a fork may be held by threads that are not.
    name = (os.getpid(), here.storage_dir, here.state_dir)
    kept = _kept.get(name)
    if kept is not None and not kept.records.is_current():
        _close(name)
        kept = None
    if kept is None:
        make_config_dir()
        kept = _kept.setdefault(name, _open(*name[1:]))
        for other in list(_kept)[:-KEPT_STORES_MAX]:
            _close(other)
    return kept.store


class _Kept(NamedTuple):
    store: BlobStore
    records: Index


_kept: dict[tuple[int, str, str], _Kept] = {}


def _open(directory: str, state_dir: str) -> _Kept:
    from kachery_p2p.store.blobs import BlobStore
    from kachery_p2p.store.index import Index

    if not _kept:
        atexit.register(close_stores)
    index = Index(f"{state_dir}/index.db")
    return _Kept(BlobStore(directory, index), index)


def close_stores() -> None:
    """Close what is kept open; a later use opens it again."""
    for name in list(_kept):
        _close(name)


def _close(name: tuple[int, str, str]) -> None:
    kept = _kept.pop(name, None)
    if kept is not None:
        # Whoever still uses it in another thread opens it again without noticing.
        kept.store.close()
        kept.records.close()


def verify_stored(wanted: Uri) -> None:
    """Read what is stored as `wanted` from the disk. Raises a VerificationError if it is not it.

    A corrupt file is then in quarantine, so that the next load fetches a good one.
    """
    with open_store() as store:
        root_object = store.verify(wanted.content)
    if wanted.root not in (None, root_object.root):
        raise RootMismatchError(
            f"the URI's root is not the root of sha1://{wanted.content} as stored here",
            hint="ask whoever gave you the URI for a correct one",
        )


def make_config_dir() -> None:
    """The configuration directory, private from the first moment. Raises a StoreError."""
    from kachery_p2p.store.durable import writing_to

    with writing_to(settings.config_dir()):
        os.makedirs(settings.config_dir(), 0o700, exist_ok=True)


def find_linked(content: ContentHash) -> str | None:
    """The path of a file that is linked as `content` and still has its bytes.

    It is read if it was touched. LinkChangedError if it has other bytes now.
    """
    if not _may_be_linked(content):
        return None
    with open_store() as store:
        try:
            return store.local_path(content)
        except LinkChangedError:
            raise
        except NotFoundError:
            return None


def _may_be_linked(content: ContentHash) -> bool:
    """Whether there is any link to look at: most people have none, and sqlite3 costs 10 ms."""
    if os.path.exists(os.path.join(settings.state_dir(), "links.db")):
        return True
    store = settings.storage_dir()
    noted = (*old_link_paths(store, content), old_hints_path(store, content))
    return any(os.path.exists(path) for path in noted)
