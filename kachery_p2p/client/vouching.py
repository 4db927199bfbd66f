"""What to do with a URI without a root: no hash that it carries vouches for a part of the file."""

from __future__ import annotations

import warnings

from kachery_p2p.client.daemon import connect
from kachery_p2p.client.origin import Origin
from kachery_p2p.content.hashes import Root
from kachery_p2p.content.uris import Uri
from kachery_p2p.errors import DaemonDownError, NotFoundError, UnsupportedValueError
from kachery_p2p.limits import CHUNK_BYTES

PROVIDER = "provider"


def vouched(wanted: Uri, origin: Origin, verify: str | None, stacklevel: int) -> Uri:
    """The content, with a root if parts of it may be fetched; without, the whole must be.

    Then it says so, in a warning, if the file is a large one. With `verify="provider"` the
    root is the one that providers of the file claim: bytes are verified against it, but
    that it belongs to the file's hash is their word.
    """
    if verify not in (None, PROVIDER):
        raise UnsupportedValueError(f'verify must be None or "provider", not {verify!r}')
    if wanted.root is not None:
        return wanted
    size, root, local = _told(wanted, origin)
    if size is None or size <= CHUNK_BYTES:
        return wanted
    if local and root is not None:
        # Our own daemon has verified all of it.
        return wanted._replace(root=Root(root))
    if verify == PROVIDER:
        if root is None:
            raise NotFoundError(
                f"no provider says what the root of sha1://{wanted.content} is",
                hint='leave out verify="provider": the whole file is loaded then',
            )
        return wanted._replace(root=Root(root))
    warnings.warn(
        f"sha1://{wanted.content} has no ?root= that vouches for a part of it: all {size} bytes"
        ' are fetched and verified first (verify="provider" takes the word of who has it)',
        stacklevel=stacklevel + 1,
    )
    return wanted


def _told(wanted: Uri, origin: Origin) -> tuple[int | None, str | None, bool]:
    """Size and root as those say who have it, and whether that is the daemon itself."""
    body = {"content": wanted.content, "root": None, **origin.fields}
    try:
        told, _ = connect().call("find", body, timeout_s=origin.answer_s)
    except DaemonDownError:
        # Loading it will say so.
        return None, None, False
    return told["size"], told["root"], told["local"]
