"""What the published older packages do, in an environment of their own: `run.py` runs this.

theirs.py store DIRECTORY      store into DIRECTORY/cloud, /kachery and /client; URIs as JSON
theirs.py load                 load the URIs on stdin, as JSON, from what the environment names
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def store(directory: Path) -> dict[str, Any]:
    """Store some of everything, with no server; what was stored under which URI."""
    import kachery
    import kachery_cloud
    import numpy as np
    from kachery_client._local_kachery_storage import (
        _local_kachery_storage_link_file,
        _local_kachery_storage_store_file,
    )

    linked, named = directory / "linked.txt", directory / "named.txt"
    linked.write_text("linked")
    named.write_text("named")
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    texts = {
        kachery_cloud.store_text_local("cloud text", label="a b.txt"): "cloud text",
        kachery_cloud.link_file(str(linked), label="l.txt"): "linked",
        kachery_cloud.store_file_local(str(named), label="n.txt", reference=True): "named",
        kachery.store_text_local("kachery text", label="k.txt"): "kachery text",
        kachery.store_file_local(str(named), label="n.txt", uri_type=1): "named",
    }
    for put, text in (
        (_local_kachery_storage_store_file, "client text"),
        (_local_kachery_storage_link_file, "client link"),
    ):
        path = directory / f"{text}.txt"
        path.write_text(text)
        texts[f"sha1://{put(path=str(path))[1]}/{path.name}"] = text
    kachery_cloud.set_mutable_local("@folder/key", "cloud value")
    kachery.set_mutable_local("key", "kachery value")
    return {
        "texts": texts,
        "json": {kachery_cloud.store_json_local({"b": 1, "a": [2]}): {"a": [2], "b": 1}},
        "npy": {kachery.store_npy_local(array): array.tolist()},
        "pkl": {kachery_cloud.store_pkl_local({"x": array}): {"x": array.tolist()}},
    }


def load(uris: dict[str, str]) -> dict[str, Any]:
    """What each package makes of the URI that it should know."""
    import kachery
    import kachery_client
    import kachery_cloud

    return {
        "cloud text": kachery_cloud.load_text(uris["cloud text"], local_only=True),
        "cloud json": kachery_cloud.load_json(uris["cloud json"], local_only=True),
        "cloud npy": kachery_cloud.load_npy(uris["cloud npy"], local_only=True).tolist(),
        "cloud pkl": kachery_cloud.load_pkl(uris["cloud pkl"], local_only=True)["x"].tolist(),
        "kachery text": kachery.load_text(uris["kachery text"], local_only=True),
        "kachery zone": kachery.load_text(uris["kachery zone"], local_only=True),
        "client text": kachery_client.load_text(uris["client text"]),
        "client json": kachery_client.load_json(uris["client json"]),
        "cloud mutable": kachery_cloud.get_mutable_local("@ours/key"),
        "kachery mutable": kachery.get_mutable_local("@ours/key"),
    }


if __name__ == "__main__":
    answer = store(Path(sys.argv[2])) if sys.argv[1] == "store" else load(json.load(sys.stdin))
    # The packages themselves print now and then.
    print("\n" + json.dumps(answer))
