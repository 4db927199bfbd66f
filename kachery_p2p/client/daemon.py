"""Speaking with the daemon from blocking code: which one, and over its Unix socket.

Synchronous sockets only, so it works in a notebook (whose event loop is running), in
threads and in forked workers: a connection belongs to the thread and the process that
opened it, and any other opens its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from kachery_p2p.client import settings
from kachery_p2p.errors import (
    ConfigError,
    DaemonAuthError,
    DaemonBusyError,
    DaemonDownError,
    DaemonLeftError,
    DaemonProtocolError,
    DaemonTimeoutError,
    KacheryError,
    ProtocolError,
)
from kachery_p2p.limits import CALL_S_MAX
from kachery_p2p.wire.operations import (
    DOOR_VERSION,
    OPERATIONS,
    check_progress,
    check_result,
    error_from_map,
)

if TYPE_CHECKING:
    from kachery_p2p.client.http_daemon import HttpDaemon

SOCKET_NAME = "daemon.sock"
# struct sockaddr_un leaves 108 bytes on Linux and 104 on macOS, the final zero included.
PATH_BYTES_MAX = 107 if sys.platform == "linux" else 103
RECEIVE_BYTES = 1 << 16
START_HINT = "start one with `kachery-p2p start --channel NAME`"

Progress = Callable[[dict[str, Any]], None]
Reply = tuple[dict[str, Any], int | None]


# Both are called alike: `call` of UnixDaemon says how.
Daemon: TypeAlias = "UnixDaemon | HttpDaemon"


def connect() -> Daemon:
    """The daemon that the environment names; whether it is running shows at the first call.

    DaemonDownError if the environment says that none shall be asked.
    """
    if settings.is_offline():
        raise DaemonDownError(
            "KACHERY_OFFLINE_STORAGE_DIR is set, so no daemon is asked",
            hint="unset KACHERY_OFFLINE_STORAGE_DIR to use the daemon",
        )
    address = settings.daemon_address()
    if address is None:
        socket_path = settings.daemon_socket()
        if socket_path is not None:
            return unix_daemon(*os.path.split(socket_path))
        return unix_daemon(settings.config_dir())
    # 40 ms of http.client, which only clients of another machine's daemon should pay.
    from kachery_p2p.client.http_daemon import HttpDaemon

    return HttpDaemon(*address, settings.daemon_token())


class _Kept(threading.local):
    """This thread's connection: one, since who changes the environment rarely changes it back."""

    daemon: UnixDaemon | None = None


_kept = _Kept()


def unix_daemon(config_dir: str, name: str = SOCKET_NAME) -> UnixDaemon:
    """This thread's connection to the daemon of `config_dir`: opened at its first call and kept."""
    kept = _kept.daemon
    if kept is None or (kept.config_dir, kept.name) != (config_dir, name):
        kept = _kept.daemon = UnixDaemon(config_dir, name)
    return kept


class UnixDaemon:
    """The daemon of a configuration directory of this computer, through its socket."""

    def __init__(self, config_dir: str, name: str = SOCKET_NAME) -> None:
        self._socket: socket.socket | None = None
        self.config_dir = config_dir
        # The name of the socket in there.
        self.name = name
        self._pid = 0
        # What it said of itself on this connection.
        self._said: dict[str, Any] | None = None
        # A call runs, and has the connection.
        self._calling = False

    def call(
        self,
        op: str,
        body: dict[str, Any],
        progress: Progress | None = None,
        timeout_s: float | None = None,
        descriptor: int | None = None,
    ) -> Reply:
        """The result, and the descriptor that came with it, which the caller closes.

        `timeout_s` bounds the whole call. Without it a long call may take any time, but
        never be silent: DaemonTimeoutError after CALL_S_MAX without a sign of life.
        DaemonDownError if the daemon has not read the request; DaemonLeftError if it may have.
        Errors of the daemon are raised as they were there.
        """
        if self._calling:
            # A progress function asks something while its call still runs.
            return self._aside(op, body, progress, timeout_s, descriptor)
        self._calling = True
        try:
            return self._call(op, body, progress, timeout_s, descriptor)
        finally:
            self._calling = False

    def _aside(
        self,
        op: str,
        body: dict[str, Any],
        progress: Progress | None,
        timeout_s: float | None,
        descriptor: int | None,
    ) -> Reply:
        """The call on a connection of its own."""
        other = UnixDaemon(self.config_dir, self.name)
        try:
            return other.call(op, body, progress, timeout_s, descriptor)
        finally:
            other.close()

    def _call(
        self,
        op: str,
        body: dict[str, Any],
        progress: Progress | None,
        timeout_s: float | None,
        descriptor: int | None,
    ) -> Reply:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        kept = self._drop_if_unusable()
        exchange = _Exchange(self._connected(deadline), deadline)
        try:
            reply = exchange.run(op, body, progress, descriptor)
        except BaseException as error:
            # Also for Ctrl-C: half an answer may be on its way, and closing cancels the call.
            exchange.close_descriptor()
            self.close()
            if kept and isinstance(error, DaemonDownError) and not exchange.may_be_read:
                # A daemon with many clients closes idle connections, this one just as we spoke.
                return self._call(op, body, progress, timeout_s, descriptor)
            raise
        if "error" in reply:
            exchange.close_descriptor()
            raise error_from_map(reply["error"])
        return reply["ok"], exchange.descriptor

    def greeted(self) -> dict[str, Any]:
        """What `hello` answers, asked once on a connection: behind it is always one daemon."""
        self._drop_if_unusable()
        if self._said is None:
            said = hello(self)
            self._said = said
        return self._said

    def close(self) -> None:
        """Drop the connection; the next call opens another."""
        self._said = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __del__(self) -> None:
        # A thread that ends leaves its connection to us.
        self.close()

    def _drop_if_unusable(self) -> bool:
        """Whether the connection of the last call still serves; after a fork it is the parent's."""
        if self._socket is not None and (self._pid != os.getpid() or not _is_idle(self._socket)):
            self.close()
        return self._socket is not None

    def _connected(self, deadline: float | None) -> socket.socket:
        if self._socket is None:
            self._socket = _open(self.config_dir, self.name, deadline)
            self._pid = os.getpid()
        return self._socket


def _is_idle(connection: socket.socket) -> bool:
    """True if the daemon has neither closed the connection nor sent anything out of turn."""
    # Not recv(MSG_DONTWAIT): on a socket with a timeout Python waits for bytes first.
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return not poll.poll(0)


def _open(config_dir: str, name: str, deadline: float | None) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(config_dir, name) as path:
            _connect(connection, path, deadline)
    except BaseException as error:
        connection.close()
        if isinstance(error, OSError):
            raise _why_not(config_dir, error) from error
        raise
    return connection


@contextlib.contextmanager
def short_path(config_dir: str, name: str) -> Iterator[str]:
    """The socket's path, or a short way to it through an open descriptor of its directory."""
    path = os.path.join(config_dir, name)
    if len(os.fsencode(path)) <= PATH_BYTES_MAX:
        yield path
        return
    if sys.platform != "linux":
        raise ConfigError(f"{path} is too long for a socket", hint="choose a shorter directory")
    directory = os.open(config_dir, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{name}"
    finally:
        os.close(directory)


def _connect(connection: socket.socket, path: str, deadline: float | None) -> None:
    """Connect; when hundreds of clients queue, wait for the daemon to accept us.

    DaemonBusyError if it does not, OSError.
    """
    patience = time.monotonic() + CALL_S_MAX
    while True:
        try:
            connection.settimeout(CALL_S_MAX)
            connection.connect(path)
            return
        except BlockingIOError:
            if time.monotonic() > min(patience, deadline or patience):
                raise DaemonBusyError(
                    "the daemon takes no connections", hint="try it again; or restart the daemon"
                ) from None
            time.sleep(0.01)


def _why_not(config_dir: str, error: OSError) -> KacheryError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED):
        return DaemonDownError(
            f"no daemon is running for the configuration {config_dir}", hint=START_HINT
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return DaemonAuthError(
            f"the configuration directory {config_dir} belongs to {_owner(config_dir)}",
            hint="set KACHERY_P2P_CONFIG_DIR to a directory of your own; or ask its owner to let"
            " you in with `kachery-p2p start --auth-group`",
        )
    return DaemonDownError(
        f"the daemon's socket in {config_dir} cannot be used: {error.strerror or error}",
        hint=START_HINT,
    )


def _owner(path: str) -> str:
    import pwd

    try:
        return f"user {pwd.getpwuid(os.stat(path).st_uid).pw_name}"
    except (OSError, KeyError):
        return "another user"


class _Exchange:
    """One request and its answer on an open connection."""

    def __init__(self, connection: socket.socket, deadline: float | None) -> None:
        # msgpack is loaded here, not at import: a load of a stored file needs none of this.
        from kachery_p2p.wire.codec import FrameDecoder

        self._socket = connection
        self._deadline = deadline
        self._decoder = FrameDecoder()
        self.descriptor: int | None = None
        # Whether the daemon may have read the whole request: then it may have done it as well.
        self.may_be_read = False

    def run(
        self, op: str, body: dict[str, Any], progress: Progress | None, descriptor: int | None
    ) -> dict[str, Any]:
        """{"ok": result} or {"error": ...}, with `descriptor` set if one came along."""
        try:
            self._send({"op": op, "body": body}, descriptor)
            while True:
                answer = update = None
                for message in self._receive():
                    if "ok" in message:
                        answer = {"ok": check_result(OPERATIONS[op], message["ok"])}
                    elif "error" in message:
                        answer = message
                    else:
                        update = check_progress(message.get("progress"))
                # Of those that came while nobody read, the newest.
                if progress is not None and update is not None:
                    progress(update)
                if answer is not None:
                    return answer
        except TimeoutError:
            raise DaemonTimeoutError(
                "the daemon did not answer in time", hint="see `kachery-p2p status`"
            ) from None
        except (OSError, EOFError) as error:
            raise self._gone(error) from error
        except ProtocolError as error:
            raise DaemonProtocolError(f"the daemon sent nonsense: {error}") from error

    def _send(self, message: dict[str, Any], descriptor: int | None) -> None:
        from kachery_p2p.wire.codec import encode_frame

        try:
            data = memoryview(encode_frame(message))
        except ValueError as error:
            raise DaemonProtocolError(f"the request cannot be sent: {error}") from error
        try:
            self._socket.settimeout(self._patience())
            self.may_be_read = True
            if descriptor is not None:
                data = data[socket.send_fds(self._socket, [data], [descriptor]) :]
            if data:
                self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            # The daemon may have refused us before it read anything: its sentence is still there.
            self.may_be_read = False  # the end of it was not sent

    def _receive(self) -> list[dict[str, Any]]:
        self._socket.settimeout(self._patience())
        flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
        data, descriptors, _, _ = socket.recv_fds(self._socket, RECEIVE_BYTES, 1, flags)
        for descriptor in descriptors:
            self.close_descriptor()
            self.descriptor = descriptor
        if not data:
            raise EOFError
        return self._decoder.feed(data)

    def _gone(self, error: OSError | EOFError) -> DaemonDownError:
        # So Linux says that the daemon closed the connection with something unread.
        if sys.platform == "linux" and isinstance(error, ConnectionResetError):
            self.may_be_read = False
        if self.may_be_read:
            return DaemonLeftError(
                "the daemon went away during the call",
                hint="start it again, and repeat the call if it was not done",
            )
        return DaemonDownError(
            "the daemon went away before it read the request",
            hint="start it again and repeat the call",
        )

    def _patience(self) -> float:
        """Seconds until silence, or the whole call, becomes a timeout."""
        if self._deadline is None:
            return CALL_S_MAX
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return min(left, CALL_S_MAX)

    def close_descriptor(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def hello(daemon: Daemon) -> dict[str, Any]:
    """Who the daemon is and where its store is. Raises for a daemon of another version."""
    return daemon.call("hello", {"version": DOOR_VERSION})[0]
