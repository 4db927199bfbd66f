"""The calls of kachery-cloud and of kachery 2, each with its own settings."""

from __future__ import annotations

from kachery_p2p.compat.labelled import Labelled
from kachery_p2p.compat.systems import CLOUD, KACHERY_2

CLOUD_CALLS = Labelled(CLOUD)
KACHERY_2_CALLS = Labelled(KACHERY_2)
