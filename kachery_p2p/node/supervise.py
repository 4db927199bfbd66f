"""Keeping the parts of a node at work: one that fails is started again, or takes the node down."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from kachery_p2p.errors import DaemonError, KacheryError, sole_error
from kachery_p2p.limits import RESTART_S_MAX, RESTART_S_MIN, RESTARTS_MAX
from kachery_p2p.node.parts import Parts

log = logging.getLogger(__name__)


async def supervise(
    parts: Parts, name: str, work: Callable[..., Awaitable[None]], *arguments: object
) -> None:
    """Run `work` for ever, again after a failure; too many failures take the node down."""
    failures: list[float] = []
    while True:
        try:
            await work(*arguments)
            return
        except Exception as failure:
            error = _reason(failure)
            # What is a mistake of ours is to be found; the rest says all there is to say.
            is_known = isinstance(error, KacheryError)
            log.error("%s failed: %s", name, error, exc_info=None if is_known else failure)
            now = trio.current_time()
            failures = [at for at in failures if now - at < RESTART_S_MAX * RESTARTS_MAX] + [now]
            if len(failures) > RESTARTS_MAX:
                raise DaemonError(
                    f"{name} failed {len(failures)} times, last: {error}",
                    hint="the daemon's log tells more",
                ) from error
            parts.problems[name] = f"{name} failed and was started again: {error}"
            await trio.sleep(min(RESTART_S_MAX, RESTART_S_MIN * 2 ** len(failures)))


def _reason(failure: Exception) -> Exception:
    """What people should read: not "1 sub-exception", if it is one error of ours."""
    if isinstance(failure, ExceptionGroup):
        return sole_error(failure) or failure
    return failure
