"""`ShellScript` of kachery-p2p and kachery-client: a script in a program's text, and its process.

It has nothing to do with files by their content; programs that started helpers with it need it.
"""

from __future__ import annotations

import atexit
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


class ShellScript:
    """The script, and its process once it was started.

    Lines may be indented together. Without `script_path` it is written to a temporary file, which
    is removed when it has ended unless `keep_temp_files`. Scripts that still run when this process
    ends are stopped.
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
        """Run it; this returns at once."""
        path = self._path or self._temporary_path()
        self.write(path)
        if self._verbose:
            print(f"RUNNING SHELL SCRIPT: {path}")
        self._started_at = time.monotonic()
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if self._redirect else {}
        self._process = subprocess.Popen([os.path.abspath(path)], **output)  # type: ignore[call-overload]
        _running.add(self)

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit code, once it has ended; None if it has not within `timeout` seconds."""
        process = self._known()
        try:
            if process.stdout is None:
                process.wait(timeout)
            else:
                _copy_lines(process.communicate(timeout=timeout)[0])
        except subprocess.TimeoutExpired:
            return None
        self._clean_up()
        return process.returncode

    def stop(self) -> None:
        """Ask it to end, three times ever more firmly, and wait until it has."""
        for number, patience_s in _ASKING:
            if self.stopWithSignal(number, patience_s):
                break
        self._clean_up()

    def kill(self) -> None:
        """End it at once."""
        self.stopWithSignal(signal.SIGKILL, 1.0)

    def stopWithSignal(self, sig: int, timeout: float) -> bool:
        """Send the signal; whether it has ended within `timeout` seconds."""
        if not self.isRunning():
            return True
        process = self._known()
        process.send_signal(sig)
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
        _running.discard(self)
        if self._directory is not None and not self._keep:
            shutil.rmtree(self._directory, ignore_errors=True)


def _copy_lines(output: bytes) -> None:
    for line in output.decode(errors="replace").splitlines():
        print(line)


@atexit.register
def stop_all_scripts() -> None:
    """End all scripts of this process that still run."""
    for script in list(_running):
        script.stop()
