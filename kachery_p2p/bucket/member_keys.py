"""The keys of an encrypted bucket as a node comes by them: of a secret, or of the keeper.

In an owned channel the newest keys lie in the bucket, wrapped for each reader by the keeper.
A member knows from the channel's history in which epoch the keys have to be, so that old
keys, which somebody removed has too, are never taken to put something there: whoever
keeps the bucket may show old ones. The keeper's node makes new ones as soon as somebody
lost access, and wraps them anew when somebody was let in.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn, Protocol

from kachery_p2p.bucket.faults import AbsentError, wrong_answer
from kachery_p2p.bucket.home import Home
from kachery_p2p.bucket.key_objects import KEYS, KeyObject
from kachery_p2p.bucket.reading import OF_WORDS, Doubtable, believed
from kachery_p2p.bucket.rings import SHARED_EPOCH, Ring, ring_of_keeper, ring_of_secret
from kachery_p2p.bucket.sealed_reading import Keys
from kachery_p2p.channels.channel import OWNED
from kachery_p2p.channels.files import load_shared_secret
from kachery_p2p.channels.history import History
from kachery_p2p.channels.joined import history_path, joined_one
from kachery_p2p.channels.owned import load_channel_key, load_history
from kachery_p2p.channels.readers import epoch_of, readers
from kachery_p2p.errors import BucketError, BucketKeysError, SealError
from kachery_p2p.identity.channel_keys import ChannelKey
from kachery_p2p.identity.keyring import load
from kachery_p2p.limits import BUCKET_KEYS_BYTES_MAX, BUCKET_REST_S_MIN


class Plain(Doubtable, Protocol):
    """A place of objects as they lie there; `Objects` can also write."""

    @property
    def name(self) -> str:
        """How people know it."""

    def read_whole(self, key: str, bytes_max: int) -> bytes:
        """All of a small object. Raises AbsentError and BucketErrors."""


# Replaces what lies at a key.
Put = Callable[[str, bytes], None]


def keys_of(home: Home, place: Plain, put: Put | None = None) -> Keys:
    """The keys of the channel's bucket at `place`, where `put` can write. Asks no server.

    Raises UnknownChannelError, and KeyFileError if the secret of the channel is gone.
    """
    known = joined_one(home.config_dir, home.channel)
    if known.kind == OWNED:
        return MemberKeys(home, known.id, place, put)
    secret = load_shared_secret(home.config_dir, home.channel)
    return SecretKeys(ring_of_secret(secret, home.channel))


def epoch_here(home: Home) -> int:
    """In which epoch the keys have to be, as far as this node's history of the channel goes."""
    if joined_one(home.config_dir, home.channel).kind != OWNED:
        return SHARED_EPOCH
    return epoch_of(load_history(home.config_dir, home.channel))


class SecretKeys:
    """Those of a channel with a shared secret: everybody has them, and they stay."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring

    def ring(self) -> Ring:
        return self._ring

    def newer(self, than: Ring) -> Ring | None:
        return None

    def to_write(self) -> Ring:
        return self._ring

    def maintain(self) -> bool:
        return True


class _Known(NamedTuple):
    """What the history on this disk says, and the file that said so."""

    file: object
    history: History
    epoch: int


class MemberKeys:
    """Those of an owned channel. Safe in several threads."""

    def __init__(self, home: Home, channel_id: str, place: Plain, put: Put | None) -> None:
        self._home = home
        self._channel_id = channel_id
        self._place = place
        self._put = put
        self._ring: Ring | None = None
        self._own: Ring | None = None
        self._known: _Known | None = None
        # When the bucket failed last, and how.
        self._failed: tuple[float, BucketError | None] = (0.0, None)
        # The history for which all was seen to.
        self._maintained: object = None
        self._lock = threading.RLock()

    def ring(self) -> Ring:
        """Those that this node has; asks the bucket the first time."""
        with self._lock:
            return self._ring or self._loaded() or self._derived() or self._refuse_none()

    def newer(self, than: Ring) -> Ring | None:
        """What the bucket has now, if somebody else has not just asked, and it is newer."""
        with self._lock:
            found = self._ring
            if found is None or found.epoch <= than.epoch:
                found = self._loaded()
            return found if found is not None and found.epoch > than.epoch else None

    def to_write(self) -> Ring:
        """Keys that nobody has who has lost access, as far as this node's history goes.

        BucketKeysError while the keeper has made none.
        """
        with self._lock:
            known = self._history()
            if known.history.fork is not None:
                raise BucketKeysError(
                    "the channel's key has signed two histories, so nobody knows who may read:"
                    " nothing is encrypted for it any more",
                    hint="let the channel go on under a new key",
                )
            found = self._ring
            if found is None or found.epoch < known.epoch:
                found = self._loaded()
            if found is None or found.epoch < known.epoch:
                found = self._made() or found
            if found is None:
                self._refuse_none()
            elif found.epoch >= known.epoch:
                return found
            raise BucketKeysError(
                f"the keys in {self._place.name} are from before a member was removed",
                hint="the node of the channel's keeper makes new ones: is it running, and does it"
                " have the bucket, with credentials?",
            )

    def maintain(self) -> bool:
        """On the keeper's node: see to it that all readers have the keys of the epoch.

        False on other nodes. Costs one look at a file if nothing has changed.
        """
        with self._lock:
            known = self._history()
            if known.file == self._maintained:
                return True
            key = self._channel_key()
            if key is None:
                return False
            found = self._looked()
            is_behind = found is None or found.epoch < known.epoch or not self._serves(found, known)
            if is_behind and known.history.fork is None:
                self._make(key, known)
            self._maintained = known.file
            return True

    # --- reading -----------------------------------------------------------------------------

    def _looked(self) -> KeyObject | None:
        """What the keeper says in the bucket; None if nothing. BucketAnswerError for a forgery."""
        failed_at, error = self._failed
        if error is not None and time.monotonic() < failed_at + BUCKET_REST_S_MIN:
            # Threads that waited for this one need not each wait for the server again.
            raise error.with_traceback(None)
        try:
            return believed(self._place, [KEYS], self._read, OF_WORDS)
        except AbsentError:
            return None

    def _read(self) -> KeyObject:
        try:
            data = self._place.read_whole(KEYS, BUCKET_KEYS_BYTES_MAX)
        except BucketError as failure:
            self._failed = (time.monotonic(), failure)
            raise
        self._failed = (0.0, None)
        try:
            found = KeyObject.decode(data)
            found.verify(self._channel_id)
        except SealError as error:
            raise wrong_answer(self._place.name, f"has wrong keys: {error}") from None
        return found

    def _loaded(self) -> Ring | None:
        """What the bucket has for this node, unless it is older than what is known already."""
        found = self._looked()
        if found is None:
            return None
        try:
            ring = found.opened(load(self._home.config_dir))
        except SealError as error:
            raise wrong_answer(self._place.name, f"has wrong keys: {error}") from None
        if ring is not None and (self._ring is None or ring.epoch > self._ring.epoch):
            self._ring = ring
        return self._ring

    def _refuse_none(self) -> NoReturn:
        raise BucketKeysError(
            f"{self._place.name} has no keys for this node",
            hint="the node of the channel's keeper gives them to all who may read, once it runs"
            " with `kachery-p2p bucket add CHANNEL URL --encrypt` and credentials",
        )

    # --- the keeper --------------------------------------------------------------------------

    def _derived(self) -> Ring | None:
        """What the keeper can read with while the keys are not in the bucket, yet or any more."""
        key, known = load_channel_key(self._home.config_dir, self._channel_id), self._history()
        if key is not None and (self._own is None or self._own.epoch != known.epoch):
            self._own = ring_of_keeper(key, known.epoch)
        return self._own

    def _made(self) -> Ring | None:
        """On the keeper's node, new keys for all readers; None elsewhere."""
        key = self._channel_key()
        return None if key is None else self._make(key, self._history())

    def _make(self, key: ChannelKey, known: _Known) -> Ring:
        assert self._put is not None
        found = self._looked()
        if found is not None and found.epoch > known.epoch:
            raise BucketKeysError(
                f"the keys in {self._place.name} are from a later history of the channel than this"
                " node has",
                hint="start the node and let it meet another member, who has the rest of it",
            )
        ring, now_ms = ring_of_keeper(key, known.epoch), time.time_ns() // 1_000_000
        wanted = readers(known.history.roster)
        made = KeyObject.signed(ring, wanted, key, known.history.size, now_ms)
        self._put(KEYS, made.encode())
        self._ring = ring
        return ring

    def _channel_key(self) -> ChannelKey | None:
        """The channel's key, if it is here and the bucket can be written."""
        if self._put is None:
            return None
        return load_channel_key(self._home.config_dir, self._channel_id)

    def _serves(self, found: KeyObject, known: _Known) -> bool:
        """True if those who may read have keys there; who cannot be given any is let be."""
        if found.entries >= known.history.size:
            return True
        return found.is_for(readers(known.history.roster))

    # --- the history -----------------------------------------------------------------------------

    def _history(self) -> _Known:
        """As it is on the disk, where it is before anybody hears of it."""
        file: object = None
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(history_path(self._home.config_dir, self._home.channel))
            file = (status.st_ino, status.st_mtime_ns, status.st_size)
        if self._known is None or self._known.file != file:
            history = load_history(self._home.config_dir, self._home.channel)
            self._known = _Known(file, history, epoch_of(history))
        return self._known
