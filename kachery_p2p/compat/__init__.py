"""The older packages by their own names: `kachery`, `kachery_client` and `kachery_cloud`.

    python -m kachery_p2p.compat script.py        a program that imports them, unchanged

    import kachery_p2p.compat                     or, in a program, before it imports them
    kachery_p2p.compat.install()

What they store is stored here, under the URIs that they wrote, and what they load comes
from here and from the members of the channels. `kachery_p2p.compat.kachery` and the two
others can also be imported as they are.
"""

__all__ = ["install", "uninstall"]


def install() -> None:
    """From now on, in this process, the three names are those of this room; see `finder`."""
    # Imported when called: what it needs takes as long to import as all that loads a file.
    from kachery_p2p.compat import finder

    finder.install()


def uninstall() -> None:
    """What `install` did is undone. Modules that were imported meanwhile stay with who has them."""
    from kachery_p2p.compat import finder

    finder.uninstall()
