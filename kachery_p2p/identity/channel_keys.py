"""The keys of owned channels on disk: CONFIG/keys/channel-ID.key, 0600, one for each channel kept.

Whoever holds a channel's key decides who belongs to it, and without it nobody can. It lies
beside the node's key, so that `keys backup` has it, and is never replaced. Format, one
`name value` pair a line:

    kachery-p2p-channel-key 1
    channel <64 hex>     the channel's id; must fit the secret, so that damage is noticed
    ed25519 <64 hex>     secret: seed of the key
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from kachery_p2p.errors import KeyFileError, StateVersionError
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

_HEADER = "kachery-p2p-channel-key"
_WHAT = "channel key"
_TEMP_PREFIX = ".channel.key."


class ChannelKey:
    """The secret key of one owned channel. Never shown: `repr` gives the channel's id only."""

    __slots__ = ("_seed", "_signer", "node_id")

    # The channel's id, as the owner of its log.
    node_id: NodeId

    def __init__(self, seed: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        assert len(seed) == KEY_BYTES
        self._seed = seed
        self._signer: Ed25519PrivateKey = Ed25519PrivateKey.from_private_bytes(seed)
        self.node_id = NodeId.of_raw(self._signer.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"<ChannelKey of {self.node_id}>"

    def sign(self, tag: bytes, body: bytes, /) -> bytes:
        """The signature of `body` as a statement of the kind `tag` (16 bytes)."""
        assert len(tag) == TAG_BYTES
        return self._signer.sign(tag + body)

    def encode(self) -> bytes:
        """The bytes of the key file."""
        text = f"{_HEADER} {KEY_FILE_VERSION}\nchannel {self.node_id}\ned25519 {self._seed.hex()}\n"
        return text.encode("ascii")

    @classmethod
    def decode(cls, data: bytes, channel_id: str, where: str) -> ChannelKey:
        """The key of the channel in the bytes of a key file, or KeyFileError naming `where`."""
        lines = data.decode("ascii", "replace").splitlines()
        fields = dict(line.split(" ", 1) for line in lines if " " in line)
        version = fields.get(_HEADER, "")
        if version.isascii() and version.isdigit() and int(version) > KEY_FILE_VERSION:
            raise StateVersionError(
                f"{where} was written by a newer kachery_p2p (format {version[:20]}, "
                f"not {KEY_FILE_VERSION})",
                hint="upgrade kachery_p2p",
            )
        with contextlib.suppress(KeyError, ValueError, AssertionError):
            key = cls(bytes.fromhex(fields["ed25519"]))
            if version == str(KEY_FILE_VERSION) and key.node_id == fields["channel"] == channel_id:
                return key
        # Never quote the file: what is left of it may still be the secret.
        raise KeyFileError(
            f"{where} is damaged, or no key of this channel",
            hint="restore it from a backup, or move it away",
        )


def channel_key_name(channel_id: str) -> str:
    """What the key file of a channel is called."""
    return f"channel-{channel_id}.key"


def channel_key_path(config_dir: str, channel_id: str) -> str:
    """Where the key of a channel lies, if this node is its keeper."""
    return f"{keys_dir(config_dir)}/{channel_key_name(channel_id)}"


def load(config_dir: str, channel_id: str) -> ChannelKey | None:
    """The key of the channel; None if it is not here. KeyFileError if damaged or not private."""
    path = channel_key_path(config_dir, channel_id)
    if not os.path.lexists(path):
        return None
    with reading_key(path, _WHAT):
        check_private(keys_dir(config_dir), os.lstat(keys_dir(config_dir)), 0o700)
        return ChannelKey.decode(read_private(path), channel_id, path)


def save(config_dir: str, key: ChannelKey) -> None:
    """Put the key in place, durably; never replaces one. For one process at a time."""
    directory, path = keys_dir(config_dir), channel_key_path(config_dir, key.node_id)
    with reading_key(path, _WHAT):
        make_private_directories(config_dir, directory)
        check_private(directory, os.lstat(directory), 0o700)
        _sweep(directory)
        temp = f"{directory}/{_TEMP_PREFIX}{os.urandom(8).hex()}"
        write_durably(temp, key.encode())
        try:
            # Not rename: it would replace a key.
            with contextlib.suppress(FileExistsError):
                os.link(temp, path)
        finally:
            os.unlink(temp)
        sync_directory(directory)
    load(config_dir, key.node_id)  # one that was there already must be this very one


def remove(config_dir: str, channel_id: str) -> None:
    """Forget the key of the channel, for good."""
    path = channel_key_path(config_dir, channel_id)
    with reading_key(path, _WHAT), contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        sync_directory(keys_dir(config_dir))


def _sweep(directory: str) -> None:
    """Remove what a killed process left."""
    for name in os.listdir(directory):
        if name.startswith(_TEMP_PREFIX):
            with contextlib.suppress(OSError):
                os.unlink(f"{directory}/{name}")
