"""Mutables of kachery-cloud and kachery 2: texts in files, `DIR/mutables/@folder/@folder/key`.

They are where the originals have them, so that both see the same. A value is replaced whole:
whoever reads meanwhile gets the old one or the new one.
"""

from __future__ import annotations

import contextlib
import os
import shutil

from kachery_p2p.compat.systems import (
    System,
    directory_of,
    is_multi_user,
    make_directories,
    sandbox_of,
)
from kachery_p2p.content.hashes import quoted
from kachery_p2p.content.uris import check_label
from kachery_p2p.errors import (
    DataFormatError,
    InvalidNameError,
    NotFoundError,
    UnsupportedValueError,
)
from kachery_p2p.limits import TEXT_MUTABLE_CHARS_MAX

_FILE_MODE = 0o664


def set_text(system: System, key: str, value: str) -> None:
    """Keep a text under the key, on the disk when it returns. InvalidNameError, StoreError."""
    from kachery_p2p.store.durable import sync_file, write_all, writing_to

    if not isinstance(value, str):
        raise UnsupportedValueError(f"the value is a {type(value).__name__}, not a text")
    if len(value) > TEXT_MUTABLE_CHARS_MAX:
        raise UnsupportedValueError(
            f"the value has {len(value)} characters, more than {TEXT_MUTABLE_CHARS_MAX}",
            hint="store it with store_text, and keep its URI in the mutable",
        )
    path = _path(system, key)
    temporary = f"{os.path.dirname(path)}/.{os.urandom(8).hex()}.tmp"
    with writing_to(path):
        make_directories(system, os.path.dirname(path))
        try:
            with open(temporary, "xb") as file:
                if is_multi_user(system):
                    os.chmod(file.fileno(), _FILE_MODE)
                write_all(file.fileno(), value.encode(), 0)
                sync_file(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise


def get_text(system: System, key: str, default: str | None = None) -> str | None:
    """The text under the key, or `default` if there is none."""
    try:
        with open(_path(system, key), "rb") as file:
            return file.read().decode()
    except FileNotFoundError:
        return default
    except UnicodeDecodeError:
        raise DataFormatError(f"the mutable {quoted(key)} is not UTF-8 text") from None


def delete_text(system: System, key: str) -> None:
    """Forget the text under the key. NotFoundError if there is none, as in the originals."""
    try:
        os.unlink(_path(system, key))
    except FileNotFoundError:
        raise NotFoundError(f"there is no mutable {quoted(key)}") from None


def delete_folder(system: System, key: str) -> None:
    """Forget all texts in a folder, whose name begins with `@`. NotFoundError if there is none."""
    parts = _parts(key)
    if not all(part.startswith("@") for part in parts):
        raise InvalidNameError(f"{quoted(key)} is not a folder of mutables: @NAME/@NAME")
    path = os.path.join(_top(system), *parts)
    if not os.path.isdir(path):
        raise NotFoundError(f"there is no folder {quoted(key)} of mutables")
    shutil.rmtree(path)


def _path(system: System, key: str) -> str:
    *folders, name = _parts(key)
    if name.startswith("@") or not all(folder.startswith("@") for folder in folders):
        raise InvalidNameError(
            f"{quoted(key)} is not the key of a mutable",
            hint="write NAME, or @FOLDER/NAME: folders begin with @",
        )
    return os.path.join(_top(system), *folders, name)


def _parts(key: str) -> list[str]:
    if not isinstance(key, str):
        raise UnsupportedValueError(f"a key is a text, not a {type(key).__name__}")
    return [check_label(part) for part in key.split("/")]


def _top(system: System) -> str:
    return os.path.join(sandbox_of(system) or directory_of(system), "mutables")
