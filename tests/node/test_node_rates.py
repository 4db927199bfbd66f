"""Limits in a node's configuration: how they are written, and what they become."""

from __future__ import annotations

import pytest

from kachery_p2p.errors import ConfigError
from kachery_p2p.limits import (
    RATE_LIMIT_MAX,
    RATE_LIMIT_MIN,
    SOURCES_MAX,
    STALL_BYTES_MIN,
    STALL_S_MAX,
)
from kachery_p2p.node.config import NodeConfig, parse_rate


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("20MB/s", 20_000_000),
        ("500 KiB/s", 512_000),
        ("1.5 GB/s", 1_500_000_000),
        (" 200kB/s ", 200_000),
        ("200KB/s", 200_000),
        ("0.5MiB/s", 524_288),
        ("140000B/s", 140_000),
        ("1TiB/s", 1 << 40),
        ("0", None),
        ("0MB/s", None),
        ("0.0", None),
    ],
)
def test_a_rate_is_a_number_of_bytes_a_second(text: str, rate: int | None) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text",
    [
        *("", "fast", "20", "20 M", "20MB", "20mb/s", "20Mbit/s", "20Mb/s", "-1MB/s", "1e9B/s"),
        *("inf", "nan", "20  MB/s", "20MB/s/s", "٣MB/s", "1,5MB/s", "5iB/s", "9" * 16 + "B/s"),
    ],
)
def test_what_is_no_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a rate") as caught:
        parse_rate(text)
    assert "20MB/s" in (caught.value.hint or "")


@pytest.mark.parametrize("text", ["1B/s", "100KiB/s", "0.001MB/s", "2TiB/s", "0.1B/s"])
def test_a_limit_with_which_nothing_works_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not possible") as caught:
        parse_rate(text)
    assert "128 KiB/s" in (caught.value.hint or "")


def test_at_the_lowest_limit_as_many_sources_as_there_may_be_are_not_taken_for_dead() -> None:
    assert RATE_LIMIT_MIN / SOURCES_MAX * STALL_S_MAX >= STALL_BYTES_MIN
    assert parse_rate(f"{RATE_LIMIT_MIN}B/s") == RATE_LIMIT_MIN
    assert parse_rate(f"{RATE_LIMIT_MAX}B/s") == RATE_LIMIT_MAX


def test_a_node_has_no_limits_unless_it_is_given_some() -> None:
    config = NodeConfig("/config", "/store")
    assert (config.max_upload, config.max_download) == (None, None)
