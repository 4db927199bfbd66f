"""Names of the older packages that are not here, and why: what a module's `__getattr__` says."""

from __future__ import annotations

from typing import NoReturn

from kachery_p2p.errors import ServiceGoneError

_TASKS = "tasks are not part of this version of kachery_p2p: call the function itself"
_HUB = "it set up access to a hub that no longer exists: `kachery-p2p channel join` takes its place"

# By package.
ABSENT = {
    "kachery_client": {
        "taskfunction": _TASKS,
        "run_task_backend": _TASKS,
        "request_task": _TASKS,
        "_run_task": _TASKS,
        "setup_colab_ephemeral": _HUB,
        "config_ephemeral_node": _HUB,
    },
    "kachery_cloud": {
        "TaskBackend": _TASKS,
        "TaskClient": _TASKS,
        "share_local_files_experimental": "it waited for tasks: a node shares by itself what is"
        " stored, or `kachery-p2p share` what was stored with `local=True`",
    },
    "kachery": {},
    "kachery_p2p": {
        "TestDaemon": "it tested kachery-p2p itself: `kachery-p2p start --background` runs a node",
        "cli": "the command is the program `kachery-p2p`",
    },
}


def missing(package: str, name: str) -> AttributeError:
    """What to raise for a name that the package has not, or has no more."""
    why = ABSENT[package].get(name)
    text = f"module {package!r} has no attribute {name!r}"
    return AttributeError(text if why is None else f"{text}: {why}")


def gone(what: str, instead: str) -> NoReturn:
    """Raise the error for a call that only a server of the authors could answer."""
    raise ServiceGoneError(f"{what} was done by a server that no longer exists", hint=instead)


# What kachery-p2p exported before version 1 and this package does not, at least not here.
_MOVED = (
    *("start_daemon", "stop_daemon", "join_channel", "leave_channel", "ShellScript"),
    *("TestDaemon", "cli", "_experimental_config", "_kachery_storage_dir", "_kachery_temp_dir"),
    "__protocol_version__",
)


def moved(name: str) -> AttributeError:
    """What to raise for a name that `kachery_p2p` itself has not."""
    text = f"module 'kachery_p2p' has no attribute {name!r}"
    if name in ABSENT["kachery_p2p"]:
        return missing("kachery_p2p", name)
    if name in _MOVED:
        text += ": it is in kachery_p2p.compat.kachery_p2p, with all that 0.5 to 0.8 had"
    return AttributeError(text)
