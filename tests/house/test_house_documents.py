"""README.md, ARCHITECTURE.md and PROTOCOL.md say what the code does: names, codes and bytes."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import kachery_p2p
from kachery_p2p import errors, limits
from kachery_p2p.cli.commands import cli
from kachery_p2p.wire import messages, operations

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kachery_p2p"
VECTORS = ROOT / "tests" / "vectors"
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
PROTOCOL = (ROOT / "PROTOCOL.md").read_text()

DOCUMENTS = sorted(
    path for folder in (ROOT, ROOT / "bootstrap", ROOT / "channels") for path in folder.glob("*.md")
)
# Variables of other programs that the code reads.
FOREIGN_VARIABLES = {"NOTIFY_SOCKET"}
# Hex that is longer than this in PROTOCOL.md is meant to be compared, so it must be a vector's.
HEX_DIGITS_MIN = 24


def section(text: str, title: str) -> str:
    """What stands below the heading `title`, up to the next heading."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of each line of a table, without its heading lines."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rules = [number for number, row in enumerate(cells) if set("".join(row)) <= set("-")]
    headings = {number - 1 for number in rules} | set(rules)
    return [row for number, row in enumerate(cells) if number not in headings]


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


def test_sections_that_the_code_names_are_there() -> None:
    named = re.compile(r"\b(README|ARCHITECTURE|PROTOCOL)(?:\.md)?, \"([^\"\n]+)\"")
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *DOCUMENTS]
    for path in [*files, ROOT / "pyproject.toml"]:
        for document, title in named.findall(path.read_text()):
            section((ROOT / f"{document}.md").read_text(), title)


# --- README -----------------------------------------------------------------------------------


def test_the_readme_lists_every_command_and_no_other() -> None:
    listed = rows(section(README, "Commands"))
    written = [codes(row[0])[0] for row in listed if len(row) == 2]
    names = [re.sub(r" [\[A-Z].*", "", text) for text in written]
    assert sorted(names) == sorted(name for name, _ in commands(cli))


def test_the_readme_lists_every_option_of_every_command_and_no_other() -> None:
    written = {
        (command, option.split()[0])
        for row in rows(section(README, "Commands"))
        if len(row) == 3
        for option in codes(row[0])
        for command in codes(row[1])
    }
    real = {
        (name, option)
        for name, command in commands(cli)
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for option in parameter.opts
    }
    assert written == real


def test_the_readme_names_the_default_addresses() -> None:
    start = dict(commands(cli))["start"]
    defaults = {p.name: p.default for p in start.params if p.name in ("listen", "http")}
    listed = {codes(row[0])[0].split()[0]: row[-1] for row in rows(section(README, "Commands"))}
    assert f"`{defaults['listen']}`" in listed["--listen"]
    assert f"`{defaults['http']}`" in listed["--http"]


def variables_in_code() -> set[str]:
    """Every environment variable of ours that the package names, and those of others it reads."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(re.findall(r"(?<![A-Z_])KACHERY_[A-Z0-9_]*[A-Z0-9]", node.value))
                found |= FOREIGN_VARIABLES & {node.value}
    return found


def test_the_readme_lists_every_environment_variable_and_no_other() -> None:
    written = {codes(row[0])[0] for row in rows(section(README, "Environment variables"))}
    assert written == variables_in_code()


def test_the_readme_lists_every_exit_code_and_no_other() -> None:
    written = {
        codes(row[1])[0]: int(row[0]) for row in rows(section(README, "Exit codes")) if row[1]
    }
    real = {name: value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert written == real


def test_every_error_has_an_exit_code_that_is_listed() -> None:
    listed = {int(row[0]) for row in rows(section(README, "Exit codes"))}
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    assert {kind.exit_code for kind in kinds if issubclass(kind, errors.KacheryError)} <= listed


def test_the_help_of_the_command_line_lists_the_same_exit_codes() -> None:
    listed = {int(row[0]) for row in rows(section(README, "Exit codes"))}
    assert cli.epilog is not None
    told = {int(code) for code in re.findall(r"\b\d+\b", cli.epilog)}
    # 1 and 141 are what any program of a shell may end with.
    assert told == listed - {1, 141}


def test_the_two_commands_of_the_readme_are_targets_of_the_makefile() -> None:
    shown = re.findall(r"^\$ make (\w+)", section(README, "Two commands"), re.MULTILINE)
    targets = re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert shown == ["demo", "test"]
    assert set(shown) <= set(targets)


def test_what_the_documents_call_make_for_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        called = re.findall(r"(?:`|^\$ )make ([a-z]+)\b", document.read_text(), re.MULTILINE)
        assert set(called) <= targets, document.name


def test_the_budgets_of_the_readme_are_those_of_the_benchmarks() -> None:
    source = "".join(path.read_text() for path in (ROOT / "tests/benchmarks").glob("*.py"))
    bounds = dict(re.findall(r"^([A-Z_]+_MAX) = ([\d.]+)$", source, re.MULTILINE))
    told = section(README, "How fast")
    for name, unit in {
        "IMPORT_MS_MAX": "ms",
        "LOAD_MS_MAX": "ms",
        "FIND_US_MAX": "µs",
        "RANGE_US_MAX": "µs",
        "DOOR_S_MAX": "s",
        "FIRST_BYTE_S_MAX": "s",
    }.items():
        assert f" {bounds[name]} {unit}" in " ".join(told.split()), name


def test_the_readme_uses_only_functions_that_there_are() -> None:
    assert set(re.findall(r"\bkp\.(\w+)", README)) <= set(kachery_p2p.__all__)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_commands_that_documents_show_are_commands(document: Path) -> None:
    known = [name.split() for name, _ in commands(cli)]
    groups = {words[0] for words in known if len(words) > 1}
    verb = rf"kachery-p2p ((?:(?:{'|'.join(groups)}) )?[a-z-]+)(?=[ `)\n;])"
    shown = re.findall(verb, document.read_text())
    # "kachery-p2p channel" alone, or the name of the program in a sentence.
    verbs = [words.split() for words in shown]
    firsts = {words[0] for words in known}
    asked = [words for words in verbs if words[0] in firsts]
    assert [words for words in asked if words not in known and words[0] not in groups] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (document.parent / path).resolve() if path else document
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text()), target


def anchors(text: str) -> set[str]:
    """The anchors that headings have where Markdown is shown."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


# --- ARCHITECTURE -----------------------------------------------------------------------------


def test_the_architecture_lists_every_room_and_every_file() -> None:
    listed: dict[str, str] = {}
    for row in rows(section(ARCHITECTURE, "The rooms")):
        for room in codes(row[0]):
            listed[room] = row[2]
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    grounds = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert set(listed) == rooms | grounds
    for room in rooms:
        patterns = [re.escape(name).replace(r"\*", r"\w*") for name in codes(listed[room])]
        files = {path.stem for path in (PACKAGE / room).glob("*.py")} - {"__init__"}
        unlisted = {name for name in files if not any(re.fullmatch(p, name) for p in patterns)}
        assert not unlisted, room
        gone = [p for p in patterns if not any(re.fullmatch(p, name) for name in files)]
        assert not gone, room


def test_files_that_are_marked_pure_touch_nothing_outside() -> None:
    marked = [
        f"{codes(row[0])[0]}/{name}"
        for row in rows(section(ARCHITECTURE, "The rooms"))
        for name in re.findall(r"`(\w+)`\\\*", row[2])
    ]
    assert len(marked) > 15
    outside = {"os", "io", "time", "random", "secrets", "socket", "sqlite3", "threading", "trio"}
    for name in marked:
        tree = ast.parse((PACKAGE / f"{name}.py").read_text())
        imports = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        imports |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
        assert not {module.partition(".")[0] for module in imports} & outside, name


def test_threats_that_the_code_names_are_in_the_architecture() -> None:
    listed = {
        row[0] for row in rows(section(ARCHITECTURE, "Threats, and the wall that stops each"))
    }
    for path in PACKAGE.rglob("*.py"):
        assert set(re.findall(r"\bT\d{1,2}\b", path.read_text())) <= listed, path.name


# --- PROTOCOL ---------------------------------------------------------------------------------


def all_strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from all_strings(item)


def hex_runs(text: str) -> list[str]:
    """Hex in the text as the page groups it: with single spaces, or cut off by dots."""
    found = re.findall(r"(?<![\w.])[0-9a-f]{2,}(?: [0-9a-f]{2,})*(?![\w])", text)
    joined = [run.replace(" ", "") for run in found]
    return [run for run in joined if len(run) >= HEX_DIGITS_MIN and not run.isdecimal()]


def test_bytes_in_the_protocol_are_bytes_of_the_vectors() -> None:
    vectors = "\n".join(
        text
        for path in VECTORS.glob("*.json")
        for text in all_strings(json.loads(path.read_text()))
    )
    # Shown beside the vector that it is an input of.
    known = vectors + b"\nkp2p-channel-id/1\0lab".hex()
    runs = hex_runs(PROTOCOL)
    assert len(runs) > 30
    assert [run for run in runs if run not in known] == []


def test_secrets_in_the_protocol_are_secrets_of_the_vectors() -> None:
    vectors = json.loads((VECTORS / "membership.json").read_text())
    known = {channel["secret"] for channel in vectors["channels"]}
    shown = set(re.findall(r"\bkp2p-secret-1-[a-z2-7]+\b", PROTOCOL))
    assert shown
    assert shown <= known


def _requests_between_nodes() -> list[list[str]]:
    """The rows of both tables: the feeds have a chapter of their own."""
    chapters = ("Requests and answers", "Feeds between nodes")
    return [row for chapter in chapters for row in rows(section(PROTOCOL, chapter))]


def test_the_protocol_lists_every_request_between_nodes() -> None:
    listed = [codes(row[0]) for row in _requests_between_nodes()]
    asked = {op for op, one in messages.OPERATIONS.items() if one.stream == "control"}
    assert sorted(name for names in listed for name in names) == sorted(asked)


def test_the_protocol_lists_the_fields_of_every_request() -> None:
    for row in _requests_between_nodes():
        operation = messages.OPERATIONS[codes(row[0])[0]]
        assert set(operation.request) <= set(codes(row[1])), row
        assert set(operation.answer) <= set(codes(row[2])) or "the same" in row[2], row


def test_the_protocol_lists_every_operation_of_the_doors_with_its_fields() -> None:
    listed = {codes(row[0])[0]: row for row in rows(section(PROTOCOL, "Operations"))}
    assert set(listed) == set(operations.OPERATIONS)
    for name, operation in operations.OPERATIONS.items():
        row = listed[name]
        assert (row[1] != "-") == (operations.OWNER in operation.needs), name
        assert ("guests" in row[1]) == (operations.GUEST in operation.needs), name
        assert codes(row[3]) == list(operation.body), name
        assert codes(row[4]) == list(operation.result), name


def test_the_protocol_shows_the_bounds_of_the_code() -> None:
    bounds = section(PROTOCOL, "Bounds")
    for number in (
        limits.FRAME_BYTES_MAX,
        limits.MESSAGE_ITEMS_MAX,
        limits.MESSAGE_ITEMS_TOTAL_MAX,
        limits.ROOT_PAGES_MAX,
        limits.TEXT_CHARS_MAX,
        limits.PENDING_REQUESTS_MAX,
        limits.STREAMS_PER_PEER_MAX,
        limits.PEERS_MAX,
        limits.MEMBERS_MAX,
        limits.CHANNEL_ENTRIES_MAX,
        limits.ANNOUNCED_PER_PEER_MAX,
        limits.ANNOUNCED_MAX,
        limits.ANNOUNCE_PREFIXES_MAX,
        limits.RENDEZVOUS_ENTRIES_MAX,
    ):
        assert f"{number:,}" in bounds
