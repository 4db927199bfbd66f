"""The first kachery's configuration: to which server to upload, and from which to download.

A server, or a channel on it, is a zone here (see `zones`): a channel of this node. What `fr` and
`to` may be: the name of a zone or of a joined channel, `{"url": ..., "channel": ..., "password":
...}` with a URL that zones.toml knows as an alias, or None or "" in a call for no server at all.
Passwords say nothing any more: members of a channel know each other by their keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from kachery_p2p.compat import systems
from kachery_p2p.compat.loading import Source
from kachery_p2p.compat.placing import PRIVATE, Place, place_of
from kachery_p2p.errors import UnsupportedValueError

_NO_SERVER = {"url": None, "channel": None, "password": None}
_DEFAULTS: dict[str, Any] = {
    "to": _NO_SERVER,
    "fr": _NO_SERVER,
    "from_remote_only": False,
    "to_remote_only": False,
    "algorithm": "sha1",
    "verbose": False,
    "use_hard_links": False,
}
ALGORITHMS = ("sha1", "md5")

_config = dict(_DEFAULTS)


def set_config(
    *,
    to: Mapping[str, Any] | str | None = None,
    fr: Mapping[str, Any] | str | None = None,
    from_remote_only: bool | None = None,
    to_remote_only: bool | None = None,
    verbose: bool | None = None,
    algorithm: str | None = None,
    use_hard_links: bool | None = None,
) -> None:
    """From now on calls of this process do so unless they say otherwise; None changes nothing.

    `to` and `fr` name where to share and where to ask. `use_hard_links` lets files stand for
    their contents without a copy. What is stored is here too, and looked for here first,
    whatever `to_remote_only` and `from_remote_only` say.
    """
    given = dict(locals())
    changes = {key: value for key, value in given.items() if value is not None}
    _check_algorithm(changes.get("algorithm", "sha1"))
    _config.update(changes)


def get_config() -> dict[str, Any]:
    """What calls do that say nothing themselves."""
    return dict(_config)


class config:
    """`with config(fr=...)`: as `set_config`, until the end of the `with`."""

    def __init__(
        self,
        *,
        to: Mapping[str, Any] | str | None = None,
        fr: Mapping[str, Any] | str | None = None,
        from_remote_only: bool | None = None,
        to_remote_only: bool | None = None,
        verbose: bool | None = None,
        algorithm: str | None = None,
        use_hard_links: bool | None = None,
    ) -> None:
        self._changes: dict[str, Any] = {
            "to": to,
            "fr": fr,
            "from_remote_only": from_remote_only,
            "to_remote_only": to_remote_only,
            "verbose": verbose,
            "algorithm": algorithm,
            "use_hard_links": use_hard_links,
        }

    def __enter__(self) -> None:
        self._before = get_config()
        set_config(**self._changes)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _config.update(self._before)


def reset() -> None:
    """Forget what servers answered; nothing here is kept that could be wrong by now."""


def is_configured() -> bool:
    """Whether this program has used `set_config`, and so was written for the first kachery."""
    return _config != _DEFAULTS


class Call:
    """What one call of the first kachery is to do: the configuration, and its own keywords."""

    def __init__(self, keywords: Mapping[str, Any]) -> None:
        unknown = keywords.keys() - _DEFAULTS.keys()
        if unknown:
            raise TypeError(f"unexpected keyword arguments: {', '.join(sorted(unknown))}")
        self._given = keywords
        self._all = {**_config, **keywords}
        self.algorithm: str = self._all["algorithm"]
        _check_algorithm(self.algorithm)

    def place(self) -> Place:
        """Where this call stores. UnknownZoneError for a server that means nothing here."""
        sandbox = systems.sandbox_of(systems.KACHERY_2)
        if sandbox is not None:
            return Place([], sandbox=sandbox)
        linked = bool(self._all["use_hard_links"])
        if "to" in self._given and not self._given["to"]:
            return PRIVATE._replace(linked=linked)
        from kachery_p2p.compat.zones import find_zone, zone_to_store

        # Without a server the zone of the environment holds, as for the calls of 2024.
        names = _names(self._all["to"]) or [systems.zone_name()]
        zone = next(filter(None, map(find_zone, names)), None) or zone_to_store(names[0])
        return place_of(zone)._replace(linked=linked)

    def source(self) -> Source:
        """Where this call looks."""
        sandbox = systems.sandbox_of(systems.KACHERY_2)
        if "fr" in self._given and not self._given["fr"]:
            return Source(local_only=True, sandbox=sandbox)
        from kachery_p2p.compat.zones import channel_to_load, find_zone

        names = _names(self._all["fr"]) or [systems.zone_name()]
        zone = next(filter(None, map(find_zone, names)), None)
        channel = channel_to_load(names[0]) if zone is None else zone.channel
        return Source(channel=channel, sandbox=sandbox)


def _names(server: Mapping[str, Any] | str | None) -> list[str]:
    """What zones.toml may know the server by; nothing for no server."""
    if isinstance(server, str):
        return [server] if server else []
    if not isinstance(server, Mapping | None):
        raise UnsupportedValueError(f"a server is a name or a dict, not a {type(server).__name__}")
    named = server or {}
    return [str(named[key]) for key in ("url", "channel") if named.get(key)]


def _check_algorithm(algorithm: object) -> None:
    if algorithm not in ALGORITHMS:
        raise UnsupportedValueError(f"the algorithm must be sha1 or md5, not {algorithm!r}")
