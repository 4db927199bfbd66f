"""The commands that must be quick, without click: a script may call them a thousand times."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kachery_p2p.cli.outcome import answer

if TYPE_CHECKING:
    from kachery_p2p.client.events import ProgressArg
    from kachery_p2p.client.origin import Origin


def load(
    uri: str,
    dest: str | None = None,
    verify: bool = False,
    from_channel: str | None = None,
    from_node: str | None = None,
    timeout: float | None = None,
    progress: ProgressArg = None,
) -> None:
    """Print the path of the content; of a directory, that of `dest` or of each file."""
    from kachery_p2p.client.files import is_directory_uri, load_file

    if is_directory_uri(uri):
        from kachery_p2p.client.origin import origin

        if _names_directory(uri, origin(from_channel, from_node, timeout), progress):
            _load_directory(uri, dest, verify, from_channel, from_node, timeout, progress)
            return
    answer(
        load_file(
            uri,
            dest,
            verify=verify,
            from_channel=from_channel,
            from_node=from_node,
            timeout=timeout,
            progress=progress,
        )
    )


def _names_directory(uri: str, origin: Origin, progress: ProgressArg) -> bool:
    from kachery_p2p.client.directory_lists import look_up
    from kachery_p2p.content.directories import Directory
    from kachery_p2p.content.schemes import DirectoryUri, parse_any

    where = parse_any(uri)
    if isinstance(where, DirectoryUri) and not where.path:
        return True
    from kachery_p2p.client.progress import Reporter

    # The list is small, and not what was asked for: a function is not told of it.
    with Reporter(False if callable(progress) else progress) as reporter:
        return isinstance(look_up(uri, origin, reporter)[1], Directory)


def _load_directory(
    uri: str,
    dest: str | None,
    verify: bool,
    from_channel: str | None,
    from_node: str | None,
    timeout: float | None,
    progress: ProgressArg,
) -> None:
    from kachery_p2p.client.directories import load_dir
    from kachery_p2p.client.wording import printable

    loaded = load_dir(
        uri,
        dest,
        verify=verify,
        from_channel=from_channel,
        from_node=from_node,
        timeout=timeout,
        progress=progress,
    )
    if isinstance(loaded, str):
        answer(loaded)
        return
    for name, path in loaded.items():
        # As sha1sum writes it: what a script wants is before the first two spaces.
        answer(f"{path}  {printable(name)}")


def node_id() -> None:
    """Print this node's id."""
    from kachery_p2p.client.files import get_node_id

    answer(get_node_id())


def version() -> None:
    """Print the version of this package."""
    from kachery_p2p.version import __version__

    answer(__version__)
