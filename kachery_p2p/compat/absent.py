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
        "ShellScript": "it ran scripts and had nothing to do with files: use subprocess",
    },
    "kachery_cloud": {
        "TaskBackend": _TASKS,
        "TaskClient": _TASKS,
        "share_local_files_experimental": "it waited for tasks: a node shares by itself what is"
        " stored, or `kachery-p2p share` what was stored with `local=True`",
    },
    "kachery": {},
}


def missing(package: str, name: str) -> AttributeError:
    """What to raise for a name that the package has not, or has no more."""
    why = ABSENT[package].get(name)
    text = f"module {package!r} has no attribute {name!r}"
    return AttributeError(text if why is None else f"{text}: {why}")


def gone(what: str, instead: str) -> NoReturn:
    """Raise the error for a call that only a server of the authors could answer."""
    raise ServiceGoneError(f"{what} was done by a server that no longer exists", hint=instead)
