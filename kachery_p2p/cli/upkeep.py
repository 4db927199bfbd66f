"""Commands that look after the store directory: verify, rm."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

import click

from kachery_p2p.cli.outcome import answer, note
from kachery_p2p.client import settings
from kachery_p2p.client.wording import counted, human_bytes, printable
from kachery_p2p.content.uris import format_uri, parse_uri
from kachery_p2p.errors import CorruptObjectError, KacheryError, VerificationError

if TYPE_CHECKING:
    from kachery_p2p.content.hashes import ContentHash
    from kachery_p2p.store.blobs import Checked


class Percentage(click.ParamType[float]):
    """`5%`, as the share 0.05."""

    name = "percentage"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        share = 0.0
        with contextlib.suppress(ValueError):
            share = float(str(value).removesuffix("%")) / 100
        if not (str(value).endswith("%") and 0 < share <= 1):
            self.fail(f"{value!r} is not a percentage, such as 5%", param, ctx)
        return share


@click.command()
@click.option(
    "--sample", type=Percentage(), default=1.0, metavar="N%", help="Read only so many of them."
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def verify(sample: float, as_json: bool) -> None:
    """Read what is stored, from the disk, and print what does not have the bytes of its name.

    A corrupt file is moved to .quarantine in the store, where it is found no more; the
    exit code is then 7. A linked file that has changed is linked no more.
    """
    count, size, bad = _verified(sample)
    if as_json:
        answer(json.dumps({"checked": count, "bytes": size, "bad": [_row(one) for one in bad]}))
    else:
        for one in bad:
            answer(f"{_state(one)}  sha1://{one.listed.content}  {printable(str(one.error))}")
        answer(f"checked  {counted(count, 'file')}, {human_bytes(size)}; {len(bad)} bad")
    _fail(bad)


def _verified(sample: float) -> tuple[int, int, list[Checked]]:
    """How many files and bytes were read, and those that are not as they should be."""
    from kachery_p2p.client.local import open_store
    from kachery_p2p.client.progress import Reporter

    count = size = 0
    bad = []
    with open_store() as store, Reporter() as reporter:
        for checked in store.verify_store(sample):
            count += 1
            size += checked.listed.size
            if checked.error is not None:
                bad.append(checked)
            reporter.tell({"bytes": size})
    return count, size, bad


def _is_corrupt(checked: Checked) -> bool:
    return isinstance(checked.error, VerificationError)


def _state(checked: Checked) -> str:
    return "corrupt" if _is_corrupt(checked) else "unread "


def _row(checked: Checked) -> dict[str, Any]:
    error = checked.error
    assert error is not None
    return {
        "uri": f"sha1://{checked.listed.content}",
        "path": checked.listed.path,
        "linked": checked.listed.linked,
        "corrupt": _is_corrupt(checked),
        "error": type(error).__name__,
        "message": str(error),
        "hint": error.hint,
    }


def _fail(bad: list[Checked]) -> None:
    """The exit code says it too: 7 for corrupt files, else 1 for those that could not be read."""
    corrupt = sum(_is_corrupt(one) for one in bad)
    if corrupt:
        raise CorruptObjectError(
            f"{counted(corrupt, 'file')} did not have the bytes of the name",
            hint="load them again to get good copies, and check the disk",
        )
    for one in bad[:1]:
        assert one.error is not None
        raise KacheryError(
            f"{counted(len(bad), 'file')} could not be verified", hint=one.error.hint
        )


# --- rm ---------------------------------------------------------------------------------------


@click.command()
@click.argument("uris", nargs=-1, required=True, metavar="URI...")
def rm(uris: tuple[str, ...]) -> None:
    """Remove the content of each URI from the store, and share it no more.

    A linked file is linked no more, and stays where it is. What others have loaded
    stays theirs.
    """
    from kachery_p2p.client.files import is_encrypted_uri, wanted_by
    from kachery_p2p.client.local import open_store
    from kachery_p2p.client.opened import forget as forget_opened

    for wanted in [wanted_by(uri) if is_encrypted_uri(uri) else parse_uri(uri) for uri in uris]:
        if not settings.is_offline():
            _share_no_more(wanted.content)
        with open_store() as store:
            freed = store.remove(wanted.content)
        forget_opened(wanted.content)
        note(f"removed {format_uri(wanted)}: {human_bytes(freed)} freed")


def _share_no_more(content: ContentHash) -> None:
    """Revoke its grants first: what is stored again later is shared as that store says."""
    from kachery_p2p.node.config import grants_path
    from kachery_p2p.store.grants import Grants
    from kachery_p2p.store.shares import shares_path, take_shares

    config_dir = settings.config_dir()
    path = grants_path(config_dir)
    if not os.path.exists(path) and not os.path.exists(shares_path(config_dir)):
        return
    grants = Grants(path)
    try:
        take_shares(config_dir, grants.keep)
        grants.forget(content)
    finally:
        grants.close()
