"""The limit of open files that a node gives itself."""

from __future__ import annotations

import resource

import pytest

from kachery_p2p.limits import (
    BULK_CONNECTIONS_MAX,
    DOOR_CONNECTIONS_MAX,
    DOOR_WAITING_MAX,
    OPEN_FILES_WANTED,
    PEERS_MAX,
)
from kachery_p2p.node.open_files import allow_many_open_files

MANY = 1 << 20
NONE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1_024, MANY), (OPEN_FILES_WANTED, MANY)),
        ((1_024, NONE), (OPEN_FILES_WANTED, NONE)),
        ((1_024, 2_048), (2_048, 2_048)),
        ((1_024, 1_024), (1_024, 1_024)),
        ((MANY, MANY), (MANY, MANY)),
        ((NONE, NONE), (NONE, NONE)),
    ],
)
def test_the_limit_is_raised_as_far_as_it_may_be_and_never_lowered(
    before: tuple[int, int], after: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {resource.RLIMIT_NOFILE: before}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    monkeypatch.setattr(resource, "setrlimit", limits.__setitem__)
    allow_many_open_files()
    assert limits[resource.RLIMIT_NOFILE] == after


def test_a_system_that_does_not_let_us_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(which: int, limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, NONE))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    allow_many_open_files()


def test_what_may_be_open_at_once_fits_with_files_to_spare() -> None:
    # Each peer has a control connection; both doors have places, and the Unix door a queue.
    crowd = 2 * DOOR_CONNECTIONS_MAX + DOOR_WAITING_MAX + 2 * PEERS_MAX + BULK_CONNECTIONS_MAX
    assert crowd + 1_024 <= OPEN_FILES_WANTED
