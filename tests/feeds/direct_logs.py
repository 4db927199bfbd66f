"""For the tests of programs that append: what the node does with it, and what the files say."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from kachery_p2p.errors import KacheryError
from kachery_p2p.feeds.direct import DirectLog, NotHere
from kachery_p2p.feeds.log_file import LogFile
from kachery_p2p.feeds.writers import Shared
from tests.feeds.feed_logs import path_of
from tests.feeds.feed_parts import messages


def take_in(own: LogFile) -> list[bytes]:
    """What the node takes in until there is nothing left."""
    found: list[bytes] = []
    while taken := own.absorb()[1]:
        found += taken
    return found


def said(own: LogFile) -> Shared:
    shared = Shared.decode(path_of(own, "writers").read_bytes())
    assert shared is not None
    return shared


def length(own: LogFile) -> int:
    """How long the file of the entries is, with its room."""
    return path_of(own, "entries").stat().st_size


def put(own: LogFile, data: bytes, at: int | None = None) -> None:
    """Write behind the last record, or elsewhere, as one who does not say so."""
    with path_of(own, "entries").open("r+b") as file:
        file.seek(said(own).end if at is None else at)
        file.write(data)


def refused(log: DirectLog) -> KacheryError | None:
    """Why nothing is appended."""
    with pytest.raises(NotHere) as caught:
        log.append(messages(1))
    return caught.value.why


def failing(name: str, code: int, about: str = "entries") -> Callable[..., Any]:
    """A call of the system that fails with the file called so; a write fails half-way."""
    really = getattr(os, name)

    def call(fd: int, *args: Any) -> Any:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(about):
            if name == "pwrite":
                really(fd, bytes(args[0])[:7], args[1])
            raise OSError(code, os.strerror(code))
        return really(fd, *args)

    return call
