"""Storing copies of many files in one call, with one wish to share them all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kachery_p2p.client.events import ProgressArg
from kachery_p2p.client.files import Channels
from kachery_p2p.client.local import open_store
from kachery_p2p.client.progress import STORING, Reporter
from kachery_p2p.client.storing import (
    Running,
    check_channels,
    label_of,
    open_source,
    running_daemon,
    share_new,
    shares_our_store,
    size_of,
    store_by_daemon,
    uri_of,
)
from kachery_p2p.errors import KacheryError

if TYPE_CHECKING:
    from kachery_p2p.store.blobs import Stored


def store_paths(
    paths: Sequence[str], channels: Channels, progress: ProgressArg = None
) -> list[str | KacheryError]:
    """Store a copy of each file, with one wish to share all; for each its URI, or why not."""
    labels = [label_of(path) for path in paths]
    check_channels(channels)
    running = running_daemon()
    with Reporter(progress, files_total=len(paths)) as reporter:
        if running is not None and not shares_our_store(running):
            return [
                _path_by_daemon(running, path, label, channels, reporter)
                for path, label in zip(paths, labels, strict=True)
            ]
        reporter.begin(STORING, size_of(paths))
        return _store_paths_here(running, paths, labels, channels, reporter)


def _store_paths_here(
    running: Running | None,
    paths: Sequence[str],
    labels: Sequence[str],
    channels: Channels,
    reporter: Reporter,
) -> list[str | KacheryError]:
    outcomes: list[Stored | KacheryError] = []
    with open_store() as store:
        for outcome in store.put_many(paths, reporter.count):
            outcomes.append(outcome)
            reporter.file_done()
        store.flush_index()
    stored = dict.fromkeys(one.content for one in outcomes if not isinstance(one, KacheryError))
    share_new(list(stored), channels, running, reporter)
    return [
        one if isinstance(one, KacheryError) else uri_of(one.content, one.root, one.size, label)
        for one, label in zip(outcomes, labels, strict=True)
    ]


def _path_by_daemon(
    running: Running, path: str, label: str, channels: Channels, reporter: Reporter
) -> str | KacheryError:
    try:
        descriptor = open_source(path)
        try:
            uri = store_by_daemon(running, descriptor, label, channels, reporter)
            reporter.file_done(os.fstat(descriptor).st_size)
            return uri
        finally:
            os.close(descriptor)
    except KacheryError as error:
        return error
