"""Pages of the web, files on GitHub and on Zenodo: stored as they are when asked for."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from kachery_p2p.compat import kachery as ka
from kachery_p2p.compat import kachery_cloud as kcl
from kachery_p2p.compat import web
from kachery_p2p.content.hashes import sha1_of
from kachery_p2p.content.schemes import GithubUri, parse_any
from kachery_p2p.errors import UriError, WebLoadError

PAGES: dict[str, bytes] = {}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        page = PAGES.get(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", page.decode() if page else "/")
            self.end_headers()
            return
        self.send_response(200 if page is not None else 404)
        length = len(page or b"") + (5 if self.path == "/short" else 0)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(page or b"")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    PAGES.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_page_is_stored_and_loaded_as_it_is_now(site: str) -> None:
    PAGES["/page?x=1"] = b"first"
    path = kcl.load_file(f"{site}/page?x=1")
    assert path is not None
    assert path.endswith(sha1_of(b"first"))
    PAGES["/page?x=1"] = b"second"
    assert ka.load_text(f"{site}/page?x=1") == "second"
    PAGES["/to/page"] = b"/page?x=1"
    assert ka.load_text(f"{site}/to/page") == "second"


def test_what_goes_wrong_on_the_web_is_said(site: str) -> None:
    PAGES["/short"] = b"short"
    PAGES["/to/file"] = b"file:///etc/passwd"
    PAGES["/to/ftp"] = b"ftp://127.0.0.1/x"
    for path, said in (
        ("/missing", "its server says 404"),
        ("/short", "broke off"),
        ("/to/file", "its server says 302"),
        ("/to/ftp", "not a page on the web"),
    ):
        with pytest.raises(WebLoadError, match=said):
            kcl.load_file(f"{site}{path}")
    with pytest.raises(WebLoadError):
        kcl.load_file("http://127.0.0.1:1/nobody")


def test_a_file_on_github_is_asked_for_where_github_has_it(
    site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = parse_any("gh://owner/repo/main/a/b%20c.txt")
    assert isinstance(uri, GithubUri)
    assert web.github_url(uri) == "https://raw.githubusercontent.com/owner/repo/main/a/b%20c.txt"
    monkeypatch.setattr(web, "GITHUB", site)
    PAGES["/owner/repo/main/f.txt"] = b"on github"
    assert kcl.load_text("gh://owner/repo/main/f.txt") == "on github"


def test_a_file_on_zenodo_is_found_in_its_record(
    site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "ZENODO", {"zenodo": site})
    file = {"key": "data/x.txt", "links": {"self": f"{site}/content"}}
    PAGES["/api/records/123"] = json.dumps({"files": [file]}).encode()
    PAGES["/content"] = b"on zenodo"
    assert kcl.load_text("zenodo://123/data/x.txt") == "on zenodo"
    assert kcl.load_text("zenodo://123/data/x.txt", local_only=True) is None
    with pytest.raises(WebLoadError, match="no file"):
        kcl.load_text("zenodo://123/other.txt")
    for broken in (b"nonsense", b"[]", b'{"files": [7]}', b'{"files": [{"key": "data/x.txt"}]}'):
        PAGES["/api/records/123"] = broken
        with pytest.raises(WebLoadError, match="does not say"):
            kcl.load_text("zenodo://123/data/x.txt")
    with pytest.raises(UriError):
        kcl.load_text("zenodo://abc/x")
