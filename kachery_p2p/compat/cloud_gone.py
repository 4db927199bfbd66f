"""What kachery-cloud did with its server, and nothing else can: each raises a ServiceGoneError."""

from __future__ import annotations

from typing import Any

from kachery_p2p.compat.absent import gone

_MUTABLES = "keep it on this computer with the `*_local` functions, or share it by a feed"


def set_mutable(key: str, value: str, *, project_id: str | None = None) -> None:
    """ServiceGoneError: only the server kept these."""
    gone("sharing mutables", _MUTABLES)


def get_mutable(key: str, *, project_id: str | None = None) -> str | None:
    """ServiceGoneError: only the server kept these."""
    gone("sharing mutables", _MUTABLES)


def delete_mutable(key: str, *, project_id: str | None = None) -> None:
    """ServiceGoneError: only the server kept these."""
    gone("sharing mutables", _MUTABLES)


def delete_mutable_folder(key: str, *, project_id: str | None = None) -> None:
    """ServiceGoneError: only the server kept these."""
    gone("sharing mutables", _MUTABLES)


def admin_delete_file(uri: str) -> None:
    """ServiceGoneError: there is no bucket of everybody's."""
    gone("deleting from the common bucket", "`kachery-p2p unshare` or `kachery-p2p rm`")


def initiate_zenodo_upload(*args: Any, **kwargs: Any) -> None:
    """ServiceGoneError: the server held the account at Zenodo."""
    gone(
        "uploading to Zenodo", "upload at zenodo.org; its files are loaded by zenodo://RECORD/NAME"
    )
