"""Where things lie in a store directory. Light: finding a stored file imports nothing else.

STORE/sha1/aa/bb/cc/<hash>        the objects, as every kachery has laid them out
STORE/.tmp/<random>[/<number>]    objects being written; locked while their writer lives
STORE/.partial/<node id>/...      downloads under way, see `partials`
STORE/.quarantine/<hash>.<time>   files that did not have the bytes their name promised
STORE/.opened-<uid>/...           what a user's encrypted contents opened to, see client/opened
"""

from __future__ import annotations


def blob_path(store: str, content: str) -> str:
    """The one place where the object `content` (40 hex digits) may lie."""
    return f"{store}/sha1/{content[:2]}/{content[2:4]}/{content[4:6]}/{content}"


def parent_of(path: str) -> str:
    """The directory of a path that has one; a fifth of the time of `os.path.dirname`."""
    return path[: path.rindex("/")]


def old_link_paths(store: str, content: str) -> tuple[str, str]:
    """Where older packages noted a file linked as `content`: kachery-client, kachery-cloud."""
    path = blob_path(store, content)
    return f"{path}.link", f"{store}/linked_files{path[len(store) :]}"


def old_hints_path(store: str, content: str) -> str:
    """Where the first kachery noted which files it had found to have the content."""
    return f"{blob_path(store, content)}.hints.json"


def temp_dir(store: str) -> str:
    """The directory of objects being written."""
    return f"{store}/.tmp"


def quarantine_dir(store: str) -> str:
    """The directory of files found not to have the bytes of their name."""
    return f"{store}/.quarantine"


def partial_dir(store: str, node_id: str) -> str:
    """The directory of the downloads under way of one node."""
    return f"{store}/.partial/{node_id}"
