"""The older packages' commands as their own documents show them: programs, stdout, exit codes."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kachery_p2p.channels.channel import generate_secret
from kachery_p2p.channels.files import join_shared
from kachery_p2p.cli import older
from kachery_p2p.cli.main import OLDER
from kachery_p2p.cli.node import start
from kachery_p2p.cli.older_node import start_arguments, start_parser
from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.version import __version__

ROOT = Path(__file__).parents[2]
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]

TEST_CONTENT = "sha1://b971c6ef19b1d70ae8f0feb989b106c319b36230"
TEST_CID = "ipfs://bafkreiajr6u7obg3mpunezz2mwarr2sptwr3zaedia665vdayvw6mpn5ga"
MISSING = "sha1://" + "0" * 40


class Terminal:
    """A shell whose PATH has the programs that the package installs, in directories of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = directory / "store"
        self.config = directory / "config"
        bin_dir = directory / "bin"
        bin_dir.mkdir()
        for name, target in SCRIPTS.items():
            module, _, function = target.partition(":")
            script = bin_dir / name
            script.write_text(
                f"#!{sys.executable}\nfrom {module} import {function} as run\nrun()\n"
            )
            script.chmod(script.stat().st_mode | stat.S_IXUSR)
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("KACHERY")},
            "KACHERY_STORAGE_DIR": str(self.store),
            "KACHERY_P2P_CONFIG_DIR": str(self.config),
            "KACHERY_DIR": str(directory / "kachery"),
            "KACHERY_CLOUD_DIR": str(directory / "cloud"),
            "PYTHONPATH": str(ROOT),
            "PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}",
        }

    def run(self, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.directory,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def answer(self, command: str, **environment: str) -> str:
        done = self.run(command, **environment)
        assert (done.returncode, done.stderr) == (0, ""), command
        return done.stdout.removesuffix("\n")

    def fails(self, code: int, command: str, **environment: str) -> str:
        """What a command says that must fail so, with nothing on stdout."""
        done = self.run(command, **environment)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert done.stderr.startswith("kachery-p2p: ")
        assert "bug" not in done.stderr
        return done.stderr

    def follows(self, transcript: str) -> None:
        """Each command after a `$` prints exactly what stands below it, and no word on stderr."""
        for block in transcript.strip().removeprefix("$ ").split("\n$ "):
            command, _, expected = block.partition("\n")
            told = expected.replace("STORE", str(self.store)).strip("\n")
            assert self.answer(command) == told, command

    def stored(self, uri: str = TEST_CONTENT) -> Path:
        name = uri.removeprefix("sha1://")[:40]
        return self.store / "sha1" / name[:2] / name[2:4] / name[4:6] / name


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    (tmp_path / "test_content.txt").write_text("test-content\n")
    (tmp_path / "ds001" / "subdir1").mkdir(parents=True)
    (tmp_path / "ds001" / "subdir2").mkdir()
    for name in ("subdir1/other_file1.txt", "subdir1/other_file2.txt", "file1.txt", "file2.csv"):
        (tmp_path / "ds001" / name).write_text(f"Content of {Path(name).name}\n")
    (tmp_path / "ds001" / "subdir2" / "more.txt").write_text("more\n")
    return Terminal(tmp_path)


class Inside:
    """Runs the same programs in this process: for matrices, where a process each takes long."""

    def __init__(
        self,
        terminal: Terminal,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self.terminal = terminal
        self._capsys = capsys
        self.set = monkeypatch.setenv
        for name in [name for name in os.environ if name.startswith("KACHERY")]:
            monkeypatch.delenv(name)
        for name, value in terminal.environment.items():
            if name.startswith("KACHERY"):
                monkeypatch.setenv(name, value)
        monkeypatch.chdir(terminal.directory)

    def run(self, command: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        program, *arguments = shlex.split(command)
        try:
            code = older.run(program, arguments)
        except SystemExit as left:
            code = int(left.code or 0)
        return (code, *self._capsys.readouterr())


@pytest.fixture
def inside(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Inside:
    return Inside(terminal, monkeypatch, capsys)


# --- the documented examples ----------------------------------------------------------------------


def test_the_files_of_the_first_kachery(terminal: Terminal) -> None:
    terminal.follows(
        f"""
$ kachery-store -a sha1 test_content.txt
{TEST_CONTENT}/test_content.txt
$ kachery-load {TEST_CONTENT}/test_content.txt --dest file.dat
file.dat
$ kachery-info {TEST_CONTENT}/test_content.txt
{{
    "path": "STORE/sha1/b9/71/c6/b971c6ef19b1d70ae8f0feb989b106c319b36230",
    "size": 13,
    "sha1": "b971c6ef19b1d70ae8f0feb989b106c319b36230"
}}
$ kachery-cat {TEST_CONTENT}/test_content.txt > copy.dat
$ cmp copy.dat test_content.txt && cmp file.dat copy.dat
$ kachery-cat {TEST_CONTENT}/test_content.txt --start 0 --end 4 > file_portion.dat
$ cat file_portion.dat
test
"""
    )


def test_the_directories_of_the_first_kachery(terminal: Terminal) -> None:
    uri = terminal.answer("kachery-store ds001")
    assert uri.startswith("sha1dir://") and uri.endswith(".ds001")
    terminal.follows(
        f"""
$ kachery-ls {uri}
subdir1/
subdir2/
file1.txt
file2.csv
$ kachery-ls {uri}/subdir1
other_file1.txt
other_file2.txt
$ kachery-cat {uri}/subdir1/other_file1.txt
Content of other_file1.txt
$ kachery-load-dir {uri} --dest ds001_copy
ds001_copy
$ diff -r ds001 ds001_copy
$ kachery-store ds001 --to default_readwrite
{uri}
$ kachery-ls {uri} --fr default_readonly
subdir1/
subdir2/
file1.txt
file2.csv
"""
    )


def test_the_kachery_of_2024(terminal: Terminal) -> None:
    terminal.follows(
        f"""
$ kachery-store test_content.txt
{TEST_CONTENT}?label=test_content.txt
$ kachery-load {TEST_CONTENT}?label=test_content.txt
STORE/sha1/b9/71/c6/b971c6ef19b1d70ae8f0feb989b106c319b36230
$ kachery-cat {TEST_CONTENT}?label=test_content.txt
test-content
$ kachery-store --cache-locally --label other.txt test_content.txt
{TEST_CONTENT}?label=other.txt
$ kachery-store-local test_content.txt
{TEST_CONTENT}?label=test_content.txt
$ kachery-load-info {TEST_CONTENT}
{{
    "found": true,
    "size": 13
}}
$ KACHERY_ZONE=scratch kachery-store test_content.txt
{TEST_CONTENT}?label=test_content.txt
"""
    )
    assert (terminal.directory / "test_content.txt").read_text() == "test-content\n"


def test_the_kachery_client(terminal: Terminal) -> None:
    terminal.follows(
        f"""
$ kachery-client store-file test_content.txt
{TEST_CONTENT}/test_content.txt
$ kachery-load {TEST_CONTENT}/test_content.txt
STORE/sha1/b9/71/c6/b971c6ef19b1d70ae8f0feb989b106c319b36230
$ cat `kachery-load {TEST_CONTENT}/test_content.txt`
test-content
$ kachery-client load-file {TEST_CONTENT}/test_content.txt --dest there.txt
there.txt
$ kachery-client cat-file {TEST_CONTENT}/test_content.txt --start 5 --end 12
content
$ kachery-client version
{__version__}
"""
    )


def test_a_linked_file_that_changes_is_noticed(terminal: Terminal) -> None:
    uri = terminal.answer("kachery-link test_content.txt")
    assert uri == f"{TEST_CONTENT}/test_content.txt"
    assert terminal.answer(f"kachery-load {uri}").endswith("/test_content.txt")
    assert not terminal.stored().exists()
    (terminal.directory / "test_content.txt").write_text("other content\n")
    assert "linked as" in terminal.fails(3, f"kachery-load {uri}")


def test_a_client_that_is_offline_loads_what_is_there(terminal: Terminal) -> None:
    uri = terminal.answer("kachery-store test_content.txt")
    offline = {"KACHERY_OFFLINE_STORAGE_DIR": str(terminal.store), "KACHERY_STORAGE_DIR": "/none"}
    assert terminal.answer(f"kachery-cat {uri}", **offline) == "test-content"
    terminal.fails(3, f"kachery-cat {MISSING}", **offline)


def test_the_kachery_cloud(terminal: Terminal) -> None:
    done = terminal.run("kachery-cloud-init")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)
    assert len(done.stdout.removeprefix("Client ID: ").strip()) == 64
    assert "no registration" in done.stderr
    assert terminal.run("kachery-cloud-init").stdout == done.stdout
    terminal.follows(
        f"""
$ kachery-cloud-store test_content.txt
{TEST_CONTENT}?label=test_content.txt
$ KACHERY_URI_STYLE=ipfs kachery-cloud-store test_content.txt
{TEST_CID}
$ kachery-cloud-load {TEST_CID}
STORE/sha1/b9/71/c6/b971c6ef19b1d70ae8f0feb989b106c319b36230
$ kachery-cloud-cat {TEST_CID}
test-content
$ kachery-cloud-store-local test_content.txt --label x
{TEST_CONTENT}?label=x
$ kachery-cloud-link test_content.txt
{TEST_CONTENT}?label=test_content.txt
$ kachery-cloud-load-info {TEST_CONTENT}
{{
    "found": true,
    "size": 13
}}
"""
    )


@pytest.mark.parametrize(
    ("content", "cid"),
    [
        ("example text", "bafkreiaossxdnwtp6a4zfjl73w67i4ulmcoq277g5maz7kprxg23kqgygu"),
        ('{"example":"dict"}', "bafkreig3edwqihmsm2o7kts6v4cpvtfs66olgonclogykndsu4v7ordox4"),
    ],
)
def test_the_other_cids_of_the_first_kachery_cloud(
    terminal: Terminal, content: str, cid: str
) -> None:
    (terminal.directory / "f").write_text(content)
    uri = terminal.answer("kachery-cloud-store f", KACHERY_URI_STYLE="ipfs")
    assert uri == f"ipfs://{cid}"
    assert terminal.answer(f"kachery-cloud-cat {uri}") == content


def test_a_reference_makes_no_copy_and_is_found_where_it_is(terminal: Terminal) -> None:
    uri = terminal.answer("kachery-cloud-store-local --reference test_content.txt")
    path = terminal.directory / "test_content.txt"
    assert uri == f"{TEST_CONTENT}?label=test_content.txt&location={path}"
    assert not terminal.store.exists()
    assert terminal.answer(f"kachery-cloud-load '{uri}'") == str(path)


@pytest.mark.parametrize("written", ["kachery-p2p {}-file", "kachery-p2p-{}"])
def test_the_files_of_kachery_p2p(terminal: Terminal, written: str) -> None:
    store, load, cat, link, find = (
        written.format(verb) for verb in ("store", "load", "cat", "link", "find")
    )
    terminal.follows(
        f"""
$ {store} test_content.txt
{TEST_CONTENT}/test_content.txt
$ {load} {TEST_CONTENT}/test_content.txt
STORE/sha1/b9/71/c6/b971c6ef19b1d70ae8f0feb989b106c319b36230
$ {load} --exp-nop2p --dest there.txt {TEST_CONTENT}
there.txt
$ {cat} {TEST_CONTENT} --start 5
content
$ {cat} {TEST_CONTENT}
test-content
$ {link} there.txt
{TEST_CONTENT}/there.txt
$ KACHERY_URI_STYLE=2024 {store} test_content.txt
{TEST_CONTENT}?label=test_content.txt
"""
    )
    done = terminal.run(f"{find} {TEST_CONTENT}")
    key = {"sha1": TEST_CONTENT.removeprefix("sha1://")}
    assert json.loads(done.stdout) == {"nodeId": None, "fileKey": key, "fileSize": 13}
    assert "no daemon" in done.stderr


def test_the_channels_and_the_node_of_kachery_p2p(terminal: Terminal) -> None:
    node = terminal.run("kachery-cloud-init").stdout.split()[-1]
    terminal.follows(f"$ kachery-p2p-node-info\nNode ID: {node}\n$ kachery-p2p-get-channels")
    join_shared(str(terminal.config), "lab", generate_secret(os.urandom(20)))
    assert terminal.answer("kachery-p2p get-channels") == "lab"
    assert terminal.run("kachery-p2p-leave-channel lab").returncode == 0
    assert terminal.answer("kachery-p2p-get-channels") == ""
    terminal.fails(4, "kachery-p2p-stop-daemon")
    assert "invite" in terminal.fails(2, "kachery-p2p-join-channel https://example.org/c.yaml")


def test_a_generated_node_id_is_that_of_its_key(terminal: Terminal) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    first, second = terminal.answer("kachery-client generate-node-id").splitlines()
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(second.split()[-1]))
    assert key.public_key().public_bytes_raw().hex() == first.removeprefix("Random node ID: ")


# --- which form a URI has -------------------------------------------------------------------------

NAMED = f"{TEST_CONTENT}/test_content.txt"
LABELLED = f"{TEST_CONTENT}?label=test_content.txt"
MD5 = "md5://fa58f28bf733168df46cd7341f0e559b/test_content.txt"


@pytest.mark.parametrize(
    ("command", "style", "expected"),
    [
        ("kachery-store", "", LABELLED),
        ("kachery-store", "2024", LABELLED),
        ("kachery-store", "cloud", LABELLED),
        ("kachery-store", "2019", NAMED),
        ("kachery-store", "client", NAMED),
        ("kachery-store", "ipfs", TEST_CID),
        ("kachery-store --to default_readwrite", "", NAMED),
        ("kachery-store --to default_readwrite", "2024", LABELLED),
        ("kachery-store -a sha1", "", NAMED),
        ("kachery-store -a md5", "", MD5),
        ("kachery-store -a md5", "2024", MD5),
        ("kachery-store --use-hard-links", "", LABELLED),
        ("kachery-client store-file", "", NAMED),
        ("kachery-client store-file", "2024", LABELLED),
        ("kachery-client link-file", "", NAMED),
        ("kachery-cloud-store", "", LABELLED),
        ("kachery-cloud-store", "2019", NAMED),
        ("kachery-p2p-store", "2019", NAMED),
        ("kachery-p2p-link", "cloud", LABELLED),
    ],
)
def test_uris_have_the_form_of_their_package_unless_told(
    inside: Inside, command: str, style: str, expected: str
) -> None:
    inside.set("KACHERY_URI_STYLE", style)
    assert inside.run(f"{command} test_content.txt") == (0, expected + "\n", "")
    assert inside.run(f"kachery-cat {expected}") == (0, "test-content\n", "")


def test_a_style_that_there_is_not_is_said(terminal: Terminal) -> None:
    told = terminal.fails(10, "kachery-store test_content.txt", KACHERY_URI_STYLE="2020")
    assert "2019, client, cloud, 2024, ipfs" in told


def test_what_a_uri_names_can_be_stored_under_another_form(terminal: Terminal) -> None:
    uri = terminal.answer("kachery-store -a md5 test_content.txt")
    assert terminal.answer("kachery-store " + NAMED) == LABELLED
    assert terminal.answer(f"kachery-store -a sha1 {uri}") == NAMED


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "kachery-store --remote-only test_content.txt",
        "kachery-store --password x test_content.txt",
        "kachery-store --single-chunk -e test_content.txt",
        f"kachery-load --remote-only -p x {NAMED}",
        f"kachery-load -e {NAMED}",
        f"kachery-cat --enable-ephemeral {NAMED}",
        f"kachery-p2p-load --exp-file-server-url http://x {NAMED}",
        "kachery-p2p-start-daemon --label x --install-only --noudp --verbose 1 --method npx",
    ],
)
def test_an_option_without_a_meaning_is_accepted_and_said_on_stderr(
    inside: Inside, command: str
) -> None:
    inside.run("kachery-store test_content.txt")
    code, out, err = inside.run(command)
    assert code == 0 and "needs nothing" in err
    assert len(out.splitlines()) == ("start-daemon" not in command)


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("kachery-p2p-start-daemon --label x --config https://x", "invite"),
        ("kachery-p2p-start-daemon --label x --static-config f", "invite"),
        ("kachery-p2p-start-daemon --label x --public-url http://x", "--host"),
        ("kachery-p2p-start-daemon --label x --bootstrap 192.0.2.1", "HOST:PORT"),
        ("kachery-p2p-start-daemon --port 65536", "not a port"),
        ("kachery-store --to a --channel b test_content.txt", "exclude each other"),
        ("kachery-store -a sha256 test_content.txt", "sha256"),
        ("kachery-store", "required"),
        ("kachery-load --des x y", "unrecognized"),
        ("kachery-load-dir x", "--dest"),
        (f"kachery-cat --start -1 {NAMED}", "argument"),
        (f"kachery-cat --start x {NAMED}", "position"),
        ("kachery-client frobnicate", "no command"),
    ],
)
def test_an_option_that_would_mislead_is_refused(inside: Inside, command: str, why: str) -> None:
    code, out, err = inside.run(command)
    assert (code, out) == (2, "")
    assert why in err and "--help" in err
    assert not inside.terminal.store.exists()


def test_the_older_options_of_the_daemon_are_those_of_start() -> None:
    given = (
        "--label L --channel lab --channel b --isbootstrap --nomulticast --host node.example.org"
        " --port 4000 --auth-group g --bootstrap @nodes --bootstrap 192.0.2.1:20432"
        " --bootstrap /ip4/192.0.2.1/tcp/1/p2p/X"
    )
    told = start_arguments(start_parser("x").parse_args(given.split()))
    parsed = start.make_context("start", list(told)).params
    assert parsed["label"] == "L" and parsed["channels"] == ("lab", "b")
    assert parsed["introduce"] and parsed["no_mdns"] and parsed["auth_group"] == "g"
    assert parsed["listen"] == ("0.0.0.0", 4000)
    assert parsed["advertise"] == ("node.example.org:4000",)
    assert parsed["bootstrap"] == ("@nodes", "192.0.2.1:20432", "/ip4/192.0.2.1/tcp/1/p2p/X")


def test_few_options_of_the_daemon_leave_the_defaults_of_start() -> None:
    assert start_arguments(start_parser("x").parse_args(["--label", "L"])) == ["--label", "L"]
    given = ["--host", "2001:db8::1", "--nobootstrap", "--bootstrap", "@f"]
    told = start_arguments(start_parser("x").parse_args(given))
    assert told == ["--advertise", "[2001:db8::1]:20432"]


@pytest.mark.parametrize("option", ["--to", "--channel", "--upload-to-channel"])
def test_what_is_stored_to_a_channel_is_shared_there_only(terminal: Terminal, option: str) -> None:
    joined = [
        join_shared(str(terminal.config), name, generate_secret(os.urandom(20)))
        for name in ("lab", "b")
    ]
    uri = terminal.answer(f"kachery-store {option} lab test_content.txt")
    assert uri == NAMED
    lines = (terminal.config / "shares.log").read_text().splitlines()
    assert [json.loads(line)["channels"] for line in lines] == [[joined[0].id]]


@pytest.mark.parametrize("what", ["test_content.txt", "ds001", "-a md5 test_content.txt"])
def test_what_is_stored_in_a_zone_is_shared_in_its_channel_only(
    terminal: Terminal, what: str
) -> None:
    joined = [
        join_shared(str(terminal.config), name, generate_secret(os.urandom(20)))
        for name in ("lab", "b")
    ]
    terminal.answer(f"kachery-store {what}", KACHERY_ZONE="lab")
    lines = (terminal.config / "shares.log").read_text().splitlines()
    wishes = {channel for line in lines for channel in json.loads(line)["channels"]}
    assert wishes == {joined[0].id}


@pytest.mark.parametrize(
    "command", ["kachery-store f", "kachery-store ds001", "kachery-cloud-store f"]
)
def test_a_zone_that_means_nothing_is_not_stored_in(terminal: Terminal, command: str) -> None:
    (terminal.directory / "f").write_text("x")
    assert "franklab" in terminal.fails(10, command, KACHERY_ZONE="franklab")
    assert not terminal.store.exists()


def test_a_sandbox_takes_files_and_directories(terminal: Terminal) -> None:
    sandbox = {"KACHERY_USE_SANDBOX": "1", "KACHERY_SANDBOX_DIR": str(terminal.directory / "box")}
    uri = terminal.answer("kachery-store test_content.txt", **sandbox)
    assert terminal.answer(f"kachery-cat {uri}", **sandbox) == "test-content"
    terminal.fails(3, f"kachery-cat {uri}")
    uri = terminal.answer("kachery-store ds001", **sandbox)
    assert terminal.answer(f"kachery-ls {uri}/subdir2", **sandbox) == "more.txt"
    terminal.fails(3, f"kachery-ls {uri}")
    assert not terminal.store.exists()


# --- failures, and what stdout carries ------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "kachery-load",
        "kachery-cat",
        "kachery-cat --start 0 --end 5",
        "kachery-info",
        "kachery-load-info",
        "kachery-client load-file",
        "kachery-client cat-file",
        "kachery-cloud-load",
        "kachery-cloud-cat",
        "kachery-cloud-load-info",
        "kachery-p2p-load",
        "kachery-p2p-load --from-node x",
        "kachery-p2p-cat",
        "kachery-p2p-find",
    ],
)
def test_what_nobody_has_is_exit_code_3(inside: Inside, command: str) -> None:
    code, out, err = inside.run(f"{command} {MISSING}")
    assert (code, out) == (3, "")
    assert "kachery-p2p: error: " in err and "bug" not in err


def test_directories_that_nobody_has_are_exit_code_3(terminal: Terminal) -> None:
    uri = "sha1dir://" + "0" * 40 + ".x"
    terminal.fails(3, f"kachery-ls {uri}")
    terminal.fails(3, f"kachery-load-dir {uri} --dest there")
    assert not (terminal.directory / "there").exists()
    terminal.fails(3, "kachery-load no/such/file")


def test_a_directory_is_not_loaded_as_a_file(terminal: Terminal) -> None:
    uri = terminal.answer("kachery-store ds001")
    assert "directory" in terminal.fails(3, f"kachery-load {uri}")
    assert "directory" in terminal.fails(3, f"kachery-cat {uri}")
    terminal.fails(3, f"kachery-cat {uri}/none.txt")


def test_a_range_outside_of_the_content_is_refused(terminal: Terminal) -> None:
    uri = terminal.answer("kachery-store test_content.txt")
    for options in ("--start 5 --end 4", "--end 14", "--start 14"):
        terminal.fails(2, f"kachery-cat {uri} {options}")
    assert terminal.answer(f"kachery-cat {uri} --start 4 --end 4") == ""


def test_cat_writes_every_byte_as_it_is(terminal: Terminal) -> None:
    data = bytes(range(256)) * 4_000
    (terminal.directory / "f").write_bytes(data)
    uri = terminal.answer("kachery-store f")
    for first, end in ((0, len(data)), (1, 255), (1_000_000, len(data))):
        terminal.answer(f"kachery-cat {uri} --start {first} --end {end} > out")
        assert (terminal.directory / "out").read_bytes() == data[first:end]
    terminal.answer(f"kachery-cat {uri} > out")
    assert sha1_of((terminal.directory / "out").read_bytes()) == sha1_of(data)


@pytest.mark.parametrize(
    ("command", "instead"),
    [
        ("kachery-set-password default~readwrite --password secret", "channel invite"),
        ("kachery-cloud-admin-delete-file sha1://x", "unshare"),
        ("kachery-cloud share-local-files-experimental", "kachery-p2p share"),
        ("kachery-config-ephemeral-node", "channel join"),
    ],
)
def test_what_only_a_server_could_do_says_what_takes_its_place(
    inside: Inside, command: str, instead: str
) -> None:
    code, out, err = inside.run(command)
    assert (code, out) == (1, "")
    assert "no longer exists" in err and instead in err and "secret" not in err


def test_the_groups_of_the_newer_packages_have_their_commands(terminal: Terminal) -> None:
    terminal.follows(
        f"""
$ kachery store-file test_content.txt
{LABELLED}
$ kachery load-file {LABELLED}
STORE/sha1/b9/71/c6/b971c6ef19b1d70ae8f0feb989b106c319b36230
$ kachery cat-file {TEST_CONTENT}
test-content
$ kachery-cloud store-file --label x test_content.txt
{TEST_CONTENT}?label=x
$ kachery-cloud load-file {TEST_CONTENT} --dest there.txt
there.txt
"""
    )


def test_the_options_of_kachery_daemon_are_those_of_start(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("kachery_p2p.cli.older_node.run_today", lambda *words: told.extend(words))
    code, _, err = inside.run(
        "kachery-daemon-start --label L --owner me@x --auth-group lab"
        " --kachery-hub-url u --verbose 1"
    )
    assert (code, told) == (0, ["start", "--label", "L", "--auth-group", "lab"])
    assert "--owner needs nothing" in err and "no hub" in err


def test_what_only_a_hub_could_do_says_so(terminal: Terminal) -> None:
    done = terminal.run("kachery-client config-ephemeral-node")
    assert done.returncode != 0 and done.stdout == ""
    assert "no longer exists" in done.stderr and "channel join" in done.stderr


def test_an_unknown_zone_to_load_from_is_said_and_all_are_asked(terminal: Terminal) -> None:
    uri = terminal.answer("kachery-store test_content.txt")
    done = terminal.run(f"kachery-cat --fr nowhere {uri}")
    assert (done.returncode, done.stdout) == (0, "test-content\n")
    assert done.stderr.startswith("kachery-p2p: ") and "nowhere" in done.stderr


def test_the_doctor_says_which_settings_need_nothing_and_never_their_values(
    terminal: Terminal,
) -> None:
    done = terminal.run("kachery-p2p doctor", KACHERY_API_KEY="secret", HTTP_VERBOSE="TRUE")
    told = [line for line in done.stdout.splitlines() if " settings " in line]
    assert [line.split()[2] for line in told] == ["KACHERY_API_KEY", "HTTP_VERBOSE"]
    assert "by their keys" in told[0] and "secret" not in done.stdout + done.stderr


# --- the table ------------------------------------------------------------------------------------


def test_every_program_that_is_installed_is_in_the_table_and_the_other_way_round() -> None:
    installed = {name for name, target in SCRIPTS.items() if target == "kachery_p2p.cli.older:main"}
    assert installed == set(older.PROGRAMS)
    assert {f"kachery-p2p {name}" for name in OLDER} == set(older.WRAPPERS.values())


@pytest.mark.parametrize("name", older.COMMANDS)
def test_every_command_can_be_helped(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, _, command = name.partition(" ")
    program, given = (program, [command]) if program in older.GROUPS else (name, [])
    with pytest.raises(SystemExit) as left:
        older.run(program, [*given, "--help"])
    assert left.value.code == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"usage: {name}") and err == ""


def test_a_group_without_a_command_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert older.run("kachery-client", ["--help"]) == 0
    assert "generate-node-id" in capsys.readouterr().out
    assert older.run("kachery-client", []) == 2
    assert capsys.readouterr().out == ""
