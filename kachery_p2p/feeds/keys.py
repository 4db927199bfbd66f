"""The keys of own feeds: CONFIG/keys/feeds/ID.key, 0600, so that `keys backup` has them.

Whoever holds a feed's key writes it, and nobody without it ever can, so a key is on the disk
before its feed is heard of. `identity.signing_keys` has the format.
"""

from __future__ import annotations

import contextlib
import os

from kachery_p2p.content.hashes import HEX_DIGITS, FeedId
from kachery_p2p.errors import KeyFileError
from kachery_p2p.feeds.disk import place_of
from kachery_p2p.identity.keyring import keys_dir, reading_key
from kachery_p2p.identity.keys import KEY_BYTES
from kachery_p2p.identity.signing_keys import SigningKey

_SUFFIX = ".key"


class FeedKey(SigningKey):
    """The secret key of one feed."""

    __slots__ = ()
    KIND = "feed"

    @classmethod
    def generate(cls) -> FeedKey:
        """A new one."""
        return cls(os.urandom(KEY_BYTES))

    @property
    def feed(self) -> FeedId:
        """The feed's id."""
        return FeedId(self.node_id)


def feed_key_path(config_dir: str, feed: FeedId) -> str:
    """Where the key of a feed lies, if it is this node's."""
    return f"{_directory(config_dir)}/{feed}{_SUFFIX}"


def load(config_dir: str, feed: FeedId) -> FeedKey | None:
    """The key of the feed; None if it is not here. KeyFileError if damaged or not private."""
    return FeedKey.load(feed_key_path(config_dir, feed), feed)


def load_own(config_dir: str, feed: FeedId) -> FeedKey:
    """The key of a feed of this node. KeyFileError also if it is not here."""
    key = load(config_dir, feed)
    if key is None:
        raise KeyFileError(
            f"the key of feed {feed[:16]} is missing: {feed_key_path(config_dir, feed)}",
            hint="put the file back, or restore it with `kachery-p2p keys restore`; keep the "
            "messages, which may be the only copy",
        )
    return key


def save(config_dir: str, key: FeedKey) -> None:
    """Put the key in place, durably; never replaces one."""
    key.save(config_dir, feed_key_path(config_dir, key.feed))


def remove(config_dir: str, feed: FeedId) -> None:
    """Forget the key of the feed, for good."""
    FeedKey.remove(feed_key_path(config_dir, feed))


def place(config_dir: str, feed: FeedId) -> bytes:
    """What tells the feed's key file from a restored or cloned one; see `Register.is_at_home`."""
    path = feed_key_path(config_dir, feed)
    with reading_key(path, "feed key"):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return place_of(fd)
        finally:
            os.close(fd)


def kept(config_dir: str) -> list[FeedId]:
    """The feeds whose keys are here. What killed writers left is removed."""
    directory = _directory(config_dir)
    with reading_key(directory, "feed key"), contextlib.suppress(FileNotFoundError):
        FeedKey.sweep(directory)
        names = [name for name in sorted(os.listdir(directory)) if name.endswith(_SUFFIX)]
        stems = [name.removesuffix(_SUFFIX) for name in names]
        return [
            FeedId(stem)
            for stem in stems
            if len(stem) == FeedId.CHARS and not stem.strip(HEX_DIGITS)
        ]
    return []


def _directory(config_dir: str) -> str:
    return f"{keys_dir(config_dir)}/feeds"
