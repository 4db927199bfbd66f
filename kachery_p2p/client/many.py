"""Many files in one call. One that fails does not stop the others, and is named in the end."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from kachery_p2p.client.events import ProgressArg
from kachery_p2p.client.files import (
    Channels,
    PathLike,
    is_directory_uri,
    is_encrypted_uri,
    wanted_by,
)
from kachery_p2p.client.local_files import LocalFiles
from kachery_p2p.client.origin import ANYWHERE, Origin
from kachery_p2p.client.progress import Reporter
from kachery_p2p.content.uris import Uri, parse_uri
from kachery_p2p.errors import (
    KacheryError,
    LoadFilesError,
    StoreFilesError,
    UnsupportedValueError,
)

One = TypeVar("One")


def store_files(
    paths: Iterable[PathLike], channels: Channels, progress: ProgressArg = None
) -> list[str]:
    """Store a copy of each file; their URIs. StoreFilesError if some were not stored."""
    from kachery_p2p.client.storing_many import store_paths

    names = [os.fspath(path) for path in _several("paths", paths)]
    outcomes = store_paths(names, channels, progress)
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


def load_files(
    uris: Iterable[str], origin: Origin = ANYWHERE, progress: ProgressArg = None
) -> list[str]:
    """Paths of files with the contents. LoadFilesError if some could not be had."""
    texts = list(_several("URIs", uris))
    with Reporter(progress, files_total=len(dict.fromkeys(texts))) as reporter:
        return load_each(texts, origin, reporter)


def load_each(texts: Sequence[str], origin: Origin, reporter: Reporter) -> list[str]:
    """`load_files` within a call that has a reporter."""
    failed = _mistyped(texts)
    if failed:
        # Before anything is fetched: a mistyped one may be noticed hours later otherwise.
        raise _not_loaded(failed, len(texts))
    found = outcomes_of(texts, origin, reporter)
    failed = {text: one for text, one in found.items() if isinstance(one, KacheryError)}
    if failed:
        raise _not_loaded(failed, len(texts))
    return [str(found[text]) for text in texts]


def outcomes_of(
    texts: Sequence[str], origin: Origin, reporter: Reporter
) -> dict[str, str | KacheryError]:
    """By URI the path of a file with its content, or why it could not be had."""
    found: dict[str, str | KacheryError] = {}
    wanted: dict[str, Uri] = {}
    in_directories = []
    for text in dict.fromkeys(texts):
        if is_directory_uri(text):
            in_directories.append(text)
            continue
        try:
            wanted[text] = wanted_by(text)
        except KacheryError as error:
            found[text] = error
    missing = _find_all(wanted, found, reporter)
    if in_directories:
        missing |= _in_directories(in_directories, found, origin, reporter)
    if missing:
        from kachery_p2p.client.batches import fetch_many

        fetched = fetch_many(list(missing.values()), origin, reporter, len(found))
        found |= {text: fetched[one] for text, one in missing.items()}
    return _opened(found)


def _opened(found: dict[str, str | KacheryError]) -> dict[str, str | KacheryError]:
    """The same, with paths of what encrypted files open to."""
    for text, path in found.items():
        if isinstance(path, str) and is_encrypted_uri(text):
            from kachery_p2p.client.unsealing import open_fetched

            try:
                found[text] = open_fetched(text, path)
            except KacheryError as error:
                found[text] = error
    return found


def _in_directories(
    texts: list[str], found: dict[str, str | KacheryError], origin: Origin, reporter: Reporter
) -> dict[str, Uri]:
    """The contents of files in directories, as far as they are not stored here."""
    from kachery_p2p.client.directory_lists import files_at

    named = files_at(texts, origin, reporter)
    found |= {text: one for text, one in named.items() if isinstance(one, KacheryError)}
    wanted = {text: one for text, one in named.items() if isinstance(one, Uri)}
    return _find_all(wanted, found, reporter)


def _find_all(
    wanted: dict[str, Uri], found: dict[str, str | KacheryError], reporter: Reporter
) -> dict[str, Uri]:
    """Note in `found` what is stored here; the rest."""
    here = LocalFiles()
    for text, one in wanted.items():
        try:
            path = here.find(one)
        except KacheryError as error:
            found[text] = error
        else:
            if path is not None:
                found[text] = path
                reporter.file_done()
    return {text: one for text, one in wanted.items() if text not in found}


def _mistyped(texts: Sequence[str]) -> dict[str, KacheryError]:
    from kachery_p2p.content.schemes import parse_any

    failed: dict[str, KacheryError] = {}
    for text in texts:
        try:
            if text.startswith("sha1://"):
                parse_uri(text)
            else:
                (parse_any if is_directory_uri(text) or is_encrypted_uri(text) else parse_uri)(text)
        except KacheryError as error:
            failed[text] = error
    return failed


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
