"""`python -m kachery_p2p.compat SCRIPT`: run a program that imports the older packages.

    python -m kachery_p2p.compat script.py [ARGUMENT...]
    python -m kachery_p2p.compat -m module [ARGUMENT...]
    python -m kachery_p2p.compat -c 'code' [ARGUMENT...]

The program runs as Python itself would run it.
"""

from __future__ import annotations

import os
import runpy
import sys
import types
from collections.abc import Sequence

from kachery_p2p.compat.finder import install
from kachery_p2p.errors import EXIT_USAGE

USAGE = "usage: python -m kachery_p2p.compat (SCRIPT | -m MODULE | -c CODE) [ARGUMENT...]"


def main(arguments: Sequence[str]) -> int:
    """Run the program; 0, or the exit code of a command line that names none."""
    match list(arguments):
        case ["-h" | "--help", *_]:
            print(USAGE)
        case ["-m", module, *rest]:
            _prepare(["-m", *rest], "")
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", code, *rest]:
            _prepare(["-c", *rest], "")
            _run_code(code)
        case [script, *rest] if not script.startswith("-") and os.path.exists(script):
            _prepare([script, *rest], os.path.dirname(os.path.abspath(script)))
            runpy.run_path(script, run_name="__main__")
        case [script, *_] if not script.startswith("-"):
            print(f"kachery-p2p: error: there is no file {script}", file=sys.stderr)
            return EXIT_USAGE
        case _:
            print(USAGE, file=sys.stderr)
            return EXIT_USAGE
    return 0


def _prepare(argv: list[str], first_path: str) -> None:
    """The arguments that the program sees, and where its own modules are."""
    install()
    sys.argv = argv
    # `python -m` put the current directory there; a script's own modules are beside it.
    sys.path[0] = first_path


def _run_code(code: str) -> None:
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    exec(compile(code, "<string>", "exec"), module.__dict__)  # noqa: S102 - what the user asked for


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
