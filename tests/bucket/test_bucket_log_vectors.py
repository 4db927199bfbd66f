"""The layout of logs in buckets, byte for byte, against vectors of a second implementation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.bucket import log_layout as layout
from kachery_p2p.bucket.log_layout import LogHead
from kachery_p2p.errors import HeadError, LogFormatError, ProofError
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.log.heads import LogId
from kachery_p2p.log.tree import Frontier, leaf_hashes, stored_place

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors/bucket_logs.json").read_text()
)
LOG = LogId(bytes.fromhex(VECTORS["tag"]), NodeId(VECTORS["owner"]), bytes.fromhex(VECTORS["name"]))
ENTRIES = [bytes.fromhex(entry) for entry in VECTORS["entries"]]
STORED = Frontier().extended(leaf_hashes(ENTRIES)).stored


def over(level: int, number: int) -> bytes:
    return STORED[stored_place(level, number)]


@pytest.mark.parametrize("row", VECTORS["segments"], ids=lambda row: str(row["first"]))
def test_a_segment_has_these_bytes_name_and_hashes(row: dict[str, Any]) -> None:
    entries = ENTRIES[row["first"] : row["end"]]
    data = layout.encode_segment(row["first"], entries)
    assert data.hex() == row["bytes"]
    segment = layout.named(data, row["first"], row["end"], over)
    assert layout.segment_key(LOG, segment.digest) == row["key"]
    assert [one.hex() for one in segment.hashes] == row["hashes"]
    assert layout.decode_segment(data, row["first"], segment) == entries


@pytest.mark.parametrize(
    ("which", "ends"),
    [
        ("head", [3, 5]),
        ("head_of_a_log_that_ends_before", [3]),
        ("head_without_segments", []),
    ],
)
def test_a_head_is_read_judged_and_written_again(which: str, ends: list[int]) -> None:
    data = bytes.fromhex(VECTORS[which])
    head = LogHead.decode(data, LOG)
    head.verify(LOG)
    assert [segment.end for segment in head.segments] == ends
    assert head.encode() == data
    assert layout.told_log(data) == LOG
    assert layout.head_key(LOG) == f"{VECTORS['directory']}/head"


@pytest.mark.parametrize("why", VECTORS["bad_heads"])
def test_a_bad_head_is_refused(why: str) -> None:
    with pytest.raises((LogFormatError, HeadError, ProofError)):
        LogHead.decode(bytes.fromhex(VECTORS["bad_heads"][why]), LOG).verify(LOG)


@pytest.mark.parametrize("why", VECTORS["bad_first_segments"])
def test_a_bad_segment_is_refused(why: str) -> None:
    (segment, _) = LogHead.decode(bytes.fromhex(VECTORS["head"]), LOG).segments
    with pytest.raises(LogFormatError):
        layout.decode_segment(bytes.fromhex(VECTORS["bad_first_segments"][why]), 0, segment)
