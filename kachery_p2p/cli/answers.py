"""The commands that must be quick, without click: a script may call them a thousand times."""

from __future__ import annotations

from kachery_p2p.cli.outcome import answer


def load(
    uri: str,
    dest: str | None = None,
    verify: bool = False,
    from_channel: str | None = None,
    from_node: str | None = None,
    timeout: float | None = None,
) -> None:
    """Print the path of the content."""
    from kachery_p2p.client.files import load_file

    answer(
        load_file(
            uri,
            dest,
            verify=verify,
            from_channel=from_channel,
            from_node=from_node,
            timeout=timeout,
        )
    )


def node_id() -> None:
    """Print this node's id."""
    from kachery_p2p.client.files import get_node_id

    answer(get_node_id())


def version() -> None:
    """Print the version of this package."""
    from kachery_p2p.version import __version__

    answer(__version__)
