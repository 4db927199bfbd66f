"""How many files and connections the daemon may have open.

Systems give a process 1,024 descriptors and let it raise that itself. A crowd of clients at
the door would take all of them, and the blob that they wait for could not be written.
"""

from __future__ import annotations

import contextlib
import resource

from kachery_p2p.limits import OPEN_FILES_WANTED


def allow_many_open_files() -> None:
    """Raise this process's limit to OPEN_FILES_WANTED, or as near to it as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES_WANTED
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    # macOS refuses what its kernel does not allow, whatever the hard limit says.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
