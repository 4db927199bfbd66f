"""The keys of owned channels on disk: CONFIG/keys/channel-ID.key, 0600, one for each channel kept.

Whoever holds a channel's key decides who belongs to it, and without it nobody can. It lies
beside the node's key, so that `keys backup` has it. `signing_keys` has the format.
"""

from __future__ import annotations

import contextlib

from kachery_p2p.identity.keyring import keys_dir
from kachery_p2p.identity.signing_keys import SigningKey


class ChannelKey(SigningKey):
    """The secret key of one owned channel; its `node_id` is the channel's id."""

    __slots__ = ()
    KIND = "channel"


def channel_key_name(channel_id: str) -> str:
    """What the key file of a channel is called."""
    return f"channel-{channel_id}.key"


def channel_key_path(config_dir: str, channel_id: str) -> str:
    """Where the key of a channel lies, if this node is its keeper."""
    return f"{keys_dir(config_dir)}/{channel_key_name(channel_id)}"


def load(config_dir: str, channel_id: str) -> ChannelKey | None:
    """The key of the channel; None if it is not here. KeyFileError if damaged or not private."""
    return ChannelKey.load(channel_key_path(config_dir, channel_id), channel_id)


def save(config_dir: str, key: ChannelKey) -> None:
    """Put the key in place, durably; never replaces one. For one process at a time."""
    with contextlib.suppress(OSError):
        ChannelKey.sweep(keys_dir(config_dir))
    key.save(config_dir, channel_key_path(config_dir, key.node_id))


def remove(config_dir: str, channel_id: str) -> None:
    """Forget the key of the channel, for good."""
    ChannelKey.remove(channel_key_path(config_dir, channel_id))
