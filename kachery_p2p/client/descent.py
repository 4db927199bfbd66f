"""Ways down into a directory that cannot lead out of it.

Every name is opened in its open parent, and no symbolic link is followed. So whoever
renames directories or plants links while we work cannot send us elsewhere.
"""

from __future__ import annotations

import contextlib
import os

from kachery_p2p.content.uris import check_label

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

Path = tuple[str, ...]


class Descent:
    """Descriptors of the directories below `top`, one way at a time, until `close`.

    Those on the way to the last one stay open, so visiting a tree in order opens each once.
    """

    def __init__(self, top: str) -> None:
        # The top itself was named by the user, and may be reached through links.
        self.top_fd = os.open(top, _DIRECTORY)
        self._way: list[tuple[str, int]] = []

    def close(self) -> None:
        """Close all that is open."""
        self._back_to(0)
        os.close(self.top_fd)

    def enter(self, path: Path, *, make: bool = False) -> int:
        """A descriptor of the directory at `path`, good until the next call; ours to close.

        `make` makes what is missing. Raises OSError; InvalidNameError for what is no name.
        """
        known = 0
        while known < min(len(path), len(self._way)) and self._way[known][0] == path[known]:
            known += 1
        self._back_to(known)
        for name in path[known:]:
            # Whatever was checked before: a name with a slash would lead elsewhere.
            check_label(name)
            self._way.append((name, _opened(name, self._deepest, make)))
        return self._deepest

    @property
    def _deepest(self) -> int:
        return self._way[-1][1] if self._way else self.top_fd

    def _back_to(self, depth: int) -> None:
        while len(self._way) > depth:
            os.close(self._way.pop()[1])


def _opened(name: str, above: int, make: bool) -> int:
    if make:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=above)
    return os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
