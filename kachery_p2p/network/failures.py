"""Failures between nodes: how they are told, understood, and come out of a nursery as one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import trio

from kachery_p2p.errors import (
    NotYetError,
    PeerBusyError,
    PeerError,
    PeerRefusedError,
    ProtocolError,
    sole_error,
)
from kachery_p2p.wire.messages import BAD_REQUEST, BUSY, FAILED, NOT_YET, REFUSED


@contextlib.contextmanager
def one_error() -> Iterator[None]:
    """Around a nursery: raise what its tasks failed with as one error of ours, not as a group.

    When all of it is being cancelled anyway, how its tasks failed matters to nobody.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        cancelled, others = group.split(trio.Cancelled)
        error = sole_error(others) if others is not None else None
        if error is None:
            raise
        raise cancelled or error from None


def error_of(code: str, text: str) -> PeerError:
    """The error that a peer's failure code stands for; its words go along, printable."""
    if code == REFUSED:
        return PeerRefusedError("does not have it, or may not give it to us")
    if code == NOT_YET:
        return NotYetError("does not have that part yet")
    if code == BUSY:
        return PeerBusyError(text or "is busy")
    if code == BAD_REQUEST:
        return ProtocolError(f"did not understand: {text}")
    return PeerError(f"failed: {text}" if text else "failed")


def code_of(error: PeerError) -> str:
    """How a failure of ours is told to a peer."""
    if isinstance(error, PeerRefusedError):
        return REFUSED
    if isinstance(error, PeerBusyError):
        return BUSY
    if isinstance(error, NotYetError):
        return NOT_YET
    return BAD_REQUEST if isinstance(error, ProtocolError) else FAILED
