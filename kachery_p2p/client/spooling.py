"""Bytes as a nameless file, which is how they travel to a daemon that has another store."""

from __future__ import annotations

import os
from collections.abc import Iterable

from kachery_p2p.client import settings


def spooled(pieces: Iterable[bytes]) -> int:
    """A descriptor of a file with the pieces, one after the other; the caller closes it."""
    import tempfile

    from kachery_p2p.store.durable import writing_to

    place = settings.temp_dir() or tempfile.gettempdir()
    with writing_to(place), tempfile.TemporaryFile(dir=place) as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        return os.dup(file.fileno())
