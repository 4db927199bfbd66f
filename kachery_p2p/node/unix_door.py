"""The Unix door: msgpack frames and descriptors on CONFIG/daemon.sock, for this user.

With an `auth_group`, other users of that group are let in as guests, who may call what
the table of operations lets guests call. Everybody else is refused by the kernel (the
modes of the directory and the socket) and once more here, by the uid that it tells.

One call at a time on a connection, which stays open for the next. A client that sends
anything while its call runs, or goes away, has its call cancelled. Whoever may send a
descriptor has opened the file himself: the daemon never opens a path a client named.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import logging
import os
import socket
import stat
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from typing import Any

import trio

from kachery_p2p.errors import (
    DaemonAuthError,
    DaemonError,
    DaemonProtocolError,
    KacheryError,
    ProtocolError,
)
from kachery_p2p.limits import (
    DOOR_CONNECTIONS_MAX,
    DOOR_GUESTS_MAX,
    DOOR_IDLE_S_MAX,
    DOOR_PIECE_BYTES,
    DOOR_REQUEST_S_MAX,
    DOOR_WAITING_MAX,
)
from kachery_p2p.node.doors import Call, Handlers, Started, internal_error, run
from kachery_p2p.node.guests import Group, group_named, is_in_group, user_name
from kachery_p2p.node.slow_calls import SlowCalls
from kachery_p2p.node.unix_socket import SOCKET_NAME, bind, open_private_directory
from kachery_p2p.wire.codec import FrameDecoder, encode_frame
from kachery_p2p.wire.operations import GUEST, OWNER, error_to_map, operation_named

log = logging.getLogger(__name__)

# A request carries one descriptor; room for a few more lets us close them instead of the kernel.
DESCRIPTORS_MAX = 4


async def serve_unix_door(
    config_dir: str,
    handlers: Handlers,
    *,
    auth_group: str | None = None,
    task_status: Started[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; `task_status` is told the socket's path once it accepts.

    The caller holds the daemon's lock, so a socket that is already there has no owner.
    Raises ConfigError, for an unknown `auth_group` too.
    """
    path = os.path.join(config_dir, SOCKET_NAME)
    group = None if auth_group is None else group_named(auth_group)
    directory = open_private_directory(config_dir, group)
    try:
        listening = bind(path, directory, group)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        door = _Door(handlers, group)
        task_status.started(path)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(door.slow.run)
                await trio.serve_listeners(door.welcome, [listener])
        finally:
            with contextlib.suppress(OSError):
                os.unlink(SOCKET_NAME, dir_fd=directory)
    finally:
        os.close(directory)


def peer_uid(connection: trio.socket.SocketType) -> int:
    """The user on the other side, as the kernel knows it."""
    if sys.platform == "linux":
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int(struct.unpack("3i", credentials)[1])
    else:  # noqa: RET505 - mypy takes what follows a platform's return for unreachable
        # macOS: struct xucred of LOCAL_PEERCRED begins with a version and the uid.
        return int(struct.unpack_from("2I", connection.getsockopt(0, 1, 76))[1])


class _Door:
    """Lets clients in: only our own user and guests, and not too many at once.

    Clients keep their connections, mostly idle. When all places are taken, who comes
    next waits, and whoever has been idle longest loses its place: it connects again
    when it has something to say.
    """

    def __init__(self, handlers: Handlers, group: Group | None) -> None:
        self._handlers = handlers
        self._group = group
        self.slow = SlowCalls()
        self._clients = 0
        self._guests = 0
        self._places = trio.Semaphore(DOOR_CONNECTIONS_MAX)
        # Connections between two calls, the longest idle first, with what wakes them.
        self._idle: dict[_Connection, trio.CancelScope] = {}

    async def welcome(self, stream: trio.SocketStream) -> None:
        self._clients += 1
        try:
            async with stream:
                await self._serve(_Connection(stream.socket, self._handlers, self.slow))
        except OSError as error:
            log.debug("a client of the Unix door went away: %s", error)
        except Exception:
            # One client's connection is never worth the daemon.
            log.exception("a connection of the Unix door failed")
        finally:
            self._clients -= 1

    async def _serve(self, connection: _Connection) -> None:
        try:
            self._refuse_too_many()
            connection.credential = await self._credential(connection.uid)
            with self._counted(connection.credential):
                await self._serve_trusted(connection)
        except KacheryError as error:
            await connection.say_last({"error": error_to_map(error)})

    async def _serve_trusted(self, connection: _Connection) -> None:
        if self._idle and not self._places.value:
            self._idle.pop(next(iter(self._idle))).cancel()
        async with self._places:
            await connection.serve(self._between_calls)

    @contextlib.contextmanager
    def _between_calls(self, connection: _Connection) -> Iterator[None]:
        """While the connection waits for its next call it may be closed for another client."""
        with trio.CancelScope() as scope:
            self._idle[connection] = scope
            if self._places.statistics().tasks_waiting:
                scope.cancel()
            try:
                yield
            finally:
                self._idle.pop(connection, None)

    async def _credential(self, uid: int) -> str:
        """What this user is here; DaemonAuthError for a stranger."""
        if uid == os.geteuid():
            return OWNER
        if self._group is not None and await is_in_group(uid, self._group):
            return GUEST
        raise DaemonAuthError(
            f"socket belongs to user {user_name(os.geteuid())}",
            hint="start a daemon of your own, with your own KACHERY_P2P_CONFIG_DIR",
        )

    @contextlib.contextmanager
    def _counted(self, credential: str) -> Iterator[None]:
        """Guests never take all the places."""
        self._guests += credential == GUEST
        try:
            if credential == GUEST and self._guests > DOOR_GUESTS_MAX:
                raise DaemonError(
                    f"{self._guests} clients of other users are too many for the daemon",
                    hint="try again later",
                )
            yield
        finally:
            self._guests -= credential == GUEST

    def _refuse_too_many(self) -> None:
        if self._clients > DOOR_CONNECTIONS_MAX + DOOR_WAITING_MAX:
            raise DaemonError(
                f"{self._clients} clients are too many for the daemon", hint="try again later"
            )


BetweenCalls = Callable[["_Connection"], contextlib.AbstractContextManager[None]]


class _Connection:
    def __init__(
        self, connection: trio.socket.SocketType, handlers: Handlers, slow: SlowCalls
    ) -> None:
        self._socket = connection
        self._handlers = handlers
        self._slow = slow
        self._decoder = FrameDecoder()
        self._received: list[int] = []
        self.uid = peer_uid(connection)
        self.credential = "nobody"

    async def serve(self, between_calls: BetweenCalls) -> None:
        """Requests one after the other until the client leaves, idles too long or errs."""
        try:
            # Who has just come is about to speak, and is not taken for idle.
            request = await self._next_request(await self._wait_for_data())
            while request is not None:
                with self._descriptors() as received:
                    await self._serve_request(request, received)
                data = b""
                with between_calls(self):
                    data = await self._wait_for_data()
                request = await self._next_request(data)
        except (ProtocolError, DaemonProtocolError) as error:
            await self.say_last({"error": error_to_map(DaemonProtocolError(str(error)))})
        except trio.TooSlowError:
            log.debug("a client of the Unix door was too slow")
        finally:
            self._close_received()

    async def _wait_for_data(self) -> bytes:
        """The first bytes of the next request; none if the client leaves or idles too long."""
        with trio.move_on_after(DOOR_IDLE_S_MAX):
            return await self._receive()
        return b""

    async def _next_request(self, data: bytes) -> dict[str, Any] | None:
        """The request that begins with `data`; None if there is none."""
        request = self._whole_request(data)  # nearly always: a deadline costs as much as reading it
        if request is not None or not data:
            return request
        with trio.fail_after(DOOR_REQUEST_S_MAX):
            while data and request is None:
                data = await self._receive()
                request = self._whole_request(data)
        return request

    def _whole_request(self, data: bytes) -> dict[str, Any] | None:
        frames = self._decoder.feed(data)
        if len(frames) > 1:
            raise DaemonProtocolError("one request at a time")
        return frames[0] if frames else None

    async def _receive(self) -> bytes:
        flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
        room = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)
        data, messages, _, _ = await self._socket.recvmsg(DOOR_PIECE_BYTES, room, flags)
        for level, kind, payload in messages:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors = array.array("i")
                descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
                self._received.extend(descriptors)
        if len(self._received) > DESCRIPTORS_MAX:
            raise DaemonProtocolError("too many descriptors")
        return data

    @contextlib.contextmanager
    def _descriptors(self) -> Iterator[list[int]]:
        """What came with the request; closed in the end, whoever used it."""
        try:
            yield self._received
        finally:
            self._close_received()

    def _close_received(self) -> None:
        while self._received:
            with contextlib.suppress(OSError):
                os.close(self._received.pop())

    async def _serve_request(self, request: dict[str, Any], received: list[int]) -> None:
        try:
            call = self._understand(request, received)
        except KacheryError as error:
            await self._send({"error": error_to_map(error)})
            return
        try:
            await self._serve_call(call)
        finally:
            call.close_attached()

    def _understand(self, request: dict[str, Any], received: list[int]) -> Call:
        operation = operation_named(request.get("op"), self.credential)
        if len(received) > 1:
            raise DaemonProtocolError("more than one descriptor")
        descriptor = received[0] if received else None
        if descriptor is not None and not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DaemonProtocolError("the descriptor is not of a regular file")
        return Call(operation, request.get("body", {}), uid=self.uid, descriptor=descriptor)

    async def _serve_call(self, call: Call) -> None:
        """Run the handler; the answer is sent unless the client has gone meanwhile."""
        unsent: memoryview | None = None

        def reply_now(reply: dict[str, Any]) -> None:
            nonlocal unsent
            if call.attached is None:
                data = _encoded(reply)
                unsent = data[self._sent_at_once(data) :]

        reply = await run(
            call,
            self._handlers,
            gone=self._wait_until_gone,
            tell=self._tell,
            slow=self._slow,
            reply_now=reply_now,
        )
        if reply is None:
            raise ConnectionResetError("the client left during its call")
        if unsent is None:
            await self._send(reply, call.attached)
        elif unsent:
            await self._send_bytes(unsent)

    async def _wait_until_gone(self) -> None:
        """Also when data comes: a client that sends during its call broke the protocol."""
        with contextlib.suppress(OSError):
            await self._socket.recv(1)

    async def _tell(self, update: dict[str, Any]) -> None:
        # One that has not read the last update gets none: it is to find the newest, and the answer
        # right behind it, however late it reads.
        if not self._unread():
            await self._send({"progress": update})

    def _unread(self) -> bool:
        """Whether the client has left unread what it was sent; False where nobody can tell."""
        count = bytearray(array.array("i").itemsize)
        try:
            fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, count)
        except OSError:
            return False
        return any(count)

    async def _send(self, message: dict[str, Any], descriptor: int | None = None) -> None:
        data = _encoded(message)
        if descriptor is None:
            data = data[self._sent_at_once(data) :]
        if data:
            await self._send_bytes(data, descriptor)

    async def _send_bytes(self, data: memoryview, descriptor: int | None = None) -> None:
        with trio.fail_after(DOOR_REQUEST_S_MAX):
            if descriptor is not None:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))
                data = data[await self._socket.sendmsg([data], [rights]) :]
            while data:
                data = data[await self._socket.send(data) :]

    def _sent_at_once(self, data: memoryview) -> int:
        """How many bytes the socket took without waiting; most answers fit whole."""
        try:
            return os.write(self._socket.fileno(), data)
        except OSError:
            # It is full, or the client has gone: that shows when the rest is sent.
            return 0

    async def say_last(self, message: dict[str, Any]) -> None:
        """Best effort, just before the connection is closed."""
        with contextlib.suppress(OSError, trio.TooSlowError):
            await self._send(message)


def _encoded(message: dict[str, Any]) -> memoryview:
    try:
        return memoryview(encode_frame(message))
    except ValueError:
        log.exception("an answer does not fit its frame")
        return memoryview(encode_frame({"error": error_to_map(internal_error())}))
