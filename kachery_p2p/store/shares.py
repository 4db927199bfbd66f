"""shares.log: what a client wants shared, written down while no daemon runs.

CONFIG/shares.log, 0600, one JSON object a line; appended and fsynced under a lock, so
that a stored file which was to be shared is shared by the next daemon even after a
power cut. The daemon empties the file when the grants are durable elsewhere. A line
that cannot be read (torn by a crash) is kept in shares.log.bad, and never in the way.
"""

from __future__ import annotations

import fcntl
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from kachery_p2p.content.hashes import HEX_DIGITS, ContentHash
from kachery_p2p.errors import ConfigError, UriError
from kachery_p2p.limits import CHANNELS_MAX
from kachery_p2p.store.durable import storage_error, sync_directory, writing_to

log = logging.getLogger(__name__)

# Shares are handed over this many at a time, however long the file has become.
BATCH_MAX = 4_096
# A share with the most channels has 64 x 67 characters of ids.
LINE_BYTES_MAX = 8_192
WHY_CHARS_MAX = 64


class Share(NamedTuple):
    """One wish: share `content` in these channels (ids); None = in none yet, pending."""

    content: ContentHash
    channels: tuple[str, ...] | None
    why: str
    time: float


class Taken(NamedTuple):
    """What became of a shares.log: how many shares were taken, how many lines were unreadable."""

    shares: int
    unreadable: int


def shares_path(config_dir: str) -> str:
    """Where the shares of a configuration wait for its daemon."""
    return f"{config_dir}/shares.log"


def append_share(
    config_dir: str, content: str, channels: Sequence[str] | None, why: str, time: float
) -> None:
    """Write down one share; on disk when it returns."""
    append_contents(config_dir, [content], channels, why, time)


def append_contents(
    config_dir: str,
    contents: Sequence[str],
    channels: Sequence[str] | None,
    why: str,
    time: float,
) -> None:
    """Write down one wish about many contents with one fsync; on disk when it returns."""
    listed = None if channels is None else tuple(channels)
    wish = _wish(listed, why[:WHY_CHARS_MAX], time)
    if len(contents) == 1:
        _append_lines(config_dir, _line(contents[0], wish))
    else:
        _append_lines(config_dir, "".join([_line(content, wish) for content in contents]))


def append_shares(config_dir: str, shares: Sequence[Share]) -> None:
    """Write down many shares with one fsync; on disk when it returns."""
    lines = (
        _line(share.content, _wish(share.channels, share.why[:WHY_CHARS_MAX], share.time))
        for share in shares
    )
    _append_lines(config_dir, "".join(lines))


def _append_lines(config_dir: str, lines: str) -> None:
    text = lines.encode()
    try:
        with _Locked(shares_path(config_dir)) as file:
            # A line torn by a crash must not swallow the first of ours.
            torn = file.size > 0 and os.pread(file.fd, 1, file.size - 1) != b"\n"
            _append(file.fd, b"\n" + text if torn else text)
    except OSError as error:
        raise storage_error(error, config_dir) from error


def take_shares(config_dir: str, keep: Callable[[list[Share]], None]) -> Taken:
    """Hand every share to `keep`, in batches, then empty the file.

    `keep` makes them durable before it returns. If it raises, or we are killed, the
    file stays, and the same shares come again: granting twice is granting once.
    """
    if not os.path.lexists(shares_path(config_dir)):
        return Taken(0, 0)
    with writing_to(config_dir), _Locked(shares_path(config_dir)) as file:
        taken = unreadable = 0
        batch: list[Share] = []
        for line in _lines(file.fd):
            share = _parse(line)
            if share is None:
                unreadable += 1
                _set_aside(config_dir, line)
                continue
            batch.append(share)
            taken += 1
            if len(batch) == BATCH_MAX:
                keep(batch)
                batch = []
        if batch:
            keep(batch)
        os.ftruncate(file.fd, 0)
        os.fsync(file.fd)
    return Taken(taken, unreadable)


def _line(content: str, wish: str) -> str:
    # Hex digits need no escaping.
    return f'{{"content":"{content}",{wish}}}\n'


def _wish(channels: tuple[str, ...] | None, why: str, time: float) -> str:
    return f'{_where_and_why(channels, why)},"time":{float(time)!r}'


@functools.lru_cache(maxsize=16)
def _where_and_why(channels: tuple[str, ...] | None, why: str) -> str:
    """The same for one value after the other."""
    import json

    return json.dumps({"channels": channels, "why": why}, separators=(",", ":"))[1:-1]


def _parse(line: bytes) -> Share | None:
    import json

    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return _share(fields) if isinstance(fields, dict) else None


def _share(fields: dict[str, Any]) -> Share | None:
    content, channels = fields.get("content"), fields.get("channels")
    why, time = fields.get("why"), fields.get("time")
    if not isinstance(content, str) or not isinstance(time, int | float):
        return None
    if not isinstance(why, str) or not why.isprintable() or not _are_ids(channels):
        return None
    try:
        parsed, seconds = ContentHash.parse(content), float(time)
    except (UriError, OverflowError):
        return None
    listed = None if channels is None else tuple(channels)
    # Neither NaN nor infinity is a time, and a database would choke on the first.
    return Share(parsed, listed, why[:WHY_CHARS_MAX], seconds) if abs(seconds) < 1e12 else None


def _are_ids(channels: object) -> bool:
    if channels is None:
        return True
    return (
        isinstance(channels, list)
        and len(channels) <= CHANNELS_MAX
        and all(
            isinstance(id, str) and len(id) == 64 and not id.strip(HEX_DIGITS) for id in channels
        )
    )


def _lines(fd: int) -> Iterator[bytes]:
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        # What is longer than a line can be comes in pieces, each unreadable.
        while line := file.readline(LINE_BYTES_MAX):
            if line.strip():
                yield line


def _set_aside(config_dir: str, line: bytes) -> None:
    path = f"{shares_path(config_dir)}.bad"
    log.warning("a line of %s is unreadable: kept in %s", shares_path(config_dir), path)
    fd = os.open(path, _FLAGS, 0o600)
    try:
        _append(fd, line if line.endswith(b"\n") else line + b"\n")
    finally:
        os.close(fd)


_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class _Locked:
    """Our file at `path`, open and of this `size`, which nobody else has meanwhile."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.fd = -1
        self.size = 0

    def __enter__(self) -> _Locked:
        try:
            self.fd, new = os.open(self._path, _FLAGS & ~os.O_CREAT), False
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self._path), 0o700, exist_ok=True)
            self.fd, new = os.open(self._path, _FLAGS, 0o600), True
        try:
            self._lock(new)
        except BaseException:
            os.close(self.fd)
            raise
        return self

    def _lock(self, new: bool) -> None:
        fcntl.flock(self.fd, fcntl.LOCK_EX)
        status = os.fstat(self.fd)
        self.size = status.st_size
        if status.st_uid != os.geteuid():
            raise ConfigError(
                f"{self._path} belongs to another user",
                hint="use a configuration directory of your own",
            )
        if new:
            sync_directory(os.path.dirname(self._path))

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def _append(fd: int, data: bytes) -> None:
    while data:
        written = os.write(fd, data)
        if written == len(data):
            break
        data = data[written:]
    os.fsync(fd)
