"""kachery_p2p: files by their content, between the computers of a lab.

    import kachery_p2p as kp

    uri = kp.store_file("recording.h5")     # sha1://.../recording.h5
    path = kp.load_file(uri)                # here, or from whoever in the channel has it

Importing this loads neither the network nor numpy; what a call needs it loads itself.
"""

import sys
from typing import TYPE_CHECKING

if sys.platform == "win32":
    raise ImportError(
        "kachery-p2p runs on Linux and macOS, not on Windows: use it in WSL, the Windows"
        " Subsystem for Linux"
    )

from kachery_p2p.client.directories import load_dir, read_dir, store_dir
from kachery_p2p.client.events import Progress
from kachery_p2p.client.feeds import (
    Feed,
    create_feed,
    delete_feed,
    get_feed_id,
    load_feed,
    load_subfeed,
)
from kachery_p2p.client.files import (
    find_file,
    get_channels,
    get_node_id,
    link_file,
    load_bytes,
    load_file,
    load_files,
    store_file,
    store_files,
)
from kachery_p2p.client.groups import (
    accept_access_group,
    access_group_card,
    add_to_access_group,
    create_access_group,
    decrypt_uri,
    encrypt_uri,
    invite_to_access_group,
    leave_access_group,
    list_access_groups,
    remove_from_access_group,
)
from kachery_p2p.client.mutables import delete, get, get_string, set
from kachery_p2p.client.opening import open
from kachery_p2p.client.sharing import share, shared, unshare
from kachery_p2p.client.subfeeds import Subfeed
from kachery_p2p.client.temporary import TemporaryDirectory
from kachery_p2p.client.uploading import upload_file
from kachery_p2p.client.values import (
    load_json,
    load_npy,
    load_object,
    load_pkl,
    load_text,
    store_json,
    store_npy,
    store_object,
    store_pkl,
    store_text,
)
from kachery_p2p.client.watching import watch_for_new_messages
from kachery_p2p.errors import KacheryError, LoadFileError
from kachery_p2p.version import __version__

__all__ = [
    "store_file",
    "store_files",
    "store_dir",
    "link_file",
    "upload_file",
    "store_text",
    "store_json",
    "store_npy",
    "store_pkl",
    "store_object",
    "load_file",
    "load_files",
    "load_dir",
    "read_dir",
    "load_bytes",
    "open",
    "load_text",
    "load_json",
    "load_npy",
    "load_pkl",
    "load_object",
    "set",
    "get",
    "get_string",
    "delete",
    "find_file",
    "share",
    "unshare",
    "shared",
    "encrypt_uri",
    "decrypt_uri",
    "create_access_group",
    "add_to_access_group",
    "invite_to_access_group",
    "remove_from_access_group",
    "accept_access_group",
    "list_access_groups",
    "leave_access_group",
    "access_group_card",
    "create_feed",
    "load_feed",
    "load_subfeed",
    "get_feed_id",
    "delete_feed",
    "watch_for_new_messages",
    "Feed",
    "Subfeed",
    "get_node_id",
    "get_channels",
    "TemporaryDirectory",
    "Progress",
    "KacheryError",
    "LoadFileError",
    "__version__",
]


if not TYPE_CHECKING:  # or every wrong name would be right

    def __getattr__(name: str) -> object:
        # What kachery-p2p had before version 1, and has elsewhere now.
        from kachery_p2p.compat.absent import moved

        raise moved(name)
