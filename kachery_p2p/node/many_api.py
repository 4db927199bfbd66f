"""Many files in one call: the operation `load_many`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.errors import (
    DaemonProtocolError,
    KacheryError,
    LoadTimeoutError,
    NotFoundError,
)
from kachery_p2p.limits import (
    LOAD_MANY_FAILED_MAX,
    LOAD_MANY_MAX,
    LOAD_MANY_TEXT_BYTES_MAX,
    PEERS_MAX,
)
from kachery_p2p.node.asked import sources
from kachery_p2p.node.doors import Call
from kachery_p2p.node.parts import NetworkParts, Parts
from kachery_p2p.store.objects import Opened
from kachery_p2p.transfer.batch_wanted import Progress, Running, Wanted
from kachery_p2p.transfer.batches import LoadOne
from kachery_p2p.transfer.only import Only
from kachery_p2p.transfer.progress import FETCHING, View
from kachery_p2p.wire.operations import error_to_map
from kachery_p2p.wire.packed_names import NO_ROOT, unpack

# The object, verified; None if it is not in the store. Raises RootMismatchError.
Local = Callable[[ContentHash, Root | None], Awaitable[Opened | None]]


class ManyApi:
    """`load_many`, on the parts of one node."""

    def __init__(self, parts: Parts, local: Local) -> None:
        self._parts = parts
        self._local = local

    async def load_many(self, call: Call) -> dict[str, Any]:
        """The handler."""
        wanted = _wanted(call.body)
        telling = _Telling(call, len(wanted))
        only = await sources(self._parts, call.body)
        network = await self._parts.network()
        timeout_s = call.body["timeout_s"]
        within_s = float("inf") if timeout_s is None else float(timeout_s)
        load_one = self._load_one(network, only, within_s)
        outcomes = await network.batches.load(wanted, load_one, telling, only, within_s)
        return _told(outcomes)

    def _load_one(self, network: NetworkParts, only: Only, within_s: float) -> LoadOne:
        async def load(wanted: Wanted) -> None:
            content, root = wanted
            opened = await self._local(content, root)
            if opened is None:
                with trio.move_on_after(within_s) as limit:
                    await network.downloads.load(content, root, _unseen, only)
                if limit.cancelled_caught:
                    raise LoadTimeoutError(
                        f"sha1://{content} did not arrive within {within_s:g} s",
                        hint="what arrived is kept: run it again to resume",
                    )
                opened = await self._local(content, root)
            if opened is None:
                raise NotFoundError(
                    f"sha1://{content} was removed from the store while it was loaded"
                )
            opened.close()

        return load


def _wanted(body: dict[str, Any]) -> list[Wanted]:
    contents = unpack(body["contents"], ContentHash.CHARS)
    roots = [NO_ROOT] * len(contents)
    if body["roots"] is not None:
        roots = unpack(body["roots"], Root.CHARS)
    if len(contents) > LOAD_MANY_MAX:
        raise DaemonProtocolError(f"operation load_many: more than {LOAD_MANY_MAX} contents")
    if len(roots) != len(contents):
        raise DaemonProtocolError("operation load_many: there must be as many roots as contents")
    return [
        Wanted(ContentHash(content), None if root == NO_ROOT else Root(root))
        for content, root in zip(contents, roots, strict=True)
    ]


def _unseen(view: View) -> None:
    """How far one of many is, is not shown."""


def many_fields(running: Running, now: float) -> dict[str, Any]:
    """A running load of many as its fields in `status`."""
    rate = running.progress.bytes / max(now - running.began, 0.1)
    return {
        "content": None,
        "root": None,
        **_fields(running.progress, running.files_total),
        "rate": rate,
        "sources": list(running.progress.sources)[:PEERS_MAX],
    }


class _Telling:
    """Tells the client how many files are done."""

    def __init__(self, call: Call, count: int) -> None:
        self._call = call
        self._count = count
        self(Progress(0, 0, ()))

    def __call__(self, progress: Progress) -> None:
        self._progress = progress
        self._call.progress(self._look)

    def _look(self) -> dict[str, Any]:
        names = [] if self._call.guest is not None else list(self._progress.sources)
        return {**_fields(self._progress, self._count), "sources": names}


def _fields(progress: Progress, files_total: int) -> dict[str, Any]:
    return {
        "phase": FETCHING,
        "bytes": progress.bytes,
        "verified": progress.bytes,
        "files": progress.files,
        "files_total": files_total,
    }


def _told(outcomes: list[KacheryError | None]) -> dict[str, Any]:
    failed = [
        {"place": place, **_shortened(error)}
        for place, error in enumerate(outcomes)
        if error is not None
    ]
    answered = len(outcomes)
    if len(failed) > LOAD_MANY_FAILED_MAX:
        answered = failed[LOAD_MANY_FAILED_MAX]["place"]
    return {"answered": answered, "failed": failed[:LOAD_MANY_FAILED_MAX]}


def _shortened(error: KacheryError) -> dict[str, Any]:
    """As errors travel, but so short that a thousand fit one frame."""
    told = error_to_map(error)
    return {
        "name": told["name"],
        "message": _cut(told["message"]),
        "hint": None if told["hint"] is None else _cut(told["hint"]),
    }


def _cut(text: str) -> str:
    return text.encode("utf-8", "replace")[:LOAD_MANY_TEXT_BYTES_MAX].decode("utf-8", "ignore")
