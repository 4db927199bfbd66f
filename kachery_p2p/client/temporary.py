"""Temporary directories where the environment wants them, and kept when it says so."""

from __future__ import annotations

from types import TracebackType

from kachery_p2p.client import settings
from kachery_p2p.errors import ConfigError


class TemporaryDirectory:
    """A new directory below KACHERY_TEMP_DIR (or the system's place), as a path.

    Removed at the end of the `with`, unless `remove` is False or KACHERY_KEEP_TEMP_FILES is 1.
    """

    def __init__(self, remove: bool = True, prefix: str = "tmp") -> None:
        self._remove = remove
        self._prefix = prefix

    def __enter__(self) -> str:
        import tempfile

        directory = settings.temp_dir()
        try:
            self._path = tempfile.mkdtemp(prefix=self._prefix, dir=directory)
        except OSError as error:
            raise ConfigError(
                f"no temporary directory can be made in {directory or tempfile.gettempdir()}:"
                f" {(error.strerror or str(error)).lower()}",
                hint="set KACHERY_TEMP_DIR to a directory of your own",
            ) from error
        return self._path

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import shutil

        if self._remove and not settings.keeps_temp_files():
            # What another process still writes into it must not hide the error of the `with`.
            shutil.rmtree(self._path, ignore_errors=True)
