"""What `--channel` means, and channel files that somebody else could have changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.channels.channel import Channel, generate_secret, parse_secret
from kachery_p2p.channels.channel_file import read_channel_file
from kachery_p2p.channels.files import (
    join_shared,
    joined,
    load_channel,
)
from kachery_p2p.channels.files import resolve as resolve_or_wait
from kachery_p2p.errors import (
    ChannelSecretMissingError,
    ConfigError,
    KacheryError,
    SecretMismatchError,
    UnsafeFileError,
)

REPOSITORY = Path(__file__).parents[2]
SECRET = generate_secret(bytes(range(20)))
SECRET_2 = generate_secret(bytes(range(1, 21)))
ADDRESS = "/ip4/192.0.2.1/tcp/20432/p2p/12D3KooWA"
ENV = {"KACHERY_CHANNEL_SECRET": SECRET}
LAB_TOML = 'kind = "shared-secret"\nname = "lab"\n'


def resolve(*arguments: Any) -> Channel:
    """The channel, which is no invite that is waited with."""
    found = resolve_or_wait(*arguments)
    assert found is not None
    return found


def id_of(secret: str, name: str = "lab") -> str:
    return Channel.shared(parse_secret(secret), name).id


@pytest.fixture
def config(tmp_path: Path) -> str:
    return str(tmp_path / "config")


@pytest.fixture
def cwd(tmp_path: Path) -> str:
    (tmp_path / "cwd").mkdir()
    return str(tmp_path / "cwd")


def write(path: Path, text: str, mode: int = 0o644) -> Path:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def lab_file(cwd: str, more: str = "", mode: int = 0o644) -> Path:
    return write(Path(cwd) / "channels/lab.toml", LAB_TOML + more, mode)


# --- what --channel means ---------------------------------------------------------------------


def test_a_name_and_a_secret_in_the_environment_are_enough(config: str, cwd: str) -> None:
    channel = resolve("lab", config, cwd, ENV)
    assert channel.id == id_of(SECRET)
    assert [known.name for known in joined(config)] == ["lab"]


def test_once_joined_the_secret_is_not_needed_again(config: str, cwd: str) -> None:
    first = resolve("lab", config, cwd, ENV)
    for environ in ({}, ENV, {"KACHERY_CHANNEL_SECRET": ""}):
        assert resolve("lab", config, cwd, environ) == first


def test_another_secret_than_the_one_joined_with_is_refused(config: str, cwd: str) -> None:
    resolve("lab", config, cwd, ENV)
    with pytest.raises(SecretMismatchError) as caught:
        resolve("lab", config, cwd, {"KACHERY_CHANNEL_SECRET": SECRET_2})
    assert "channel rekey lab" in str(caught.value.hint)
    assert load_channel(config, "lab").id == id_of(SECRET)


def test_a_missing_secret_says_how_to_make_one(config: str, cwd: str) -> None:
    lab_file(cwd)
    with pytest.raises(ChannelSecretMissingError) as caught:
        resolve("lab", config, cwd, {})
    assert "kachery-p2p channel create lab --shared" in str(caught.value.hint)
    assert "KACHERY_CHANNEL_SECRET" in str(caught.value.hint)
    assert joined(config) == []


@pytest.mark.parametrize("place", ["cwd/channels", "config/channel-files"])
def test_a_channel_file_gives_addresses_and_its_path_is_told(
    tmp_path: Path, config: str, cwd: str, place: str
) -> None:
    path = write(tmp_path / place / "lab.toml", LAB_TOML + f'bootstrap = ["{ADDRESS}"]\n')
    told = list[str]()
    resolve("lab", config, cwd, ENV, told.append)
    assert told == [str(path)]
    assert joined(config)[0].bootstrap == (ADDRESS,)


def test_the_file_in_the_working_directory_goes_before_that_of_the_configuration(
    tmp_path: Path, config: str, cwd: str
) -> None:
    write(tmp_path / "config/channel-files/lab.toml", LAB_TOML + 'secret_env = "CONFIG_S"\n')
    lab_file(cwd, 'secret_env = "CWD_S"\n')
    both = {"CONFIG_S": SECRET, "CWD_S": SECRET_2}
    assert resolve("lab", config, cwd, both).id == id_of(SECRET_2)


def test_a_channel_already_joined_goes_before_any_file(config: str, cwd: str) -> None:
    join_shared(config, "lab", SECRET)
    lab_file(cwd, "nonsense", mode=0o666)
    assert resolve("lab", config, cwd, {}).id == id_of(SECRET)


def test_the_variable_that_the_file_named_is_compared_ever_after(config: str, cwd: str) -> None:
    lab_file(cwd, 'secret_env = "LAB_SECRET"\n')
    resolve("lab", config, cwd, {"LAB_SECRET": SECRET, "KACHERY_CHANNEL_SECRET": SECRET_2})
    # The secret of some other channel that is started together with this one.
    resolve("lab", config, cwd, {"KACHERY_CHANNEL_SECRET": SECRET_2})
    with pytest.raises(SecretMismatchError):
        resolve("lab", config, cwd, {"LAB_SECRET": SECRET_2})


def test_a_path_names_the_file_itself_and_brings_its_new_addresses(config: str, cwd: str) -> None:
    path = write(Path(cwd, "sub/any.toml"), LAB_TOML)
    assert resolve("sub/any.toml", config, cwd, ENV).id == id_of(SECRET)
    path.write_text(LAB_TOML + f'bootstrap = ["{ADDRESS}"]\n')
    assert resolve(str(path), config, cwd, {}).id == id_of(SECRET)
    assert joined(config)[0].bootstrap == (ADDRESS,)
    with pytest.raises(ConfigError, match="no channel file"):
        resolve("sub/none.toml", config, cwd, ENV)


def test_a_secret_file_is_read_seen_from_the_channel_file(config: str, cwd: str) -> None:
    lab_file(cwd, 'secret_file = "lab.secret"\n')
    with pytest.raises(ChannelSecretMissingError, match=r"lab\.secret"):
        resolve("lab", config, cwd, {})
    write(Path(cwd, "channels/lab.secret"), SECRET + "\n", 0o600)
    assert resolve("lab", config, cwd, {}).id == id_of(SECRET)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o666])
def test_a_secret_file_that_others_may_read_is_refused(config: str, cwd: str, mode: int) -> None:
    lab_file(cwd, 'secret_file = "lab.secret"\n')
    write(Path(cwd, "channels/lab.secret"), SECRET, mode)
    with pytest.raises(UnsafeFileError, match="may read") as caught:
        resolve("lab", config, cwd, {})
    assert "chmod go-rwx" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ("", None, ""),
        ('bootstap = ["/x"]\n', ConfigError, "'bootstap'"),
        ('secret = "x"\n', ConfigError, "'secret'"),
        ('"\\u001b[2J" = 1\n', ConfigError, r"\x1b"),
        ('bootstrap = "/ip4"\n', ConfigError, "bootstrap"),
        ('bootstrap = ["ip4"]\n', ConfigError, "bootstrap"),
        ("bootstrap = ['/\"']\n", ConfigError, "bootstrap"),
        ('bootstrap = ["/a\\n"]\n', ConfigError, "bootstrap"),
        ("bootstrap = [" + '"/a",' * 65 + "]\n", ConfigError, "bootstrap"),
        ('secret_env = "A B"\n', ConfigError, "secret_env"),
        ("secret_env = 7\n", ConfigError, "secret_env"),
        ("secret_file = []\n", ConfigError, "secret_file"),
        ("name = 1\n", ConfigError, "not TOML"),
        ("[[[", ConfigError, "not TOML"),
        ("x" * 70_000, ConfigError, "longer"),
    ],
)
def test_a_mistake_in_a_channel_file_is_named_with_the_file(
    cwd: str, more: str, error: type[KacheryError] | None, says: str
) -> None:
    path = lab_file(cwd, more)
    if error is None:
        assert read_channel_file(str(path)).name == "lab"
        return
    with pytest.raises(error) as caught:
        read_channel_file(str(path))
    assert str(path) in str(caught.value)
    assert says in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["", 'name = "lab"', 'kind = "shared-secret"', "\xff\xfe"])
def test_a_channel_file_without_kind_or_name_is_refused(cwd: str, text: str) -> None:
    path = write(Path(cwd, "channels/lab.toml"), text)
    with pytest.raises(ConfigError):
        read_channel_file(str(path))


def test_a_channel_file_of_another_kind_or_name_is_refused(config: str, cwd: str) -> None:
    path = lab_file(cwd)
    path.write_text(LAB_TOML.replace("shared-secret", "guild"))
    with pytest.raises(ConfigError, match="kind"):
        resolve("lab", config, cwd, ENV)
    path.write_text(LAB_TOML.replace("lab", "other"))
    with pytest.raises(ConfigError, match="channel other"):
        resolve("lab", config, cwd, ENV)


# --- files that others could have changed --------------------------------------------------------


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o622])
def test_a_channel_file_that_others_may_change_is_refused(config: str, cwd: str, mode: int) -> None:
    path = lab_file(cwd, mode=mode)
    with pytest.raises(UnsafeFileError, match="may change") as caught:
        resolve("lab", config, cwd, ENV)
    assert f"chmod go-w {path}" in str(caught.value.hint)
    assert joined(config) == []


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_channel_file_in_a_directory_that_others_may_change_is_refused(
    config: str, cwd: str, mode: int
) -> None:
    directory = lab_file(cwd).parent
    directory.chmod(mode)
    with pytest.raises(UnsafeFileError, match="may change") as caught:
        resolve("lab", config, cwd, ENV)
    assert f"chmod go-w {directory}" in str(caught.value.hint)


@pytest.mark.parametrize("linked", ["channels", "channels/lab.toml"])
def test_a_symbolic_link_is_refused_even_to_a_safe_file(
    config: str, cwd: str, tmp_path: Path, linked: str
) -> None:
    lab_file(cwd)
    real = Path(cwd, linked)
    real.rename(tmp_path / "real")
    real.symlink_to(tmp_path / "real")
    with pytest.raises(UnsafeFileError, match="symbolic link"):
        resolve("lab", config, cwd, ENV)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("given_away", ["channels", "channels/lab.toml"])
def test_a_channel_file_of_another_user_is_refused(config: str, cwd: str, given_away: str) -> None:
    lab_file(cwd)
    os.chown(Path(cwd, given_away), 12345, 12345)
    with pytest.raises(UnsafeFileError, match="12345"):
        resolve("lab", config, cwd, ENV)


def test_the_channel_file_of_this_repository_is_read(config: str, tmp_path: Path) -> None:
    copy = write(tmp_path / "a/channels/lab.toml", (REPOSITORY / "channels/lab.toml").read_text())
    assert read_channel_file(str(copy)).secret_env == "KACHERY_CHANNEL_SECRET"
    assert resolve("lab", config, str(tmp_path / "a"), ENV).id == id_of(SECRET)
