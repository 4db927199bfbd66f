"""Keys that sign a log, of channels and of feeds, and their files: private, and never replaced.

Format of a file, one `name value` pair a line, KIND being `channel` or `feed`:

    kachery-p2p-KIND-key 1
    KIND <64 hex>        the id; must fit the secret, so that damage is noticed
    ed25519 <64 hex>     secret: seed of the key
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, ClassVar

from kachery_p2p.errors import KeyFileError, StateVersionError
from kachery_p2p.identity.disk import (
    check_private,
    make_private_directories,
    read_private,
    sync_directory,
    write_durably,
)
from kachery_p2p.identity.ed25519 import Signer
from kachery_p2p.identity.keyring import keys_dir, reading_key
from kachery_p2p.identity.keys import KEY_BYTES, TAG_BYTES, NodeId

if TYPE_CHECKING:
    from typing import Self

KEY_FILE_VERSION = 1


class SigningKey:
    """The secret key of one log's owner. Never shown: `repr` gives the id only."""

    __slots__ = ("_seed", "_signer", "node_id")

    # What it is the key of.
    KIND: ClassVar[str]
    # The id, as the owner of logs.
    node_id: NodeId

    def __init__(self, seed: bytes) -> None:
        """The key made from 32 secret bytes (as `os.urandom` gives, or an older kachery had)."""
        assert len(seed) == KEY_BYTES
        self._seed = seed
        self._signer = Signer(seed)
        self.node_id = NodeId.of_raw(self._signer.public)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.node_id}>"

    def sign(self, tag: bytes, body: bytes, /) -> bytes:
        """The signature of `body` as a statement of the kind `tag` (16 bytes)."""
        assert len(tag) == TAG_BYTES
        return self._signer.sign(tag + body)

    def derive(self, info: bytes) -> bytes:
        """32 secret bytes for the purpose `info`, the same each time (HKDF-SHA256, RFC 5869)."""
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(self._seed)

    def encode(self) -> bytes:
        """The bytes of the key file."""
        text = f"{self._header()} {KEY_FILE_VERSION}\n{self.KIND} {self.node_id}\n"
        return f"{text}ed25519 {self._seed.hex()}\n".encode("ascii")

    @classmethod
    def decode(cls, data: bytes, id: str, where: str) -> Self:
        """The key of `id` in the bytes of a key file, or KeyFileError naming `where`."""
        lines = data.decode("ascii", "replace").splitlines()
        fields = dict(line.split(" ", 1) for line in lines if " " in line)
        version = fields.get(cls._header(), "")
        if version.isascii() and version.isdigit() and int(version[:9]) > KEY_FILE_VERSION:
            raise StateVersionError(
                f"{where} was written by a newer kachery_p2p (format {version[:9]}, "
                f"not {KEY_FILE_VERSION})",
                hint="upgrade kachery_p2p",
            )
        with contextlib.suppress(KeyError, ValueError, AssertionError):
            key = cls(bytes.fromhex(fields["ed25519"]))
            if version == str(KEY_FILE_VERSION) and key.node_id == fields[cls.KIND] == id:
                return key
        # Never quote the file: what is left of it may still be the secret.
        raise KeyFileError(
            f"{where} is damaged, or no key of this {cls.KIND}",
            hint="restore it from a backup, or move it away",
        )

    @classmethod
    def load(cls, path: str, id: str) -> Self | None:
        """The key of `id` in the file at `path`; None if there is none.

        KeyFileError if it is damaged or not private.
        """
        if not os.path.lexists(path):
            return None
        with reading_key(path, cls._what()):
            directory = os.path.dirname(path)
            check_private(directory, os.lstat(directory), 0o700)
            return cls.decode(read_private(path), id, path)

    def save(self, config_dir: str, path: str) -> None:
        """Put the key into a file at `path`, durably; never replaces one.

        KeyFileError if another key is there.
        """
        directory = os.path.dirname(path)
        with reading_key(path, self._what()):
            for made in dict.fromkeys((keys_dir(config_dir), directory)):
                make_private_directories(config_dir, made)
                check_private(made, os.lstat(made), 0o700)
            temp = f"{directory}/{self._temp_prefix()}{os.urandom(8).hex()}"
            write_durably(temp, self.encode())
            try:
                # Not rename: it would replace a key.
                with contextlib.suppress(FileExistsError):
                    os.link(temp, path)
            finally:
                os.unlink(temp)
            sync_directory(directory)
        self.load(path, self.node_id)  # one that was there already must be this very one

    @classmethod
    def remove(cls, path: str) -> None:
        """Forget the key in the file at `path`, for good."""
        with reading_key(path, cls._what()), contextlib.suppress(FileNotFoundError):
            os.unlink(path)
            sync_directory(os.path.dirname(path))

    @classmethod
    def sweep(cls, directory: str) -> None:
        """Remove what a killed process left while it saved a key; no other may be saving one."""
        for name in os.listdir(directory):
            if name.startswith(cls._temp_prefix()):
                with contextlib.suppress(OSError):
                    os.unlink(f"{directory}/{name}")

    @classmethod
    def _what(cls) -> str:
        return f"{cls.KIND} key"

    @classmethod
    def _header(cls) -> str:
        return f"kachery-p2p-{cls.KIND}-key"

    @classmethod
    def _temp_prefix(cls) -> str:
        return f".{cls.KIND}.key."
