"""What encryption costs a bucket: the same bytes put and got with it and without, in turn."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from processes import child
from settings import MIB, Settings, settle
from table import Row, figure, median_text, sample

ROUNDS = 3
SIZE = 256 * MIB


def encrypted_rows(settings: Settings, endpoint: str, keys: Mapping[str, str]) -> list[Row]:
    """Put and get, by processes of their own; no node is in it."""
    size = SIZE // 8 if settings.quick else SIZE
    told: dict[str, list[dict[str, Any]]] = {"plain": [], "encrypted": []}
    for number in settings.times(ROUNDS):
        for how in told:
            settle()
            url = f"s3://lab/{how}?endpoint={endpoint}"
            measured = child({**os.environ, **keys}, f"bucket_clients_encrypted.{how}", url, size)
            told[how].append(measured)
    rows = []
    for what in ("put", "get"):
        rates = {how: [size / MIB / one[what] for one in told[how]] for how in told}
        plain = sample(rates["plain"], "MiB/s")
        encrypted = sample(rates["encrypted"], "MiB/s")
        rows.append(
            Row(
                f"{what} {figure(size / MIB)} MiB encrypted",
                encrypted,
                f"not encrypted {plain}: {figure(encrypted.median / plain.median)} of it",
                cpu=median_text([one[f"{what}_cpu"] for one in told["encrypted"]]),
            )
        )
    return rows
