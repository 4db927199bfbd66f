"""Two nodes of one lab on this computer share real files; a stranger gets none of them.

    make demo

Alice and Bob, who have a secret in common, are members of channel `lab`; Mallory, who
knows Alice's address and the names of her files, has another secret. All three are real
nodes with directories of their own below .demo/, and all of it is gone in the end. Lines
that begin with a name and `$` are what that person would type in a terminal.

The exit code is 0 only if every byte arrived as it was and Mallory got nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import kachery_p2p as kp

ROOT = Path(__file__).resolve().parents[1]
FILE_BYTES = 100_000_000
TEXTS = 20
READY_S_MAX = 20
COMMAND_S_MAX = 60
STOP_S_MAX = 10
LOG_CHARS_MAX = 5000
EXIT_NOT_FOUND = 3


class DemoError(Exception):
    """Something is not as this demo says; it ends with exit code 1."""


class Person:
    """Somebody with a computer of their own: a node, its directories, its environment."""

    def __init__(self, home: Path, name: str, secret: str) -> None:
        self.name = name
        self.home = home / name
        self.home.mkdir()
        self.settings = {
            "KACHERY_P2P_CONFIG_DIR": str(self.home / "config"),
            "KACHERY_STORAGE_DIR": str(self.home / "store"),
            "KACHERY_CHANNEL_SECRET": secret,
        }
        self._node: subprocess.Popen[bytes] | None = None

    def types(self, *arguments: str, shown: str = "") -> subprocess.CompletedProcess[str]:
        """Run a kachery-p2p command as this person, showing it."""
        prompt(self.name, "kachery-p2p " + (shown or shlex.join(arguments)))
        return run(self.home.parent, self.settings, *arguments)

    def starts_node(self, *options: str) -> dict[str, Any]:
        """Start this person's node, which runs until `stops_node`; its status when it is ready."""
        arguments = ["start", "--channel", "lab", "--label", self.name, "--no-mdns"]
        arguments += ["--listen", "127.0.0.1:0", "--http", "off", *options]
        prompt(self.name, shlex.join(["kachery-p2p", *arguments]) + " &")
        # A process group of its own: Ctrl-C is for the demo, which then stops its nodes.
        with (self.home / "node.log").open("wb") as log:
            self._node = subprocess.Popen(
                kachery_p2p(*arguments),
                env=environment(self.settings),
                cwd=self.home,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        done = run(self.home.parent, self.settings, "status", "--json", "--wait", str(READY_S_MAX))
        if done.returncode != 0:
            raise DemoError(f"the node of {self.name}: {(self.home / 'node.log').read_text()}")
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def stops_node(self) -> None:
        """Stop the node, by force if it does not go."""
        if self._node is None:
            return
        self._node.terminate()
        try:
            self._node.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._node.kill()
            self._node.wait()
        self._node = None

    @contextlib.contextmanager
    def in_python(self) -> Iterator[None]:
        """Be this person's Python: kachery_p2p reads the environment at each call."""
        os.environ.update(self.settings)
        try:
            yield
        finally:
            for name in self.settings:
                del os.environ[name]


# --- commands, and what is printed --------------------------------------------------------


def kachery_p2p(*arguments: str) -> list[str]:
    """`kachery-p2p ARGUMENTS` of this Python, whether or not it is on PATH."""
    return [sys.executable, "-m", "kachery_p2p", *arguments]


def environment(settings: dict[str, str]) -> dict[str, str]:
    """This process's environment, with nothing of kachery's but `settings`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("KACHERY_", "PYTHON"))}
    return kept | settings


def run(
    directory: Path, settings: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        kachery_p2p(*arguments),
        cwd=directory,
        env=environment(settings),
        capture_output=True,
        text=True,
        timeout=COMMAND_S_MAX,
    )


def answer_of(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that succeeded printed."""
    if done.returncode != 0:
        raise DemoError(done.stderr.strip() or f"exit code {done.returncode}")
    return done.stdout.strip()


def chapter(title: str) -> None:
    print(f"\n=== {title}\n", flush=True)


def prompt(name: str, command: str) -> None:
    print(f"{name}$ {command}", flush=True)


def tell(text: str) -> None:
    for line in text.splitlines():
        print(f"    {line}", flush=True)


def rate(size: int, seconds: float) -> str:
    return f"{size / seconds / 1e6:.0f} MB/s ({seconds:.2f} s)"


def sha256_of(path: str | Path) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_same(what: str, sent: str, received: str) -> None:
    """Show that two SHA-256 are equal, or end the demo."""
    if sent != received:
        raise DemoError(f"{what} differs: {sent} was sent, {received} was received")
    tell(f"sha256 {sent[:16]}... of {what}: identical")


# --- the story ----------------------------------------------------------------------------


def story(home: Path, ending: contextlib.ExitStack) -> None:
    """Everything that the demo shows. `ending` is told whom to stop, however it ends."""
    chapter("A channel, and two nodes in it")
    secret = new_secret(home, "alice")
    tell("(Alice gives it to Bob by a private way; it is not shown, not even here)")
    alice, bob = Person(home, "alice", secret), Person(home, "bob", secret)
    address = start_both(alice, bob, ending)

    chapter(f"A recording of {FILE_BYTES // 10**6} MB")
    file_uri = share_file(home, alice, bob)

    chapter(f"A directory of {TEXTS} text files, each under its own URI")
    text_uri = share_texts(home, alice, bob)

    chapter("A numpy array, from one Python to another")
    array_uri = share_array(alice, bob)

    chapter("Who is connected")
    tell(answer_of(bob.types("status")))

    chapter("A stranger, with another secret, who knows Alice's address and every URI")
    mallory = Person(home, "mallory", new_secret(home, "mallory"))
    ending.callback(mallory.stops_node)
    peers = mallory.starts_node("--bootstrap", address)["peers"]
    tell(f"ready, connected with {len(peers)} members")
    if peers:
        raise DemoError("Mallory is connected with members")
    refuse(mallory, [file_uri, text_uri, array_uri])


def start_both(alice: Person, bob: Person, ending: contextlib.ExitStack) -> str:
    """Start two nodes of which the second knows the address of the first; that address."""
    for person in (alice, bob):
        prompt(person.name, f"cd {shlex.quote(str(person.home.parent))}")
        for name in ("KACHERY_P2P_CONFIG_DIR", "KACHERY_STORAGE_DIR"):
            value = os.path.relpath(person.settings[name], person.home.parent)
            prompt(person.name, f"export {name}=$PWD/{value}")
        ending.callback(person.stops_node)
    address = str(alice.starts_node()["addresses"][0])
    tell(f"ready at {address}")
    peers = bob.starts_node("--bootstrap", address)["peers"]
    if not peers:
        raise DemoError("Bob's node is not connected with Alice's")
    tell(f"ready, connected with {peers[0]['label']}")
    return address


def new_secret(home: Path, name: str) -> str:
    """A secret that nobody has had before."""
    prompt(name, "export KACHERY_CHANNEL_SECRET=$(kachery-p2p channel create lab --shared)")
    return answer_of(run(home, {}, "channel", "create", "lab", "--shared"))


def share_file(home: Path, alice: Person, bob: Person) -> str:
    """A big file: by commands, and once more by Python, with the time that each takes."""
    (home / "recording.bin").write_bytes(os.urandom(FILE_BYTES))
    sha256 = sha256_of(home / "recording.bin")
    began = time.perf_counter()
    uri = answer_of(alice.types("store", "recording.bin"))
    tell(uri)
    tell(f"stored, durable: {rate(FILE_BYTES, time.perf_counter() - began)} with process start")

    began = time.perf_counter()
    path = answer_of(bob.types("load", uri))
    seconds = time.perf_counter() - began
    tell(path)
    tell(f"loaded from alice, durable: {rate(FILE_BYTES, seconds)} with process start")
    check_same("the file", sha256, sha256_of(path))

    prompt("bob", f"rm -f {shlex.quote(path)}    # forgets it, to load it once more")
    Path(path).unlink()
    prompt("bob", f"""python -c 'import kachery_p2p as kp; print(kp.load_file("{uri}"))'""")
    with bob.in_python():
        began = time.perf_counter()
        path = kp.load_file(uri)
        seconds = time.perf_counter() - began
    tell(path)
    tell(f"loaded from alice, durable: {rate(FILE_BYTES, seconds)} without process start")
    check_same("the file", sha256, sha256_of(path))
    return uri


def share_texts(home: Path, alice: Person, bob: Person) -> str:
    """Small files, one by one; the URI of the last."""
    (home / "notes").mkdir()
    texts = [f"Session {n}: {os.urandom(8).hex()}.\n" * n for n in range(1, TEXTS + 1)]
    paths = [f"notes/session-{n:02}.txt" for n in range(1, TEXTS + 1)]
    for path, text in zip(paths, texts, strict=True):
        (home / path).write_text(text)
    uris = answer_of(alice.types("store", *paths, shown="store notes/*.txt")).splitlines()
    tell("\n".join([*uris[:2], f"... {TEXTS - 3} more ...", uris[-1]]))

    prompt("bob", "python    # for uri in uris: kp.load_text(uri)")
    with bob.in_python():
        began = time.perf_counter()
        loaded = [kp.load_text(uri) for uri in uris]
        seconds = time.perf_counter() - began
    tell(f"loaded from alice, durable: {TEXTS} files in {seconds:.2f} s, one by one")
    sent, received = ("".join(some).encode() for some in (texts, loaded))
    check_same("the texts", hashlib.sha256(sent).hexdigest(), hashlib.sha256(received).hexdigest())
    return uris[-1]


def share_array(alice: Person, bob: Person) -> str:
    """An array, which arrives as an array; its URI."""
    spikes = np.random.default_rng().normal(size=(32, 30_000)).astype(np.float32)
    prompt("alice", "python    # uri = kp.store_npy(spikes); print(uri)")
    with alice.in_python():
        uri = kp.store_npy(spikes, label="spikes.npy")
    tell(uri)
    prompt("bob", f'python    # spikes = kp.load_npy("{uri}")')
    with bob.in_python():
        began = time.perf_counter()
        loaded = kp.load_npy(uri)
        seconds = time.perf_counter() - began
    tell(f"{loaded.dtype} {loaded.shape}, from alice: {rate(loaded.nbytes, seconds)}")
    if (loaded.dtype, loaded.shape) != (spikes.dtype, spikes.shape):
        raise DemoError("the array has another type or shape than the one that was stored")
    sent, received = (hashlib.sha256(array.tobytes()).hexdigest() for array in (spikes, loaded))
    check_same("the array", sent, received)
    return uri


def refuse(mallory: Person, uris: list[str]) -> None:
    """Mallory gets nothing, and cannot even learn what there is to get."""
    nothing = f"sha1://{hashlib.sha1(os.urandom(20), usedforsecurity=False).hexdigest()}"
    said = set()
    for uri in [*uris, nothing]:
        done = mallory.types("load", uri)
        tell(done.stderr)
        if done.returncode != EXIT_NOT_FOUND or done.stdout:
            raise DemoError(f"Mallory was not refused: exit code {done.returncode}")
        said.add(done.stderr.replace(uri.removeprefix("sha1://")[:40], "HASH"))
    if len(said) != 1:
        raise DemoError(f"Mallory can tell what exists: {said}")
    tell("(the last content does not exist at all: what she is told is the same)")
    if any(path.is_file() for path in (mallory.home / "store").rglob("*")):
        raise DemoError("something is in Mallory's store")


# --- from beginning to end ----------------------------------------------------------------


@contextlib.contextmanager
def demo_directory() -> Iterator[Path]:
    """A directory for everything, which is gone in the end."""
    parent = ROOT / ".demo"
    parent.mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            parent.rmdir()


def tell_story(home: Path, ending: contextlib.ExitStack) -> None:
    """The story; if it goes wrong, the nodes' own words too, before they are removed."""
    try:
        story(home, ending)
    except Exception:
        for log in sorted(home.glob("*/node.log")):
            print(f"\n{log.parent.name}'s node said:", file=sys.stderr)
            print(log.read_text(errors="backslashreplace")[-LOG_CHARS_MAX:], file=sys.stderr)
        raise


def main() -> int:
    """The exit code."""
    began = time.monotonic()
    # Whatever ends the demo ends its nodes too, as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    # This is also the Python of Alice and Bob, who shall not meet a node of whoever runs it.
    for name in [name for name in os.environ if name.startswith("KACHERY_")]:
        del os.environ[name]
    try:
        with demo_directory() as home, contextlib.ExitStack() as ending:
            tell_story(home, ending)
    except KeyboardInterrupt:
        print("\ninterrupted; everything is cleaned up", file=sys.stderr)
        return 128 + signal.SIGINT
    except (DemoError, kp.KacheryError, subprocess.TimeoutExpired) as error:
        print(f"\ndemo: error: {error}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - began
    print(f"\nEvery byte arrived as it was, and Mallory got nothing. ({seconds:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
