"""What `doctor` looks at. Each check looks only: it makes, mends and removes nothing."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from kachery_p2p.client import settings
from kachery_p2p.client.wording import counted, human_bytes
from kachery_p2p.errors import (
    DaemonDownError,
    DaemonTimeoutError,
    KacheryError,
    KeyFileError,
)
from kachery_p2p.limits import DISK_RESERVE_BYTES, TEMP_AGE_S_MAX
from kachery_p2p.version import __version__

OK, WARN, BAD = "ok", "warn", "bad"
# Below this the next recordings will not fit for long.
SPARE_BYTES_MIN = 10 * DISK_RESERVE_BYTES
PACKAGES = ("libp2p", "trio", "msgpack", "cryptography", "numpy", "blake3", "click", "h11")


class Check(NamedTuple):
    """One thing that was looked at: how it is, and the command that mends it."""

    name: str
    state: str
    what: str
    mend: str | None = None


class Patient(NamedTuple):
    """Where to look."""

    config_dir: str
    storage_dir: str
    # What the daemon said of itself; None if none could be asked.
    told: dict[str, Any] | None


def check_all() -> Iterator[Check]:
    """Every check, in the order in which one would look for a fault."""
    config_dir, storage_dir = settings.config_dir(), settings.storage_dir()
    told, daemon = _ask_daemon()
    patient = Patient(config_dir, storage_dir, told)
    for name, look in LOOKS:
        try:
            yield from look(patient)
        except KacheryError as error:
            yield Check(name, BAD, str(error), error.hint)
        except OSError as error:
            yield Check(name, BAD, f"{error.filename}: {(error.strerror or str(error)).lower()}")
        if name == "state":
            yield daemon


# --- this program -----------------------------------------------------------------------------


def _python(patient: Patient) -> Iterator[Check]:
    yield Check("python", OK, f"{sys.version.split()[0]} on {sys.platform}")


def _packages(patient: Patient) -> Iterator[Check]:
    from importlib.metadata import PackageNotFoundError, requires, version

    try:
        needed = _requirements(requires("kachery-p2p") or [])
    except PackageNotFoundError:  # run from a checkout
        needed = {}
    wrong = []
    for name in PACKAGES:
        try:
            found = version(name)
        except PackageNotFoundError:
            wrong.append(f"{name} is not installed")
            continue
        how, wanted = needed.get(name, ("", ""))
        if (how == "==" and found != wanted) or (how == ">=" and _older(found, wanted)):
            wrong.append(f"{name} is {found}, not {how}{wanted}")
    if wrong:
        mend = f"pip install --force-reinstall kachery-p2p=={__version__}"
        yield Check("packages", BAD, "; ".join(wrong), mend)
    else:
        yield Check("packages", OK, f"kachery-p2p {__version__}, libp2p {version('libp2p')}")


def _requirements(lines: list[str]) -> dict[str, tuple[str, str]]:
    """Name -> comparison and version, of what is needed without an extra."""
    found = {}
    for line in lines:
        match = re.match(r"([A-Za-z0-9_.-]+) *(==|>=) *([0-9][^ ,;]*)", line)
        if match and "extra" not in line:
            found[match[1]] = (match[2], match[3])
    return found


def _older(found: str, wanted: str) -> bool:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", text)]

    return numbers(found) < numbers(wanted)


# --- configuration ----------------------------------------------------------------------------


def _config(patient: Patient) -> Iterator[Check]:
    path = patient.config_dir
    try:
        status = os.stat(path)
    except FileNotFoundError:
        yield Check("config", OK, f"{path} is not there yet: `kachery-p2p start` makes it")
        return
    if status.st_uid != os.geteuid():
        yield Check(
            "config",
            BAD,
            f"{path} belongs to another user",
            "set KACHERY_P2P_CONFIG_DIR to your own",
        )
    elif status.st_mode & 0o022:
        yield Check("config", BAD, f"other users may change {path}", f"chmod 700 {path}")
    elif not os.access(path, os.W_OK | os.X_OK):
        yield Check("config", BAD, f"{path} may not be written by you", f"chmod 700 {path}")
    else:
        yield Check("config", OK, path)


def _keys(patient: Patient) -> Iterator[Check]:
    from kachery_p2p.identity import keyring
    from kachery_p2p.identity.group_files import held_groups

    if not os.path.lexists(keyring.key_path(patient.config_dir)):
        yield Check("keys", OK, "none yet: `kachery-p2p start` makes one")
        return
    try:
        told = f"node {keyring.load(patient.config_dir).node_id}"
        if groups := len(held_groups(patient.config_dir)):
            told += f", {counted(groups, 'access group')}"
        yield Check("keys", OK, told)
    except KeyFileError as error:
        yield Check("keys", BAD, str(error), error.hint)


def _state(patient: Patient) -> Iterator[Check]:
    """The databases, opened without changing them."""
    from kachery_p2p.client.mutables import VERSION
    from kachery_p2p.store import grants, index, links

    # What can be made again is made again by itself, at its next use.
    files = (
        ("index", index.SCHEMA.version, WARN, "it is set aside and rebuilt at the next store"),
        ("links", links.SCHEMA.version, WARN, "it is set aside; link your files again"),
        ("grants", grants.SCHEMA.version, BAD, "restore {0} from a backup, or move it away"),
        ("mutables", VERSION, BAD, "restore {0} from a backup, or move it away"),
    )
    read = []
    for name, version, state, mend in files:
        path = os.path.join(patient.config_dir, "state", f"{name}.db")
        if not os.path.exists(path):
            continue
        wrong = _wrong_with(path, version)
        if wrong is None:
            read.append(name)
        elif "newer" in wrong:
            yield Check("state", BAD, f"{path} {wrong}", "upgrade kachery-p2p")
        else:
            yield Check("state", state, f"{path} {wrong}", mend.format(path))
    yield Check("state", OK, f"can be read: {', '.join(read)}" if read else "nothing kept yet")


# A damaged page of a larger one is found when it is read; to read all would take too long here.
QUICK_CHECK_BYTES_MAX = 256 << 20


def _wrong_with(path: str, version: int) -> str | None:
    import sqlite3
    from contextlib import closing
    from urllib.parse import quote

    try:
        with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)) as connection:
            found = connection.execute("PRAGMA user_version").fetchone()[0]
            if found > version:
                return f"was written by a newer version (schema {found}, not {version})"
            if os.stat(path).st_size <= QUICK_CHECK_BYTES_MAX:
                answer = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
                return None if answer == "ok" else "is damaged"
            return None
    except sqlite3.Error as error:
        return f"cannot be read: {error}"


# --- the store --------------------------------------------------------------------------------


def _store(patient: Patient) -> Iterator[Check]:
    import tempfile

    path = patient.storage_dir
    place = _existing(path)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        yield Check(
            "store",
            BAD,
            f"nothing can be written in {place}: {why}",
            "set KACHERY_STORAGE_DIR to a directory that you may write",
        )
    else:
        yield Check("store", OK, path + ("" if place == path else ", which the first store makes"))
    free = _free(place)
    state = BAD if free < DISK_RESERVE_BYTES else WARN if free < SPARE_BYTES_MIN else OK
    told = f"{human_bytes(free)} free, of which {human_bytes(DISK_RESERVE_BYTES)} are kept free"
    mend = None if state == OK else "kachery-p2p rm URI, or move the store to a larger disk"
    yield Check("disk", state, told, mend)


def _existing(path: str) -> str:
    while not os.path.isdir(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


def _free(path: str) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def _leftovers(patient: Patient) -> Iterator[Check]:
    from kachery_p2p.store.paths import partial_dir, quarantine_dir, temp_dir

    bad = _entries(quarantine_dir(patient.storage_dir))
    if bad:
        place = quarantine_dir(patient.storage_dir)
        yield Check(
            "leftovers", WARN, f"{counted(len(bad), 'corrupt file')} in {place}", f"rm -r {place}"
        )
    old = time.time() - TEMP_AGE_S_MAX
    temps = [one for one in _entries(temp_dir(patient.storage_dir)) if _changed(one) < old]
    nodes = _entries(partial_dir(patient.storage_dir, ""))
    partials = sum(len(_entries(node)) for node in nodes)
    told = counted(partials, "unfinished download")
    if temps:
        told += f", {counted(len(temps), 'file')} of killed programs (the next store removes them)"
    yield Check("leftovers", OK, told)


def _entries(directory: str) -> list[str]:
    try:
        return [os.path.join(directory, name) for name in os.listdir(directory)]
    except FileNotFoundError:
        return []


def _changed(path: str) -> float:
    try:
        return os.lstat(path).st_mtime
    except FileNotFoundError:
        return time.time()


# --- the daemon and its network ---------------------------------------------------------------

RESTART = "kachery-p2p stop, then kachery-p2p start"


def _settings(patient: Patient) -> Iterator[Check]:
    from kachery_p2p.compat.variables import meaningless

    for name, why in meaningless():
        yield Check("settings", OK, f"{name} is set, and needs nothing: {why}")


def _ask_daemon() -> tuple[dict[str, Any] | None, Check]:
    from kachery_p2p.client.daemon import START_HINT, connect

    start = "kachery-p2p start --channel NAME"

    try:
        told, _ = connect().call("status", {})
    except (DaemonDownError, DaemonTimeoutError) as error:
        state = WARN if isinstance(error, DaemonDownError) else BAD
        return None, Check(
            "daemon", state, str(error), start if error.hint == START_HINT else error.hint
        )
    except KacheryError as error:
        return None, Check("daemon", BAD, str(error), error.hint or RESTART)
    if told["version"] != __version__:
        what = f"it has version {told['version']}, this program {__version__}"
        return told, Check("daemon", BAD, what, RESTART)
    return told, Check("daemon", OK, f"runs, version {told['version']}, store {told['store']}")


def _ports(patient: Patient) -> Iterator[Check]:
    from kachery_p2p.node.config import CONTROL_PORT, HTTP_PORT

    if patient.told is not None:
        addresses = ", ".join(patient.told["addresses"]) or "no address yet"
        yield Check("ports", OK, f"{addresses}; http {patient.told['http'] or 'off'}")
        return
    ports = (("0.0.0.0", CONTROL_PORT, "--listen"), ("127.0.0.1", HTTP_PORT, "--http"))  # noqa: S104
    taken = [one for one in ports if _is_taken(one[0], one[1])]
    for host, port, option in taken:
        mend = f"kachery-p2p start {option} {host}:0"
        yield Check("ports", WARN, f"port {port} is taken by another program", mend)
    if not taken:
        yield Check("ports", OK, " and ".join(str(port) for _, port, _ in ports) + " are free")


def _is_taken(host: str, port: int) -> bool:
    import errno
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _channels(patient: Patient) -> Iterator[Check]:
    from kachery_p2p.channels.files import joined
    from kachery_p2p.cli.bucket_checks import look_at_buckets

    names = [one.name for one in joined(patient.config_dir)]
    if names:
        yield Check("channels", OK, ", ".join(names))
    else:
        yield Check("channels", WARN, "none is joined", "kachery-p2p start --channel NAME")
    yield from look_at_buckets()


def _peers(patient: Patient) -> Iterator[Check]:
    if patient.told is None:
        return
    if patient.told["channels"]:
        count = len(patient.told["peers"])
        state, mend = (OK, None) if count else (WARN, "kachery-p2p start --bootstrap MULTIADDR")
        yield Check("peers", state, f"{count} connected", mend)
    for problem in patient.told["problems"]:
        yield Check("peers", WARN, problem)


def _pending(patient: Patient) -> Iterator[Check]:
    told = patient.told
    pending = _pending_here(patient.config_dir) if told is None else int(told["pending_shares"])
    if pending:
        mend = "kachery-p2p share --pending --channel NAME"
        yield Check("shares", WARN, f"{counted(pending, 'file')} not shared anywhere yet", mend)
    else:
        yield Check("shares", OK, "none is pending")
    waiting = os.path.join(patient.config_dir, "shares.log")
    if told is None and os.path.exists(waiting) and os.path.getsize(waiting):
        yield Check("shares", OK, f"{waiting} waits for the daemon to start")


def _pending_here(config_dir: str) -> int:
    from kachery_p2p.node.config import grants_path
    from kachery_p2p.store.grants import Grants

    if not os.path.exists(grants_path(config_dir)):
        return 0
    grants = Grants(grants_path(config_dir))
    try:
        return grants.pending_count()
    finally:
        grants.close()


LOOKS: tuple[tuple[str, Callable[[Patient], Iterator[Check]]], ...] = (
    ("python", _python),
    ("packages", _packages),
    ("config", _config),
    ("settings", _settings),
    ("keys", _keys),
    ("store", _store),
    ("state", _state),
    ("ports", _ports),
    ("channels", _channels),
    ("peers", _peers),
    ("shares", _pending),
    ("leftovers", _leftovers),
)
