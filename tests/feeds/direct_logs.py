"""For the tests of programs that append: what the node does with it, and what the files say."""

from __future__ import annotations

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


def refused(log: DirectLog) -> KacheryError | None:
    """Why nothing is appended."""
    with pytest.raises(NotHere) as caught:
        log.append(messages(1))
    return caught.value.why
