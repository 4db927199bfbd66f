"""Using the buckets that this node has credentials of for members that have none.

Each question names its channel and its bucket, and is judged when it is answered: by the
roles of who asks, by this node's own role `provide`, and by its settings. Who may not gets
the refusal that what is absent gets too. Nothing is listed, and nothing can be named but
what kachery_p2p keeps below the prefix of the channel (`bucket.lending`).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import trio

from kachery_p2p.bucket.faults import AbsentError
from kachery_p2p.bucket.lending import is_lent
from kachery_p2p.bucket.objects import Objects
from kachery_p2p.bucket.owner import owner_of
from kachery_p2p.bucket.uploads import Uploads
from kachery_p2p.channels.permissions import PROVIDE, READ
from kachery_p2p.content.hashes import ContentHash
from kachery_p2p.errors import BucketBusyError, BucketError, PeerBusyError, PeerError
from kachery_p2p.errors import PeerRefusedError as Refused
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import (
    BUCKET_LOOKS_BURST,
    BUCKET_LOOKS_PER_S,
    BUCKET_PROVIDER_S,
    BUCKET_RELAYS_MAX,
    BUCKET_RELAYS_PER_PEER_MAX,
    BUCKET_REST_S_MIN,
    BUCKET_SIGNED_S,
    BUCKET_TOLD_ATTRIBUTES_MAX,
    BUCKET_TOLD_CHARS_MAX,
    PEERS_MAX,
    REQUEST_S_MAX,
)
from kachery_p2p.network.allowance import TokenBucket
from kachery_p2p.network.session import Session
from kachery_p2p.network.sessions import Sessions
from kachery_p2p.node.bucketing import Bucketing
from kachery_p2p.node.mirroring import Mirroring
from kachery_p2p.node.wishes import Wanted, Wishes
from kachery_p2p.wire.bucket_messages import query as check_query
from kachery_p2p.wire.message_fields import WrongValueError

# What is said to who asks.
Fault = Callable[[], PeerError]


class Providing:
    """What this node does for others with the buckets of its channels."""

    def __init__(
        self, sessions: Sessions, bucketing: Bucketing, mirroring: Mirroring, wishes: Wishes
    ) -> None:
        self._sessions = sessions
        self._bucketing = bucketing
        self._mirroring = mirroring
        self._wishes = wishes
        # What kept this node from using each bucket, if anything, by channel; and until when that
        # is believed.
        self._judged: dict[str, tuple[float, Objects, Fault | None]] = {}
        self._asked: dict[NodeId, TokenBucket] = {}
        self._reading: Counter[NodeId] = Counter()
        self._readers = trio.CapacityLimiter(BUCKET_RELAYS_MAX)
        sessions.handle("bucket", self._what)
        sessions.handle("bucket put", self._put)
        sessions.handle("bucket look", self._look)
        sessions.handle("bucket read", self._read)

    # --- questions --------------------------------------------------------------------------

    async def _what(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        channel = body["channel"]
        may_read, may_share = session.may(channel, READ), session.may(channel, PROVIDE)
        if not (may_read or may_share):
            raise _refusal()
        self._count(session)
        is_usable = await self._fault(channel, self._bucket(body)) is None
        uploads = self._uploads(body) if may_share else None
        puts = uploads is not None and not uploads.is_refused
        return {"puts": is_usable and puts, "reads": is_usable and may_read}

    async def _put(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        uploads = self._writable(session, body)
        if uploads.is_refused:
            raise _refusal()
        self._count(session)
        content = ContentHash.of_raw(body["content"])
        wanted = Wanted(session.peer, body["channel"], content, _label(body["label"]))
        judge = functools.partial(self._writable, session, body)
        wish = await self._wishes.answer(wanted, uploads, judge, body["wait_ms"] / 1000)
        return wish._asdict()

    async def _look(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        bucket = await self._opened(session, body)
        key = body["key"]

        def look() -> tuple[int, Mapping[str, str], str]:
            size, attributes = bucket.head(key)
            return size, attributes, bucket.signed_query(key, BUCKET_SIGNED_S)

        size, attributes, signed = await self._in_thread(look)
        # Whoever was removed meanwhile gets nothing of it.
        self._readable(session, body)
        return {
            "size": size,
            "attributes": _fitting(attributes),
            "query": _sendable(signed),
            "valid_s": int(BUCKET_SIGNED_S),
        }

    async def _read(self, session: Session, body: dict[str, Any]) -> dict[str, Any]:
        bucket = await self._opened(session, body)
        if self._reading[session.peer] >= BUCKET_RELAYS_PER_PEER_MAX:
            raise PeerBusyError("reads enough for this node")
        start, end = body["start"], body["start"] + body["length"]
        self._reading[session.peer] += 1
        try:
            async with self._readers:
                data = await self._in_thread(
                    lambda: b"".join(bucket.read_key(body["key"], start, end))
                )
        finally:
            self._reading[session.peer] -= 1
            if not self._reading[session.peer]:
                del self._reading[session.peer]
        self._readable(session, body)
        return {"data": data}

    # --- who may, and with what -----------------------------------------------------------------

    async def _opened(self, session: Session, body: dict[str, Any]) -> Objects:
        """What may be read for a member now, which is counted."""
        bucket = self._readable(session, body)
        self._count(session)
        fault = await self._fault(body["channel"], bucket)
        if fault is not None:
            raise fault()
        return bucket

    def _readable(self, session: Session, body: dict[str, Any]) -> Objects:
        if not session.may(body["channel"], READ) or not is_lent(body["key"]):
            raise _refusal()
        return self._bucket(body)

    def _writable(self, session: Session, body: dict[str, Any]) -> Uploads:
        """The way into the bucket that is meant, for who may have something put there now."""
        if not session.may(body["channel"], PROVIDE):
            raise _refusal()
        self._bucket(body)
        uploads = self._uploads(body)
        if uploads is None:
            raise _refusal()
        return uploads

    def _bucket(self, body: dict[str, Any]) -> Objects:
        """The bucket that is meant, if this node uses it for others."""
        channel = body["channel"]
        settings, own = self._bucketing.settings.get(channel), self._bucketing.own.get(channel)
        if settings is None or own is None or not settings.provide:
            raise _refusal()
        if own.node != body["bucket"].hex() or not self._sessions.may(channel, PROVIDE):
            raise _refusal()
        return own

    def _uploads(self, body: dict[str, Any]) -> Uploads | None:
        """The way into it, if anything is put there from here."""
        uploads = self._mirroring.own_uploads(body["channel"])
        # New settings are taken up here a little later than where things are read.
        is_meant = uploads is not None and uploads.bucket.node == body["bucket"].hex()
        return uploads if is_meant else None

    async def _fault(self, channel: str, bucket: Objects) -> Fault | None:
        """What keeps this node from using it for the channel's members; asked seldom.

        Its server may not open it, or the prefix in the settings may be another channel's.
        """
        until, known, fault = self._judged.get(channel, (0.0, bucket, None))
        if known is bucket and trio.current_time() < until:
            return fault
        fault, believed_s = None, BUCKET_PROVIDER_S
        try:
            if await self._in_thread(lambda: owner_of(bucket)) not in (None, channel):
                fault = _refusal
        except PeerError as error:
            # What may be over in a moment is no judgement.
            fault, believed_s = functools.partial(type(error), str(error)), BUCKET_REST_S_MIN
        self._judged[channel] = (trio.current_time() + believed_s, bucket, fault)
        return fault

    async def _in_thread(self, work: Any) -> Any:
        """What a blocking call on a bucket answers; its faults as those of this node."""
        try:
            with trio.fail_after(REQUEST_S_MAX):
                return await self._bucketing.buckets.run(work)
        except trio.TooSlowError:
            raise PeerError("the bucket does not answer in time") from None
        except AbsentError:
            raise _refusal() from None
        except BucketBusyError as error:
            raise PeerBusyError(str(error)) from None
        except BucketError as error:
            raise PeerError(str(error)) from None

    def _count(self, session: Session) -> None:
        """Each question costs the bucket's owner something: PeerBusyError for too many."""
        now = trio.current_time()
        if session.peer not in self._asked and len(self._asked) >= 4 * PEERS_MAX:
            del self._asked[next(iter(self._asked))]
        asked = self._asked.setdefault(
            session.peer, TokenBucket(BUCKET_LOOKS_PER_S, BUCKET_LOOKS_BURST, now)
        )
        if asked.wait_s(1, now) > 0:
            raise PeerBusyError("was asked enough for now")
        asked.pay(1, now)


def _refusal() -> Refused:
    return Refused("absent, or not allowed")


def _label(text: str) -> str | None:
    from kachery_p2p.content.uris import check_label
    from kachery_p2p.errors import InvalidNameError

    try:
        return check_label(text) if text else None
    except InvalidNameError:
        return None


def _fitting(attributes: Any) -> list[dict[str, str]]:
    """What of the metadata of an object fits a message."""
    found = [
        {"name": name, "value": value}
        for name, value in attributes.items()
        if isinstance(name, str) and len(name) <= 64 and name.isprintable()
        if isinstance(value, str) and len(value) <= BUCKET_TOLD_CHARS_MAX and value.isprintable()
    ]
    return found[:BUCKET_TOLD_ATTRIBUTES_MAX]


def _sendable(signed: str) -> str:
    """A signature as members take it; "" if it is none, and they read through this node."""
    try:
        return str(check_query(signed))
    except WrongValueError:
        return ""
