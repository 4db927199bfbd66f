"""Many files in one call. One that fails does not stop the others, and is named in the end."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TypeVar

from kachery_p2p.client.files import Channels, PathLike, fetch, find_local
from kachery_p2p.client.origin import ANYWHERE, Origin
from kachery_p2p.content.uris import Uri, parse_uri
from kachery_p2p.errors import (
    KacheryError,
    LoadFilesError,
    StoreFilesError,
    UnsupportedValueError,
)

One = TypeVar("One")


def store_files(paths: Iterable[PathLike], channels: Channels) -> list[str]:
    """Store a copy of each file; their URIs. StoreFilesError if some were not stored."""
    from kachery_p2p.client.storing import store_paths

    names = [os.fspath(path) for path in _several("paths", paths)]
    outcomes = store_paths(names, channels)
    failed = {
        name: one
        for name, one in zip(names, outcomes, strict=True)
        if isinstance(one, KacheryError)
    }
    uris = [None if isinstance(one, KacheryError) else one for one in outcomes]
    if failed:
        message, hint = _told("stored", failed, len(names))
        raise StoreFilesError(message, hint=hint, failed=failed, uris=uris)
    return [uri for uri in uris if uri is not None]


def load_files(uris: Iterable[str], origin: Origin = ANYWHERE) -> list[str]:
    """Paths of files with the contents. LoadFilesError if some could not be had."""
    texts = list(_several("URIs", uris))
    wanted, failed = _parsed(texts)
    if failed:
        # Before anything is fetched: a mistyped one may be noticed hours later otherwise.
        raise _not_loaded(failed, len(texts))
    paths: dict[str, str] = {}
    for find in (find_local, lambda one: fetch(one, origin)):
        for text in wanted:
            try:
                if text not in paths and text not in failed and (path := find(wanted[text])):
                    paths[text] = path
            except KacheryError as error:
                failed[text] = error
    if failed:
        raise _not_loaded(failed, len(texts))
    return [paths[text] for text in texts]


def _parsed(texts: list[str]) -> tuple[dict[str, Uri], dict[str, KacheryError]]:
    wanted: dict[str, Uri] = {}
    failed: dict[str, KacheryError] = {}
    for text in texts:
        try:
            wanted[text] = parse_uri(text)
        except KacheryError as error:
            failed[text] = error
    return wanted, failed


def _not_loaded(failed: Mapping[str, KacheryError], count: int) -> LoadFilesError:
    message, hint = _told("loaded", failed, count)
    return LoadFilesError(message, hint=hint, failed=failed)


def _told(what: str, failed: Mapping[str, KacheryError], count: int) -> tuple[str, str | None]:
    """The sentence about those that failed, which names the first, and what would mend it."""
    name, error = next(iter(failed.items()))
    some = "1 file was" if len(failed) == 1 else f"{len(failed)} files were"
    return f"{some} not {what} (of {count}): {name}: {error}", error.hint


def _several(what: str, given: Iterable[One]) -> Iterable[One]:
    if isinstance(given, str | bytes | os.PathLike):
        raise UnsupportedValueError(f"give a list of {what}, not one")
    return given
