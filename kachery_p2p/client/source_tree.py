"""A directory of the user's that is to be stored: what is in it, and its files, opened.

What a list of a directory cannot say is refused before anything is stored: symbolic
links (what they point to may lie outside, or be the directory itself), pipes, sockets,
devices, and names that would be refused when the directory is loaded.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from kachery_p2p.client import settings
from kachery_p2p.client.descent import Descent, Path
from kachery_p2p.client.wording import printable
from kachery_p2p.content.uris import check_label
from kachery_p2p.errors import (
    InvalidNameError,
    SourceChangedError,
    SourceFileError,
    UnsupportedValueError,
)
from kachery_p2p.limits import DIRECTORY_DEPTH_MAX, DIRECTORY_ENTRIES_MAX, GROUP_OBJECTS_MIN

if TYPE_CHECKING:
    from typing import Self

_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
# What opening says when something else has the name by now.
_REPLACED = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO))


class Listed(NamedTuple):
    """A directory in the tree, with the names of the files in it, sorted."""

    path: Path
    names: list[str]


class SourceTree:
    """The directory at `top` as it was found when this was made; a context manager.

    Raises SourceFileError, InvalidNameError or UnsupportedValueError for what cannot be
    stored, naming its path.
    """

    def __init__(self, top: str) -> None:
        self._top = top
        # Each directory after the one that it is in.
        self.directories: list[Listed] = []
        # Of all files together, as they were then.
        self.size = 0
        self._recent: deque[int] = deque()
        try:
            self._descent = Descent(top)
        except (OSError, ValueError) as error:
            raise self._unreadable((), error) from error
        try:
            self._look()
        except BaseException:
            self._descent.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._recent:
            os.close(self._recent.popleft())
        self._descent.close()

    def paths(self) -> Iterator[Path]:
        """The path of each file, in the order of `descriptors`."""
        for path, names in self.directories:
            for name in names:
                yield (*path, name)

    @property
    def count(self) -> int:
        """How many files there are."""
        return sum(len(names) for _, names in self.directories)

    def shown(self, path: Path) -> str:
        """What a person calls the file or directory at `path`, fit for an error message."""
        return printable(os.path.join(self._top, *path))

    def descriptors(self) -> Iterator[int]:
        """Each file, opened; closed when GROUP_OBJECTS_MIN more were opened, or at the end.

        Raises SourceChangedError for one that is no file any more.
        """
        for path, names in self.directories:
            directory = self._enter(path)
            for name in names:
                if len(self._recent) >= GROUP_OBJECTS_MIN:
                    os.close(self._recent.popleft())
                self._recent.append(self._opened(directory, path, name))
                yield self._recent[-1]

    def _opened(self, directory: int, path: Path, name: str) -> int:
        try:
            descriptor = os.open(name, _FILE, dir_fd=directory)
        except OSError as error:
            raise self._unreadable((*path, name), error) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise self._replaced((*path, name))
        return descriptor

    # --- looking ------------------------------------------------------------------------

    def _look(self) -> None:
        own = _own_directories()
        waiting: list[Path] = [()]
        seen = 0
        while waiting:
            path = waiting.pop()
            directory = self._enter(path)
            if (place := _place_of(os.fstat(directory))) in own:
                raise SourceFileError(
                    f"{self.shown(path)} is kachery-p2p's own {own[place]}",
                    hint="store the directories beside it one by one",
                )
            names, inner = self._contents(directory, path, DIRECTORY_ENTRIES_MAX - seen)
            seen += len(names) + len(inner)
            self.directories.append(Listed(path, names))
            waiting.extend((*path, name) for name in reversed(inner))

    def _contents(self, directory: int, path: Path, most: int) -> tuple[list[str], list[str]]:
        """The names of the files, and of the directories, that are directly in there; sorted."""
        names: list[str] = []
        inner: list[str] = []
        for name in sorted(self._listed(directory, path, most)):
            inside = (*path, name)
            (inner if self._is_directory(directory, inside) else names).append(name)
        return names, inner

    def _listed(self, directory: int, path: Path, most: int) -> list[str]:
        found: list[str] = []
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    found.append(entry.name)
                    if len(found) > most:
                        raise UnsupportedValueError(
                            f"{printable(self._top)} has more than {DIRECTORY_ENTRIES_MAX} entries",
                            hint="store the directories inside it one by one",
                        )
        except OSError as error:
            raise self._unreadable(path, error) from error
        return found

    def _is_directory(self, above: int, path: Path) -> bool:
        """Whether it is one, not a file. Raises for anything that is neither."""
        self._check_name(path)
        try:
            status = os.stat(path[-1], dir_fd=above, follow_symlinks=False)
        except OSError as error:
            raise self._unreadable(path, error) from error
        if stat.S_ISDIR(status.st_mode):
            if len(path) > DIRECTORY_DEPTH_MAX:
                raise UnsupportedValueError(
                    f"{self.shown(path)} is more than {DIRECTORY_DEPTH_MAX} directories deep",
                    hint="store the directories inside one by one",
                )
            return True
        if stat.S_ISLNK(status.st_mode):
            raise SourceFileError(
                f"{self.shown(path)} is a symbolic link, which is not stored",
                hint="`find DIR -type l` lists all; `cp -rL` copies a directory with what its"
                " links point to",
            )
        if not stat.S_ISREG(status.st_mode):
            raise SourceFileError(
                f"{self.shown(path)} is not a regular file but a pipe, socket or device",
                hint="move it elsewhere",
            )
        if not os.access(path[-1], os.R_OK, dir_fd=above):
            raise self._unreadable(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
        self.size += status.st_size
        return False

    def _check_name(self, path: Path) -> None:
        try:
            check_label(path[-1])
        except InvalidNameError as error:
            raise InvalidNameError(
                f"{self.shown(path)} cannot be stored: {error}", hint="rename it"
            ) from error

    def _enter(self, path: Path) -> int:
        try:
            return self._descent.enter(path)
        except OSError as error:
            raise self._unreadable(path, error) from error

    def _unreadable(
        self, path: Path, error: OSError | ValueError
    ) -> SourceFileError | SourceChangedError:
        if isinstance(error, OSError) and error.errno in _REPLACED and path:
            return self._replaced(path)
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        return SourceFileError(
            f"{self.shown(path)} cannot be read: {reason}",
            hint="check the path and its permissions",
        )

    def _replaced(self, path: Path) -> SourceChangedError:
        return SourceChangedError(
            f"{self.shown(path)} was removed or replaced while its directory was being stored",
            hint="store it again when nobody changes it",
        )


def _own_directories() -> dict[tuple[int, int], str]:
    """Where our own store and keys are: to store those would share keys, and never end."""
    own: dict[tuple[int, int], str] = {}
    for path, what in (
        (settings.storage_dir(), "store directory"),
        (settings.node_storage_dir(), "store directory"),
        (settings.config_dir(), "configuration directory, with its keys"),
    ):
        with contextlib.suppress(OSError):
            own[_place_of(os.stat(path))] = what
    return own


def _place_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
