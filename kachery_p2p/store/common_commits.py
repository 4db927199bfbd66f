"""One commit for all who wait for one: of many clients at once each waits for one sync or two.

Whoever comes while a commit is under way waits for its end; the first of them then commits
for all who have come by then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

One = TypeVar("One")


class _Wish(Generic[One]):
    def __init__(self, changes: Sequence[One]) -> None:
        self.changes = changes
        self.is_made = False
        self.failure: BaseException | None = None


class CommonCommits(Generic[One]):
    """Makes changes with `commit`, which is called by one thread at a time."""

    def __init__(self, commit: Callable[[Sequence[One]], None]) -> None:
        self._commit = commit
        self._committing = threading.Lock()
        self._queue = threading.Lock()
        self._wishes: list[_Wish[One]] = []

    def make(self, changes: Sequence[One]) -> None:
        """Committed when it returns; raises what the commit raised, to all whose it was."""
        wish = _Wish(changes)
        with self._queue:
            self._wishes.append(wish)
        with self._committing:
            if not wish.is_made:
                self._make_all()
        if wish.failure is not None:
            raise wish.failure

    def _make_all(self) -> None:
        with self._queue:
            wishes, self._wishes = self._wishes, []
        failure: BaseException | None = None
        try:
            self._commit([change for wish in wishes for change in wish.changes])
        except BaseException as error:  # even a Ctrl-C: whoever waits must not take it for made
            failure = error
        for wish in wishes:
            wish.is_made, wish.failure = True, failure
