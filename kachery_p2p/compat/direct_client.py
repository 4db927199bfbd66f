"""`DirectClient` of kachery-client: a channel, and the calls for it."""

from __future__ import annotations

from typing import Any

from kachery_p2p.compat import kachery_client


class DirectClient:
    """The functions of this module for one channel, as methods."""

    def __init__(self, *, channel: str | None = None) -> None:
        self._channel = channel

    def load_file(self, uri: str, dest: str | None = None) -> str | None:
        """As `load_file` with the client's channel."""
        return kachery_client.load_file(uri, dest, channel=self._channel)

    def load_text(self, uri: str) -> str | None:
        """As `load_text` with the client's channel."""
        return kachery_client.load_text(uri, channel=self._channel)

    def load_json(self, uri: str) -> Any:
        """As `load_json` with the client's channel."""
        return kachery_client.load_json(uri, channel=self._channel)

    def load_npy(self, uri: str) -> Any:
        """As `load_npy` with the client's channel."""
        return kachery_client.load_npy(uri, channel=self._channel)

    def load_pkl(self, uri: str) -> Any:
        """As `load_pkl` with the client's channel."""
        return kachery_client.load_pkl(uri, channel=self._channel)

    def store_file(self, path: str, basename: str | None = None) -> str:
        """As `store_file`."""
        return kachery_client.store_file(path, basename)

    def store_text(self, text: str, basename: str | None = None) -> str:
        """As `store_text`."""
        return kachery_client.store_text(text, basename)

    def store_json(self, object: Any, basename: str | None = None) -> str:
        """As `store_json`."""
        return kachery_client.store_json(object, basename)

    def store_npy(self, array: Any, basename: str | None = None) -> str:
        """As `store_npy`."""
        return kachery_client.store_npy(array, basename)

    def store_pkl(self, x: Any, basename: str | None = None) -> str:
        """As `store_pkl`."""
        return kachery_client.store_pkl(x, basename)


class EphemeralClient(DirectClient):
    """The older name of `DirectClient`."""
