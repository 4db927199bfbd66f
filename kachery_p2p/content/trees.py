"""Values seen as trees: how many parts, how deep, and whether each part is of a plain kind.

Python values share parts and may contain themselves, so a few bytes of pickle can
mean 2^40 parts. `survey` counts every part as often as it is reached, but visits
each only once, and without recursion.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from kachery_p2p.content.hashes import quoted
from kachery_p2p.limits import VALUE_DEPTH_MAX, VALUE_ITEMS_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

LEAVES = frozenset((type(None), bool, int, float, str, bytes))
CONTAINERS = frozenset((list, tuple, dict, set, frozenset))
# An array or a numpy scalar weighs as much as this many plain parts in a pickle.
ARRAY_PARTS = 16


class Unfit(Exception):
    """`part` cannot be part of a plain value; the text says why."""

    def __init__(self, part: object, why: str) -> None:
        super().__init__(why)
        self.part = part


def survey(value: object, problem_of: Callable[[object], str | None]) -> int:
    """How many parts `value` has, or `Unfit` if it is too large, too deep or has a strange part.

    `problem_of` judges the parts that are neither containers nor plain: arrays.
    """
    measured: dict[int, tuple[int, int]] = {}  # id -> (parts, depth) of what is done
    above: set[int] = set()  # ids of the containers that we are inside of
    waiting = [value]
    while waiting:
        whole = waiting[-1]
        if id(whole) in measured:
            waiting.pop()
            continue
        parts = [part for part in _parts(whole) if type(part) not in LEAVES]
        if id(whole) not in above:
            above.add(id(whole))
            inner = [part for part in parts if id(part) not in measured]
            if any(id(part) in above for part in inner):
                raise Unfit(whole, "it contains itself")
            waiting.extend(inner)
        else:
            waiting.pop()
            above.discard(id(whole))
            measured[id(whole)] = _measure(whole, parts, measured, problem_of)
    return measured[id(value)][0]


def path_to(value: object, part: object) -> str:
    """Where in `value` the very object `part` is, as one would write it: `value['a'][3]`."""
    seen: set[int] = set()
    waiting = [("value", value)]
    while waiting:
        path, whole = waiting.pop()
        if whole is part:
            return path
        if type(whole) in CONTAINERS and id(whole) not in seen:
            seen.add(id(whole))
            waiting.extend((path + step, inner) for step, inner in _steps(whole))
    return "value"


def _parts(whole: object) -> Iterable[object]:
    if type(whole) is dict:
        return chain(whole, whole.values())
    if type(whole) is list or type(whole) is tuple or type(whole) is set:
        return whole
    return whole if type(whole) is frozenset else ()


def _measure(
    whole: object,
    parts: list[object],
    measured: dict[int, tuple[int, int]],
    problem_of: Callable[[object], str | None],
) -> tuple[int, int]:
    if type(whole) in LEAVES:
        return 1, 0
    if type(whole) not in CONTAINERS:
        if problem := problem_of(whole):
            raise Unfit(whole, problem)
        return ARRAY_PARTS, 0
    inner = [measured[id(part)] for part in parts]
    leaves = sum(1 for _ in _parts(whole)) - len(parts)
    count = 1 + leaves + sum(count for count, _ in inner)
    depth = 1 + max((depth for _, depth in inner), default=0)
    if count > VALUE_ITEMS_MAX:
        raise Unfit(whole, f"it has more than {VALUE_ITEMS_MAX} parts; store large data as arrays")
    if depth > VALUE_DEPTH_MAX:
        raise Unfit(whole, f"it is nested more than {VALUE_DEPTH_MAX} deep")
    return count, depth


def _steps(whole: object) -> Iterator[tuple[str, object]]:
    if isinstance(whole, dict):
        for key, inner in whole.items():
            yield f"[{_shown(key)}]", inner
            yield f" key {_shown(key)}", key
    elif isinstance(whole, list | tuple):
        for number, inner in enumerate(whole):
            yield f"[{number}]", inner
    elif isinstance(whole, set | frozenset):
        for inner in whole:
            yield f" element {_shown(inner)}", inner


def _shown(key: object) -> str:
    if isinstance(key, str):
        return quoted(key)
    return str(key) if type(key) in LEAVES and not isinstance(key, bytes) else type(key).__name__
