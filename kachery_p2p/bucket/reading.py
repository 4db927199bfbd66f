"""What a bucket or mirror is to whoever reads from it, and how its answers are held to size."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from enum import Enum
from typing import NamedTuple, Protocol, TypeVar

from kachery_p2p.bucket.faults import wrong_answer
from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.errors import BucketAnswerError, BucketRefusedError, KacheryError


class Meta(NamedTuple):
    """What is said of an object; to be verified, not believed."""

    size: int
    # The content's root, if whoever put it there noted it.
    root: Root | None = None
    label: str | None = None

    def agrees(self, size: int, root: Root) -> bool:
        """True if that may be the object of a content of this size and root."""
        return self.size == size and self.root in (None, root)


class Whose(Enum):
    """Whose word it was that turned out wrong."""

    # That of the place itself.
    PLACE = "place"
    # That of members through whom it is read, who had all been wrong about it before.
    MEMBERS = "members"
    # That of members, one at least for the first time: others are asked first now, so it is worth
    # another look.
    NEW_MEMBERS = "new members"


class Doubtable(Protocol):
    """A place of objects that may be read through others."""

    def disbelieve(self, keys: Collection[str]) -> Whose:
        """What was said or handed over of these objects turned out wrong. Does not block."""


class Readable(Doubtable, Protocol):
    """A bucket or a mirror, read by blocking calls, from any number of threads.

    All raise BucketErrors. What they hand over is of the right length, and else unverified.
    """

    @property
    def name(self) -> str:
        """How people know it."""

    @property
    def node(self) -> str:
        """64 hex digits, as sources of chunks are told apart by."""

    def read_whole(self, key: str, bytes_max: int) -> bytes:
        """All of a small object below the prefix. Raises AbsentError too."""

    def look(self, content: ContentHash) -> Meta | None:
        """What is said of the content's object; None if there is none."""

    def read(self, content: ContentHash, start: int, end: int) -> Iterator[bytes]:
        """Bytes `start` to `end` of the object, in pieces."""

    def read_tables(self, root: Root, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of the chunk hashes of a content with this root."""


Result = TypeVar("Result")

# What may come of another's word: something else than was said, or a signature that is none.
OF_WORDS = (BucketAnswerError, BucketRefusedError)


def believed(
    place: Doubtable,
    keys: Collection[str],
    read: Callable[[], Result],
    wrong: tuple[type[KacheryError], ...],
) -> Result:
    """What `read` makes of these objects; again while it raises `wrong`, as long as that helps.

    That is as long as somebody else is asked the next time.
    """
    while True:
        try:
            return read()
        except wrong:
            if place.disbelieve(keys) is not Whose.NEW_MEMBERS:
                raise


def exactly(pieces: Iterable[bytes], length: int, name: str) -> Iterator[bytes]:
    """The pieces, `length` bytes in all; BucketAnswerError as soon as it is more, or in the end."""
    left = length
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            raise wrong_answer(name, "sent more than was asked for")
        yield piece
    if left:
        raise wrong_answer(name, f"sent {length - left} of {length} bytes")
