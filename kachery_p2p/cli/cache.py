"""Commands that keep the store small: cache ls, prune, pin, unpin, verify."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import click

from kachery_p2p.cli.outcome import answer, note
from kachery_p2p.cli.upkeep import verify
from kachery_p2p.client import settings
from kachery_p2p.client.wording import counted, human_bytes
from kachery_p2p.errors import NotFoundError
from kachery_p2p.store import cache as cached_objects

if TYPE_CHECKING:
    from kachery_p2p.content.hashes import ContentHash
    from kachery_p2p.store.blobs import BlobStore
    from kachery_p2p.store.cache import Cached
    from kachery_p2p.store.grants import Grants
    from kachery_p2p.store.pins import Pins

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?(?:([kKMGTP]?)(i?)B)?")
_THOUSANDS = ("", "K", "M", "G", "T", "P")


class Size(click.ParamType[int]):
    """Bytes, as in 200GB or 500 MiB."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        found = _SIZE.fullmatch(str(value).strip())
        if found is None:
            self.fail(f"{value!r} is not a size, such as 200GB or 500MiB", param, ctx)
        base = 1024 if found[3] else 1000
        return int(float(found[1]) * base ** _THOUSANDS.index((found[2] or "").upper()))


@click.group()
def cache() -> None:
    """Keep the store small: remove what others have, the least recently used first."""


cache.add_command(verify)


@cache.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each.")
def list_cached(as_json: bool) -> None:
    """Print what is stored, the least recently used first: when, size, state, URI.

    States: `pinned` and `linked` are never pruned, `stored` only if asked, as others may not
    have it; `fetched` came from a member of a channel.
    """
    with _opened() as records:
        cached = records.describe()
    for one in cached:
        if as_json:
            told = {
                "uri": f"sha1://{one.listed.content}",
                "size": one.listed.size,
                "state": one.state,
                "used": one.used,
                "path": one.listed.path,
            }
            answer(json.dumps(told))
        else:
            answer(_line(one))
    objects = [one for one in cached if not one.listed.linked]
    size = sum(one.listed.size for one in objects)
    note(f"{counted(len(objects), 'file')}, {human_bytes(size)}")


def _line(one: Cached) -> str:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.used))
    size = human_bytes(one.listed.size)
    return f"{used}  {size:>9}  {one.state:<7}  sha1://{one.listed.content}"


@cache.command()
@click.option(
    "--max-size", type=Size(), required=True, metavar="SIZE", help="The size to come down to."
)
@click.option("--yes", is_flag=True, help="Remove it: without this, only say what would be.")
@click.option("--stored", is_flag=True, help="If need be, what was stored here, too.")
def prune(max_size: int, yes: bool, stored: bool) -> None:
    """Remove what was fetched, the least recently used first, until the store is small enough.

    Prints what would be removed, or with --yes what was. Never what is pinned or linked.
    What somebody stored or shared here goes with --stored only, and last: no other node may
    have it.
    """
    with _opened() as records:
        planned = cached_objects.plan(records.describe(), max_size, stored_too=stored)
        size = planned.bytes_before
        for one in planned.remove:
            if not yes or records.remove(one):
                size -= one.listed.size
                answer(_line(one))
    freed = planned.bytes_before - size
    if yes:
        note(f"{human_bytes(freed)} freed, {human_bytes(size)} left")
    elif planned.remove:
        note(f"{human_bytes(freed)} would be freed, {human_bytes(size)} left: --yes removes them")
    if size > max_size:
        note(
            f"that is more than {human_bytes(max_size)}: all else is pinned, linked or stored here"
        )


@cache.command()
@click.argument("uris", nargs=-1, required=True, metavar="URI...")
def pin(uris: tuple[str, ...]) -> None:
    """Let the content of each URI stay in the store, however little it is used.

    The URI of a directory stands for its list and all files in it.
    """
    contents = _contents(uris)
    from kachery_p2p.client.files import find_local
    from kachery_p2p.content.uris import Uri

    for content in contents:
        if find_local(Uri(content)) is None:
            raise NotFoundError(f"sha1://{content} is not stored here", hint="load it first")
    with _opened() as records:
        records.pins.add(contents)
    note(f"pinned {counted(len(contents), 'file')}")


@cache.command()
@click.argument("uris", nargs=-1, required=True, metavar="URI...")
def unpin(uris: tuple[str, ...]) -> None:
    """Let the content of each URI be pruned again, if nothing else speaks against it."""
    contents = _contents(uris)
    with _opened() as records:
        count = records.pins.remove(contents)
    note(f"unpinned {counted(count, 'file')}")


def _contents(uris: tuple[str, ...]) -> list[ContentHash]:
    from kachery_p2p.client.directory_lists import contents_of

    return list(dict.fromkeys(one.content for uri in uris for one in contents_of(uri)))


# --- what is known, and removing --------------------------------------------------------------


class Records(NamedTuple):
    """The store, and what this node has written down of what is in it."""

    store: BlobStore
    pins: Pins
    # None for an offline store: it has no node, and so no record of what came from others.
    grants: Grants | None

    def describe(self) -> list[Cached]:
        """All that is stored, the least recently used first."""
        known = cached_objects.Known(
            pinned=self.pins.all(),
            linked=self.store.linked_contents(),
            fetched=self.grants.only_fetched() if self.grants is not None else set(),
            sources=self.store.source_contents(),
        )
        return cached_objects.describe(self.store.list_objects(), known)

    def remove(self, one: Cached) -> bool:
        """Remove an object, unless somebody used, pinned or shared it since it was looked at."""
        content = one.listed.content
        if cached_objects.used_at(one.listed.path) != one.used:
            return False
        if self.pins.has(content) or self.store.is_linked(content):
            return False
        if not self._share_no_more(content, one.state):
            return False
        with contextlib.suppress(NotFoundError):
            self.store.remove(content)
        return True

    def _share_no_more(self, content: ContentHash, state: str) -> bool:
        """Revoke its grants first, as `rm` does; False if it is shared by now, and stays."""
        if self.grants is None:
            return True
        if state == cached_objects.FETCHED:
            return self.grants.forget_fetched(content)
        self.grants.forget(content)
        return True


@contextlib.contextmanager
def _opened() -> Iterator[Records]:
    from kachery_p2p.client.local import make_config_dir, open_store
    from kachery_p2p.store.pins import Pins

    make_config_dir()
    pins = Pins(os.path.join(settings.state_dir(), "pins.db"))
    with open_store() as store, contextlib.closing(pins), _grants() as grants:
        yield Records(store, pins, grants)


@contextlib.contextmanager
def _grants() -> Iterator[Grants | None]:
    """The grants of this node, with what clients wrote down for it meanwhile."""
    if settings.is_offline():
        yield None
        return
    from kachery_p2p.node.config import grants_path
    from kachery_p2p.store.grants import Grants
    from kachery_p2p.store.shares import take_shares

    grants = Grants(grants_path(settings.config_dir()))
    try:
        take_shares(settings.config_dir(), grants.keep)
        yield grants
    finally:
        grants.close()
