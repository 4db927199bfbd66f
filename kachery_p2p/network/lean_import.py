"""Import modules of a package without what its `__init__` files drag in.

`import libp2p` takes 0.9 s and 1,419 modules: its `__init__` files import QUIC, ACME,
websockets, gRPC and the rest of a host that we do not use. We use its noise handshake
and its protocol negotiation, which stand in modules of their own. While those are
imported, the packages on the way to them are empty; afterwards they are forgotten, so
that whoever imports libp2p later in this process gets it whole. Start to `ready` 1.5 s
without this, 0.85 s with it (measured).
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType


@contextlib.contextmanager
def empty_packages(names: Sequence[str]) -> Iterator[None]:
    """Inside, the packages `names` (outer before inner) do not run their `__init__`.

    Does nothing for those that are imported already.
    """
    made = []
    try:
        for name in names:
            if name not in sys.modules:
                _make_empty(name)
                made.append(name)
        yield
    finally:
        for name in made:
            del sys.modules[name]


def _make_empty(name: str) -> None:
    # find_spec finds an inner package through its outer one, which is empty already.
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"no package {name}", name=name)
    module = ModuleType(name)
    module.__spec__ = spec
    module.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = module
