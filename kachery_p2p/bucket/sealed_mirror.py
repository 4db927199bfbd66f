"""A mirror on the web of an encrypted bucket: it is only read, and opened here."""

from __future__ import annotations

from collections.abc import Iterator

from kachery_p2p.bucket.faults import AbsentError, wrong_answer
from kachery_p2p.bucket.layout import key_of, tables_key, told_label, told_root
from kachery_p2p.bucket.mirror import Mirror, read_present
from kachery_p2p.bucket.reading import Meta
from kachery_p2p.bucket.sealed_reading import Keys, SealedReading
from kachery_p2p.bucket.sealing import BEGINNING_BYTES, object_size
from kachery_p2p.content.hashes import ContentHash, Root


class SealedMirror(Mirror):
    """One mirror. Safe in any number of threads. Raises BucketKeysError and KeyFileError too."""

    is_encrypted = True

    def __init__(self, plain: Mirror, keys: Keys) -> None:
        """`plain` is the same mirror as it is seen without keys."""
        super().__init__(plain.url)
        self.keys = keys
        self._plain = plain
        self._reading = SealedReading(self.name, keys, self._beginning, self._part)

    @property
    def plain(self) -> Mirror:
        """The mirror without keys."""
        return self._plain

    def close(self) -> None:
        """Close what is open; a later use opens it again."""
        super().close()
        self._plain.close()

    def look(self, content: ContentHash) -> Meta | None:
        """What is said of a content; None if it is not there. Raises BucketErrors."""
        try:
            size, attributes = self._reading.head(key_of(content))
        except AbsentError:
            self._check_alike()
            return None
        return Meta(size, told_root(attributes), told_label(attributes))

    def read(self, content: ContentHash, start: int, end: int) -> Iterator[bytes]:
        """Bytes `start` to `end` of a content, in pieces. Raises BucketErrors."""
        return self._key(key_of(content), start, end)

    def read_tables(self, root: Root, start: int, end: int) -> bytes:
        """Bytes of the chunk hashes of a content with this root. Raises BucketErrors."""
        return b"".join(self._key(tables_key(root), start, end))

    def read_whole(self, key: str, bytes_max: int) -> bytes:
        """All of a small object. Raises AbsentError, and BucketAnswerError if it is larger."""
        path = self.keys.ring().stored_name(key)
        return self._reading.opened(key, self._plain.read_whole(path, object_size(bytes_max)))

    def _key(self, key: str, start: int, end: int) -> Iterator[bytes]:
        try:
            yield from self._reading.read(key, start, end)
        except AbsentError:
            raise wrong_answer(self.name, "does not have it (any more)") from None

    def _beginning(self, path: str) -> bytes:
        url = f"{self.url.place}/{path}"
        return b"".join(read_present(self._web, self.name, url, 0, BEGINNING_BYTES))

    def _part(self, path: str, start: int, end: int) -> Iterator[bytes]:
        return self._read(f"{self.url.place}/{path}", start, end)
