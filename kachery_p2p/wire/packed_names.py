"""Thousands of hashes in one message: as many behind each other in a text as it may have.

A list of so many would be looked at item by item
four times between a client's call and its answer; and it may not be that long. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kachery_p2p.content.hashes import HEX_DIGITS, Root
from kachery_p2p.limits import TEXT_CHARS_MAX
from kachery_p2p.wire.fields import Kind, list_of

# In the place of a root that is not known. (Who knows a content with this one may keep it.)
NO_ROOT = "0" * Root.CHARS


def packed(digits: int) -> Kind:
    """Texts of one or more names with so many digits each."""

    def fits(value: object) -> bool:
        sound = isinstance(value, str) and 0 < len(value) <= TEXT_CHARS_MAX
        return sound and not len(str(value)) % digits and not str(value).strip(HEX_DIGITS)

    return list_of(Kind(f"{digits} lower-case hexadecimal digits, or a row of such", fits))


def pack(names: Sequence[str], digits: int) -> list[str]:
    """The names as texts."""
    at_once = TEXT_CHARS_MAX // digits
    return ["".join(names[at : at + at_once]) for at in range(0, len(names), at_once)]


def unpack(texts: Iterable[str], digits: int) -> list[str]:
    """The names in texts that are `packed`."""
    return [text[at : at + digits] for text in texts for at in range(0, len(text), digits)]
