"""`ShellScript` of kachery-p2p and kachery-client: a script in a program's text, and its process.

It has nothing to do with files by their content; programs that started helpers with it need it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import textwrap
import time
from typing import Any

from kachery_p2p.errors import UnsupportedValueError

# How often a process is asked to end, and how long each time; then it is killed.
_ASKING = ((signal.SIGINT, 5.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))

_running: set[ShellScript] = set()
# What a process has started is not for its children to stop.
os.register_at_fork(after_in_child=_running.clear)


class ShellScript:
    """The script, and its process once it was started.

    Lines may be indented together. Without `script_path` it is written to a temporary file, which
    is removed when it has ended unless `keep_temp_files`. Scripts that still run when this process
    ends are stopped. What a script has started itself is sent the same signals: they are a process
    group of their own.
    """

    def __init__(
        self,
        script: str,
        script_path: str | None = None,
        keep_temp_files: bool = False,
        verbose: bool = False,
        label: str = "",
        redirect_output_to_stdout: bool = False,
    ) -> None:
        lines = script.lstrip("\n").splitlines()
        indent = len(lines[0]) - len(lines[0].lstrip(" ")) if lines else 0
        if any(line.strip() and line[:indent].strip() for line in lines):
            raise UnsupportedValueError("the first line of the script is indented the most")
        self._script = textwrap.dedent("\n".join(lines))
        self._path = script_path
        self._keep = keep_temp_files
        self._verbose = verbose
        self._redirect = redirect_output_to_stdout
        self._directory: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at: float | None = None

    def substitute(self, old: str, new: Any) -> None:
        """Put `new`, as text, wherever the script says `old`."""
        self._script = self._script.replace(old, str(new))

    def write(self, script_path: str | None = None) -> None:
        """Write the script as an executable file."""
        path = script_path or self._path
        if path is None:
            raise UnsupportedValueError("no path was given to write the script to")
        with open(path, "w", newline="\n") as file:
            file.write(self._script)
        os.chmod(path, 0o744)

    def start(self) -> None:
        """Run it; this returns at once. UnsupportedValueError if it runs already."""
        if self.isRunning():
            raise UnsupportedValueError("the script runs already", hint="stop() it, or wait()")
        self._clean_up()
        self._process = None
        try:
            path = self._path or self._temporary_path()
            self.write(path)
            if self._verbose:
                print(f"RUNNING SHELL SCRIPT: {path}")
            # Before there is a process: whatever interrupts us then, it is stopped in the end.
            _running.add(self)
            self._process = self._popen(os.path.abspath(path))
        except BaseException:
            if not self.isRunning():
                self._clean_up()
            raise
        self._started_at = time.monotonic()

    def _popen(self, path: str) -> subprocess.Popen[bytes]:
        output = subprocess.PIPE if self._redirect else None
        errors = subprocess.STDOUT if self._redirect else None
        return subprocess.Popen([path], stdout=output, stderr=errors, process_group=0)

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit code, once it has ended; None if it has not within `timeout` seconds."""
        process = self._known()
        try:
            if process.stdout is None or process.stdout.closed:
                process.wait(timeout)
            else:
                _copy_lines(process.communicate(timeout=timeout)[0])
        except subprocess.TimeoutExpired:
            return None
        except BaseException:
            # It may have ended though what it printed could not be passed on.
            if not self.isRunning():
                self._clean_up()
            raise
        self._clean_up()
        return process.returncode

    def stop(self) -> None:
        """Ask it to end, three times ever more firmly, and wait until it has."""
        was_running = self.isRunning()
        for number, patience_s in _ASKING:
            if self.stopWithSignal(number, patience_s):
                break
        if was_running:
            # What a shell has started in the background takes no notice of SIGINT.
            with contextlib.suppress(OSError):
                os.killpg(self._known().pid, signal.SIGTERM)
        self._clean_up()

    def kill(self) -> None:
        """End it at once."""
        if self.stopWithSignal(signal.SIGKILL, 1.0):
            self._clean_up()

    def stopWithSignal(self, sig: int, timeout: float) -> bool:
        """Send the signal; whether it has ended within `timeout` seconds."""
        if not self.isRunning():
            return True
        process = self._known()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sig)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def elapsedTimeSinceStart(self) -> float | None:
        """Seconds since it was started; None if it was not."""
        return None if self._started_at is None else time.monotonic() - self._started_at

    def isRunning(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def isFinished(self) -> bool:
        """Whether it was started and has ended."""
        return self._process is not None and self._process.poll() is not None

    def returnCode(self) -> int:
        """Its exit code. UnsupportedValueError if it has not ended."""
        if self._process is None or self._process.poll() is None:
            raise UnsupportedValueError("the script has not ended, so it has no exit code")
        return int(self._process.returncode)

    def scriptPath(self) -> str | None:
        """The path that was given."""
        return self._path

    def _known(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise UnsupportedValueError("the script was not started")
        return self._process

    def _temporary_path(self) -> str:
        import tempfile

        from kachery_p2p.client import settings

        self._directory = tempfile.mkdtemp(prefix="tmp_shellscript_", dir=settings.temp_dir())
        return os.path.join(self._directory, "script.sh")

    def _clean_up(self) -> None:
        """It has ended, or was not started: nothing of it is left, unless it was to be kept."""
        _running.discard(self)
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
        if self._directory is not None and not self._keep:
            shutil.rmtree(self._directory, ignore_errors=True)


def _copy_lines(output: bytes) -> None:
    for line in output.decode(errors="replace").splitlines():
        print(line)


@atexit.register
def stop_all_scripts() -> None:
    """End all scripts of this process that still run."""
    for script in list(_running):
        # One that may not be sent signals (it has become another user's) keeps no other running.
        with contextlib.suppress(OSError):
            script.stop()
