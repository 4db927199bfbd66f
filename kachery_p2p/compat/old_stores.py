"""What the older packages stored in directories of their own, read where it lies.

    DIR/sha1/aa/bb/cc/H                 all of them; and DIR/md5/aa/bb/cc/H of kachery
    DIR/a/bc/H                          the first kachery, SHA1_CACHE_DIR and MD5_CACHE_DIR
    DIR/ipfs/xx/yy/zz/CID               the first kachery-cloud, by the last six characters
    DIR/linked_files/sha1/aa/bb/cc/H    kachery-cloud and kachery 2, files that were linked
    DIR/sha1/aa/bb/cc/H.link            kachery-p2p and kachery-client, the same
    DIR/sha1/aa/bb/cc/H.hints.json      the first kachery, files that it had hashed; md5/ likewise

Nothing here is ever written or changed. Directories are trusted as the store is, but what a
link names is read first: the file may have been changed since.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from kachery_p2p.client import settings
from kachery_p2p.compat import systems
from kachery_p2p.compat.warned import warn
from kachery_p2p.content.hashes import Cid, ContentHash, Md5
from kachery_p2p.limits import OLD_FILES_KNOWN_MAX
from kachery_p2p.store.paths import blob_path
from kachery_p2p.store.sources import unsettled_s

if TYPE_CHECKING:
    from kachery_p2p.store.old_links import OldLink


def find(content: ContentHash) -> str | None:
    """The path of a content that an older package stored, or of a file linked as it."""
    for path in _sha1_paths(content):
        if os.path.isfile(path):
            return path
    from kachery_p2p.store.old_links import old_hints, old_links

    for directory in systems.extra_stores():
        found = _linked(old_links(directory, content), content)
        if found is not None:
            return found
    for directory in systems.hash_directories("sha1"):
        for path in _in_hash_directory(directory, content):
            found = _linked(old_hints(f"{path}.hints.json", "sha1", content), content)
            if found is not None:
                return found
    return None


def find_md5(md5: Md5) -> str | None:
    """The path of a content that the first kachery stored, or noted, by its MD5."""
    from kachery_p2p.store.old_links import old_hints

    paths = [
        f"{directory}/md5/{md5[:2]}/{md5[2:4]}/{md5[4:6]}/{md5}"
        for directory in (settings.storage_dir(), *systems.extra_stores())
    ]
    for directory in systems.hash_directories("md5"):
        paths += _in_hash_directory(directory, md5)
    for path in paths:
        if os.path.isfile(path):
            return path
        for hint in old_hints(f"{path}.hints.json", "md5", md5):
            if _has_size(hint) and hash_of(hint.path, "md5") == md5:
                return hint.path
    return None


def find_cid(cid: Cid) -> str | None:
    """The path of a content that the first kachery-cloud had loaded by its CID."""
    last = cid[-6:]
    for directory in systems.extra_stores():
        path = f"{directory}/ipfs/{last[:2]}/{last[2:4]}/{last[4:]}/{cid}"
        if os.path.isfile(path):
            return path
    return None


def is_file_of(path: str, content: ContentHash) -> bool:
    """Whether the file has the bytes; read at most once for as long as it is not changed."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    if not os.path.isfile(path):
        return False
    # Whoever may write the file may set the first time, but not the second.
    times = status.st_mtime_ns, status.st_ctime_ns
    state = (path, status.st_dev, status.st_ino, status.st_size, times)
    found = _known.get(state)
    if found is None:
        found = hash_of(path)
        if not unsettled_s(status):
            if len(_known) >= OLD_FILES_KNOWN_MAX:
                _known.clear()
            _known[state] = found
    return found == content


def hash_of(path: str, algorithm: str = "sha1") -> str:
    """The hash of a file, as hex."""
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(
            file, lambda: hashlib.new(algorithm, usedforsecurity=False)
        ).hexdigest()


_known: dict[tuple[str, int, int, int, tuple[int, int]], str] = {}


def _sha1_paths(content: ContentHash) -> Iterator[str]:
    for directory in systems.extra_stores():
        yield blob_path(directory, content)
    for directory in systems.hash_directories("sha1"):
        yield from _in_hash_directory(directory, content)


def _in_hash_directory(directory: str, name: str) -> list[str]:
    """The two ways in which the first kachery laid out a directory of one kind of hashes."""
    return [
        f"{directory}/{name[:2]}/{name[2:4]}/{name[4:6]}/{name}",
        f"{directory}/{name[0]}/{name[1:3]}/{name}",
    ]


def _has_size(link: OldLink) -> bool:
    return os.path.isfile(link.path) and os.path.getsize(link.path) == link.size


def _linked(links: Iterable[OldLink], content: ContentHash) -> str | None:
    for link in links:
        if not os.path.exists(link.path):
            continue
        if _has_size(link) and is_file_of(link.path, content):
            return link.path
        warn(f"{link.path} was linked as sha1://{content}, and has other bytes now")
    return None
