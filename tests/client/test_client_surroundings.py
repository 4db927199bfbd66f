"""What the environment says is looked at at each call, and worked out once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kachery_p2p.client import settings
from kachery_p2p.client.surroundings import Surroundings, surroundings
from kachery_p2p.errors import ConfigError

VARIABLES = (
    "KACHERY_OFFLINE_STORAGE_DIR",
    "KACHERY_STORAGE_DIR",
    "KACHERY_P2P_CONFIG_DIR",
    "KACHERY_P2P_DAEMON_SOCKET",
    "KACHERY_DAEMON_HOST",
    "KACHERY_P2P_API_HOST",
    "KACHERY_DAEMON_PORT",
    "KACHERY_P2P_API_PORT",
)


@pytest.fixture(autouse=True)
def nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def as_settings_say() -> Surroundings:
    socket = settings.daemon_socket() or f"{settings.config_dir()}/daemon.sock"
    return Surroundings(
        settings.is_offline(),
        settings.storage_dir(),
        settings.config_dir(),
        settings.state_dir(),
        None if settings.daemon_address() else socket,
        settings.is_own_daemon(),
    )


@pytest.mark.parametrize("variable", VARIABLES)
def test_each_variable_counts_from_the_next_call_on(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = surroundings()
    assert before == as_settings_say()
    monkeypatch.setenv(variable, "1234" if variable.endswith("PORT") else "/somewhere")
    assert surroundings() == as_settings_say() != before
    monkeypatch.delenv(variable)
    assert surroundings() == before


def test_so_does_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    for home in ("/one", "/other"):
        monkeypatch.setenv("HOME", home)
        assert surroundings().storage_dir == f"{home}/kachery-storage"


def test_a_relative_path_is_one_from_the_working_directory_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KACHERY_STORAGE_DIR", "store")
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert surroundings().storage_dir == str(tmp_path / name / "store")


def test_an_environment_without_the_parts_of_cpython_is_read_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", {"HOME": "/one"})
    assert surroundings().config_dir == "/one/.kachery-p2p"
    os.environ["KACHERY_P2P_CONFIG_DIR"] = "/config"
    assert surroundings().config_dir == "/config"


def test_a_bad_port_is_an_error_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KACHERY_DAEMON_PORT", "no port")
    for _ in range(2):
        with pytest.raises(ConfigError):
            surroundings()
