"""The store directory of this computer, opened with the index of its configuration.

Finding a stored file needs none of this (`files.find_local`); storing, linking and
checking do.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kachery_p2p.client import settings
from kachery_p2p.errors import LinkChangedError, NotFoundError, RootMismatchError
from kachery_p2p.store.paths import old_link_paths

if TYPE_CHECKING:
    from kachery_p2p.content.hashes import ContentHash
    from kachery_p2p.content.uris import Uri
    from kachery_p2p.store.blobs import BlobStore


@contextlib.contextmanager
def open_store() -> Iterator[BlobStore]:
    """The store that the environment names, open until the end of the `with`."""
    from kachery_p2p.store.blobs import BlobStore
    from kachery_p2p.store.index import Index

    make_config_dir()
    index = Index(os.path.join(settings.state_dir(), "index.db"))
    store = BlobStore(settings.storage_dir(), index)
    try:
        yield store
    finally:
        store.close()
        index.close()


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
    return any(os.path.exists(path) for path in old_link_paths(settings.storage_dir(), content))
