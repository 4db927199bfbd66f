"""Appending to own feeds: by this process itself where it can, else by the daemon.

The first message goes through the daemon, which opens the subfeed, notes its name and lets others
append (`feeds.writers`). From then on this process writes into the same file (`feeds.direct`) and
tells the daemon without waiting for it. Whenever anything is not as usual the daemon is asked
again. Who reaches the daemon over HTTP, or another user's daemon, always asks.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kachery_p2p.client.daemon import short_path
from kachery_p2p.client.surroundings import surroundings
from kachery_p2p.content.hashes import ContentHash, FeedId
from kachery_p2p.errors import (
    ConfigError,
    DaemonBusyError,
    DaemonDownError,
    DaemonError,
    DaemonLeftError,
    DaemonTimeoutError,
)
from kachery_p2p.feeds.direct import DirectLog, NotHere, OpenedAnew
from kachery_p2p.feeds.messages import encoded_entries
from kachery_p2p.feeds.names import subfeed_id
from kachery_p2p.feeds.poke import SOCKET_NAME, encode_poke
from kachery_p2p.limits import FEED_APPENDED_OPEN_MAX, FEED_LOOK_AGAIN_S, FEED_POKE_REST_S


class _Which(NamedTuple):
    """A subfeed below a configuration directory."""

    config_dir: str
    feed: str
    name_hash: str


class _Appended:
    """A subfeed that this process appends to; its files are opened when they are used."""

    def __init__(self, which: _Which) -> None:
        feed, name_hash = FeedId(which.feed), ContentHash(which.name_hash)
        name = subfeed_id(feed, name_hash).hex()
        self.poke = encode_poke(feed, name_hash)
        self.poked_at = 0.0
        self._path = f"{which.config_dir}/feeds/{name[:2]}/{name}"
        self._log: DirectLog | None = None

    def append(self, texts: Sequence[bytes], written: Callable[[], None] | None = None) -> int:
        """The position of the first. `written` and what it raises are those of `DirectLog`."""
        log = self._log
        if log is None:
            log = self._log = DirectLog(self._path)
        entries = encoded_entries(texts, time.time_ns() // 1_000_000)
        try:
            return log.append(entries, written)
        except OpenedAnew:
            # A node with many subfeeds closes those that were not used lately.
            log = self._log = DirectLog(self._path)
            return log.append(entries, written)


# A signal handler may append, whatever it interrupts here.
_lock = threading.RLock()
# Those used last at the end.
_known: OrderedDict[_Which, _Appended] = OrderedDict()


def append(
    feed: str, name_hash: str, texts: Sequence[bytes], ask: Callable[[Sequence[bytes]], int]
) -> int:
    """Append messages, as JSON, that fit one call; the position of the first.

    `ask` has the daemon do it. Raises what either of them does. DaemonLeftError if the daemon went
    away, and DaemonTimeoutError if it is silent, with the messages: it may have appended them, or
    do so yet, and others may have appended the same, so nothing here can tell.
    """
    here = surroundings()
    if not here.is_own_daemon:
        return ask(texts)
    which = _Which(here.config_dir, feed, name_hash)
    known = _known.get(which)
    if known is not None:
        try:
            return known.append(texts, lambda: _tell(which.config_dir, known))
        except NotHere:
            _forget(which)
    try:
        first = ask(texts)
    except DaemonBusyError as busy:
        return _without_daemon(which, texts, busy)
    except (DaemonLeftError, DaemonTimeoutError) as error:
        error.hint = "look whether they are the feed's last messages before you append them again"
        raise
    except DaemonDownError as down:
        return _without_daemon(which, texts, down)
    _remember(which, _Appended(which))
    return first


def _without_daemon(which: _Which, texts: Sequence[bytes], down: DaemonError) -> int:
    """Append where a daemon has let us, since this computer was started."""
    appended = _Appended(which)
    try:
        first = appended.append(texts)
    except NotHere as error:
        raise (error.why or down) from None
    _remember(which, appended)
    return first


def _remember(which: _Which, appended: _Appended) -> None:
    with _lock:
        _known.pop(which, None)
        _known[which] = appended
        while len(_known) > FEED_APPENDED_OPEN_MAX:
            # Its files are closed when nobody uses them any more.
            _known.popitem(last=False)


def _forget(which: _Which) -> None:
    with _lock:
        _known.pop(which, None)


def _forget_all() -> None:
    """In a forked process: what is open is its parent's, and closed by `direct`."""
    global _lock, _line
    _lock = threading.RLock()
    _known.clear()
    # Now, before the program closes all descriptors, as who becomes a daemon does.
    line, _line = _line, None
    if line is not None:
        line.close()


os.register_at_fork(after_in_child=_forget_all)


# --- telling the daemon ---------------------------------------------------------------------------


class _Line:
    """A socket on which this process tells the daemon of a configuration. Safe in any thread."""

    _socket: socket.socket | None = None
    _is_heard = False

    def __init__(self, config_dir: str, now: float) -> None:
        """Connected at once, or not at all."""
        self._config_dir, self._rest_until = config_dir, now + FEED_POKE_REST_S
        try:
            # The first step that fails if the program has no descriptor left.
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            with short_path(config_dir, SOCKET_NAME) as path:
                self._socket.connect(path)
            self._is_heard = True
        except (OSError, ConfigError):
            self.close()

    def __del__(self) -> None:
        self.close()

    def serves(self, config_dir: str, now: float) -> bool:
        """False if it is time to connect anew."""
        return config_dir == self._config_dir and (self._is_heard or now < self._rest_until)

    def send(self, datagram: bytes) -> bool:
        """True if the daemon hears it, and False at once if not."""
        if self._socket is None or not self._is_heard:
            return False
        try:
            self._socket.send(datagram)
        except BlockingIOError:
            return False  # it has enough to hear
        except OSError:
            # Not closed while another thread may be at it: its number would be another file's.
            self._is_heard = False
            return False
        return True

    def close(self) -> None:
        """Close the socket: nobody else has it."""
        connected, self._socket = self._socket, None
        if connected is not None:
            with contextlib.suppress(OSError):
                connected.close()


# Replaced as a whole, so that neither threads nor a signal handler find it half-made.
_line: _Line | None = None


def _tell(config_dir: str, appended: _Appended) -> None:
    """Tell the daemon, if there is one, and if it does not look by itself in a moment.

    The message is written: nothing that fails here may look as if it were not.
    """
    global _line
    now = time.monotonic()
    if now - appended.poked_at < FEED_LOOK_AGAIN_S:
        return
    line = _line
    if line is None or not line.serves(config_dir, now):
        line = _line = _Line(config_dir, now)
    if line.send(appended.poke):
        appended.poked_at = now
