"""Where what is stored goes: zones, servers of 2019, sandboxes, scratch, directories of the web."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from kachery_p2p.channels.channel import generate_secret
from kachery_p2p.channels.files import join_shared
from kachery_p2p.compat import kachery as ka
from kachery_p2p.compat import kachery_client as kc
from kachery_p2p.compat import kachery_cloud as kcl
from kachery_p2p.compat import scratch, systems, zones
from kachery_p2p.compat.servers import Call
from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.errors import (
    ConfigError,
    UnknownZoneError,
    UnsafeFileError,
    UnsupportedValueError,
)
from kachery_p2p.store.shares import shares_path


def write_zones(home: Path, text: str) -> None:
    directory = home / "config"
    directory.mkdir(mode=0o700, exist_ok=True)
    (directory / "zones.toml").write_text(text)
    (directory / "zones.toml").chmod(0o644)


@pytest.fixture
def channels(home: Path) -> None:
    """Channels `lab`, which is the share list, and `other`."""
    for number, name in enumerate(("lab", "other")):
        join_shared(str(home / "config"), name, generate_secret(bytes([number]) * 20))


def shared_in(home: Path, data: str) -> set[str]:
    """The channels in which a content is to be shared when the daemon starts."""
    import kachery_p2p as kp

    uri = f"sha1://{sha1_of(data.encode())}"
    return {one.channel for one in kp.shared() if one.uri == uri}


# --- zones ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("channels")
def test_a_zone_is_shared_in_its_channel(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zones(home, '[zones.franklab]\nchannel = "other"\naliases = ["franklab.default"]\n')
    kcl.store_text("everywhere")
    for zone in ("franklab", "franklab.default", "other"):
        monkeypatch.setenv("KACHERY_ZONE", zone)
        kcl.store_text(f"in {zone}")
        ka.store_text(f"2 in {zone}", label="x")
        kcl.store_text(f"private in {zone}", local=True)
        assert shared_in(home, f"in {zone}") == {"other"}
        assert shared_in(home, f"2 in {zone}") == {"other"}
        assert shared_in(home, f"private in {zone}") == set()
    assert shared_in(home, "everywhere") == {"lab"}


@pytest.mark.usefixtures("channels")
def test_a_private_zone_is_shared_with_nobody(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zones(home, "[zones.notes]\nprivate = true\n")
    monkeypatch.setenv("KACHERY_ZONE", "notes")
    kcl.store_text("note")
    assert shared_in(home, "note") == set()


def test_storing_in_a_zone_that_means_nothing_is_an_error(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KACHERY_ZONE", "unknown")
    with pytest.raises(UnknownZoneError, match="'unknown' means") as caught:
        kcl.store_text("x")
    assert "zones.toml" in str(caught.value.hint)
    assert not (home / "store").exists()


def test_loading_from_a_zone_that_means_nothing_asks_everybody_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri = kcl.store_text("x")
    monkeypatch.setenv("KACHERY_ZONE", "unknown")
    with pytest.warns(UserWarning, match="all channels are asked"):
        assert kcl.load_text(uri) == "x"


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "other = 1\n",
        "zones = 1\n",
        "[zones.x]\ncolour = 'red'\n",
        "[zones.x]\nchannel = 1\n",
        "[zones.x]\nprivate = 1\n",
        "[zones.x]\nkeep_days = 0\n",
        "[zones.x]\nkeep_days = true\n",
        "[zones.x]\naliases = 'a'\n",
        "[zones.x]\nchannel = 'a'\nprivate = true\n",
        "[zones.x]\nbucket = 1\n",
        "[zones.x]\nbucket = 's3://a'\nchannel = 'a'\n",
        "[zones.x]\nbucket = 's3://a'\naliases = 'a'\n",
        "zones.x = 1\n",
    ],
)
def test_a_wrong_file_of_zones_is_refused(home: Path, text: str) -> None:
    write_zones(home, text)
    with pytest.raises(ConfigError):
        zones.read_zones()


def test_a_file_of_zones_that_others_may_write_is_refused(home: Path) -> None:
    write_zones(home, "[zones.x]\n")
    (home / "config/zones.toml").chmod(0o666)
    with pytest.raises(UnsafeFileError):
        kcl.store_text("x")


# --- the first kachery's servers ----------------------------------------------------------------


@pytest.mark.usefixtures("channels")
def test_a_server_of_the_first_kachery_is_a_zone(home: Path) -> None:
    url = "https://kachery.example.org"
    write_zones(home, f'[zones.spikes]\nchannel = "other"\naliases = ["{url}"]\n')
    given: list[Any] = ["spikes", "spikes~readwrite", {"url": url, "channel": "x"}, "other"]
    for number, to in enumerate(given):
        ka.store_text(f"to {number}", to=to)
        assert shared_in(home, f"to {number}") == {"other"}
        assert Call({"fr": to}).source().channel == "other"
    ka.store_text("nowhere", to="")
    assert shared_in(home, "nowhere") == set()
    with ka.config(to="spikes", fr="spikes"):
        ka.store_text("inside")
    ka.store_text("outside", basename="o.txt")
    assert shared_in(home, "inside") == {"other"}
    assert shared_in(home, "outside") == {"lab"}


def test_a_server_that_means_nothing_is_an_error_to_store_and_a_warning_to_load() -> None:
    with pytest.raises(UnknownZoneError):
        ka.store_text("x", to="someones_server")
    uri = ka.store_text("x", basename="x.txt")
    with pytest.warns(UserWarning, match="someones_server"):
        assert ka.load_text(uri, fr="someones_server") == "x"


def test_the_configuration_is_told_and_restored() -> None:
    ka.set_config(algorithm="md5", verbose=True)
    assert ka.get_config()["algorithm"] == "md5"
    with ka.config(algorithm="sha1"):
        assert ka.get_config()["algorithm"] == "sha1"
    assert ka.get_config()["algorithm"] == "md5"
    ka.reset()
    with pytest.raises(UnsupportedValueError):
        ka.set_config(algorithm="sha256")
    with pytest.raises(UnsupportedValueError):
        ka.store_text("x", to=7)


@pytest.mark.usefixtures("channels")
def test_kachery_client_uploads_into_one_channel(home: Path) -> None:
    uri = kc.upload_text("uploaded", channel="other", basename="u.txt")
    assert uri == f"sha1://{sha1_of(b'uploaded')}/u.txt"
    assert "other" in shared_in(home, "uploaded")
    file = home / "f.txt"
    file.write_text("file")
    assert kc.upload_file(str(file), channel="other").endswith("/f.txt")
    assert shared_in(home, "file") == {"other"}
    with pytest.raises(UnknownZoneError):
        kc.upload_text("x", channel="nobodys")


@pytest.mark.usefixtures("channels")
def test_what_is_uploaded_into_a_channel_with_a_bucket_is_in_the_bucket(home: Path) -> None:
    from kachery_p2p.channels.bucket_settings import BucketSettings, write_bucket

    (home / "bucket").mkdir()
    write_bucket(str(home / "config"), "other", BucketSettings((f"file://{home}/bucket",)))
    kc.upload_text("into the bucket", channel="other")
    content = sha1_of(b"into the bucket")
    stored = [path for path in (home / "bucket").rglob(str(content)) if path.is_file()]
    assert [path.read_bytes() for path in stored] == [b"into the bucket"]


@pytest.mark.usefixtures("channels")
def test_a_zone_may_be_a_bucket_and_is_filled_before_a_call_returns(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kachery_p2p.channels.bucket_settings import BucketSettings, write_bucket

    (home / "bucket").mkdir()
    url = f"file://{home}/bucket"
    write_bucket(str(home / "config"), "other", BucketSettings((url,)))
    write_zones(home, f'[zones.archive]\nbucket = "{url}/"\naliases = ["default.archive"]\n')
    monkeypatch.setenv("KACHERY_ZONE", "default.archive")
    uri = kcl.store_text("into the bucket", label="x.txt")
    (home / "d").mkdir()
    (home / "d/inside").write_text("inside")
    listed = ka.store_dir(str(home / "d"))
    assert shared_in(home, "into the bucket") == {"other"}
    for content in (uri[7:47], listed[10:50], sha1_of(b"inside")):
        assert [path for path in (home / "bucket").rglob(str(content)) if path.is_file()]
    write_zones(home, '[zones.archive]\nbucket = "s3://nobodys/bucket"\n[zones.notes]\n')
    monkeypatch.setenv("KACHERY_ZONE", "archive")
    with pytest.raises(ConfigError, match="no channel of this node has the bucket"):
        kcl.store_text("x", label="x")
    monkeypatch.setenv("KACHERY_ZONE", "notes")
    kcl.store_text("x", label="x")


@pytest.mark.usefixtures("channels")
def test_calls_of_2019_heed_the_sandbox_and_the_zone_too(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zones(home, '[zones.notes]\nprivate = true\n[zones.far]\nchannel = "other"\n')
    monkeypatch.setenv("KACHERY_ZONE", "notes")
    ka.store_text("a note", basename="n.txt")
    ka.store_text("for others", basename="o.txt", to="far")
    assert shared_in(home, "a note") == set()
    assert shared_in(home, "for others") == {"other"}
    (home / "d").mkdir()
    ka.use_sandbox()
    uri = ka.store_text("sand", basename="s.txt")
    assert ka.load_text(uri, fr="") == "sand"
    directory = ka.store_dir(str(home / "d"))
    assert ka.read_dir(directory, fr="") == {"files": {}, "dirs": {}}
    ka.use_sandbox(False)
    assert ka.load_text(uri, fr="") is None and ka.read_dir(directory, fr="") is None


# --- sandbox, scratch, web ------------------------------------------------------------------------


@pytest.mark.usefixtures("channels")
@pytest.mark.parametrize("package", [kcl, ka])
def test_a_sandbox_keeps_everything_to_itself(package: Any, home: Path) -> None:
    package.use_sandbox()
    uri = package.store_text("sand", label="s.txt")
    path = package.load_file(uri)
    assert "/sandbox/" in path
    package.set_mutable_local("@f/k", "v")
    assert package.get_mutable_local("@f/k") == "v"
    package.use_sandbox(False)
    assert package.load_file(uri, local_only=True) is None
    assert package.get_mutable_local("@f/k") is None
    assert not (home / "store").exists()
    assert not os.path.exists(shares_path(str(home / "config")))
    package.use_sandbox()
    assert package.load_text(uri) == "sand"
    assert package.store_json([1, 2]) == f"sha1://{sha1_of(b'[1,2]')}"


def test_a_sandbox_is_removed_when_its_process_ends(run: Any, home: Path) -> None:
    said = run("""
        import os, kachery_cloud as kcl
        kcl.store_text('outside, so that the store is open')
        kcl.use_sandbox()
        kcl.store_text('sand')
        if os.fork() == 0:
            raise SystemExit
        os.wait()
        print(os.path.isdir(kcl.get_kachery_cloud_dir()), kcl.get_kachery_cloud_dir())
    """)
    existed, directory = said.stdout.split()
    assert (existed, said.stderr) == ("True", "")
    assert not os.path.exists(directory)


@pytest.mark.usefixtures("channels")
def test_what_is_in_scratch_is_shared_and_removed_after_its_days(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = kcl.store_text("stored outside too")
    monkeypatch.setenv("KACHERY_ZONE", "scratch")
    uris = [kcl.store_text("scratched"), kcl.store_text("stored outside too")]
    (home / "f").write_text("a file")
    uris.append(kcl.store_file(str(home / "f")))
    assert [kcl.load_text(uri) for uri in uris] == ["scratched", "stored outside too", "a file"]
    assert shared_in(home, "scratched") == {"lab"}
    now = os.stat(home / "store/.scratch").st_mtime
    assert scratch.sweep(now + 13 * 86_400) == 0
    assert scratch.sweep(now + 15 * 86_400) == 3
    assert kcl.load_text(uris[0], local_only=True) is None
    assert kcl.load_text(uris[2], local_only=True) is None
    assert kcl.load_text(kept, local_only=True) == "stored outside too"
    assert (home / "f").read_text() == "a file"


def test_storing_again_in_scratch_keeps_it_for_longer(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KACHERY_ZONE", "scratch")
    uri = kcl.store_text("again")
    path = Path(str(kcl.load_file(uri)))
    os.utime(path, (1, 1))
    kcl.store_text("again")
    assert path.stat().st_mtime > time.time() + 13 * 86_400
    os.utime(path, (1, 1))
    kcl.store_text("another, which sweeps")
    assert not path.exists()


def test_a_directory_of_the_web_gets_copies(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KACHERY_STORE_FILE_DIR", str(home / "www"))
    content = sha1_of(b"example text")
    assert kcl.store_text("example text", label="a b") == f"sha1://{content}?label=a%20b"
    assert (home / "www/sha1" / content).read_text() == "example text"
    monkeypatch.setenv("KACHERY_STORE_FILE_PREFIX", "https://example.org/d")
    uri = ka.store_text("example text", label="a b")
    assert uri == f"https://example.org/d/sha1/{content}?label=a%20b"
    assert kcl.store_text("kept here", local=True) == f"sha1://{sha1_of(b'kept here')}"


def test_a_custom_backend_stores_and_says_the_uri(home: Path) -> None:
    class Backend:
        def store_file(self, filename: str, *, label: str | None = None) -> str:
            return f"custom://{Path(filename).read_text()}/{label}"

    for package in (kcl, ka):
        package.set_custom_storage_backend(Backend())
        assert package.store_text("text", label="x") == "custom://text/x"
        assert package.store_text("text", label="x", local=True).startswith("sha1://")
        package.set_custom_storage_backend(None)
        assert package.store_text("text", label="x").startswith("sha1://")


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    for name in (
        "KACHERY_CLOUD_DIR",
        "KACHERY_ZONE",
        "KACHERY_STORE_FILE_DIR",
        "KACHERY_URI_STYLE",
    ):
        monkeypatch.setenv(name, "")
    assert systems.directory_of(systems.CLOUD) == str(home / ".kachery-cloud")
    assert kcl.store_text("x") == f"sha1://{sha1_of(b'x')}"
