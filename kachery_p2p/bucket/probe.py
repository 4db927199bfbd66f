"""`bucket check`: what a bucket can do, tried out, each with what mends it.

Probes write below `.kachery-p2p-probe/` and remove what they wrote.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from kachery_p2p.bucket.faults import AbsentError
from kachery_p2p.bucket.mirror import Mirror
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.owner import check_prefix, owner_of
from kachery_p2p.bucket.sealed_reading import keys_at
from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.errors import KacheryError
from kachery_p2p.limits import BUCKET_CLOCK_S_MAX, BUCKET_PART_BYTES

_BELOW = ".kachery-p2p-probe"
_DATA = bytes(range(256))
# Servers note when an object came in whole seconds.
_CLOCK_STEP_S = 1.0


class Probe(NamedTuple):
    """What one probe found: "ok", "fail" or "skip", and a sentence."""

    name: str
    state: str
    said: str
    hint: str | None = None


def check_place(place: Objects | Mirror, channel_id: str, *, writes: bool) -> Iterator[Probe]:
    """Each probe as it is done. Those that write are left out unless `writes`."""
    if isinstance(place, Mirror):
        yield from _check_mirror(place)
        yield from _encryption(place, writes=False)
        return
    reach = _tried("reach", lambda: _reach(place.plain))
    yield reach
    if reach.state != "ok":
        return
    yield _tried("owner", lambda: _owner(place, channel_id))
    yield from _encryption(place, writes=writes)
    if not writes:
        yield Probe("write", "skip", "this node only reads from it")
        return
    # What is put there to try it out tells nobody anything.
    yield from _Writing(place.plain).probes()


def _tried(name: str, probe: Callable[[], Probe | str]) -> Probe:
    try:
        said = probe()
    except KacheryError as error:
        return Probe(name, "fail", str(error), error.hint)
    except AbsentError:
        return Probe(name, "fail", "what was just put there is not there", "is it a bucket at all?")
    return said if isinstance(said, Probe) else Probe(name, "ok", said)


def _reach(place: Objects) -> str:
    started = time.monotonic()
    # A listing, because the answer to it says of a bucket that is missing that it is.
    next(place.list(_BELOW), None)
    return f"{place.name} answers in {(time.monotonic() - started) * 1000:.0f} ms"


def _owner(place: Objects, channel_id: str) -> str:
    check_prefix(place, channel_id)
    return "the prefix is this channel's" if owner_of(place) else "the prefix is nobody's yet"


def _encryption(place: Objects | Mirror, *, writes: bool) -> Iterator[Probe]:
    """Nothing of what is not encrypted."""
    keys = keys_at(place)
    if keys is None:
        return

    def has_keys() -> str:
        epoch = (keys.to_write() if writes else keys.ring()).epoch
        return f"what is there is encrypted, and this node has the keys (epoch {epoch})"

    yield _tried("encryption", has_keys)


def _check_mirror(place: Mirror) -> Iterator[Probe]:
    absent = sha1_of(os.urandom(16))

    def reach() -> Probe | str:
        if place.look(absent) is not None:
            return Probe(
                "reach",
                "fail",
                f"{place.name} says that it has a file that nobody has",
                "it answers every address with some page: correct the URL",
            )
        return f"{place.name} answers, and says so when it has not got a file"

    yield _tried("reach", reach)
    yield Probe("write", "skip", "a mirror on the web is only read")


class _Writing:
    """Probes that put small things there."""

    def __init__(self, place: Objects) -> None:
        self._place = place
        self._key = f"{_BELOW}/{os.urandom(8).hex()}"

    def probes(self) -> Iterator[Probe]:
        written = _tried("credentials", self._write)
        yield written
        if written.state != "ok":
            return
        try:
            yield _tried("put-if-absent", self._put_again)
            yield _tried("range", self._range)
            yield _tried("metadata", self._metadata)
            yield _tried("clock", self._clock)
            yield _tried("multipart", self._multipart)
        finally:
            yield _tried("clean up", self._clean_up)

    def _write(self) -> str:
        self._place.put_new(self._key, _DATA, {"Content-Type": "text/plain", "label": "probe"})
        return "an object was put there"

    def _put_again(self) -> Probe | str:
        if self._place.put_new(self._key, _DATA, {}):
            return Probe(
                "put-if-absent",
                "fail",
                "the server overwrites what it is told not to overwrite",
                "contents stay right, for they are verified; the owner of a prefix is not guarded:"
                " use a server that honours If-None-Match",
            )
        return "what is there is not overwritten"

    def _range(self) -> str:
        got = b"".join(self._place.read_key(self._key, 100, 145))
        assert len(got) == 45
        return "parts of an object can be read" if got == _DATA[100:145] else _wrong()

    def _metadata(self) -> Probe | str:
        _, attributes = self._place.head(self._key)
        if attributes.get("label") == "probe":
            return "names and roots are kept with the objects"
        return Probe(
            "metadata", "ok", "nothing is kept with objects: files are loaded from it as a whole"
        )

    def _clock(self) -> Probe | str:
        found = next(self._place.list(_BELOW), None)
        if found is None:
            raise AbsentError
        off_s = abs(time.time() - found.modified)
        if off_s <= BUCKET_CLOCK_S_MAX:
            return f"the clocks differ by {max(off_s - _CLOCK_STEP_S, 0):.0f} s at most"
        return Probe(
            "clock",
            "fail",
            f"this computer's clock and the server's differ by {off_s:.0f} s",
            "set the clock (NTP): signatures are refused otherwise",
        )

    def _multipart(self) -> str:
        size = BUCKET_PART_BYTES + 1
        pieces = (bytes(length) for length in (BUCKET_PART_BYTES, 1))
        self._place.put_large(f"{self._key}-large", pieces, size, {})
        got, _ = self._place.head(f"{self._key}-large")
        return "large objects go up in parts" if got == size else _wrong()

    def _clean_up(self) -> str:
        for key in (self._key, f"{self._key}-large"):
            self._place.delete(key)
        return "what was put there for this check is removed"


def _wrong() -> str:
    raise KacheryError("other bytes came back than were put there", hint="do not use this bucket")
