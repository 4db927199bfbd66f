"""Strangers at the ports of a real node: it keeps serving its members."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.processes.conftest import Lab, NodeProcess

pytestmark = pytest.mark.processes

MIB = 1 << 20


def control_port(node: NodeProcess) -> int:
    return int(node.address.split("/")[4])


@contextlib.contextmanager
def strangers(node: NodeProcess, count: int) -> Iterator[list[socket.socket]]:
    """TCP connections from another address of this computer, which say nothing."""
    with contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(count):
            stranger = stack.enter_context(socket.socket())
            stranger.settimeout(10)
            stranger.bind(("127.0.0.2", 0))
            stranger.connect(("127.0.0.1", control_port(node)))
            sockets.append(stranger)
        yield sockets


def resident_bytes(node: NodeProcess) -> int:
    with open(f"/proc/{node.pid}/status") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def test_junk_and_silence_on_the_control_port_disturb_nobody(lab: Lab) -> None:
    alice, bob = lab.pair()
    uri = alice.cli("store", str(lab.file("x.bin", 5 * MIB))).stdout.strip()
    dice = random.Random(1)
    with strangers(alice, 200) as sockets:
        for stranger in sockets[::2]:
            with contextlib.suppress(OSError):
                stranger.sendall(dice.randbytes(dice.randrange(1, 2000)))
        loaded = bob.cli("load", uri)
        carol = lab.node("carol").start("--bootstrap", alice.address)
        also = carol.cli("load", uri)

    assert loaded.returncode == 0, loaded.stderr
    assert also.returncode == 0, also.stderr
    assert alice.process is not None
    assert alice.process.poll() is None


def test_connections_beyond_the_bound_are_closed_and_cost_no_memory(lab: Lab) -> None:
    alice, bob = lab.pair()
    before = resident_bytes(alice)
    closed = 0
    with strangers(alice, 300) as sockets:
        for stranger in sockets:
            # What the node says first (its protocol) is read until it closes or waits for us.
            stranger.settimeout(8)
            with contextlib.suppress(OSError):
                while stranger.recv(4096):
                    pass
                closed += 1
    assert closed == 300
    assert resident_bytes(alice) - before < 32 * MIB
    uri = alice.cli("store", str(lab.file("x.bin", MIB))).stdout.strip()
    assert bob.cli("load", uri).returncode == 0


def test_a_node_that_offers_only_plaintext_is_refused(lab: Lab) -> None:
    alice = lab.node("alice").start()
    with strangers(alice, 1) as (stranger,):
        for line in (b"/multistream/1.0.0\n", b"/plaintext/2.0.0\n"):
            stranger.sendall(bytes([len(line)]) + line)
        answer = b""
        with contextlib.suppress(OSError):
            while (data := stranger.recv(4096)) and b"na\n" not in answer:
                answer += data
    assert b"/plaintext" not in answer
    assert b"na\n" in answer
    assert alice.call("status")["peers"] == []


def test_the_http_door_of_a_real_node_wants_its_token(lab: Lab) -> None:
    alice = lab.node("alice").start("--http", "127.0.0.1:0")
    uri = alice.cli("store", str(lab.file("x.bin", MIB + 5))).stdout.strip()
    http = str(alice.call("status")["http"])
    port = int(http.rsplit(":", 1)[1])
    token = (alice.config_dir / "api-token").read_text().strip()
    blob = f"/blobs/sha1/{uri[7:47]}"

    def get(path: str, *headers: str) -> tuple[int, bytes]:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: close"]
            client.sendall("\r\n".join([*lines, *headers, "", ""]).encode())
            answer = b""
            while data := client.recv(1 << 16):
                answer += data
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body

    assert get(blob)[0] == 401
    assert get(blob, "Authorization: Bearer " + "0" * 64)[0] == 401
    assert get(blob, f"Authorization: Bearer {token}", "Origin: http://evil.example")[0] == 403
    status, body = get(blob, f"Authorization: Bearer {token}", "Range: bytes=1048576-1048580")
    assert (status, len(body)) == (206, 5)


def test_a_client_that_shares_no_disk_stores_and_loads_over_http(lab: Lab) -> None:
    alice, bob = lab.node("alice").start("--http", "127.0.0.1:0"), lab.node("bob")
    bob.start("--bootstrap", alice.address)
    remote = lab.node("remote")
    remote.environment |= {
        "KACHERY_DAEMON_HOST": "127.0.0.1",
        "KACHERY_DAEMON_PORT": str(alice.call("status")["http"]).rsplit(":", 1)[1],
        "KACHERY_DAEMON_TOKEN": (alice.config_dir / "api-token").read_text().strip(),
    }
    sent = lab.file("sent.bin", 3 * MIB + 1)
    uri = remote.cli("store", str(sent)).stdout.strip()

    loaded = bob.cli("load", uri)
    assert loaded.returncode == 0, loaded.stderr

    back = bob.cli("store", str(lab.file("back.bin", 2 * MIB))).stdout.strip()
    fetched = remote.cli("load", back)
    assert fetched.returncode == 0, fetched.stderr
    assert fetched.stdout.startswith(str(remote.storage_dir))


def test_another_user_of_this_computer_is_refused(lab: Lab) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    alice = lab.node("alice").start()
    code = f"""
import json, os, socket
os.setgroups([]); os.setgid(65534); os.setuid(65534)
answers = []
for path in ("daemon.sock", "api-token", "keys/node.key", "channels/lab.secret"):
    try:
        open({str(alice.config_dir)!r} + "/" + path).read()
        answers.append("read")
    except OSError as error:
        answers.append(type(error).__name__)
try:
    socket.socket(socket.AF_UNIX).connect({str(alice.config_dir)!r} + "/daemon.sock")
    answers.append("connected")
except OSError as error:
    answers.append(type(error).__name__)
print(json.dumps(answers))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)

    assert json.loads(done.stdout) == ["PermissionError"] * 5, done.stderr


def test_a_second_daemon_on_one_configuration_is_refused(lab: Lab) -> None:
    alice = lab.node("alice").start()

    second = alice.cli("start", "--channel", "lab", "--listen", "127.0.0.1:0", "--http", "off")

    assert second.returncode == 9
    assert "a daemon is already running" in second.stderr
    assert "hint:" in second.stderr
    assert alice.call("status")["node_id"] == alice.node_id


@pytest.mark.parametrize("option", ["--listen", "--http"])
def test_a_port_in_use_is_said_and_nothing_is_left_running(lab: Lab, option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        other = {"--listen": "--http", "--http": "--listen"}[option]
        node = lab.node("alice")
        started = node.cli("start", "--channel", "lab", option, address, other, "127.0.0.1:0")
    assert started.returncode == 9
    lines = started.stderr.splitlines()
    assert lines[0].startswith("kachery-p2p: error: ")
    assert address.rsplit(":", 1)[1] in lines[0]
    assert lines[1].startswith("kachery-p2p: hint: ")
    assert not (node.config_dir / "daemon.sock").exists()


def test_a_missing_or_weak_secret_is_said_before_anything_opens(lab: Lab) -> None:
    node = lab.node("alice")
    # A channel file says that it is entered with a secret; without one `lab` would be our own.
    (node.directory / "channels").mkdir()
    (node.directory / "channels" / "lab.toml").write_text('kind = "shared-secret"\nname = "lab"\n')
    for secret, kind in ((None, "secret"), ("hunter2", "secret")):
        node.environment.pop("KACHERY_CHANNEL_SECRET", None)
        if secret:
            node.environment["KACHERY_CHANNEL_SECRET"] = secret
        started = node.cli("start", "--channel", "lab", "--listen", "127.0.0.1:0", "--http", "off")
        assert started.returncode == 10
        lines = started.stderr.splitlines()
        assert lines[0].startswith("kachery-p2p: error: ")
        assert kind in lines[0]
        assert lines[1].startswith("kachery-p2p: hint: ")
        assert "hunter2" not in started.stderr


def test_the_secret_is_in_no_log_no_process_list_and_no_uri(lab: Lab) -> None:
    alice, bob = lab.pair()
    uri = alice.cli("store", str(lab.file("x.bin", MIB))).stdout.strip()
    assert bob.cli("load", uri).returncode == 0
    secret = lab.secret.removeprefix("kp2p-secret-1-")

    told = "\n".join([*alice.lines, *bob.lines, alice.errors(), bob.errors(), uri])
    told += json.dumps(alice.call("status")) + alice.cli("status").stdout
    with open(f"/proc/{alice.pid}/cmdline") as command:
        told += command.read()

    assert secret not in told
    kept = alice.config_dir / "channels" / "lab.secret"
    assert kept.stat().st_mode & 0o777 == 0o600


def test_a_node_started_in_the_background_answers_and_stops(lab: Lab) -> None:
    node = lab.node("alice")
    started = node.cli(
        "start", "--channel", "lab", "--listen", "127.0.0.1:0", "--http", "off", "--background"
    )
    try:
        assert started.returncode == 0, started.stderr
        status = json.loads(node.cli("status", "--json", "--wait", "10").stdout)
        assert status["node_id"] == node.cli("node-id").stdout.strip()
        assert status["addresses"][0].startswith("/ip4/127.0.0.1/tcp/")
        assert status["channels"][0]["name"] == "lab"
        assert status["store"] == str(node.storage_dir)
    finally:
        stopped = node.cli("stop")
    assert stopped.returncode == 0, stopped.stderr
    down = node.cli("status")
    assert down.returncode == 4
    assert "kachery-p2p: hint: " in down.stderr
