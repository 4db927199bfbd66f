"""Let `import kachery`, `kachery_client` and `kachery_cloud` find the modules of this room.

Only in this process, and only after `install`: whoever has the originals installed keeps
them everywhere else. Programs also imported from their submodules, whose names were those
of the functions in them (`from kachery_cloud.load_file import load_file`). All submodules
that the originals had, and this room has something for, are one and the same here: the
package's names.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

# The submodules that programs imported from, by their packages.
SUBMODULES = {
    "kachery": (
        *("core", "client", "client.core", "client.load_file", "client.store_file"),
        *("client.store_file_local", "client.load_bytes", "client.cat_file"),
        *("client.mutable_local", "client.get_kachery_dir"),
    ),
    "kachery_client": ("main", "_feeds", "_mutables", "_exceptions", "_temporarydirectory"),
    "kachery_cloud": (
        *("core", "store_file", "store_file_local", "load_file", "load_bytes", "link_file"),
        *("cat_file", "init", "get_client_id", "get_project_id", "get_kachery_cloud_dir"),
        *("mutable_local", "request_file", "encrypt_uri", "TemporaryDirectory"),
        *("_sha1_of_dict", "_custom_storage_backend"),
        *("feeds", "feeds.Feed", "feeds.create_feed", "feeds.load_feed"),
    ),
}


class CompatFinder(MetaPathFinder):
    """Finds the three packages; first in `sys.meta_path`, so before any that are installed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """How to load a package, or None for any other name."""
        if fullname not in SUBMODULES:
            return None
        return ModuleSpec(fullname, _CompatLoader(), origin=f"kachery_p2p.compat.{fullname}")


class _CompatLoader(Loader):
    """Makes a package that has the names of our module. Monkeypatching it leaves ours alone."""

    def exec_module(self, module: types.ModuleType) -> None:
        ours = importlib.import_module(f"kachery_p2p.compat.{module.__name__}")
        names = _names_of(ours)
        module.__dict__.update(names)
        # A package, so that its submodules can be imported; they are all made here.
        module.__path__ = []
        for name in SUBMODULES[module.__name__]:
            _make_submodule(module, name, names)


def _names_of(module: types.ModuleType) -> dict[str, Any]:
    own = {"__name__", "__spec__", "__loader__", "__package__", "__file__", "__cached__"}
    return {name: value for name, value in vars(module).items() if name not in own}


def _make_submodule(package: types.ModuleType, name: str, names: dict[str, Any]) -> None:
    submodule = types.ModuleType(f"{package.__name__}.{name}")
    submodule.__dict__.update(names)
    submodule.__path__ = []
    # Where the import looks first. Were it to find the submodule itself, it would put it in the
    # place of the package's function of that name.
    sys.modules[submodule.__name__] = submodule
    above, _, last = name.rpartition(".")
    holder = sys.modules[f"{package.__name__}.{above}"] if above else package
    if last not in names:
        setattr(holder, last, submodule)


_finder = CompatFinder()
# What `install` took out of sys.modules.
_replaced: dict[str, types.ModuleType] = {}


def install() -> None:
    """From now on, in this process, the three names are those of this room.

    Originals that were imported before are replaced for whoever imports them later. To
    install twice does no more than once.
    """
    if _finder in sys.meta_path:
        return
    _replaced.update(_taken_out())
    sys.meta_path.insert(0, _finder)


def uninstall() -> None:
    """What `install` did is undone. Modules that were imported meanwhile stay with who has them."""
    if _finder not in sys.meta_path:
        return
    sys.meta_path.remove(_finder)
    _taken_out()
    sys.modules.update(_replaced)
    _replaced.clear()


def _taken_out() -> dict[str, types.ModuleType]:
    """The modules of the three names, which are imported no more."""
    mine = [name for name in sys.modules if name.partition(".")[0] in SUBMODULES]
    return {name: sys.modules.pop(name) for name in mine}
