from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from hypothesis import given
from hypothesis import strategies as st

from kachery_p2p.errors import KacheryError, KeyFileError, PassphraseError, StateVersionError
from kachery_p2p.identity.backup import backup, restore
from kachery_p2p.identity.keyring import key_path, keys_dir, load, load_or_create
from kachery_p2p.identity.sealed import COST, is_key_name, seal, unseal
from kachery_p2p.limits import (
    BACKUP_CHARS_MAX,
    BACKUP_COST_MAX,
    BACKUP_COST_MIN,
    KEY_FILE_BYTES_MAX,
)

PASSPHRASE = "four words, but häufig ones"
SALT = bytes(range(16))
FILES = {"node.key": b"secret of the node\n", "feeds/lab.key": b"secret of a feed\n"}
# The least that is allowed, so that the tests are quick.
cheap_seal = partial(seal, cost=BACKUP_COST_MIN)
SEALED = cheap_seal(FILES, PASSPHRASE, SALT)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("kachery_p2p.identity.backup.seal", cheap_seal)
    return str(tmp_path / "home" / "config")


def put(config: str, name: str, data: bytes, mode: int = 0o600) -> Path:
    path = Path(keys_dir(config), name)
    path.parent.mkdir(0o700, parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    return path


def contents(config: str) -> dict[str, bytes]:
    top = Path(keys_dir(config))
    return {p.relative_to(top).as_posix(): p.read_bytes() for p in top.rglob("*") if p.is_file()}


# --- there and back -----------------------------------------------------------------------


def test_a_lost_node_comes_back_as_the_same_node(config: str, tmp_path: Path) -> None:
    key = load_or_create(config)
    put(config, "feeds/lab.key", b"secret of a feed\n")
    text = backup(config, PASSPHRASE)
    elsewhere = str(tmp_path / "other computer" / "config")
    assert restore(elsewhere, text, PASSPHRASE) == ("feeds/lab.key", "node.key")
    assert load(elsewhere).seed == key.seed
    assert load(elsewhere).exchange_secret == key.exchange_secret
    assert contents(elsewhere) == contents(config)


def test_what_is_restored_is_for_nobody_else(config: str) -> None:
    old = os.umask(0)
    try:
        restore(config, SEALED, PASSPHRASE)
    finally:
        os.umask(old)
    for path in (Path(config), Path(keys_dir(config)), Path(keys_dir(config), "feeds")):
        assert path.stat().st_mode & 0o777 == 0o700
    for name in FILES:
        assert Path(keys_dir(config), name).stat().st_mode & 0o777 == 0o600
    assert contents(config) == FILES


def test_a_backup_has_the_bytes_that_its_docstring_says() -> None:
    lines = SEALED.splitlines()
    assert lines[:2] == ["kachery-p2p-key-backup 1", f"scrypt 10 8 1 {SALT.hex()}"]
    assert max(map(len, lines)) <= 76
    head = "\n".join(lines[:2]).encode() + b"\n"
    box = base64.b64decode("".join(lines[2:-1]))
    assert lines[-1] == f"sha256 {sha256(head + box).hexdigest()}"
    key = Scrypt(salt=SALT, length=32, n=2**10, r=8, p=1).derive(PASSPHRASE.encode())
    assert ChaCha20Poly1305(key).decrypt(bytes(12), box, head) == b"".join(
        len(name).to_bytes(2, "big") + name.encode() + len(data).to_bytes(4, "big") + data
        for name, data in sorted(FILES.items())
    )


def test_ours_costs_whoever_guesses_128_mebibytes_a_try(tmp_path: Path) -> None:
    config = str(tmp_path / "config")
    load_or_create(config)
    text = backup(config, PASSPHRASE)
    assert re.search("^scrypt 17 8 1 [0-9a-f]{32}$", text, re.MULTILINE)
    assert BACKUP_COST_MIN < COST == 17 <= BACKUP_COST_MAX
    assert load(config).seed.hex() not in text
    assert restore(config, text, PASSPHRASE) == ()


def test_every_backup_has_a_salt_of_its_own(config: str) -> None:
    load_or_create(config)
    assert backup(config, PASSPHRASE) != backup(config, PASSPHRASE)


def test_what_mail_and_editors_do_to_lines_does_not_matter() -> None:
    for changed in (
        SEALED.replace("\n", "\r\n"),
        "\n\n  " + SEALED.replace("\n", "  \n\t") + "\n\n",
        SEALED.rstrip("\n"),
    ):
        assert unseal(changed, PASSPHRASE) == FILES


def test_a_passphrase_is_the_same_however_its_accents_are_typed() -> None:
    composed, decomposed = "un café crème", "un cafe\u0301 cre\u0300me"
    assert unseal(cheap_seal(FILES, composed, SALT), decomposed) == FILES


@given(
    st.dictionaries(
        st.from_regex(r"\A(feeds/)?[0-9A-Za-z_][0-9A-Za-z_.-]{0,20}\Z"),
        st.binary(max_size=400),
        min_size=1,
        max_size=5,
    ),
    st.text(st.characters(codec="utf-8"), min_size=8, max_size=30),
)
def test_any_files_come_back_under_any_passphrase(files: dict[str, bytes], phrase: str) -> None:
    assert unseal(cheap_seal(files, phrase, SALT), phrase) == files


# --- passphrases --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", ["", "four words", PASSPHRASE.upper(), PASSPHRASE + " ", "x" * 99]
)
def test_a_wrong_passphrase_says_so_and_writes_nothing(config: str, wrong: str) -> None:
    with pytest.raises(PassphraseError, match="not the one") as caught:
        restore(config, SEALED, wrong)
    assert caught.value.hint
    assert not os.path.exists(config)


@pytest.mark.parametrize("weak", ["", "1234567", "äöü"])
def test_a_passphrase_that_protects_nothing_is_refused(config: str, weak: str) -> None:
    load_or_create(config)
    with pytest.raises(PassphraseError, match="shorter than 8"):
        backup(config, weak)


@pytest.mark.parametrize("bad", ["x" * 1_025, "\ud800 no text at all"])
def test_a_passphrase_that_is_no_text_is_refused(config: str, bad: str) -> None:
    load_or_create(config)
    with pytest.raises(PassphraseError):
        backup(config, bad)
    with pytest.raises(PassphraseError):
        restore(config, SEALED, bad)


# --- backups that are damaged or hostile --------------------------------------------------


def resealed(head: str, box: bytes) -> str:
    """A backup that somebody has changed, checksum and all."""
    return (
        f"{head}{base64.b64encode(box).decode()}\nsha256 {sha256(head.encode() + box).hexdigest()}"
    )


def opened() -> tuple[str, bytes]:
    lines = SEALED.splitlines()
    return "\n".join(lines[:2]) + "\n", base64.b64decode("".join(lines[2:-1]))


def test_every_changed_or_missing_character_is_noticed() -> None:
    for at, character in enumerate(SEALED):
        if character == "\n":
            continue
        for changed in (SEALED[:at] + "~" + SEALED[at + 1 :], SEALED[:at] + SEALED[at + 1 :]):
            with pytest.raises((KeyFileError, StateVersionError)) as caught:
                unseal(changed, PASSPHRASE)
            assert not isinstance(caught.value, PassphraseError)


def test_a_backup_that_is_cut_off_anywhere_is_damaged() -> None:
    for length in range(len(SEALED) - 1):
        with pytest.raises((KeyFileError, StateVersionError)):
            unseal(SEALED[:length], PASSPHRASE)


def test_a_backup_changed_with_its_checksum_does_not_open() -> None:
    head, box = opened()
    for at in range(len(box)):
        bad = bytearray(box)
        bad[at] ^= 1
        with pytest.raises(PassphraseError):
            unseal(resealed(head, bytes(bad)), PASSPHRASE)
    for changed in (head.replace("scrypt 10", "scrypt 11"), head.replace("0001", "0101")):
        assert changed != head
        with pytest.raises(PassphraseError):
            unseal(resealed(changed, box), PASSPHRASE)
    with pytest.raises(PassphraseError):
        unseal(resealed(head, b""), PASSPHRASE)


@pytest.mark.parametrize("cost", ["00", "0", "1", "9", "19", "30", "40", "63", "99"])
def test_a_backup_that_asks_for_all_memory_gets_none(
    cost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scrypt, "__init__", lambda *_, **__: pytest.fail("scrypt was asked"))
    head, box = opened()
    with pytest.raises(KeyFileError, match="memory"):
        unseal(resealed(head.replace("scrypt 10", f"scrypt {cost}"), box), PASSPHRASE)


@pytest.mark.parametrize(
    "parameters",
    ["scrypt 100 8 1", "scrypt 10 64 1", "scrypt 10 8 64", "scrypt -1 8 1", "argon2 10 8 1"]
    + ["scrypt \u0661\u0660 8 1", "scrypt 1e9 8 1", "scrypt 10 8", "scrypt"],
)
def test_any_other_way_to_make_a_key_is_refused(parameters: str) -> None:
    head, box = opened()
    with pytest.raises(KeyFileError, match="damaged"):
        text = head.replace("scrypt 10 8 1", parameters)
        unseal(f"{text}{base64.b64encode(box).decode()}\nsha256 {'0' * 64}", PASSPHRASE)


@pytest.mark.parametrize(
    "text", ["", "\n", "kachery-p2p-node-key 1\n", "hello", "\0" * 99, "\n" * 9_999]
)
def test_what_is_no_backup_says_so(text: str) -> None:
    with pytest.raises(KeyFileError, match="not a backup"):
        unseal(text, PASSPHRASE)


def test_a_backup_of_a_newer_version_asks_for_an_upgrade() -> None:
    with pytest.raises(StateVersionError, match="format 2") as caught:
        unseal(SEALED.replace("backup 1", "backup 2"), PASSPHRASE)
    assert caught.value.hint == "upgrade kachery_p2p"


def test_a_text_that_is_endless_is_not_looked_at() -> None:
    with pytest.raises(KeyFileError, match="never longer"):
        unseal(SEALED + "A" * BACKUP_CHARS_MAX, PASSPHRASE)


def sealed_by_hand(plain: bytes) -> str:
    """A backup with any bytes inside, made by somebody who knows the passphrase."""
    head, _ = opened()
    key = Scrypt(salt=SALT, length=32, n=2**10, r=8, p=1).derive(PASSPHRASE.encode())
    return resealed(head, ChaCha20Poly1305(key).encrypt(bytes(12), plain, head.encode()))


def packed(name: bytes, data: bytes = b"x") -> bytes:
    return len(name).to_bytes(2, "big") + name + len(data).to_bytes(4, "big") + data


@pytest.mark.parametrize(
    "name",
    [b"", b".", b"..", b"../node.key", b"/etc/passwd", b"feeds/../../x", b"a/b/c", b"feeds/", b"/x"]
    + [b".node.key", b"feeds/.x", b".ssh/id", b"a\0b", b"a\nb", b"a\\b", "ä".encode(), b"n" * 129]
    + [b"node.key\n", b"-rf", b"a//b"],
)
def test_a_backup_with_a_name_that_leads_elsewhere_is_refused_whole(
    config: str, name: bytes
) -> None:
    assert not is_key_name(name.decode("utf-8"))
    for plain in (packed(name), packed(b"!") + packed(name), packed(name) + packed(b"zz")):
        with pytest.raises(KeyFileError, match="no key file"):
            restore(config, sealed_by_hand(plain), PASSPHRASE)
    assert not os.path.exists(config)


def test_a_backup_that_is_not_exactly_files_is_refused() -> None:
    good = packed(b"a") + packed(b"b")
    assert unseal(sealed_by_hand(good), PASSPHRASE) == {"a": b"x", "b": b"x"}
    for length in (*range(1, len(packed(b"a"))), len(good) - 1):
        with pytest.raises(KeyFileError):
            unseal(sealed_by_hand(good[:length]), PASSPHRASE)
    for plain in (
        packed(b"b") + packed(b"a"),
        packed(b"a") + packed(b"a"),
        packed(b"a", bytes(KEY_FILE_BYTES_MAX + 1)),
        b"\0\1a\xff\xff\xff\xff",
        b"".join(packed(b"%05d" % number) for number in range(4_097)),
    ):
        with pytest.raises(KeyFileError):
            unseal(sealed_by_hand(plain), PASSPHRASE)
    with pytest.raises(KeyFileError, match="no keys"):
        unseal(sealed_by_hand(b""), PASSPHRASE)


@given(st.binary(max_size=80))
def test_any_bytes_inside_a_backup_are_files_or_a_typed_error(plain: bytes) -> None:
    try:
        files = unseal(sealed_by_hand(plain), PASSPHRASE)
    except KeyFileError:
        return
    assert all(is_key_name(name) for name in files)


# --- what is already there ----------------------------------------------------------------


def test_a_key_that_is_there_is_never_replaced_unasked(config: str) -> None:
    key = load_or_create(config)
    with pytest.raises(KeyFileError, match=r"other keys than the backup: node\.key") as caught:
        restore(config, SEALED, PASSPHRASE)
    assert "move them away" in str(caught.value.hint)
    assert load(config).seed == key.seed
    assert list(contents(config)) == ["node.key"]


def test_a_key_made_while_we_looked_is_not_replaced_either(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_link = os.link

    def link(source: str, path: str) -> None:
        if path.endswith("node.key"):
            put(config, "node.key", b"of a faster process")
        really_link(source, path)

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(KeyFileError, match=r"other keys than the backup: node\.key"):
        restore(config, SEALED, PASSPHRASE)
    assert contents(config)["node.key"] == b"of a faster process"


def test_force_replaces_what_differs_and_leaves_the_rest(config: str) -> None:
    put(config, "node.key", b"old")
    put(config, "other.key", b"of a channel")
    assert restore(config, SEALED, PASSPHRASE, force=True) == tuple(sorted(FILES))
    assert contents(config) == FILES | {"other.key": b"of a channel"}


def test_force_replaces_a_damaged_or_open_key_and_follows_no_link(
    config: str, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"not ours")
    Path(keys_dir(config)).mkdir(0o700, parents=True)
    os.symlink(outside, key_path(config))
    put(config, "feeds/lab.key", b"open to all", 0o644)
    with pytest.raises(KeyFileError):
        restore(config, SEALED, PASSPHRASE)
    restore(config, SEALED, PASSPHRASE, force=True)
    assert contents(config) == FILES
    assert not os.path.islink(key_path(config))
    assert outside.read_bytes() == b"not ours"
    assert Path(keys_dir(config), "feeds/lab.key").stat().st_mode & 0o777 == 0o600


def test_restoring_twice_changes_nothing(config: str) -> None:
    assert len(restore(config, SEALED, PASSPHRASE)) == 2
    before = Path(key_path(config)).stat()
    assert restore(config, SEALED, PASSPHRASE) == ()
    assert Path(key_path(config)).stat().st_ino == before.st_ino


@pytest.mark.parametrize("place", ["", "feeds"])
def test_nothing_is_restored_into_a_directory_that_others_may_enter(
    config: str, place: str
) -> None:
    directory = Path(keys_dir(config), place)
    directory.mkdir(parents=True)
    Path(keys_dir(config)).chmod(0o700)
    directory.chmod(0o755)
    with pytest.raises(KeyFileError, match="mode 755"):
        restore(config, SEALED, PASSPHRASE)
    assert contents(config) == {}


def test_a_linked_directory_is_not_written_through(config: str, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir(0o700)
    Path(keys_dir(config)).mkdir(0o700, parents=True)
    os.symlink(tmp_path / "outside", Path(keys_dir(config), "feeds"))
    with pytest.raises(KeyFileError, match="symbolic link"):
        restore(config, SEALED, PASSPHRASE)
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_directory_in_the_place_of_a_key_is_a_typed_error(config: str) -> None:
    Path(key_path(config)).mkdir(0o700, parents=True)
    for force in (False, True):
        with pytest.raises(KeyFileError):
            restore(config, SEALED, PASSPHRASE, force=force)
    assert all(not name.startswith(".restore") for name in os.listdir(keys_dir(config)))


# --- what is not backed up ----------------------------------------------------------------


def test_without_keys_there_is_nothing_to_back_up(config: str) -> None:
    with pytest.raises(KeyFileError, match="no keys") as caught:
        backup(config, PASSPHRASE)
    assert "start" in str(caught.value.hint)
    Path(keys_dir(config)).mkdir(0o700, parents=True)
    with pytest.raises(KeyFileError, match="no keys"):
        backup(config, PASSPHRASE)


def test_a_damaged_key_is_found_out_when_it_is_backed_up(config: str) -> None:
    load_or_create(config)
    path = Path(key_path(config))
    path.write_text(path.read_text().replace("ed25519 ", "ed25519 0"))
    with pytest.raises(KeyFileError, match="damaged"):
        backup(config, PASSPHRASE)


def test_a_key_that_others_may_read_is_not_backed_up(config: str) -> None:
    load_or_create(config)
    put(config, "feeds/lab.key", b"secret", 0o640)
    with pytest.raises(KeyFileError, match="mode 640"):
        backup(config, PASSPHRASE)


def test_what_is_no_key_file_is_not_passed_over_in_silence(config: str, tmp_path: Path) -> None:
    load_or_create(config)
    keys = Path(keys_dir(config))
    (tmp_path / "outside").write_bytes(b"x")
    for make in (
        lambda: os.symlink(tmp_path / "outside", keys / "odd"),
        lambda: os.mkfifo(keys / "odd", 0o600),
        lambda: put(config, "odd", bytes(KEY_FILE_BYTES_MAX + 1)),
        lambda: put(config, "odd name", b"x"),
        lambda: put(config, "a/b/odd", b"x"),
    ):
        make()
        with pytest.raises(KeyFileError):
            backup(config, PASSPHRASE)
        for path in sorted(keys.rglob("*"), reverse=True):
            if path.name != "node.key":
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    put(config, ".hidden", b"a temporary file")
    assert list(unseal(backup(config, PASSPHRASE), PASSPHRASE)) == ["node.key"]


# --- crashes ------------------------------------------------------------------------------


def test_all_is_durable_before_anything_has_its_name(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    really_fsync, really_link = os.fsync, os.link

    def fsync(fd: int) -> None:
        told.append("fsync " + os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))[:9])
        really_fsync(fd)

    def link(source: str, path: str) -> None:
        told.append("link " + os.path.basename(path))
        really_link(source, path)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    restore(config, SEALED, PASSPHRASE)
    made = told.index("fsync .restore-")
    assert told[made:] == [
        *["fsync .restore-", "fsync .restore-", "link lab.key", "link node.key"],
        *["fsync keys", "fsync feeds"],
    ]


# Restores again and again, each time killed one call later, until it comes to its end.
KILLED = """
import os, sys
from kachery_p2p.identity.backup import restore
base, force = sys.argv[1:]
sealed = open(base + "/backup").read()
passphrase = open(base + "/passphrase", encoding="utf-8").read()
def dying(call):
    def wrapper(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return call(*arguments, **options)
    return wrapper
for name in ("mkdir", "write", "fsync", "link", "rename", "unlink"):
    setattr(os, name, dying(getattr(os, name)))
for left in range(100):
    child = os.fork()
    if not child:
        restore(f"{base}/{left}", sealed, passphrase, force=bool(force))
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != 9:
        sys.exit(code)
"""


@pytest.mark.parametrize("force", ["", "force"])
def test_a_restore_that_is_killed_anywhere_can_be_repeated(tmp_path: Path, force: str) -> None:
    (tmp_path / "backup").write_text(SEALED)
    (tmp_path / "passphrase").write_text(PASSPHRASE, encoding="utf-8")
    if force:
        for calls in range(100):
            put(str(tmp_path / str(calls)), "node.key", b"old")
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), force], check=True)
    configs = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    assert len(configs) > 15
    for config in map(str, configs):
        if os.path.isdir(keys_dir(config)):
            found = {n: d for n, d in contents(config).items() if not n.startswith(".restore-")}
            assert found.items() <= FILES.items() | {("node.key", b"old")}
            assert not force or "node.key" in found
        restore(config, SEALED, PASSPHRASE, force=bool(force))
        assert contents(config) == FILES


def test_a_full_disk_leaves_the_old_keys_and_no_half_ones(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(config, "node.key", b"old")

    def write(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "write", write)
        with pytest.raises(KeyFileError, match="no space left on device"):
            restore(config, SEALED, PASSPHRASE, force=True)
    assert contents(config) == {"node.key": b"old"}


def test_restores_at_the_same_time_end_with_one_set_of_keys(tmp_path: Path) -> None:
    (tmp_path / "backup").write_text(SEALED)
    code = (
        "import sys; from kachery_p2p.identity.backup import restore;"
        "restore(sys.argv[1], open(sys.argv[2]).read(), sys.stdin.buffer.read().decode())"
    )
    config = str(tmp_path / "config")
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", code, config, str(tmp_path / "backup")], stdin=subprocess.PIPE
        )
        for _ in range(4)
    ]
    for starter in starters:
        starter.communicate(PASSPHRASE.encode(), timeout=30)
    assert [starter.returncode for starter in starters] == [0] * 4
    assert contents(config) == FILES


def test_every_error_of_a_backup_is_one_of_ours(config: str) -> None:
    for text in ("", SEALED[:-5], SEALED.replace("8 1", "9 1"), SEALED.replace("backup 1", "b")):
        with pytest.raises(KacheryError) as caught:
            restore(config, text, PASSPHRASE)
        assert str(caught.value)[0].islower()
        assert caught.value.hint
