"""What we do with what the published older packages stored, and for them: `run.py` runs this.

Through `python -m kachery_p2p.compat`, so that the imports are those of `theirs.py`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import kachery
import kachery_client
import kachery_cloud
import numpy as np

ARRAY = np.arange(6, dtype=np.int16).reshape(2, 3)


def load(stored: dict[str, Any]) -> dict[str, Any]:
    """What `theirs.py store` told of, loaded here."""
    pickled = {uri: kachery_cloud.load_pkl(uri) for uri in stored["pkl"]}
    return {
        "texts": {uri: kachery_cloud.load_text(uri) for uri in stored["texts"]},
        "json": {uri: kachery.load_json(uri) for uri in stored["json"]},
        "npy": {uri: kachery.load_npy(uri).tolist() for uri in stored["npy"]},
        "pkl": {uri: {"x": value["x"].tolist()} for uri, value in pickled.items()},
        "mutables": [
            kachery_cloud.get_mutable_local("@folder/key"),
            kachery.get_mutable_local("key"),
        ],
    }


def store() -> dict[str, str]:
    """The URIs that `theirs.py load` is to know."""
    kachery_cloud.set_mutable_local("@ours/key", "value")
    kachery.set_mutable_local("@ours/key", "value")
    return {
        "cloud text": kachery_cloud.store_text("our text", label="a b.txt"),
        "cloud json": kachery_cloud.store_json({"b": 1, "a": [2]}),
        "cloud npy": kachery_cloud.store_npy(ARRAY),
        "cloud pkl": kachery_cloud.store_pkl({"x": ARRAY}),
        "kachery text": kachery.store_text("our text", label="a b.txt"),
        "kachery zone": kachery.store_text("our text", label="a b.txt", uri_type=2),
        "client text": kachery_client.store_text("our text", basename="a.txt"),
        "client json": kachery_client.store_json({"b": 1, "a": [2]}),
    }


print(json.dumps(store() if sys.argv[1] == "store" else load(json.load(sys.stdin))))
