"""kachery-p2p of before version 1, by its own functions; and the scripts that it could run."""

from __future__ import annotations

import inspect
import os
import select
import signal
from pathlib import Path

import numpy as np
import pytest

from kachery_p2p.compat import kachery_client as kc
from kachery_p2p.compat import kachery_p2p as kp
from kachery_p2p.compat import shell_scripts
from kachery_p2p.compat.shell_scripts import ShellScript, stop_all_scripts
from kachery_p2p.errors import DaemonError, NotFoundError, UnsupportedValueError

TEXT = "sha1://58c3a504f91dab6ade375c69d9f78e312520f1b4"
NOBODY = "sha1://" + "0" * 40
LOAD = ["uri", "p2p", "from_node", "from_channel"]


def test_signatures_are_those_of_kachery_p2p_0_8() -> None:
    def names(function: object) -> list[str]:
        return list(inspect.signature(function).parameters)  # type: ignore[arg-type]

    assert names(kp.load_file) == ["uri", "dest", "p2p", "from_node", "from_channel"]
    assert names(kp.load_bytes) == ["uri", "start", "end", "write_to_stdout", *LOAD[1:]]
    for load in (kp.load_text, kp.load_json, kp.load_npy, kp.load_pkl, kp.load_object):
        assert names(load) == LOAD
    assert names(kp.find_file) == ["uri", "timeout_sec"]
    for store in (kp.store_file, kp.link_file, kp.store_text, kp.store_json, kp.store_npy):
        assert names(store)[1:] == ["basename"]
    assert names(kp.stop_daemon) == ["api_port", "api_host"]
    assert all(hasattr(kp, name) for name in kp.__all__)


def test_values_are_stored_and_loaded_under_the_uris_of_then(home: Path) -> None:
    (home / "msg.txt").write_text("Here is my message")
    uris = {
        kp.store_file(str(home / "msg.txt")): f"{TEXT}/msg.txt",
        kp.store_text("Here is my message"): f"{TEXT}/file.txt",
        kp.store_text("Here is my message", basename="a.txt"): f"{TEXT}/a.txt",
        kp.link_file(str(home / "msg.txt"), basename="b.txt"): f"{TEXT}/b.txt",
    }
    assert list(uris) == list(uris.values())
    uri = kp.store_object({"name": "example-object"})
    # Its last version wrote compact JSON; its first, and its documents, JSON with spaces.
    assert uri.startswith("sha1://972ba295") and uri.endswith("/file.json")
    assert kp.load_object(uri) == {"name": "example-object"}
    assert kp.load_npy(kp.store_npy(np.ones((2, 3)))).shape == (2, 3)
    assert kp.load_pkl(kp.store_pkl({"a": 1}), p2p=False) == {"a": 1}
    assert kp.load_bytes(TEXT, 5, 7) == b"is"
    assert kp.load_file(TEXT, str(home / "there")) == str(home / "there")


@pytest.mark.filterwarnings("ignore:.*no daemon:UserWarning")
def test_what_nobody_has_is_none_and_a_missing_path_an_error() -> None:
    assert kp.load_text(NOBODY, p2p=False) is None
    assert kp.load_file(NOBODY, from_node="x", from_channel="lab") is None
    assert kp.load_bytes(NOBODY, 0, 1, p2p=False) is None
    assert list(kp.find_file(NOBODY, timeout_sec=0)) == []
    with pytest.raises(NotFoundError, match="Local file not found"):
        kp.load_file("/no/such/file")


def test_finding_tells_each_node_as_a_dict() -> None:
    uri = kp.store_text("Here is my message")
    (one,) = kp.find_file(uri)
    assert one == {"nodeId": None, "fileKey": {"sha1": TEXT[7:]}, "fileSize": 18}
    assert kp.get_channels() == []


def test_mutables_are_deleted_with_or_without_the_value_that_was_asked_for() -> None:
    kp.set("key", "value")
    assert kp.get_string("key") == "value"
    kp.delete("key", "useless")
    assert kp.get("key") is None
    kp.delete("key")


def test_the_node_is_started_and_stopped_with_the_options_of_then(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert kp.stop_daemon(api_port=20431) is False
    kp.start_daemon(label="x", install_only=True, verbose=0, isbootstrap=False, node_arg=["a", "b"])
    assert "--node-arg needs nothing" in capfd.readouterr().err
    with pytest.raises(DaemonError, match="start-daemon"):
        kp.start_daemon(label="x", static_config="f")
    with pytest.raises(DaemonError, match="join-channel"):
        kp.join_channel("https://example.org/channel.yaml")


def test_the_experiments_are_over() -> None:
    kp._experimental_config(nop2p=False, file_server_urls=[])
    with pytest.raises(UnsupportedValueError, match="no more"):
        kp._experimental_config(nop2p=True)
    for name in ("TestDaemon", "cli"):
        with pytest.raises(AttributeError, match=f"{name}.*: "):
            getattr(kp, name)


def test_the_package_of_today_says_where_the_older_names_are() -> None:
    import kachery_p2p

    for name, where in (
        *(("start_daemon", "compat.kachery_p2p"), ("ShellScript", "compat.kachery_p2p")),
        *(("TestDaemon", "background"), ("nonsense", "no attribute 'nonsense'")),
    ):
        with pytest.raises(AttributeError, match=where):
            getattr(kachery_p2p, name)


# --- scripts ------------------------------------------------------------------------------


def test_a_script_runs_with_its_indentation_taken_away(home: Path) -> None:
    script = kp.ShellScript(f"""
        #!/bin/sh

        echo "TEXT" > {home}/file1.txt
        exit 3
    """)
    script.substitute("TEXT", 7)
    with pytest.raises(UnsupportedValueError):
        script.returnCode()
    assert not script.isRunning() and not script.isFinished()
    assert script.elapsedTimeSinceStart() is None
    script.start()
    assert script.wait(timeout=20) == script.returnCode() == 3
    assert (home / "file1.txt").read_text() == "7\n"
    assert script.isFinished() and script.scriptPath() is None
    assert kc.ShellScript is ShellScript


def test_a_script_says_what_it_prints_if_asked(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(home / "script.sh")
    script = ShellScript("#!/bin/sh\necho said >&2\n", path, redirect_output_to_stdout=True)
    script.start()
    assert script.wait() == 0
    assert capsys.readouterr().out == "said\n"
    assert Path(path).stat().st_mode & 0o777 == 0o744


def test_a_script_that_goes_on_is_stopped_and_its_files_removed(home: Path) -> None:
    script = ShellScript("#!/bin/sh\nexec sleep 600\n")
    script.start()
    assert script.wait(timeout=0.01) is None
    assert script.isRunning()
    stop_all_scripts()
    assert script.returnCode() == -signal.SIGINT
    assert script._directory is not None and not Path(script._directory).exists()
    script.start()
    script.kill()
    assert script.returnCode() == -signal.SIGKILL
    assert script.stopWithSignal(signal.SIGINT, 1)
    script.stop()


def test_a_script_that_cannot_be_started_leaves_nothing(home: Path) -> None:
    script = ShellScript("#!/no/such/interpreter\n", redirect_output_to_stdout=True)
    with pytest.raises(FileNotFoundError):
        script.start()
    assert script._directory is not None and not Path(script._directory).exists()
    assert script not in shell_scripts._running
    assert not script.isRunning() and not script.isFinished()


def test_a_script_is_stopped_with_all_that_it_started_and_its_pipe_is_closed(home: Path) -> None:
    os.mkfifo(home / "lives")
    lives = os.open(home / "lives", os.O_RDONLY | os.O_NONBLOCK)

    def heard() -> bytes:
        assert select.select([lives], [], [], 20)[0]
        return os.read(lives, 100)

    background = f"(echo here; exec sleep 600) > {home}/lives &"
    # `exec`, as a shell that is just starting a command can outlive its first SIGINT.
    foreground = "exec sleep 600"
    script = ShellScript(f"#!/bin/sh\n{background}\n{foreground}", redirect_output_to_stdout=True)
    script.start()
    assert heard() == b"here\n"
    with pytest.raises(UnsupportedValueError, match="runs already"):
        script.start()
    script.stop()
    assert heard() == b""  # nobody has it open for writing any more
    os.close(lives)
    process = script._process
    assert process is not None and process.stdout is not None and process.stdout.closed
    assert script.wait() == script.returnCode() == -signal.SIGINT


@pytest.mark.parametrize("end", ["kill", "wait"])
def test_a_script_leaves_nothing_when_it_is_killed_or_its_output_cannot_be_passed_on(
    home: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    def interrupted(output: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shell_scripts, "_copy_lines", interrupted)
    text = "#!/bin/sh\nexec sleep 600\n" if end == "kill" else "#!/bin/sh\necho said\n"
    script = ShellScript(text, redirect_output_to_stdout=True)
    script.start()
    if end == "kill":
        script.kill()
    else:
        with pytest.raises(KeyboardInterrupt):
            script.wait()
    assert script.isFinished()
    assert script not in shell_scripts._running
    assert script._directory is not None and not Path(script._directory).exists()


def test_a_script_that_is_indented_wrongly_or_has_no_place_is_refused() -> None:
    with pytest.raises(UnsupportedValueError, match="indented"):
        ShellScript("    a\n  b\n")
    with pytest.raises(UnsupportedValueError, match="no path"):
        ShellScript("x").write()
    with pytest.raises(UnsupportedValueError, match="not started"):
        ShellScript("x").wait()
