"""Reading a log from a bucket or a mirror, by blocking calls. What comes is what was signed."""

from __future__ import annotations

from kachery_p2p.bucket.faults import AbsentError, wrong_answer
from kachery_p2p.bucket.log_layout import (
    LogHead,
    Segment,
    decode_segment,
    head_key,
    segment_key,
)
from kachery_p2p.bucket.reading import OF_WORDS, Readable, believed
from kachery_p2p.errors import HeadError, LogFormatError, ProofError
from kachery_p2p.limits import BUCKET_LOG_HEAD_BYTES_MAX
from kachery_p2p.log.heads import LogId

# What says that the owner did not sign what a bucket showed.
OF_A_LIE = (HeadError, ProofError)


def read_head(place: Readable, log: LogId) -> LogHead | None:
    """What the bucket says of the log, as its owner signed it; None if it has nothing of it.

    HeadError or ProofError if the owner did not sign that; BucketAnswerError if the object is
    damaged or something else; and other BucketErrors.
    """
    key = head_key(log)

    def read() -> LogHead:
        return checked_head(place.read_whole(key, BUCKET_LOG_HEAD_BYTES_MAX), place.name, log)

    try:
        return believed(place, [key], read, (*OF_WORDS, *OF_A_LIE))
    except AbsentError:
        return None


def checked_head(data: bytes, name: str, log: LogId) -> LogHead:
    """The head that the object spells. Raises as `read_head` does; `name` is the bucket's."""
    try:
        head = LogHead.decode(data, log)
    except LogFormatError as error:
        raise wrong_answer(name, f"has something else as the head of a log: {error}") from None
    head.verify(log)
    return head


def read_segment(place: Readable, log: LogId, first: int, segment: Segment) -> list[bytes]:
    """The entries of a segment, whose object is the one that the head names.

    BucketAnswerError if it is gone, damaged, or something else; and other BucketErrors.
    """
    key = segment_key(log, segment.digest)

    def read() -> list[bytes]:
        try:
            return decode_segment(place.read_whole(key, segment.size), first, segment)
        except AbsentError:
            raise wrong_answer(place.name, "lacks a segment of a log") from None
        except LogFormatError as error:
            what = f"has something else as a segment of a log: {error}"
            raise wrong_answer(place.name, what) from None

    return believed(place, [key], read, OF_WORDS)
