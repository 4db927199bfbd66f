"""What is judged of a blob as a whole: its root object at the beginning, its SHA-1 in the end."""

from __future__ import annotations

from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.manifests import Manifest, RootObject, chunk_hash
from kachery_p2p.errors import UriInconsistentError, VerificationError
from kachery_p2p.store.blobs import BlobStore
from kachery_p2p.store.partials import Partial
from kachery_p2p.transfer.sources import Source


async def ask_root_object(source: Source, content: ContentHash, root: Root) -> RootObject:
    """The root object with this root. VerificationError if the source sends another.

    Raises UriInconsistentError if it is another content's, and PeerErrors.
    """
    encoded = await source.root_object(content, root)
    if chunk_hash(encoded) != root.raw:
        raise VerificationError("sent a root object that does not match the root")
    found = RootObject.decode(encoded)
    if found.content != content:
        raise UriInconsistentError(
            f"root {root} belongs to sha1://{found.content}, not to sha1://{content}",
            hint="ask whoever gave you the URI for a correct one",
        )
    return found


def adopt(blobs: BlobStore, partial: Partial, sha1: str) -> None:
    """Make the partial, all of whose chunks are here, the blob, if its SHA-1 is right.

    Else it is discarded: UriInconsistentError. Raises VerificationError (and discards it) if the
    blob was already there with other bytes, and StoreError.
    """
    found = partial.root_object
    if sha1 != found.content:
        partial.discard()
        raise UriInconsistentError(
            f"the bytes with root {found.root} do not have the SHA-1 {found.content}",
            hint="ask whoever gave you the URI for a correct one",
        )
    try:
        pages = tuple(partial.page(n) for n in range(found.page_count))
        blobs.adopt_partial(partial, Manifest(found, pages))
    except VerificationError:
        # These bytes are not to become the blob: with others of this SHA-1 they collide.
        partial.discard()
        raise
    finally:
        partial.close()
