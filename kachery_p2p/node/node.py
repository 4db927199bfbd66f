"""The daemon: wires every part together, once, and keeps them running until told to stop.

The order is that of what a user waits for: the Unix door answers first, libp2p is
imported in a thread behind it. A part that fails is started again; one that keeps
failing takes the node down with its reason, so that a service manager sees it: a node
is never half dead.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import trio

from kachery_p2p.channels.channel import OWNED
from kachery_p2p.channels.files import joined, load_channel, resolve
from kachery_p2p.channels.owned import load_history
from kachery_p2p.errors import (
    ConfigError,
    StorePermissionError,
    sole_error,
)
from kachery_p2p.identity.keyring import load_or_create
from kachery_p2p.identity.keys import NodeKey
from kachery_p2p.limits import (
    SCRATCH_SWEEP_S,
    SHARES_LOG_S,
    STOP_S_MAX,
)
from kachery_p2p.network.lean_import import empty_packages
from kachery_p2p.network.memberships import Memberships
from kachery_p2p.network.places import addresses_in
from kachery_p2p.node.api import Api
from kachery_p2p.node.channel_api import ChannelApi
from kachery_p2p.node.config import NodeConfig
from kachery_p2p.node.feeds_api import FeedsApi
from kachery_p2p.node.lock import only_daemon
from kachery_p2p.node.networking import networking
from kachery_p2p.node.open_files import allow_many_open_files
from kachery_p2p.node.parts import Parts
from kachery_p2p.node.supervise import supervise
from kachery_p2p.node.token import load_or_create_token
from kachery_p2p.node.unix_door import serve_unix_door
from kachery_p2p.node.vouching import keep_shares
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.grants import Grants
from kachery_p2p.store.index import Index
from kachery_p2p.store.scratch import sweep_scratch
from kachery_p2p.store.shares import take_shares

if TYPE_CHECKING:
    from kachery_p2p.network.link import Link

log = logging.getLogger(__name__)

Announce = Callable[[str], None]
# Opens the link: real hosts in a daemon, a simulated world in tests.
OpenLink = Callable[[NodeKey], "contextlib.AbstractAsyncContextManager[Link]"]


def run(config: NodeConfig, announce: Announce) -> None:
    """Run a node until SIGTERM, SIGINT or `stop`. `announce` gets lines for who started it.

    Raises KacheryError for whatever keeps it from starting, or took it down.
    """
    config.check()
    allow_many_open_files()
    _make_private(config.config_dir)
    hint = "`kachery-p2p status` tells more; another node needs its own --config-dir"
    with only_daemon(config.config_dir, hint):
        try:
            trio.run(_run, config, announce)
        except BaseExceptionGroup as group:
            error = sole_error(group)
            if error is None:
                raise
            raise error from None


async def _run(config: NodeConfig, announce: Announce) -> None:
    parts, key = await trio.to_thread.run_sync(_prepare, config, announce)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_on_signal, parts.stop)
            nursery.start_soon(_serve, parts, key, announce, _libp2p(config))
            await parts.stop.wait()
            _end_without_grace_after(STOP_S_MAX)
            nursery.cancel_scope.cancel()
    finally:
        parts.grants.close()
        parts.blobs.flush_index()


async def _serve(parts: Parts, key: NodeKey, announce: Announce, open_link: OpenLink) -> None:
    handlers = {
        **Api(parts).handlers(),
        **ChannelApi(parts).handlers(),
        **FeedsApi(parts).handlers(),
    }
    config = parts.config
    async with trio.open_nursery() as nursery:
        await nursery.start(
            functools.partial(serve_unix_door, auth_group=config.auth_group),
            config.config_dir,
            handlers,
        )
        await _take_shares(parts)
        nursery.start_soon(supervise, parts, "reading shares.log", _watch_shares_log, parts)
        nursery.start_soon(supervise, parts, "sweeping scratch", _sweep_scratch, parts)
        if config.http is not None:
            # h11 and json, which a node without this door never needs.
            from kachery_p2p.node.http_door import serve_http_door

            token = await trio.to_thread.run_sync(load_or_create_token, config.config_dir)
            host, port = await nursery.start(serve_http_door, config.http, token, handlers)
            parts.http = f"http://{host}:{port}" if ":" not in host else f"http://[{host}]:{port}"
        async with open_link(key) as link, networking(parts, link) as network:
            parts.connected(network)
            _announce(parts, link, announce)
            _tell_service_manager("READY=1")
            try:
                await trio.sleep_forever()
            finally:
                _tell_service_manager("STOPPING=1")


# --- before the event loop ---------------------------------------------------------------


def _make_private(config_dir: str) -> None:
    try:
        os.makedirs(config_dir, mode=0o700, exist_ok=True)
        os.makedirs(f"{config_dir}/state", mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make the config directory {config_dir}: {error.strerror}",
            hint="choose another with --config-dir or KACHERY_P2P_CONFIG_DIR",
        ) from error


def _prepare(config: NodeConfig, announce: Announce) -> tuple[Parts, NodeKey]:
    """Keys, channels and the store: everything on disk, before any door opens."""
    key = load_or_create(config.config_dir)
    memberships, bootstrap, invited_at = _memberships(config, announce)
    try:
        os.makedirs(config.storage_dir, exist_ok=True)
    except OSError as error:
        raise StorePermissionError(
            f"cannot make the storage directory {config.storage_dir}: {error.strerror}",
            hint="choose another with --storage-dir or KACHERY_STORAGE_DIR",
        ) from error
    blobs = BlobStore(config.storage_dir, Index(config.index_path))
    grants = Grants(config.grants_path)
    return Parts(config, key, memberships, bootstrap, blobs, grants, invited_at), key


def _memberships(
    config: NodeConfig, announce: Announce
) -> tuple[Memberships, tuple[str, ...], tuple[str, ...]]:
    """The channels asked for, joining them if need be, and those joined earlier; whom to dial.

    Last the addresses that invites told.
    """
    for name in config.channels:
        environ = config.environment()
        resolve(name, config.config_dir, os.getcwd(), environ, announce, config.label)
    known = joined(config.config_dir)
    channels = tuple(load_channel(config.config_dir, channel.name) for channel in known)
    told = [address for c in known if not c.invited for address in c.bootstrap]
    invited_at = tuple(address for c in known if c.invited for address in c.bootstrap)
    histories = [load_history(config.config_dir, c.name) for c in known if c.kind == OWNED]
    told += [address for history in histories for address in history.roster.bootstrap]
    given = addresses_in(config.bootstrap, config.places_path)
    bootstrap = tuple(dict.fromkeys([*given, *told]))
    return Memberships(channels, histories), bootstrap, invited_at


# --- parts that run for ever -------------------------------------------------------------


async def _watch_shares_log(parts: Parts) -> None:
    """Clients that cannot reach the daemon leave what they share in shares.log."""
    while True:
        await trio.sleep(SHARES_LOG_S)
        await _take_shares(parts)


async def _sweep_scratch(parts: Parts) -> None:
    """What programs stored for some days only goes when they are over."""
    config = parts.config
    while True:
        sweep = functools.partial(sweep_scratch, config.storage_dir, f"{config.config_dir}/state")
        await trio.to_thread.run_sync(sweep, time.time())
        await trio.sleep(SCRATCH_SWEEP_S)


async def _take_shares(parts: Parts) -> None:
    """What clients shared while they could not reach a daemon becomes grants."""
    keep = functools.partial(keep_shares, parts.blobs, parts.grants)
    await trio.to_thread.run_sync(take_shares, parts.config.config_dir, keep)


def _end_without_grace_after(seconds: float) -> None:
    """End the process then, whatever still works: a disk that hangs must not keep it.

    Nothing is lost that was acknowledged; what was verified of downloads is kept.
    """
    ending = threading.Timer(seconds, os._exit, (0,))
    ending.daemon = True
    ending.start()


async def _stop_on_signal(stop: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            if stop.is_set():
                # Asked twice: whoever asks does not want to wait for the grace.
                os._exit(130)
            stop.set()


# --- the network -------------------------------------------------------------------------


def _libp2p(config: NodeConfig) -> OpenLink:
    @contextlib.asynccontextmanager
    async def open_link(key: NodeKey) -> AsyncIterator[Link]:
        # The imports take half a second: in a thread, so that the doors answer meanwhile.
        host = await trio.to_thread.run_sync(_import_host)
        async with host(key, [config.listen], config.advertise) as link:
            yield link

    return open_link


def _import_host() -> Callable[..., contextlib.AbstractAsyncContextManager[Link]]:
    # Only in a daemon, where nobody else uses libp2p: its host is not needed, and takes long.
    with empty_packages(("libp2p", "libp2p.transport", "libp2p.security", "libp2p.network")):
        from kachery_p2p.network.libp2p_host import open_libp2p_link
    return open_libp2p_link


# --- telling -----------------------------------------------------------------------------


def _announce(parts: Parts, link: Link, announce: Announce) -> None:
    announce(f"node     {parts.node_id}")
    for address in link.addresses:
        announce(f"address  {address}")
    for channel in parts.channels:
        announce(f"channel  {channel.name} ({channel.id[:16]})")
    if not parts.channels:
        announce("channel  none: this node shares nothing; give it --channel NAME")
    if parts.http:
        announce(f"http     {parts.http}")
    pending = parts.grants.pending_count()
    if pending and parts.channels:
        name = parts.channels[0].name
        announce(
            f"note     not shared: {pending} stored before there was a channel;"
            f" `kachery-p2p share --pending --channel {name}` shares them"
        )
    announce("ready")


def _tell_service_manager(message: str) -> None:
    """systemd's readiness protocol (sd_notify(3)): one datagram to $NOTIFY_SOCKET."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + path[1:] if path.startswith("@") else path)
        sock.send(message.encode())
