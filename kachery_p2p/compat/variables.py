"""Variables of the environment that the older packages read and that need nothing any more.

They do no harm, and scripts that set them stay as they are; `kachery-p2p doctor` says so.
Those that still mean something are read by `client.settings` and `systems`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

_KEYS = "members of a channel know each other by their keys"
_NO_SERVER = "there is no server to ask: a zone is a channel or bucket of this node (zones.toml)"
_ONE_LINE = "a program's calls say nothing, and the node's log has one line an event"

MEANINGLESS = {
    "KACHERY_API_KEY": _KEYS,
    "KACHERY_DEFAULT_PASSWORD": _KEYS,
    "KACHERY_PASSWORD": _KEYS,
    "KACHERY_CLOUD_CLIENT_ID": "this computer is known by its node's key (`kachery-p2p node-id`)",
    "KACHERY_CLOUD_PRIVATE_KEY": "this computer is known by its node's key",
    "KACHERY_CLOUD_PROJECT": "channels take the place of projects; get_project_id still tells it",
    "KACHERY_URL": _NO_SERVER,
    "KACHERY_CHANNEL": _NO_SERVER,
    "KACHERY_BASE_URL": _NO_SERVER,
    "KACHERY_GATEWAY_URL": _NO_SERVER,
    "KACHERY_HUB_API_URI": _NO_SERVER,
    "BITWOODER_API_URI": _NO_SERVER,
    "KACHERY_RESOURCE_URL": "a node sends what it shares without being asked beforehand",
    "KACHERY_ALLOW_PUBLIC_ZONES": "who may load from a zone is who is in its channel",
    "HTTP_VERBOSE": _ONE_LINE,
    "KACHERY_P2P_SPEEDUP_FACTOR": "it made the tests of the older daemon quicker",
}


def meaningless() -> Iterator[tuple[str, str]]:
    """Those that are set now, each with the reason why it needs nothing. Never their values."""
    for name, why in MEANINGLESS.items():
        if os.environ.get(name):
            yield name, why
