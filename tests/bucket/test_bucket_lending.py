"""Which objects members lend each other."""

from __future__ import annotations

from hashlib import sha256

import pytest

from kachery_p2p.bucket import layout
from kachery_p2p.bucket.key_objects import KEYS
from kachery_p2p.bucket.lending import is_lent
from kachery_p2p.bucket.log_layout import head_key, segment_key
from kachery_p2p.bucket.rings import ring_of_secret
from kachery_p2p.content.hashes import Root, sha1_of
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.log.heads import LogId

CONTENT, ROOT = sha1_of(b"content"), Root("ab" * 32)
LOG = LogId(b"feed".ljust(16, b"\0"), NodeId("cd" * 32), bytes(32))
RING = ring_of_secret(b"s" * 20, "lab")
OURS = [
    layout.MARKER,
    KEYS,
    layout.key_of(CONTENT),
    layout.tables_key(ROOT),
    head_key(LOG),
    segment_key(LOG, sha256(b"entries").digest()),
    RING.stored_name(layout.key_of(CONTENT)),
    RING.stored_name(head_key(LOG)),
]


@pytest.mark.parametrize("key", OURS)
def test_what_this_program_puts_there_is_lent(key: str) -> None:
    assert is_lent(key)


@pytest.mark.parametrize("key", OURS)
@pytest.mark.parametrize("spelling", ["field/{}", "{}/x", "{}x", "x{}", "{}\n", "/{}", "{}/"])
def test_what_lies_beside_it_or_below_is_not(key: str, spelling: str) -> None:
    assert not is_lent(spelling.format(key))


@pytest.mark.parametrize(
    "key",
    [
        "",
        "hr/salaries.csv",
        "sha1",
        f"sha1/{CONTENT}",
        f"sha1/00/11/22/{CONTENT}",
        layout.key_of(CONTENT).upper(),
        layout.key_of(CONTENT)[:-1],
        layout.tables_key(ROOT).replace("root", "sha1"),
        head_key(LOG).replace("head", "tail"),
        head_key(LOG).removesuffix("/head"),
        head_key(LOG).replace("log/", "log/00/"),
        f"e/00/{'ab' * 32}",
        f"e/{'ab' * 32}",
        ".kachery-p2p-probe/0011223344556677",
    ],
)
def test_other_names_are_not(key: str) -> None:
    assert not is_lent(key)
