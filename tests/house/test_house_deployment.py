"""Whatever the deployment files name is there: paths, commands, options, variables, ports."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from kachery_p2p import limits
from kachery_p2p.cli.commands import cli

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
IMAGE: str = COMPOSE["x-node"]["image"]
SERVICES: dict[str, dict[str, Any]] = {
    name: service for name, service in COMPOSE["services"].items() if service["image"] == IMAGE
}
OTHERS: dict[str, dict[str, Any]] = {
    name: service for name, service in COMPOSE["services"].items() if name not in SERVICES
}
KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
NODES = {name: service for name, service in SERVICES.items() if "entrypoint" not in service}
INTRODUCERS = {name: node for name, node in NODES.items() if "--introduce" in node["command"]}
MEMBERS = {name: node for name, node in NODES.items() if name not in INTRODUCERS}
DOCKERFILE = (ROOT / "bootstrap/Dockerfile").read_text().replace("\\\n", " ")
UNIT = (ROOT / "bootstrap/kachery-p2p.service").read_text()
DOCUMENTS = ("bootstrap/README.md", "CONTRIBUTING.md", "docker-compose.yml", "README.md")


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every `kachery-p2p ...` that a deployment file or a page runs, and where it stands."""
    for name, service in NODES.items():
        yield f"docker-compose.yml {name}", service["command"]
        yield f"docker-compose.yml {name} healthcheck", service["healthcheck"]["test"][2:]
    yield (
        "kachery-p2p.service",
        shlex.split(re.findall(r"^ExecStart=(.*)", UNIT, re.MULTILINE)[0])[1:],
    )
    yield "introduce.py", ["status", "--json", "--wait", "60"]
    for document in DOCUMENTS:
        for line in (ROOT / document).read_text().splitlines():
            for run in re.findall(r"^(?:#?    |\$ ).*?\bkachery-p2p ([a-z][^|)#<>`\[]*)", line):
                yield document, run.replace('"', "").split()


def options_of(words: list[str]) -> set[str]:
    """The options of the command that `words` begin with; fails for a command that is not there."""
    command: click.Command = cli
    context = click.Context(cli)
    for word in words:
        if not isinstance(command, click.Group):
            break
        found = command.get_command(context, word)
        assert found is not None, f"no command {word}"
        command = found
    return {text for param in command.params for text in (*param.opts, *param.secondary_opts)}


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Where each named volume is mounted."""
    return {text.split(":")[0]: text.split(":")[1] for text in service["volumes"]}


def option(command: list[str], name: str) -> str:
    """The value of `--name=value` in a command."""
    return next(word.partition("=")[2] for word in command if word.startswith(f"--{name}="))


def copied() -> list[tuple[list[str], str]]:
    """What each COPY of the Dockerfile takes from the repository, and where it puts it."""
    found = []
    for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE):
        words = [word for word in line.split() if not word.startswith("--")]
        found.append((words[:-1], words[-1]))
    return found


@pytest.mark.parametrize(("where", "command"), list(commands()))
def test_every_command_and_option_that_is_written_down_exists(
    where: str, command: list[str]
) -> None:
    options = options_of(command)
    for word in command:
        if word.startswith("--"):
            assert word.partition("=")[0] in options, f"{where}: {word}"


def test_enough_commands_are_written_down_for_the_test_above() -> None:
    assert {command[0] for _, command in commands()} >= {
        "start",
        "status",
        "store",
        "cat",
        "channel",
    }


def test_the_image_is_built_from_what_is_in_the_repository() -> None:
    for service in SERVICES.values():
        assert (ROOT / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).is_file()
    allowed = (ROOT / "bootstrap/Dockerfile.dockerignore").read_text().splitlines()
    for sources, _ in copied():
        for source in sources:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in allowed, source


def test_the_image_installs_locked_versions_only() -> None:
    installs = re.findall(r"pip (?:install|wheel) [^&\n]*", DOCKERFILE)
    assert len(installs) == 4
    assert all("--require-hashes" in line or "--no-deps" in line for line in installs)
    assert all(line.count("--no-build-isolation") or "-build.txt" in line for line in installs[:3])


def test_nodes_are_not_root_and_keep_what_is_theirs_in_volumes() -> None:
    assert re.findall(r"^USER (\w+)$", DOCKERFILE, re.MULTILINE) == ["kachery"]
    made = re.findall(r"install -d -o kachery -g kachery -m \d+ ([/\w ]+)", DOCKERFILE)
    writable = {path for group in made for path in group.split()}
    for service in SERVICES.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "user" not in service
        assert set(mounts(service)) <= set(COMPOSE["volumes"])
        assert set(mounts(service).values()) <= writable
    directories = dict(re.findall(r"(KACHERY_\w+)=(\S+)", DOCKERFILE))
    for service in MEMBERS.values():
        assert set(directories.values()) <= set(mounts(service).values())


def test_no_two_nodes_share_a_key_or_a_store() -> None:
    own = [
        volume for node in NODES.values() for volume in mounts(node) if volume != "introductions"
    ]
    assert len(own) == len(set(own)) == 2 * len(MEMBERS) + len(INTRODUCERS)


def test_only_the_http_doors_are_published_and_only_here() -> None:
    for service in SERVICES.values():
        for port in service.get("ports", []):
            host, outside, inside = port.split(":")
            assert host == "127.0.0.1"
            # The door checks the port it is called by, so it must be the same on both sides.
            assert inside == outside == option(service["command"], "http").rpartition(":")[2]
    assert all(len(node["ports"]) == 1 for node in MEMBERS.values())
    assert all(option(node["command"], "http") == "off" for node in INTRODUCERS.values())


def test_each_node_advertises_its_own_name_and_port() -> None:
    for name, node in NODES.items():
        port = option(node["command"], "listen").rpartition(":")[2]
        assert option(node["command"], "advertise") == f"{name}:{port}"
        assert option(node["command"], "label") == name


def test_an_introducer_is_no_member_and_stores_nothing() -> None:
    (introducer,) = INTRODUCERS.values()
    assert not any(word.startswith("--channel") for word in introducer["command"])
    assert introducer["environment"] == {}
    assert list(mounts(introducer).values()) == ["/config"], "its key, so that its id stays"
    (data,) = [line for line in introducer["tmpfs"] if line.startswith("/data:")]
    (uid,) = re.findall(r"useradd --uid (\d+)", DOCKERFILE)
    assert data == f"/data:uid={uid},mode=0700"
    assert set(introducer["tmpfs"]) - {data} == set(COMPOSE["x-node"]["tmpfs"])


def test_the_members_know_nobody_but_the_introducer() -> None:
    ((name, introducer),) = INTRODUCERS.items()
    introduction = SERVICES["introduction"]
    path, told = introduction["command"]
    assert told == name
    config, introductions = f"{name}-config", "introductions"
    assert mounts(introduction)[config] == mounts(introducer)[config]
    assert path.startswith(mounts(introduction)[introductions] + "/")
    script = introduction["entrypoint"][-1].removeprefix("/app/")
    assert (["bootstrap/introduce.py"], script) in copied()
    assert introduction["depends_on"] == {name: {"condition": "service_healthy"}}
    assert len(MEMBERS) == 2
    for node in MEMBERS.values():
        named = [word for word in node["command"] if word.startswith("--bootstrap=")]
        assert named == [f"--bootstrap=@{path}"]
        assert mounts(node)[introductions] == mounts(introduction)[introductions]
        assert node["depends_on"] == {
            "introduction": {"condition": "service_completed_successfully"}
        }


def test_every_node_is_watched_and_started_again() -> None:
    for node in NODES.values():
        assert node["healthcheck"]["test"][:2] == ["CMD", "kachery-p2p"]
        assert node["restart"] == "unless-stopped"


def test_the_channel_of_the_nodes_is_in_the_image_and_its_secret_in_the_environment() -> None:
    for node in MEMBERS.values():
        file = f"channels/{option(node['command'], 'channel')}.toml"
        assert ([file], file) in copied()
        channel = tomllib.loads((ROOT / file).read_text())
        assert set(node["environment"]) == {channel["secret_env"]} | KEYS
        assert channel["kind"] == "shared-secret"
    assert SERVICES["introduction"]["environment"] == {}


def test_the_bucket_is_a_server_apart_that_starts_only_when_it_is_asked_for() -> None:
    (s3,) = OTHERS.values()
    assert s3["profiles"] == ["bucket"]
    assert re.fullmatch(r"[\w./-]+:v\d+\.\d+\.\d+", s3["image"]), "a version, never the latest"
    assert "ports" not in s3, "only the nodes reach it"
    assert s3["read_only"] is True
    assert s3["cap_drop"] == ["ALL"]
    (volume,) = mounts(s3)
    assert volume in COMPOSE["volumes"]
    assert not any(volume in mounts(service) for service in SERVICES.values())
    assert mounts(s3)[volume] in s3["entrypoint"][-1]


def test_the_nodes_have_the_keys_of_the_bucket_and_nobody_has_a_default_one() -> None:
    ((name, s3),) = OTHERS.items()
    given = {variable: f"${{{variable}:-}}" for variable in KEYS}
    assert sorted(s3["environment"].values()) == sorted(given.values())
    for node in MEMBERS.values():
        assert {key: node["environment"][key] for key in KEYS} == given
    (port,) = re.findall(r"--port :(\d+)", s3["entrypoint"][-1])
    (bucket,) = re.findall(r"mkdir -p /data/(\w+)", s3["entrypoint"][-1])
    shown = (ROOT / "docker-compose.yml").read_text()
    assert f"s3://{bucket}/files?endpoint=http://{name}:{port}" in shown


def test_every_variable_that_is_named_is_read_somewhere() -> None:
    code = "".join(path.read_text() for path in (ROOT / "kachery_p2p").rglob("*.py"))
    texts = [DOCKERFILE, UNIT, *((ROOT / name).read_text() for name in DOCUMENTS)]
    for variable in {
        name for text in texts for name in re.findall(r"\bKACHERY_[A-Z0-9_]+\b", text)
    }:
        assert f'"{variable}"' in code, variable


def test_a_node_has_time_to_stop() -> None:
    for node in NODES.values():
        assert int(node["stop_grace_period"].removesuffix("s")) > limits.STOP_S_MAX
    assert int(re.findall(r"^TimeoutStopSec=(\d+)", UNIT, re.MULTILINE)[0]) > limits.STOP_S_MAX


def introduce(tmp_path: Path, addresses: list[str], *arguments: str) -> tuple[int, str]:
    """The exit code of introduce.py beside a node with `addresses`, and what it wrote."""
    command = tmp_path / "kachery-p2p"
    command.write_text(f"#!/bin/sh\necho '{json.dumps({'addresses': addresses})}'\n")
    command.chmod(0o755)
    written = tmp_path / "introductions"
    done = subprocess.run(
        [sys.executable, str(ROOT / "bootstrap/introduce.py"), str(written), *arguments],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        timeout=60,
    )
    return done.returncode, written.read_text() if written.exists() else ""


def test_an_introduction_holds_the_addresses_of_the_name_that_stays(tmp_path: Path) -> None:
    named = "/dns/node-a/tcp/20432/p2p/12D3KooW"
    passing = "/ip4/192.0.2.7/tcp/20432/p2p/12D3KooW"
    assert introduce(tmp_path, [named, passing], "node-a") == (0, f"{named}\n")
    assert introduce(tmp_path, [named, passing]) == (0, f"{named}\n{passing}\n")


def test_a_node_without_that_name_leaves_no_introduction(tmp_path: Path) -> None:
    assert introduce(tmp_path, ["/ip4/192.0.2.7/tcp/20432/p2p/12D3KooW"], "node-a") == (1, "")
