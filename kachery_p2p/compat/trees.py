"""Storing directories as the first kachery could: by MD5, in a sandbox, and of git-annex.

`client.directories` stores a directory in our store, by SHA-1, all files together. What
else kachery could do is here, file by file:

    algorithm="md5"     md5dir://H.label, a list that names files by their MD5
    a sandbox           files and list go into it, and are shared with nobody
    the zone scratch    files and list are removed after some days
    git_annex_mode      links of git-annex stand for what their keys say; .git is left out
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from kachery_p2p.client.source_tree import SourceTree
from kachery_p2p.compat import names
from kachery_p2p.compat.old_stores import hash_of
from kachery_p2p.compat.placing import Place, put_bytes, put_file
from kachery_p2p.content.directories import Directory, FileEntry
from kachery_p2p.content.hashes import ContentHash, Md5
from kachery_p2p.content.schemes import DirectoryUri, format_any
from kachery_p2p.content.uris import check_label
from kachery_p2p.errors import SourceFileError, UnsupportedValueError
from kachery_p2p.limits import DIRECTORY_DEPTH_MAX

_ANNEX_OBJECTS = "/.git/annex/objects/"
LEFT_OUT = (".git", ".datalad")
# BACKEND[E]-sSIZE[-...]--HASH[.extension], as git-annex names contents.
_KEY = re.compile(r"(MD5|SHA1)E?-s(\d{1,19})(?:-[a-zA-Z]\d+)*--([0-9a-f]{32,40})(?:\.[^/]*)?", re.A)


def store_directory(
    dirpath: str, label: str, place: Place, *, md5: bool = False, annex: bool = False
) -> str:
    """The URI of the directory, stored at `place`. Raises as `store_dir`."""
    if annex:
        directory = _stored_annex(os.path.abspath(dirpath), place, 0)
    elif place.sandbox is not None or place.keep_days is not None:
        directory = _stored_tree(dirpath, place)
    else:
        directory = _stored_together(dirpath, label, place)
    if not md5:
        return format_any(DirectoryUri(put_bytes(directory.encode(), place), label))
    data = _by_md5(directory, place).encode()
    content, name = put_bytes(data, place), _md5_of(data)
    names.put(names.MD5, name, content)
    return f"md5dir://{name}.{label}"


def _stored_together(dirpath: str, label: str, place: Place) -> Directory:
    """In our store: all files share the waits for the disk, and one note shares them."""
    from kachery_p2p.client import directory_lists
    from kachery_p2p.client.directories import store_dir

    found = directory_lists.look_up(store_dir(dirpath, label, channels=place.channels))[1]
    assert isinstance(found, Directory), "what was just stored is a directory"
    return found


def _stored_tree(dirpath: str, place: Place) -> Directory:
    """File by file, each where the place says."""
    dirs: dict[tuple[str, ...], dict[str, Directory]] = {}
    with SourceTree(dirpath) as tree:
        stored = zip(tree.paths(), tree.descriptors(), strict=True)
        files = {path: _entry(f"/dev/fd/{opened}", place) for path, opened in stored}
        for path, inside in tree.directories:
            dirs[path] = {}
            here = Directory({name: files[(*path, name)] for name in inside}, dirs[path])
            if path:
                dirs[path[:-1]][path[-1]] = here
            else:
                top = here
    return top


def _entry(path: str, place: Place) -> FileEntry:
    content = put_file(path, place)
    return FileEntry(os.path.getsize(_path_of(content, place)), content)


def _path_of(content: ContentHash, place: Place) -> str:
    """Where what was just stored is. A daemon that has another store says where it lies there.

    Raises NotFoundError if that daemon is gone by now.
    """
    from kachery_p2p.compat.loading import Source, find_content
    from kachery_p2p.content.uris import Uri

    path = find_content(Uri(content), Source(sandbox=place.sandbox))
    assert path is not None, "what is not here is loaded, or an error says why it is not"
    return path


def _by_md5(directory: Directory, place: Place) -> Directory:
    """The same with MD5s; what is stored under each is written down."""
    files = {}
    for name, entry in directory.files.items():
        if isinstance(entry.content, ContentHash):
            # Of the copy: the user may still be writing to the file.
            md5 = Md5(hash_of(_path_of(entry.content, place), "md5"))
            names.put(names.MD5, md5, entry.content)
            entry = FileEntry(entry.size, md5)
        files[name] = entry
    return Directory(files, {name: _by_md5(one, place) for name, one in directory.dirs.items()})


def _md5_of(data: bytes) -> Md5:
    import hashlib

    return Md5(hashlib.md5(data, usedforsecurity=False).hexdigest())


# --- git-annex ----------------------------------------------------------------------------


class AnnexKey(NamedTuple):
    """What git-annex says of a content by its name alone."""

    size: int
    content: ContentHash | Md5


def annex_key(path: str) -> AnnexKey | None:
    """What the link of git-annex at `path` stands for; None if it is none."""
    target = os.path.realpath(path)
    if not os.path.islink(path) or _ANNEX_OBJECTS not in target:
        return None
    found = _KEY.fullmatch(os.path.basename(target))
    kind = {("MD5", 32): Md5, ("SHA1", 40): ContentHash}.get(
        (found[1], len(found[3])) if found else ("", 0)
    )
    if found is None or kind is None:
        raise UnsupportedValueError(
            f"{path} is a link of git-annex that says neither MD5 nor SHA-1",
            hint="`git annex migrate --backend=MD5E`, or store a copy made by `cp -rL`",
        )
    return AnnexKey(int(found[2]), kind(found[3]))


def _stored_annex(path: str, place: Place, depth: int) -> Directory:
    if depth > DIRECTORY_DEPTH_MAX:
        raise UnsupportedValueError(f"{path} is more than {DIRECTORY_DEPTH_MAX} directories deep")
    files: dict[str, FileEntry] = {}
    dirs: dict[str, Directory] = {}
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SourceFileError(f"the directory {path} cannot be read: {reason}") from error
    for entry in entries:
        check_label(entry.name)
        if (key := annex_key(entry.path)) is not None:
            files[entry.name] = FileEntry(*key)
            _link_annexed(os.path.realpath(entry.path), key, place)
        elif entry.is_dir(follow_symlinks=False):
            if entry.name not in LEFT_OUT:
                dirs[entry.name] = _stored_annex(entry.path, place, depth + 1)
        elif entry.is_file(follow_symlinks=False):
            files[entry.name] = _entry(entry.path, place)
        else:
            raise SourceFileError(f"{entry.path} is neither a file nor a link of git-annex")
    return Directory(files, dirs)


def _link_annexed(path: str, key: AnnexKey, place: Place) -> None:
    """Let what git-annex has here be loaded by its hash, from where it lies.

    (kachery took the key's word and stored nothing; its server read the annex.)
    """
    if not os.path.isfile(path):
        return
    content = put_file(path, place._replace(linked=True))
    found = content if isinstance(key.content, ContentHash) else Md5(hash_of(path, "md5"))
    if found != key.content:
        raise SourceFileError(
            f"{path} does not have the bytes of its key", hint="`git annex fsck` mends it"
        )
    if isinstance(found, Md5):
        names.put(names.MD5, found, content)
