"""Many contents that are not stored here, asked of the daemon in few calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kachery_p2p.client.daemon import Daemon, connect
from kachery_p2p.client.loading import fetch, nowhere
from kachery_p2p.client.local_files import LocalFiles
from kachery_p2p.client.origin import Origin
from kachery_p2p.client.progress import Reporter
from kachery_p2p.content.hashes import ContentHash, Root
from kachery_p2p.content.uris import Uri
from kachery_p2p.errors import DaemonDownError, DaemonError, DaemonProtocolError, KacheryError
from kachery_p2p.limits import ANSWER_GRACE_S, LOAD_MANY_MAX
from kachery_p2p.wire.operations import error_from_map
from kachery_p2p.wire.packed_names import NO_ROOT, pack


def fetch_many(
    wanted: Sequence[Uri], origin: Origin, reporter: Reporter, done: int = 0
) -> dict[Uri, str | KacheryError]:
    """For each its path, or why it could not be had. Never raises an error of ours.

    `done` files of the same call are here already, for its progress.
    """
    return _Fetching(wanted, origin, reporter, done).run()


class _Fetching:
    """One fetch of many, in calls of at most LOAD_MANY_MAX."""

    def __init__(
        self, wanted: Sequence[Uri], origin: Origin, reporter: Reporter, done: int
    ) -> None:
        self._done = done
        self._wanted = list(dict.fromkeys(wanted))
        self._origin = origin
        self._reporter = reporter
        self._here = LocalFiles()
        self._found: dict[Uri, str | KacheryError] = {}
        # What earlier calls brought, for the progress of all.
        self._bytes_before = 0
        self._bytes = 0

    def run(self) -> dict[Uri, str | KacheryError]:
        asked = 0
        while asked < len(self._wanted):
            some = self._wanted[asked : asked + LOAD_MANY_MAX]
            try:
                asked += self._ask(connect(), some)
            except DaemonError as error:
                # The daemon, and not one of the files: the others would fare no better.
                self._fail(self._wanted[asked:], error)
                break
            except KacheryError as error:
                self._found |= dict.fromkeys(some, error)
                asked += len(some)
        return self._found

    def _fail(self, wanted: Sequence[Uri], error: DaemonError) -> None:
        for one in wanted:
            self._found[one] = nowhere(one, error) if isinstance(error, DaemonDownError) else error

    def _ask(self, daemon: Daemon, some: list[Uri]) -> int:
        """One call; how many of these it answered."""
        contents = pack([one.content for one in some], ContentHash.CHARS)
        body: dict[str, Any] = {"contents": contents, **self._origin.fields}
        if any(one.root is not None for one in some):
            body["roots"] = pack([one.root or NO_ROOT for one in some], Root.CHARS)
        timeout_s = self._origin.timeout_s
        result, _ = daemon.call(
            "load_many",
            body,
            progress=self._tell,
            # For each of them, as if they came one after the other.
            timeout_s=None if timeout_s is None else timeout_s * len(some) + ANSWER_GRACE_S,
        )
        self._bytes_before = self._bytes
        answered: int = min(result["answered"], len(some))
        if not answered:
            raise DaemonProtocolError("the daemon answered for none of the files")
        failed = {one["place"]: one for one in result["failed"]}
        for place, one in enumerate(some[:answered]):
            self._found[one] = self._outcome(one, failed.get(place))
        return answered

    def _outcome(self, wanted: Uri, failed: Mapping[str, Any] | None) -> str | KacheryError:
        if failed is not None:
            return error_from_map(failed)
        try:
            # A daemon with another store directory has it: then it is copied to ours.
            return self._here.find(wanted) or fetch(wanted, self._origin, self._reporter)
        except KacheryError as error:
            return error

    def _tell(self, update: dict[str, Any]) -> None:
        if update.get("files") is not None:
            self._bytes = self._bytes_before + (update.get("bytes") or 0)
            files = self._done + len(self._found) + update["files"]
            total = self._done + len(self._wanted)
            told = {"bytes": self._bytes, "files": files, "files_total": total}
            self._reporter.tell({**update, **told})
