"""A node whose files were damaged while it was down: it says which, and what to do; or goes on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.processes.conftest import Lab, NodeProcess

pytestmark = pytest.mark.processes

EXIT_CONFIG = 10
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda data: data[: len(data) // 2],
    "overwritten": lambda data: b"\xff\x00damaged" * (1 + len(data) // 9),
}
# Without these the node cannot be what it was, so it does not start.
NEEDED = (
    "channels/lab.toml",
    "channels/lab.secret",
    "channels/lab.history",
    "channels/field.join",
    "keys/node.key",
    "state/grants.db",
    "api-token",
)
# These can be made again, or are hints.
SPARED = ("state/index.db", "state/peers.json")


@pytest.fixture
def stopped(lab: Lab) -> NodeProcess:
    """A keeper that was stopped, with every file of state there can be."""
    keeper = lab.node("keeper", secret="").start("--http", "127.0.0.1:0")
    other = lab.node("other", secret="").start()
    invite = keeper.cli("channel", "invite", "lab").stdout.strip()
    assert other.cli("channel", "join", invite, "--as", "theirs").returncode == 0
    stored = keeper.cli("store", str(lab.file("x.bin", 2_000_000)))
    assert other.cli("load", stored.stdout.strip()).returncode == 0
    # An invite of somebody who sleeps: the keeper waits to be let into `field`.
    assert other.cli("channel", "create", "field").returncode == 0
    invite = other.cli("channel", "invite", "field").stdout.strip()
    other.kill()
    keeper.kill(signal.SIGTERM)
    assert keeper.cli("channel", "join", invite).returncode == 0
    for name in (*NEEDED, *SPARED):
        assert (keeper.config_dir / name).is_file(), name
    return keeper


def started(node: NodeProcess) -> subprocess.CompletedProcess[str]:
    """`start` of a node that is expected to fail; it is ended if it does not."""
    options = ("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--no-mdns")
    return node.cli("start", *options, timeout=20)


def check_said(done: subprocess.CompletedProcess[str], name: str) -> None:
    lines = [line for line in done.stderr.splitlines() if line.startswith("kachery-p2p: ")]
    assert done.returncode == EXIT_CONFIG, (name, done.stderr)
    assert len(lines) == 2, (name, done.stderr)
    assert lines[0].startswith("kachery-p2p: error: "), (name, done.stderr)
    assert lines[1].startswith("kachery-p2p: hint: "), (name, done.stderr)
    assert name.rsplit("/", 1)[-1] in done.stderr, (name, done.stderr)
    assert "Traceback" not in done.stderr, (name, done.stderr)
    assert "bug" not in done.stderr, (name, done.stderr)


def test_damaged_state_is_named_with_a_hint_or_made_again(stopped: NodeProcess) -> None:
    for name in NEEDED:
        path = stopped.config_dir / name
        sound = path.read_bytes()
        for how, damage in DAMAGE.items():
            path.write_bytes(damage(sound))
            check_said(started(stopped), name)
            assert path.read_bytes() == damage(sound), f"{name} {how}: it is not ours to mend"
        path.write_bytes(sound)
        for beside in stopped.config_dir.glob("state/grants.db-*"):
            beside.unlink()
    for name in SPARED:
        path = stopped.config_dir / name
        sound = path.read_bytes()
        for damage in DAMAGE.values():
            path.write_bytes(damage(sound))
            stopped.start(channel=None)
            assert stopped.call("status")["channels"][0]["name"] == "lab"
            stopped.kill(signal.SIGTERM)


def test_damaged_invites_and_channel_keys_are_named_when_they_are_needed(
    stopped: NodeProcess,
) -> None:
    channel = json.loads(stopped.cli("channel", "show", "lab", "--json").stdout)["id"]
    stopped.start(channel=None)
    for name in ("channels/lab.invites", f"keys/channel-{channel}.key"):
        path = stopped.config_dir / name
        sound = path.read_bytes()
        for damage in DAMAGE.values():
            path.write_bytes(damage(sound))
            done = (
                stopped.cli("channel", "invite", "lab")
                if name.endswith("invites")
                else stopped.cli("channel", "set", "lab", "--until", "2090-01-01")
            )
            check_said(done, name)
        path.write_bytes(sound)
    assert stopped.cli("channel", "invite", "lab").returncode == 0


def test_a_channel_file_that_others_may_write_is_refused(lab: Lab) -> None:
    node = lab.node("alice")
    directory = node.directory / "channels"
    directory.mkdir(mode=0o755)
    path = directory / "lab.toml"
    path.write_text('kind = "shared-secret"\nname = "lab"\n')
    for unsafe, mode in ((path, 0o666), (path, 0o664), (directory, 0o777)):
        before = unsafe.stat().st_mode
        unsafe.chmod(mode)
        done = node.cli("start", "--channel", "lab", "--listen", "127.0.0.1:0", "--http", "off")
        unsafe.chmod(before)
        check_said(done, str(unsafe))
    assert not (node.config_dir / "channels" / "lab.toml").exists()


def test_a_daemon_that_is_down_is_said_by_every_command_that_needs_it(lab: Lab) -> None:
    node = lab.node("alice")
    absent = "sha1://" + "ab" * 20 + "/x.bin"
    assert node.cli("channel", "create", "lab").returncode == 0
    commands = {
        ("status",): 4,
        ("load", absent): 3,
        ("channel", "invite", "lab"): 4,
        ("channel", "set", "lab", "--until", "2090-01-01"): 4,
        ("channel", "remove", "lab", node.cli("node-id").stdout.strip()): 4,
        ("channel", "join", "kp2p-invite-1-x"): EXIT_CONFIG,
    }
    for command, code in commands.items():
        done = node.cli(*command)
        lines = done.stderr.splitlines()
        assert done.returncode == code, (command, done)
        assert lines[0].startswith("kachery-p2p: error: "), (command, done)
        assert lines[1].startswith("kachery-p2p: hint: "), (command, done)
        assert len(lines) == 2, (command, done)
        assert done.stdout == "", (command, done)


def test_a_wrong_token_is_said_with_a_hint(lab: Lab) -> None:
    alice, remote = lab.node("alice").start("--http", "127.0.0.1:0"), lab.node("remote")
    remote.environment |= {
        "KACHERY_DAEMON_HOST": "127.0.0.1",
        "KACHERY_DAEMON_PORT": str(alice.call("status")["http"]).rsplit(":", 1)[1],
        "KACHERY_DAEMON_TOKEN": "ab" * 32,
    }
    done = remote.cli("load", "sha1://" + "ab" * 20)
    assert done.returncode == 5
    lines = done.stderr.splitlines()
    assert lines[0].startswith("kachery-p2p: error: ")
    assert "token" in done.stderr
    assert lines[1].startswith("kachery-p2p: hint: ")


def test_a_configuration_directory_that_cannot_be_one_is_said(lab: Lab, tmp_path: Path) -> None:
    node = lab.node("alice")
    shutil.rmtree(node.config_dir, ignore_errors=True)
    node.config_dir.write_text("a file")
    done = node.cli("start", "--listen", "127.0.0.1:0", "--http", "off")
    assert done.returncode == EXIT_CONFIG
    assert done.stderr.splitlines()[0].startswith("kachery-p2p: error: ")
    assert done.stderr.splitlines()[1].startswith("kachery-p2p: hint: ")
