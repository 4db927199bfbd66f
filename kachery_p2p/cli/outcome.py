"""How a command speaks: the answer on stdout, all else on stderr, an exit code that says what.

Errors are two lines, `error:` and, when there is something to be done, `hint:`. What
other people wrote (labels, names, sentences of peers) is escaped before it gets here
or here: nothing of it steers a terminal.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from kachery_p2p.client.wording import printable
from kachery_p2p.errors import EXIT_FAILURE, KacheryError

PROGRAM = "kachery-p2p"
# As the shell reports a program that SIGINT or SIGPIPE ended.
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
RESUME_HINT = "run it again to resume"


def answer(text: str) -> None:
    """One line of the answer. Paths may hold any bytes, and keep them."""
    write_bytes(os.fsencode(text) + b"\n")


def write_bytes(data: bytes | memoryview) -> None:
    """Bytes of the answer. A full disk behind a redirection is an error, not a traceback."""
    try:
        sys.stdout.flush()
        rest = memoryview(data)
        while rest:
            # With PYTHONUNBUFFERED this is the bare file, which may take only a part.
            rest = rest[sys.stdout.buffer.write(rest) :]
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _detach_stdout()
        raise KacheryError(f"the answer could not be written: {error.strerror}") from error


def note(text: str) -> None:
    """A line for the person, which no script should read."""
    say("", text)


def say(kind: str, text: str) -> None:
    prefix = f"{PROGRAM}: {kind}: " if kind else f"{PROGRAM}: "
    print(prefix + printable(text), file=sys.stderr)


def speak_warnings() -> None:
    """A logged warning is a note for the person; a logged error is also raised, and said then.

    Not in the daemon: it has nobody to raise it to, and its log is its stderr.
    """
    import logging

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno < logging.ERROR:
                note(record.getMessage())

    logging.lastResort = Notes(logging.WARNING)


def say_error(message: str, hint: str | None) -> None:
    say("error", message)
    if hint:
        say("hint", hint)


def run(command: Callable[[], None], *, resumable: bool = False) -> int:
    """Run a command to its exit code; nothing that it raises gets past here."""
    try:
        command()
        sys.stdout.flush()
    except KacheryError as error:
        say_error(str(error), error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        if resumable:
            say("hint", RESUME_HINT)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _detach_stdout()
        return EXIT_BROKEN_PIPE
    except Exception as error:
        return _report_bug(error)
    return 0


def _detach_stdout() -> None:
    """Python flushes stdout at exit: what it still holds has nowhere to go, quietly."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _report_bug(error: Exception) -> int:
    if os.environ.get("KACHERY_P2P_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    say_error(
        f"{type(error).__name__}: {error}",
        "this is a bug; KACHERY_P2P_DEBUG=1 shows where, please report it",
    )
    return EXIT_FAILURE
