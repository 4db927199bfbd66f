"""Other users of the computer at the Unix door: whom `auth_group` lets in, and to what."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import socket
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from kachery_p2p.errors import ConfigError, DaemonAuthError
from kachery_p2p.node import guests, unix_door
from kachery_p2p.node.doors import Call, Handler
from kachery_p2p.node.unix_door import serve_unix_door
from kachery_p2p.wire.codec import FrameDecoder, encode_frame
from kachery_p2p.wire.operations import GUEST, OPERATIONS, OWNER, TOKEN

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
HASH = "b971c6ef19b1d70ae8f0feb989b106c319b36230"
GROUP = grp.getgrgid(os.getegid()).gr_name

# Speaks one frame as another user; standard library only, as it may see no other files.
CLIENT = """
import json, os, socket, sys
path, uid, gid, groups, frame = sys.argv[1:]
os.setgroups(json.loads(groups)); os.setgid(int(gid)); os.setuid(int(uid))
s = socket.socket(socket.AF_UNIX); s.settimeout(10)
try:
    s.connect(path)
except OSError as error:
    print("errno", error.errno); sys.exit()
data = b""
try:
    # Who is refused may be told so before it has said anything.
    s.sendall(bytes.fromhex(frame))
except OSError:
    pass
while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
    piece = s.recv(65536)
    if not piece: break
    data += piece
print(data.hex())
"""


def another_user() -> tuple[pwd.struct_passwd, grp.struct_group]:
    """A user that is not us, and a group that the system says it is in."""
    for user in pwd.getpwall():
        if user.pw_uid not in (0, os.geteuid()) and user.pw_gid != 0:
            return user, grp.getgrgid(user.pw_gid)
    pytest.skip("this computer has no other user")


def stranger(group: grp.struct_group) -> pwd.struct_passwd:
    """A user that is neither us nor in the group."""
    for user in pwd.getpwall():
        groups = os.getgrouplist(user.pw_name, user.pw_gid)
        if user.pw_uid not in (0, os.geteuid()) and group.gr_gid not in groups:
            return user
    pytest.skip("this computer has no third user")


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A configuration directory on whose way everybody may go."""
    with tempfile.TemporaryDirectory(prefix="kachery-p2p-guests-") as directory:
        place = Path(directory)
        place.chmod(0o711)
        if not all(mode_of(parent) & stat.S_IXOTH for parent in place.parents):
            pytest.skip(f"others may not enter {place.parent}")
        (place / "config").mkdir(mode=0o700)
        yield place / "config"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def group_of(path: Path) -> int:
    return path.stat().st_gid


@asynccontextmanager
async def door(config: Path, auth_group: str | None, **handlers: Handler) -> AsyncIterator[Path]:
    async with trio.open_nursery() as nursery:
        serve = partial(serve_unix_door, str(config), handlers, auth_group=auth_group)
        yield Path(await nursery.start(serve))
        nursery.cancel_scope.cancel()


async def ask_as(
    path: Path, uid: int, gid: int, groups: list[int], op: str, body: dict[str, Any]
) -> dict[str, Any]:
    """The answer to another user; {"errno": N} if it cannot even connect."""
    frame = encode_frame({"op": op, "body": body}).hex()
    command = [sys.executable, "-I", "-c", CLIENT, str(path), str(uid), str(gid)]
    done = await trio.run_process(
        [*command, json.dumps(groups), frame], capture_stdout=True, cwd="/"
    )
    said = done.stdout.decode().split()
    if said[0] == "errno":
        return {"errno": int(said[1])}
    return FrameDecoder().feed(bytes.fromhex(said[0]))[0]


async def who(call: Call) -> dict[str, Any]:
    uid = call.uid if call.guest is None else call.guest
    return {"version": 1, "node_id": "0" * 64, "store": "/s", "store_dev": uid, "store_ino": 2}


@ROOT_ONLY
async def test_a_member_of_the_group_is_let_in_as_a_guest(reachable: Path) -> None:
    user, group = another_user()
    async with door(reachable, group.gr_name, hello=who) as path:
        answer = await ask_as(path, user.pw_uid, user.pw_gid, [], "hello", {"version": 1})
        assert answer["ok"]["store_dev"] == user.pw_uid
        assert (mode_of(reachable), mode_of(path)) == (0o710, 0o660)
        assert group_of(reachable) == group_of(path) == group.gr_gid


@ROOT_ONLY
async def test_a_guest_may_not_stop_the_node(reachable: Path) -> None:
    user, group = another_user()
    stopped = []

    async def stop(call: Call) -> dict[str, Any]:
        stopped.append(call)
        return {}

    async with door(reachable, group.gr_name, stop=stop) as path:
        answer = await ask_as(path, user.pw_uid, user.pw_gid, [], "stop", {})
    assert answer["error"]["name"] == "DaemonProtocolError"
    assert "no operation 'stop'" in answer["error"]["message"] and not stopped


@ROOT_ONLY
async def test_a_user_outside_the_group_cannot_even_connect(reachable: Path) -> None:
    _, group = another_user()
    other = stranger(group)
    async with door(reachable, group.gr_name, hello=who) as path:
        answer = await ask_as(path, other.pw_uid, other.pw_gid, [], "hello", {"version": 1})
    assert answer == {"errno": 13}


@ROOT_ONLY
async def test_a_process_that_only_borrowed_the_group_is_refused(reachable: Path) -> None:
    """The kernel lets it through; the system's list of users does not name it."""
    _, group = another_user()
    other = stranger(group)
    async with door(reachable, group.gr_name, hello=who) as path:
        answer = await ask_as(
            path, other.pw_uid, other.pw_gid, [group.gr_gid], "hello", {"version": 1}
        )
    assert answer["error"]["name"] == "DaemonAuthError"


@ROOT_ONLY
async def test_a_uid_that_no_user_has_is_refused(reachable: Path) -> None:
    _, group = another_user()
    async with door(reachable, group.gr_name, hello=who) as path:
        answer = await ask_as(path, 54_321, group.gr_gid, [], "hello", {"version": 1})
    assert answer["error"]["name"] == "DaemonAuthError"


@ROOT_ONLY
async def test_without_a_group_no_other_user_gets_in_again(reachable: Path) -> None:
    user, group = another_user()
    async with door(reachable, group.gr_name, hello=who):
        pass
    async with door(reachable, None, hello=who) as path:
        assert (mode_of(reachable), mode_of(path)) == (0o700, 0o600)
        answer = await ask_as(path, user.pw_uid, user.pw_gid, [], "hello", {"version": 1})
    assert answer == {"errno": 13}


async def test_a_group_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no group 'no-such-group'"):
        await serve_unix_door(str(tmp_path), {}, auth_group="no-such-group")


async def test_guests_leave_places_for_the_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_door, "DOOR_GUESTS_MAX", 2)
    ours, uids = os.geteuid(), iter([1, 1, 1, os.geteuid()])
    monkeypatch.setattr(unix_door, "peer_uid", lambda connection: next(uids, ours))

    async def everybody(uid: int, group: guests.Group) -> bool:
        return True

    monkeypatch.setattr(unix_door, "is_in_group", everybody)
    async with door(tmp_path, GROUP, hello=who) as path:
        answers = []
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(4):
                stream = trio.SocketStream(trio.socket.socket(socket.AF_UNIX))
                await stack.enter_async_context(stream)
                await stream.socket.connect(str(path))
                with contextlib.suppress(trio.BrokenResourceError):
                    await stream.send_all(encode_frame({"op": "hello", "body": {"version": 1}}))
                with trio.fail_after(5):
                    data = await stream.receive_some(1 << 16)
                answers.append(next(iter(FrameDecoder().feed(data)[0])))
    assert answers == ["ok", "ok", "error", "ok"]


async def test_a_directory_server_that_hangs_lets_nobody_in(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    release = trio.Event()

    async def hang(*arguments: object, **options: object) -> bool:
        await release.wait()
        return True

    monkeypatch.setattr(trio.to_thread, "run_sync", hang)
    with pytest.raises(DaemonAuthError, match="could not be found out in time"):
        await guests.is_in_group(1, guests.Group("x", 1))


def test_the_system_says_who_is_in_a_group() -> None:
    me = pwd.getpwuid(os.geteuid())
    assert guests._is_member(me.pw_uid, me.pw_gid)
    assert not guests._is_member(me.pw_uid, 54_321)
    assert not guests._is_member(54_321, me.pw_gid)


# --- the table: operation x credential ----------------------------------------------------

ALL, LOCAL, MINE = {OWNER, TOKEN, GUEST}, {OWNER, GUEST}, {OWNER}
DOCUMENTED = {
    "hello": ALL,
    "status": ALL,
    "channels": ALL,
    "load": ALL,
    "load_many": ALL,
    "load_range": LOCAL,
    "find": ALL,
    "share": ALL,
    "unshare": ALL,
    "shared": ALL,
    "store": LOCAL,
    "put": {TOKEN},
    "stop": {OWNER, TOKEN},
    "feed_status": ALL,
    "feed_read": ALL,
    "feed_watch": ALL,
    **dict.fromkeys(
        (
            *("feed_create", "feed_named", "feed_list", "feed_followed", "feed_info"),
            *("feed_delete", "feed_share", "feed_unshare", "feed_append", "feed_submit"),
            *("feed_access", "feed_grant", "feed_revoke", "feed_set_access", "feed_proof"),
        ),
        {OWNER, TOKEN},
    ),
    **dict.fromkeys(("feed_end", "feed_resume", "feed_adopt", "feed_append_legacy"), MINE),
}


def test_every_operation_has_the_credentials_that_are_documented() -> None:
    for name, operation in OPERATIONS.items():
        assert operation.needs == DOCUMENTED.get(name, MINE), name
    assert DOCUMENTED.keys() <= OPERATIONS.keys()
    # Whatever else there is administers channels.
    assert {name.partition("_")[0] for name in OPERATIONS.keys() - DOCUMENTED.keys()} <= {"channel"}
