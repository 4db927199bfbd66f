"""A mirror on the web: any server that has contents under their hashes. It is only read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from kachery_p2p.bucket.faults import AbsentError, wrong_answer
from kachery_p2p.bucket.layout import tables_key, told_label, told_root
from kachery_p2p.bucket.owner import check_encryption
from kachery_p2p.bucket.reading import Meta, Whose, exactly
from kachery_p2p.bucket.urls import BucketUrl
from kachery_p2p.bucket.web import Answer, Web
from kachery_p2p.content.hashes import ContentHash, Root

# How the clouds name metadata when a public bucket is read as web pages.
_METADATA = ("x-amz-meta-", "x-goog-meta-", "x-ms-meta-")


class Mirror:
    """One mirror. Safe in any number of threads."""

    # True for one that opens what it reads there (`sealed_mirror`).
    is_encrypted = False
    _is_checked = False

    def __init__(self, url: BucketUrl) -> None:
        assert url.is_mirror
        self.url = url
        self.name = url.place.partition("?")[0]
        self.node = url.node
        self._web = Web(self.name)

    @property
    def plain(self) -> Mirror:
        """The objects as they lie there."""
        return self

    def close(self) -> None:
        """Close what is open; a later use opens it again."""
        self._web.close()

    def look(self, content: ContentHash) -> Meta | None:
        """What is said of a content; None if it is not there. Raises BucketErrors."""
        with self._web.get(self.url.of_content(content), "HEAD") as answer:
            if answer is None:
                self._check_alike()
                return None
            size = answer.length
            metadata = _metadata(answer.headers)
        if size is None:
            raise wrong_answer(self.name, "does not say how long its files are")
        return Meta(size, told_root(metadata), told_label(metadata))

    def _check_alike(self) -> None:
        """Once, before it is said that something is not there: it may be there encrypted."""
        if not self._is_checked:
            check_encryption(self)
            self._is_checked = True

    def read(self, content: ContentHash, start: int, end: int) -> Iterator[bytes]:
        """Bytes `start` to `end` of a content, in pieces. Raises BucketErrors."""
        return self._read(self.url.of_content(content), start, end)

    def read_tables(self, root: Root, start: int, end: int) -> bytes:
        """Bytes of the chunk hashes of a content with this root. Raises BucketErrors."""
        if self.url.is_template:
            raise wrong_answer(self.name, "has no chunk hashes")
        return b"".join(self._read(f"{self.url.place}/{tables_key(root)}", start, end))

    def disbelieve(self, keys: Collection[str]) -> Whose:
        """As of `Readable`."""
        return Whose.PLACE

    def read_whole(self, key: str, bytes_max: int) -> bytes:
        """All of a small object. Raises AbsentError, and BucketAnswerError if it is larger."""
        if self.url.is_template:
            raise AbsentError
        with self._web.get(f"{self.url.place}/{key}") as answer:
            if answer is None:
                raise AbsentError
            if answer.length is None or answer.length > bytes_max:
                raise wrong_answer(self.name, f"sent more than {bytes_max} bytes as {key}")
            return b"".join(exactly(answer.body, answer.length, self.name))

    def _read(self, url: str, start: int, end: int) -> Iterator[bytes]:
        return read_part(self._web, self.name, url, start, end)


def read_part(web: Web, name: str, url: str, start: int, end: int) -> Iterator[bytes]:
    """Bytes `start` to `end` of what lies at `url`, in pieces. Raises BucketErrors."""
    try:
        yield from read_present(web, name, url, start, end)
    except AbsentError:
        raise wrong_answer(name, "does not have it (any more)") from None


def read_present(web: Web, name: str, url: str, start: int, end: int) -> Iterator[bytes]:
    """The same; AbsentError if nothing lies there and any bytes are asked for."""
    if start == end:
        return
    with web.get(url, span=(start, end)) as answer:
        if answer is None:
            raise AbsentError
        _check_part(answer, name, start, end)
        yield from exactly(answer.body, end - start, name)


def _check_part(answer: Answer, name: str, start: int, end: int) -> None:
    """The answer is of the part asked for: some servers send the whole file all the same."""
    told = answer.headers.get("content-range", "")
    if answer.status == 206 and told.startswith(f"bytes {start}-{end - 1}/"):
        return
    if answer.status == 200 and start == 0 and answer.length == end:
        return
    raise wrong_answer(name, "sent another part of the file than was asked for")


def _metadata(headers: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for name, value in headers.items():
        for start in _METADATA:
            if name.startswith(start):
                found[name.removeprefix(start)] = value
    return found
