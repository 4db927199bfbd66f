"""One commit for all who wait for one."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from kachery_p2p.errors import StorageFailedError
from kachery_p2p.store.common_commits import CommonCommits

WAIT_S = 20


class Slow:
    """A commit that waits until it is let through."""

    def __init__(self) -> None:
        self.commits: list[list[int]] = []
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.failure: Exception | None = None

    def __call__(self, changes: Sequence[int]) -> None:
        self.commits.append(list(changes))
        self.begun.set()
        assert self.may_end.wait(WAIT_S)
        if self.failure is not None:
            raise self.failure


def run_while_committing(slow: Slow, changes: list[list[int]]) -> list[Exception]:
    """The first of the changes is being committed when the others come; what was raised."""
    common = CommonCommits(slow)
    raised: list[Exception] = []

    def make(some: list[int]) -> None:
        try:
            common.make(some)
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=make, args=[some]) for some in changes]
    threads[0].start()
    assert slow.begun.wait(WAIT_S)
    for thread in threads[1:]:
        thread.start()
    while len(common._wishes) < len(changes) - 1:
        threads[1].join(0.001)
    slow.may_end.set()
    for thread in threads:
        thread.join(WAIT_S)
    return raised


def test_who_comes_while_a_commit_is_under_way_shares_the_next() -> None:
    slow = Slow()
    assert run_while_committing(slow, [[1], [2], [3, 4], [5]]) == []
    assert slow.commits[0] == [1]
    assert sorted(slow.commits[1]) == [2, 3, 4, 5]
    assert len(slow.commits) == 2


def test_a_commit_that_fails_fails_for_all_whose_it_was() -> None:
    slow = Slow()
    slow.failure = StorageFailedError("no disk")
    assert run_while_committing(slow, [[1], [2], [3]]) == [slow.failure] * 3


def test_after_a_failure_it_goes_on() -> None:
    made: list[int] = []

    def commit(changes: Sequence[int]) -> None:
        if not made and list(changes) == [1]:
            made.append(0)
            raise StorageFailedError("once")
        made.extend(changes)

    common = CommonCommits(commit)
    with pytest.raises(StorageFailedError):
        common.make([1])
    common.make([1])
    assert made == [0, 1]
