"""Joined channels on disk: whole or not at all, private, and refused when they are not."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kachery_p2p.channels.channel import Channel, generate_secret, parse_secret
from kachery_p2p.channels.files import (
    join_shared,
    joined,
    leave,
    load_channel,
    rekey,
    share_list,
)
from kachery_p2p.errors import (
    ChannelError,
    ConfigError,
    InvalidNameError,
    KeyFileError,
    SecretMismatchError,
    StateCorruptError,
    StateVersionError,
    UnknownChannelError,
    WeakSecretError,
)
from kachery_p2p.limits import CHANNELS_MAX

REPOSITORY = Path(__file__).parents[2]
SECRET = generate_secret(bytes(range(20)))
SECRET_2 = generate_secret(bytes(range(1, 21)))
ADDRESS = "/ip4/192.0.2.1/tcp/20432/p2p/12D3KooWA"


def id_of(secret: str, name: str = "lab") -> str:
    return Channel.shared(parse_secret(secret), name).id


@pytest.fixture
def config(tmp_path: Path) -> str:
    return str(tmp_path / "config")


# --- joining, leaving, sharing -------------------------------------------------------------


def test_without_a_configuration_nothing_is_joined_and_nothing_is_made(config: str) -> None:
    assert joined(config) == []
    assert share_list(config) == []
    assert not os.path.exists(config)


def test_a_joined_channel_is_found_again(config: str) -> None:
    made = join_shared(config, "lab", SECRET + "\n", [ADDRESS])
    assert made.id == id_of(SECRET)
    assert joined(config) == [made]
    assert made.bootstrap == (ADDRESS,)
    assert load_channel(config, "lab") == Channel.shared(parse_secret(SECRET), "lab")


def test_only_the_first_channel_joined_enters_the_share_list_by_itself(config: str) -> None:
    for name in ("zebra", "lab", "ant"):
        join_shared(config, name, SECRET)
    assert share_list(config) == [id_of(SECRET, "zebra")]
    assert {channel.name for channel in joined(config)} == {"zebra", "lab", "ant"}


def test_joining_again_with_the_same_secret_changes_nothing(config: str) -> None:
    first = join_shared(config, "lab", SECRET)
    assert join_shared(config, "lab", SECRET) == first
    with pytest.raises(SecretMismatchError) as caught:
        join_shared(config, "lab", SECRET_2)
    assert "channel rekey lab" in str(caught.value.hint)
    assert joined(config) == [first]


def test_secret_and_state_are_private_whatever_the_umask(config: str) -> None:
    before = os.umask(0)
    try:
        join_shared(config, "lab", SECRET)
    finally:
        os.umask(before)
    directory = Path(config) / "channels"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {path.name for path in directory.iterdir()} == {"lab.toml", "lab.secret", ".lock"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    assert SECRET not in (directory / "lab.toml").read_text()


@pytest.mark.parametrize("secret", ["", "hunter2", SECRET[:-1]])
def test_a_weak_secret_joins_nothing_and_is_not_repeated(config: str, secret: str) -> None:
    with pytest.raises(WeakSecretError):
        join_shared(config, "lab", secret)
    assert joined(config) == []


@pytest.mark.parametrize("name", ["..", "../evil", "a/b", "", "x" * 65])
def test_a_name_never_becomes_a_path(config: str, name: str) -> None:
    for attempt in (
        lambda: join_shared(config, name, SECRET),
        lambda: load_channel(config, name),
        lambda: leave(config, name),
        lambda: rekey(config, name, SECRET),
    ):
        with pytest.raises(InvalidNameError):
            attempt()
    assert not os.path.exists(config)


def test_a_node_joins_a_bounded_number_of_channels(config: str) -> None:
    for number in range(CHANNELS_MAX):
        join_shared(config, f"c{number}", SECRET)
    with pytest.raises(ChannelError, match="already"):
        join_shared(config, "one-more", SECRET)


def test_leaving_forgets_the_channel_and_its_secret(config: str) -> None:
    join_shared(config, "lab", SECRET)
    leave(config, "lab")
    assert joined(config) == []
    assert share_list(config) == []
    assert os.listdir(f"{config}/channels") == [".lock"]
    for unknown in (lambda: leave(config, "lab"), lambda: load_channel(config, "lab")):
        with pytest.raises(UnknownChannelError):
            unknown()


def test_rekeying_replaces_the_secret_and_keeps_the_rest(config: str) -> None:
    before = join_shared(config, "lab", SECRET, [ADDRESS])
    assert rekey(config, "lab", SECRET_2) == (id_of(SECRET), id_of(SECRET_2))
    assert joined(config) == [before._replace(id=id_of(SECRET_2))]
    assert load_channel(config, "lab").id == id_of(SECRET_2)
    with pytest.raises(UnknownChannelError):
        rekey(config, "other", SECRET_2)


def test_a_rekey_cut_off_between_its_two_files_is_noticed_and_mended(config: str) -> None:
    join_shared(config, "lab", SECRET)
    Path(config, "channels/lab.secret").write_text(SECRET_2)
    with pytest.raises(StateCorruptError, match=r"lab\.secret") as caught:
        load_channel(config, "lab")
    assert "channel rekey lab" in str(caught.value.hint)
    assert rekey(config, "lab", SECRET_2) == (id_of(SECRET), id_of(SECRET_2))
    assert load_channel(config, "lab").id == id_of(SECRET_2)


def test_what_a_killed_writer_left_is_swept_and_never_read(config: str) -> None:
    join_shared(config, "lab", SECRET)
    Path(config, "channels/.temp-0123").write_text("half a sec")
    assert [channel.name for channel in joined(config)] == ["lab"]
    leave(config, "lab")
    assert os.listdir(f"{config}/channels") == [".lock"]


def test_a_secret_without_its_channel_is_no_channel(config: str) -> None:
    join_shared(config, "lab", SECRET)
    os.unlink(f"{config}/channels/lab.toml")
    assert joined(config) == []
    assert join_shared(config, "lab", SECRET_2).id == id_of(SECRET_2)
    assert load_channel(config, "lab").id == id_of(SECRET_2)


def test_many_who_join_at_once_agree_on_one_first_channel(config: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: join_shared(config, name, SECRET), "abcdefgh" * 2))
    assert len(joined(config)) == 8
    assert len(share_list(config)) == 1


# --- damaged, newer, and open to others -----------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version = 1", "version = 0x"),
        ("version = 1\n", ""),
        ("version = 1", 'version = "1"'),
        ('name = "lab"', 'name = "other"'),
        ('kind = "shared-secret"', 'kind = "guild"'),
        ('id = "', 'id = "../'),
        ("shared_list = true", 'shared_list = "true"'),
        ("joined_at = ", "joined_at = 1."),
        ("bootstrap = [", "bootstrap = [7,"),
        ("secret_env", "secret_name"),
        ("kind", "\x00"),
    ],
)
def test_a_damaged_state_file_is_named_and_can_be_left(config: str, old: str, new: str) -> None:
    join_shared(config, "lab", SECRET)
    path = Path(config, "channels/lab.toml")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    for look in (lambda: joined(config), lambda: share_list(config)):
        with pytest.raises(StateCorruptError, match=r"lab\.toml") as caught:
            look()
        assert "channel leave lab" in str(caught.value.hint)
    leave(config, "lab")
    assert joined(config) == []


def test_a_state_file_that_is_no_text_is_damaged(config: str) -> None:
    join_shared(config, "lab", SECRET)
    Path(config, "channels/lab.toml").write_bytes(b"\xff\xfe" * 99)
    with pytest.raises(StateCorruptError):
        joined(config)


def test_the_state_of_a_newer_version_is_refused_with_a_sentence(config: str) -> None:
    join_shared(config, "lab", SECRET)
    path = Path(config, "channels/lab.toml")
    path.write_text(path.read_text().replace("version = 1", "version = 2\nroles = []"))
    with pytest.raises(StateVersionError, match="newer") as caught:
        joined(config)
    assert "upgrade" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["", "hunter2", SECRET[:-4]])
def test_a_damaged_secret_file_is_named(config: str, text: str) -> None:
    join_shared(config, "lab", SECRET)
    Path(config, "channels/lab.secret").write_text(text)
    with pytest.raises(KeyFileError, match=r"damaged: .*lab\.secret"):
        load_channel(config, "lab")


def test_a_missing_secret_file_is_named(config: str) -> None:
    join_shared(config, "lab", SECRET)
    os.unlink(f"{config}/channels/lab.secret")
    with pytest.raises(KeyFileError, match=r"missing: .*lab\.secret"):
        load_channel(config, "lab")


@pytest.mark.parametrize("name", ["", "/lab.secret", "/lab.toml"])
@pytest.mark.parametrize("open_to_others", [0o040, 0o004, 0o020, 0o001])
def test_private_files_that_others_may_use_are_refused_with_the_mending_command(
    config: str, name: str, open_to_others: int
) -> None:
    join_shared(config, "lab", SECRET)
    path = Path(f"{config}/channels{name}")
    path.chmod(path.stat().st_mode | open_to_others)
    with pytest.raises(KeyFileError) as caught:
        joined(config)
        load_channel(config, "lab")
    assert f"chmod {'600' if name else '700'} {path}" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["lab.secret", "lab.toml"])
def test_a_symbolic_link_in_place_of_a_private_file_is_not_followed(
    config: str, name: str, tmp_path: Path
) -> None:
    join_shared(config, "lab", SECRET)
    path = Path(config, "channels", name)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileError, match="symbolic link"):
        load_channel(config, "lab")


def test_a_fifo_in_place_of_a_secret_does_not_hang(config: str) -> None:
    join_shared(config, "lab", SECRET)
    path = f"{config}/channels/lab.secret"
    os.unlink(path)
    os.mkfifo(path, 0o600)
    with pytest.raises(ConfigError, match="not a file"):
        load_channel(config, "lab")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_private_files_of_another_user_are_refused(config: str) -> None:
    join_shared(config, "lab", SECRET)
    os.chown(f"{config}/channels/lab.secret", 12345, 12345)
    with pytest.raises(KeyFileError, match="12345"):
        load_channel(config, "lab")


def test_a_store_that_asks_for_its_channels_imports_no_cryptography(config: str) -> None:
    join_shared(config, "lab", SECRET)
    code = (
        "import sys; from kachery_p2p.channels.files import share_list;"
        f"print(share_list({config!r}), "
        "sorted({'cryptography', 'msgpack', 'trio', 'numpy', 'json'} & set(sys.modules)))"
    )
    environ = {"PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, env=environ
    )
    assert ran.stdout == f"{[id_of(SECRET)]} []\n", ran.stderr
