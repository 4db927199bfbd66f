"""Which objects of a bucket members lend each other: those that this program puts there itself.

Below one prefix there may lie more: the prefix of another channel, or files that have nothing
to do with kachery. Whoever may read in the channel must not see any of that by asking a member
whose credentials open all of it.

    sha1/aa/bb/cc/HASH           contents
    root/aa/bb/cc/ROOT           their chunk hashes
    log/aa/bb/cc/KEY/head        logs: feeds and histories
    log/aa/bb/cc/KEY/SEGMENT
    e/AA/NAME                    any of these, encrypted
    kachery-p2p-keys             the keys, for those they are wrapped for
    kachery-p2p-channel          the marker
"""

from __future__ import annotations

import re

from kachery_p2p.bucket.key_objects import KEYS
from kachery_p2p.bucket.layout import CONTENTS, MARKER, TABLES
from kachery_p2p.bucket.log_layout import HEAD, LOGS
from kachery_p2p.bucket.rings import STORED

_HEX = "[0-9a-f]"
# Three directories, and the beginning of a name that says the same.
_SHARDS = rf"({_HEX}{{2}})/({_HEX}{{2}})/({_HEX}{{2}})/\1\2\3"
_NAMES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"{CONTENTS}/{_SHARDS}{_HEX}{{34}}",
        rf"{TABLES}/{_SHARDS}{_HEX}{{58}}",
        rf"{LOGS}/{_SHARDS}{_HEX}{{58}}/({HEAD}|{_HEX}{{64}})",
        rf"{STORED}/({_HEX}{{2}})/\1{_HEX}{{62}}",
    )
)


def is_lent(key: str) -> bool:
    """True if an object of that key, below the prefix of a channel, is one of ours."""
    return key in (MARKER, KEYS) or any(name.fullmatch(key) for name in _NAMES)
