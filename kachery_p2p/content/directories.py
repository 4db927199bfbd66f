"""Directory snapshots: one JSON that names every file in a directory by size and hash.

    {"files": {"a.txt": {"size": 5, "sha1": H}}, "dirs": {"sub": {"files": {}, "dirs": {}}}}

It is stored like any content; `sha1dir://H.label/sub/b.txt` is a path inside the one whose
SHA-1 is H. kachery wrote the entries in whatever order the disk gave them, so a directory
stored twice had two names. We sort them, with files before directories and kachery's
spacing, so that one tree has one name, and read any order. Kachery could also name files
by their MD5; such entries are read too.

An entry of ours has a third key, "root", where the file is larger than one chunk: with it
a part of the file can be verified, and so fetched, without the rest. Older readers pick
the keys that they know. Without it, as in their snapshots, a file is fetched whole.

A snapshot may come from a stranger, and its names may become files: each must pass
`check_label`, and no name may be both a file and a directory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from kachery_p2p.content.hashes import HEX_DIGITS, ContentHash, Md5, Root, quoted
from kachery_p2p.content.manifests import CONTENT_BYTES_MAX
from kachery_p2p.content.strict_json import read_json
from kachery_p2p.content.uris import check_label
from kachery_p2p.errors import DataFormatError, PathNotFoundError, UnsupportedValueError
from kachery_p2p.limits import (
    DIRECTORY_BYTES_MAX,
    DIRECTORY_DEPTH_MAX,
    DIRECTORY_ENTRIES_MAX,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# A directory costs three opening braces and two commas, a file less; names may hold some more.
PARTS_MAX = 6 * DIRECTORY_ENTRIES_MAX + 1024
FILE_KEYS = ({"size", "sha1"}, {"size", "sha1", "root"}, {"size", "md5"})
DIRECTORY_KEYS = {"files", "dirs"}


class FileEntry(NamedTuple):
    """A file in a directory: how many bytes it has, and which."""

    size: int
    content: ContentHash | Md5
    # None for a file of at most one chunk, and where an older package wrote the entry.
    root: Root | None = None


class Directory(NamedTuple):
    """The files and directories in a directory, by their names."""

    files: Mapping[str, FileEntry]
    dirs: Mapping[str, Directory]

    def listing(self) -> list[tuple[str, FileEntry | Directory]]:
        """The names and what they name, as one shows them: directories first, each kind sorted."""
        return [*sorted(self.dirs.items()), *sorted(self.files.items())]

    def entry(self, name: str) -> FileEntry | Directory | None:
        """What has the name directly inside, if anything."""
        return self.dirs.get(name) or self.files.get(name)

    def at(self, path: Sequence[str]) -> FileEntry | Directory:
        """What is at a path inside, the directory itself for an empty one; `PathNotFoundError`."""
        found: FileEntry | Directory = self
        for depth, name in enumerate(path):
            inner = found.entry(name) if isinstance(found, Directory) else None
            if inner is None:
                raise _nothing_at(path, depth, found)
            found = inner
        return found

    def walk(self) -> Iterator[tuple[tuple[str, ...], FileEntry]]:
        """Every file below, with its path; sorted like `listing` at each level."""
        for name, directory in sorted(self.dirs.items()):
            for path, file in directory.walk():
                yield (name, *path), file
        for name, file in sorted(self.files.items()):
            yield (name,), file

    def walk_directories(self) -> Iterator[tuple[str, ...]]:
        """The path of every directory below, each after the one that it is in."""
        for name, directory in sorted(self.dirs.items()):
            yield (name,)
            for path in directory.walk_directories():
                yield (name, *path)

    def record(self) -> dict[str, Any]:
        """The same as plain dicts: what the snapshot says once it is read as JSON."""
        dirs = {name: inner.record() for name, inner in sorted(self.dirs.items())}
        files = {name: _file_record(file) for name, file in sorted(self.files.items())}
        return {"files": files, "dirs": dirs}

    def encode(self) -> bytes:
        """The bytes of the snapshot. Equal trees give equal bytes, which `decode` reads back."""
        import json

        _check(self, UnsupportedValueError)
        data = json.dumps(self.record()).encode("ascii")
        if len(data) > DIRECTORY_BYTES_MAX:
            raise UnsupportedValueError(
                f"the directory's list has {len(data)} bytes, more than {DIRECTORY_BYTES_MAX}",
                hint="store the directories inside it one by one",
            )
        return data

    @classmethod
    def decode(cls, data: bytes) -> Directory:
        """The directory that `data` spells, in any order and spacing, or `DataFormatError`.

        `InvalidNameError` if a name in it is not one that a file can have.
        """
        record = read_json(
            data,
            "the directory's list",
            bytes_max=DIRECTORY_BYTES_MAX,
            parts_max=PARTS_MAX,
            record=_file_or_record,
        )
        directory = _directory(record, 0)
        _check(directory, DataFormatError)
        return directory


def _nothing_at(path: Sequence[str], depth: int, found: FileEntry | Directory) -> PathNotFoundError:
    above = "/".join(path[:depth])
    where = f"in {quoted(above)}" if above else "in the directory"
    if isinstance(found, FileEntry):
        return PathNotFoundError(f"{quoted(above)} is a file, so nothing is {where}")
    return PathNotFoundError(
        f"there is no {quoted(path[depth])} {where}", hint=_hint_for(path[depth], found)
    )


def _hint_for(name: str, directory: Directory) -> str | None:
    """The name that was meant, if one differs only in upper and lower case."""
    for known, _ in directory.listing():
        if known.casefold() == name.casefold():
            return f"did you mean {quoted(known)}"
    return None


# --- writing and checking -----------------------------------------------------------------


def _file_record(file: FileEntry) -> dict[str, Any]:
    record: dict[str, Any] = {"size": file.size}
    record["md5" if isinstance(file.content, Md5) else "sha1"] = file.content
    if file.root is not None:
        record["root"] = file.root
    return record


def _check(root: Directory, error: type[DataFormatError | UnsupportedValueError]) -> None:
    """Refuse trees too large or too deep, names that are no names, and sizes that are no sizes."""
    level, entries = [root], 0
    for _ in range(DIRECTORY_DEPTH_MAX + 1):
        entries += sum(len(directory.files) + len(directory.dirs) for directory in level)
        if entries > DIRECTORY_ENTRIES_MAX:
            raise error(f"the directory has more than {DIRECTORY_ENTRIES_MAX} entries")
        for directory in level:
            _check_entries(directory, error)
        level = [inner for directory in level for inner in directory.dirs.values()]
        if not level:
            return
    raise error(f"the directory has more than {DIRECTORY_DEPTH_MAX} directories below each other")


def _check_entries(
    directory: Directory, error: type[DataFormatError | UnsupportedValueError]
) -> None:
    for name in directory.dirs:
        check_label(name)
        if name in directory.files:
            raise error(f"the directory has a file and a directory with the name {quoted(name)}")
    for name, file in directory.files.items():
        check_label(name)
        if not 0 <= file.size <= CONTENT_BYTES_MAX:
            raise error(f"the file {quoted(name)} is said to have {file.size} bytes")
        if file.root is not None and isinstance(file.content, Md5):
            raise error(f"the file {quoted(name)} has a root, but no sha1")


# --- reading ------------------------------------------------------------------------------


def _file_or_record(record: dict[str, Any]) -> FileEntry | dict[str, Any]:
    """A file's keys as an entry at once, to save memory; any other object as it is.

    Directories that hold files named "size" and "sha1" are no entry: their values are objects.
    """
    if record.keys() not in FILE_KEYS or type(record["size"]) is not int:
        return record
    if "md5" in record:
        return FileEntry(record["size"], Md5(_hex(record["md5"], Md5)))
    content = ContentHash(_hex(record["sha1"], ContentHash))
    root = Root(_hex(record["root"], Root)) if "root" in record else None
    return FileEntry(record["size"], content, root)


def _hex(text: Any, kind: type[ContentHash | Md5 | Root]) -> str:
    if type(text) is not str or len(text) != kind.CHARS or text.strip(HEX_DIGITS):
        raise DataFormatError(f"the directory's list has a {kind.KIND} that is none")
    return text


def _directory(record: Any, depth: int) -> Directory:
    if type(record) is not dict or record.keys() != DIRECTORY_KEYS:
        raise DataFormatError("a directory does not have the keys files and dirs")
    if depth > DIRECTORY_DEPTH_MAX:
        raise DataFormatError(
            f"the directory has more than {DIRECTORY_DEPTH_MAX} directories below each other"
        )
    files, dirs = record["files"], record["dirs"]
    if type(files) is not dict or type(dirs) is not dict:
        raise DataFormatError("the files or dirs of a directory are not named")
    for name, file in files.items():
        if type(file) is not FileEntry:
            raise DataFormatError(f"the file {quoted(name)} does not have a size and a hash")
    return Directory(files, {name: _directory(inner, depth + 1) for name, inner in dirs.items()})
