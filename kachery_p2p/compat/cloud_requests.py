"""Requests of kachery-cloud: that some computer, a resource, upload a file that it has.

A node sends what it shares without being asked beforehand, so a request is a look for it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kachery_p2p.compat.calls import CLOUD_CALLS


class RequestFileResult(NamedTuple):
    """What became of a request for a file."""

    found: bool | None = None
    queued: bool | None = None
    completed: bool | None = None
    running: bool | None = None
    local: bool = False
    errored: bool = False
    error_message: str = ""
    size: int | None = None
    bytes_uploaded: int | None = None


def request_file(
    uri: str,
    *,
    timeout_sec: float,
    ignore_local: bool = False,
    ignore_bucket: bool = False,
    resource_url: str | None = None,
) -> RequestFileResult:
    """Whether the content is here or with a member of the channels, who need not be asked first.

    A resource, which uploaded files that it was asked for, is any node now: `load_file` has
    it send them.
    """
    size, local = CLOUD_CALLS.find(uri)
    if size is None:
        return RequestFileResult(found=False, queued=False, completed=False, running=False)
    if local and not ignore_local:
        return RequestFileResult(found=True, size=size, local=True)
    return RequestFileResult(found=True, size=size, completed=True)


def request_file_experimental(uri: str, *, project_id: str, dest: str | None = None) -> str | None:
    """As `load_file`: a node sends what it shares without being asked for it first."""
    from kachery_p2p.compat import kachery_cloud

    return kachery_cloud.load_file(uri, dest=dest)


def request_text_experimental(uri: str, *, project_id: str) -> str | None:
    """As `load_text`."""
    from kachery_p2p.compat import kachery_cloud

    return kachery_cloud.load_text(uri)


def request_json_experimental(uri: str, *, project_id: str) -> Any:
    """As `load_json`."""
    from kachery_p2p.compat import kachery_cloud

    return kachery_cloud.load_json(uri)


def request_npy_experimental(uri: str, *, project_id: str) -> Any:
    """As `load_npy`."""
    from kachery_p2p.compat import kachery_cloud

    return kachery_cloud.load_npy(uri)


def request_pkl_experimental(uri: str, *, project_id: str) -> Any:
    """As `load_pkl`."""
    from kachery_p2p.compat import kachery_cloud

    return kachery_cloud.load_pkl(uri)
