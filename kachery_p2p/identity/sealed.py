"""Key files sealed with a passphrase into one text, to be kept in a safe place or printed.

    kachery-p2p-key-backup 1
    scrypt 17 8 1 <32 hex>         log2 of the cost, block size, parallelism, salt
    <base64, 76 characters a line>
    sha256 <64 hex>                of the first two lines and the sealed bytes

Sealed is, by ChaCha20-Poly1305 under the key that scrypt makes of the passphrase (UTF-8
of its NFC), each file in the order of their names: u16 length ‖ name ‖ u32 length ‖
bytes. The salt makes every key new, so the nonce is 0; the first two lines are
authenticated too. The checksum tells a damaged backup from a wrong passphrase. A backup
may come from anybody, so what it asks for is bounded before it is done.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kachery_p2p.errors import KeyFileError, PassphraseError, StateVersionError
from kachery_p2p.limits import (
    BACKUP_CHARS_MAX,
    BACKUP_COST_MAX,
    BACKUP_COST_MIN,
    KEY_FILE_BYTES_MAX,
    KEY_FILES_MAX,
    PASSPHRASE_CHARS_MAX,
    PASSPHRASE_CHARS_MIN,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

BACKUP_VERSION = 1
SALT_BYTES = 16
COST = 17

_HEADER = "kachery-p2p-key-backup"
_BLOCK, _PARALLEL = 8, 1
_PARAMETERS = re.compile(rf"scrypt ([0-9]{{1,2}}) {_BLOCK} {_PARALLEL} ([0-9a-f]{{32}})")
_CHECKSUM = re.compile(r"sha256 ([0-9a-f]{64})")
_NONCE = bytes(12)
_LINE_CHARS = 76
# Names become paths below the key directory: at most one directory, and nothing hidden.
_NAME = re.compile(r"([0-9A-Za-z_][0-9A-Za-z_.-]{0,127}/)?[0-9A-Za-z_][0-9A-Za-z_.-]{0,127}")

KeyFiles = Mapping[str, bytes]


def seal(files: KeyFiles, passphrase: str, salt: bytes, cost: int = COST) -> str:
    """The backup of `files`, for `unseal`; `salt` is 16 random bytes, never used before.

    PassphraseError if the passphrase is too short to protect anything. Takes 0.4 s and
    128 MiB with the usual cost.
    """
    assert len(salt) == SALT_BYTES
    if len(passphrase) < PASSPHRASE_CHARS_MIN:
        raise PassphraseError(
            f"the passphrase is shorter than {PASSPHRASE_CHARS_MIN} characters",
            hint="take a sentence, or four words that have nothing to do with each other",
        )
    head = f"{_HEADER} {BACKUP_VERSION}\nscrypt {cost} {_BLOCK} {_PARALLEL} {salt.hex()}\n"
    box = _cipher(passphrase, salt, cost).encrypt(_NONCE, _encode_files(files), head.encode())
    sealed = base64.b64encode(box).decode("ascii")
    lines = (sealed[at : at + _LINE_CHARS] for at in range(0, len(sealed), _LINE_CHARS))
    text = head + "".join(line + "\n" for line in lines) + f"sha256 {_checksum(head, box)}\n"
    if len(text) > BACKUP_CHARS_MAX:
        raise KeyFileError(f"the key files are too long for one backup of {BACKUP_CHARS_MAX} bytes")
    return text


def unseal(text: str, passphrase: str) -> dict[str, bytes]:
    """The files in a backup. Line ends and space around lines do not matter.

    PassphraseError if the passphrase is wrong; KeyFileError if the text is no backup or is
    damaged; StateVersionError if it is from a newer kachery_p2p.
    """
    cost, salt, head, box = _parse(text)
    from cryptography.exceptions import InvalidTag

    try:
        data = _cipher(passphrase, salt, cost).decrypt(_NONCE, box, head.encode())
    except InvalidTag:
        raise PassphraseError(
            "the passphrase is not the one this backup was made with",
            hint="look for capitals, the keyboard's language, and space at the ends",
        ) from None
    return _decode_files(data)


def is_key_name(name: str) -> bool:
    """True for what a key file may be called, such as `node.key` or `feeds/lab.key`."""
    return _NAME.fullmatch(name) is not None


def _parse(text: str) -> tuple[int, bytes, str, bytes]:
    """The cost, the salt, the two lines that are authenticated, and the sealed bytes."""
    if len(text) > BACKUP_CHARS_MAX:
        raise KeyFileError(f"a backup of keys is never longer than {BACKUP_CHARS_MAX} characters")
    title, _, rest = text.strip().partition("\n")
    _check_title(title.strip())
    parameters, _, rest = rest.partition("\n")
    sealed, _, checksum = rest.rpartition("\n")
    asked, told = _PARAMETERS.fullmatch(parameters.strip()), _CHECKSUM.fullmatch(checksum.strip())
    if asked is None or told is None:
        raise _damaged()
    head = f"{title.strip()}\n{asked[0]}\n"
    try:
        box = base64.b64decode(re.sub(r"[ \t\r\n]+", "", sealed), validate=True)
    except (binascii.Error, ValueError):
        raise _damaged() from None
    if _checksum(head, box) != told[1]:
        raise _damaged()
    return _checked_cost(int(asked[1])), bytes.fromhex(asked[2]), head, box


def _check_title(title: str) -> None:
    name, _, version = title.partition(" ")
    if name != _HEADER or not re.fullmatch("[0-9]{1,9}", version):
        raise KeyFileError(
            "this is not a backup of kachery_p2p keys",
            hint=f"the first line of one is `{_HEADER} {BACKUP_VERSION}`",
        )
    if int(version) != BACKUP_VERSION:
        raise StateVersionError(
            f"the backup was made by another version of kachery_p2p (format {version}, "
            f"this one reads {BACKUP_VERSION})",
            hint="upgrade kachery_p2p",
        )


def _checked_cost(cost: int) -> int:
    """The cost, if this computer can bear it: 2^cost KiB of memory."""
    if not BACKUP_COST_MIN <= cost <= BACKUP_COST_MAX:
        raise KeyFileError(
            f"the backup asks for 2^{cost} KiB of memory to be opened, which none of ours does",
            hint="do not trust where it comes from",
        )
    return cost


def _cipher(passphrase: str, salt: bytes, cost: int) -> ChaCha20Poly1305:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    if len(passphrase) > PASSPHRASE_CHARS_MAX:
        raise PassphraseError(f"the passphrase is longer than {PASSPHRASE_CHARS_MAX} characters")
    try:
        secret = unicodedata.normalize("NFC", passphrase).encode("utf-8")
    except UnicodeEncodeError:
        raise PassphraseError("the passphrase holds bytes that are not text") from None
    kdf = Scrypt(salt=salt, length=32, n=1 << cost, r=_BLOCK, p=_PARALLEL)
    return ChaCha20Poly1305(kdf.derive(secret))


def _checksum(head: str, box: bytes) -> str:
    return hashlib.sha256(head.encode("ascii") + box).hexdigest()


def _encode_files(files: KeyFiles) -> bytes:
    assert 0 < len(files) <= KEY_FILES_MAX
    parts = []
    for name, data in sorted(files.items()):
        assert is_key_name(name)
        assert len(data) <= KEY_FILE_BYTES_MAX
        parts += [len(name).to_bytes(2, "big"), name.encode("ascii")]
        parts += [len(data).to_bytes(4, "big"), data]
    return b"".join(parts)


def _decode_files(data: bytes) -> dict[str, bytes]:
    """The files of an opened backup: made by who knows the passphrase, and still not trusted."""
    files: dict[str, bytes] = {}
    at, last = 0, ""
    while at < len(data):
        name_bytes, at = _take(data, at, 2)
        content, at = _take(data, at, 4)
        name = name_bytes.decode("ascii", "replace")
        if not is_key_name(name) or name <= last or len(content) > KEY_FILE_BYTES_MAX:
            raise KeyFileError("the backup holds a file that is no key file, so none was taken")
        if len(files) == KEY_FILES_MAX:
            raise KeyFileError(f"the backup holds more than {KEY_FILES_MAX} files")
        files[name], last = content, name
    if not files:
        raise KeyFileError("the backup holds no keys")
    return files


def _take(data: bytes, at: int, width: int) -> tuple[bytes, int]:
    """The bytes at `at`, after their length of `width` bytes, and where they end."""
    start = at + width
    end = start + int.from_bytes(data[at:start], "big")
    if not start <= end <= len(data):
        raise KeyFileError("the backup ends in the middle of a file")
    return data[start:end], end


def _damaged() -> KeyFileError:
    return KeyFileError(
        "the backup is damaged", hint="copy it again, all lines of it, or take another copy"
    )
