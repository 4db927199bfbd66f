"""Files elsewhere that kachery-cloud and kachery 2 could load: on the web, on GitHub, on Zenodo.

    https://host/path                       a page
    gh://owner/repo/branch/path             a file as it is on GitHub now
    zenodo://RECORD/name                    a file of a record; zenodo-sandbox:// likewise

No hash vouches for them. They are asked for at each call, stored, and shared with nobody.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import IO, Any
from urllib.parse import quote

from kachery_p2p.content.hashes import quoted
from kachery_p2p.content.schemes import GithubUri
from kachery_p2p.errors import UriError, WebLoadError
from kachery_p2p.limits import WEB_RECORD_BYTES_MAX, WEB_TIMEOUT_S

_PIECE_BYTES = 1 << 20
GITHUB = "https://raw.githubusercontent.com"
ZENODO = {"zenodo": "https://zenodo.org", "zenodo-sandbox": "https://sandbox.zenodo.org"}


def load_page(url: str) -> str:
    """The path of what is at the URL now, stored. WebLoadError if it cannot be had."""
    from kachery_p2p.client.local import open_store

    with _opened(url) as answer, open_store() as store:
        return str(store.put_stream(_pieces(url, answer)).path)


def github_url(uri: GithubUri) -> str:
    """Where GitHub has the file."""
    return "/".join((GITHUB, *map(quote, (uri.owner, uri.repo, uri.branch, *uri.path))))


def load_zenodo(scheme: str, rest: str) -> str:
    """The path of a file of a record on Zenodo, stored."""
    record, _, name = rest.partition("?")[0].partition("/")
    if not (record.isascii() and record.isdecimal()) or not name:
        raise UriError(f"the URI is not of the form {scheme}://RECORD/FILE")
    url = f"{ZENODO[scheme]}/api/records/{record}"
    with _opened(url) as answer:
        data = b"".join(_pieces(url, answer, WEB_RECORD_BYTES_MAX))
    return load_page(_link_in(data, url, name))


def _link_in(data: bytes, url: str, name: str) -> str:
    try:
        files: Any = json.loads(data)["files"]
        for file in files:
            if name in (file.get("filename"), file.get("key")):
                links = file["links"]
                return str(links.get("download") or links["self"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise WebLoadError(f"{url} does not say which files the record has") from None
    raise WebLoadError(f"the record at {url} has no file {quoted(name)}")


class _OnlyWeb(urllib.request.HTTPRedirectHandler):
    """Follows redirections to the web only: urllib would follow one to ftp too."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        _check_web(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opened(url: str) -> IO[bytes]:
    _check_web(url)
    opener = urllib.request.build_opener(_OnlyWeb)
    request = urllib.request.Request(url, headers={"User-Agent": "kachery-p2p"})  # noqa: S310
    try:
        answer: IO[bytes] = opener.open(request, timeout=WEB_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        raise WebLoadError(f"{url} cannot be loaded: its server says {error.code}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise WebLoadError(f"{url} cannot be loaded: {quoted(str(error))}") from None
    return answer


def _check_web(url: str) -> None:
    if not url.lower().startswith(("http://", "https://")):
        raise WebLoadError(f"{quoted(url)} is not a page on the web")


def _pieces(url: str, answer: IO[bytes], bytes_max: int | None = None) -> Iterator[bytes]:
    """What the server sends, to the end that it announced."""
    size = 0
    try:
        while piece := answer.read(_PIECE_BYTES):
            size += len(piece)
            if bytes_max is not None and size > bytes_max:
                raise WebLoadError(f"{url} has more than {bytes_max} bytes")
            yield piece
        announced = answer.headers.get("Content-Length")  # type: ignore[attr-defined]
    except (OSError, http.client.HTTPException) as error:
        raise WebLoadError(f"{url} broke off: {quoted(str(error))}") from None
    if announced is not None and announced.isdecimal() and int(announced) != size:
        raise WebLoadError(f"{url} broke off after {size} of {announced} bytes")
