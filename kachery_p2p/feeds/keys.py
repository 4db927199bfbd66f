"""The keys of own feeds: CONFIG/keys/feeds/ID.key, 0600, so that `keys backup` has them.

Whoever holds a feed's key writes it, and nobody without it ever can, so a key is on the disk
before its feed is heard of, and is never replaced. Format, one `name value` pair a line:

    kachery-p2p-feed-key 1
    feed <64 hex>        the feed's id; must fit the secret, so that damage is noticed
    ed25519 <64 hex>     secret: seed of the key
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from kachery_p2p.content.hashes import FeedId
from kachery_p2p.errors import KeyFileError, StateVersionError
from kachery_p2p.feeds.disk import place_of
from kachery_p2p.identity.disk import (
    check_private,
    make_private_directories,
    read_private,
    sync_directory,
    write_durably,
)
from kachery_p2p.identity.keyring import keys_dir, reading_key
from kachery_p2p.identity.keys import KEY_BYTES, TAG_BYTES, NodeId

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_FILE_VERSION = 1

_HEADER = "kachery-p2p-feed-key"
_WHAT = "feed key"
_SUFFIX = ".key"
_TEMP_PREFIX = ".feed.key."


class FeedKey:
    """The secret key of one feed. Never shown: `repr` gives the feed's id only."""

    __slots__ = ("_seed", "_signer", "node_id")

    # The feed's id, as the owner of its logs.
    node_id: NodeId

    def __init__(self, seed: bytes) -> None:
        """The key made from 32 secret bytes (as `os.urandom` gives, or an older kachery had)."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        assert len(seed) == KEY_BYTES
        self._seed = seed
        self._signer: Ed25519PrivateKey = Ed25519PrivateKey.from_private_bytes(seed)
        self.node_id = NodeId.of_raw(self._signer.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> FeedKey:
        """A new one."""
        return cls(os.urandom(KEY_BYTES))

    def __repr__(self) -> str:
        return f"<FeedKey of {self.feed}>"

    @property
    def feed(self) -> FeedId:
        """The feed's id."""
        return FeedId(self.node_id)

    def sign(self, tag: bytes, body: bytes, /) -> bytes:
        """The signature of `body` as a statement of the kind `tag` (16 bytes)."""
        assert len(tag) == TAG_BYTES
        return self._signer.sign(tag + body)

    def encode(self) -> bytes:
        """The bytes of the key file."""
        text = f"{_HEADER} {KEY_FILE_VERSION}\nfeed {self.feed}\ned25519 {self._seed.hex()}\n"
        return text.encode("ascii")

    @classmethod
    def decode(cls, data: bytes, feed: FeedId, where: str) -> FeedKey:
        """The key of the feed in the bytes of a key file, or KeyFileError naming `where`."""
        lines = data.decode("ascii", "replace").splitlines()
        fields = dict(line.split(" ", 1) for line in lines if " " in line)
        version = fields.get(_HEADER, "")
        if version.isascii() and version.isdigit() and int(version[:9]) > KEY_FILE_VERSION:
            raise StateVersionError(
                f"{where} was written by a newer kachery_p2p (format {version[:9]}, "
                f"not {KEY_FILE_VERSION})",
                hint="upgrade kachery_p2p",
            )
        with contextlib.suppress(KeyError, ValueError, AssertionError):
            key = cls(bytes.fromhex(fields["ed25519"]))
            if version == str(KEY_FILE_VERSION) and key.feed == fields["feed"] == feed:
                return key
        # Never quote the file: what is left of it may still be the secret.
        raise KeyFileError(
            f"{where} is damaged, or no key of this feed",
            hint="restore it from a backup, or move it away",
        )


def feed_key_path(config_dir: str, feed: FeedId) -> str:
    """Where the key of a feed lies, if it is this node's."""
    return f"{_directory(config_dir)}/{feed}{_SUFFIX}"


def load(config_dir: str, feed: FeedId) -> FeedKey | None:
    """The key of the feed; None if it is not here. KeyFileError if damaged or not private."""
    path = feed_key_path(config_dir, feed)
    if not os.path.lexists(path):
        return None
    with reading_key(path, _WHAT):
        directory = _directory(config_dir)
        check_private(directory, os.lstat(directory), 0o700)
        return FeedKey.decode(read_private(path), feed, path)


def save(config_dir: str, key: FeedKey) -> None:
    """Put the key in place, durably; never replaces one."""
    directory, path = _directory(config_dir), feed_key_path(config_dir, key.feed)
    with reading_key(path, _WHAT):
        for made in (keys_dir(config_dir), directory):
            make_private_directories(config_dir, made)
            check_private(made, os.lstat(made), 0o700)
        temp = f"{directory}/{_TEMP_PREFIX}{os.urandom(8).hex()}"
        write_durably(temp, key.encode())
        try:
            # Not rename: it would replace a key.
            with contextlib.suppress(FileExistsError):
                os.link(temp, path)
        finally:
            os.unlink(temp)
        sync_directory(directory)
    load(config_dir, key.feed)  # one that was there already must be this very one


def remove(config_dir: str, feed: FeedId) -> None:
    """Forget the key of the feed, for good."""
    path = feed_key_path(config_dir, feed)
    with reading_key(path, _WHAT), contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        sync_directory(_directory(config_dir))


def place(config_dir: str, feed: FeedId) -> bytes:
    """What tells the feed's key file from a restored or cloned one; see `Register.is_at_home`."""
    path = feed_key_path(config_dir, feed)
    with reading_key(path, _WHAT):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return place_of(fd)
        finally:
            os.close(fd)


def kept(config_dir: str) -> list[FeedId]:
    """The feeds whose keys are here. What killed writers left is removed."""
    directory = _directory(config_dir)
    found = []
    with reading_key(directory, _WHAT), contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(directory)):
            stem = name.removesuffix(_SUFFIX)
            if name.startswith(_TEMP_PREFIX):
                os.unlink(f"{directory}/{name}")
            elif name != stem and len(stem) == FeedId.CHARS and not stem.strip("0123456789abcdef"):
                found.append(FeedId(stem))
    return found


def _directory(config_dir: str) -> str:
    return f"{keys_dir(config_dir)}/feeds"
