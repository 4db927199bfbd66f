"""Where a bucket is, as people write it.

    s3://BUCKET/PREFIX?endpoint=https://s3.example.org&region=us-east-1
    gs://BUCKET/PREFIX
    az://CONTAINER/PREFIX?account=NAME
    file:///srv/lab                   a directory that this computer sees, NFS for instance
    memory:NAME                       gone with the process: for tests
    https://data.example.org/lab      read only: below it lies sha1/aa/bb/cc/HASH
    https://example.org/get?h={hash}  read only, any other layout: {hash} {aa} {bb} {cc}

A URL never has a password: credentials are told apart (`credentials`).
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from kachery_p2p.content.hashes import ContentHash, quoted
from kachery_p2p.errors import BucketUrlError
from kachery_p2p.limits import BUCKET_CHARS_MAX

S3, GOOGLE, AZURE = "s3", "gs", "az"
FILE, MEMORY = "file", "memory"
WEB = ("https", "http")
CLOUDS = (S3, GOOGLE, AZURE)
_OPTIONS = {S3: {"endpoint", "region"}, GOOGLE: set[str](), AZURE: {"account", "endpoint"}}
_FORMS = "write s3://BUCKET/PREFIX?endpoint=..., gs://, az://, file:///DIRECTORY or https://..."
# What Amazon, Google and Azure allow in the name of a bucket; nothing of it needs escaping.
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,221}[a-z0-9]", re.ASCII)
_PREFIX_PART = re.compile(r"[A-Za-z0-9._~=+-]{1,255}", re.ASCII)
_HOST = re.compile(r"([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(:\d{1,5})?", re.ASCII)
_PLACES = re.compile(r"\{(\w*)\}")


class BucketUrl(NamedTuple):
    """What a bucket's URL says."""

    scheme: str
    # Of clouds: the bucket's name. Of directories: the path. Of mirrors: the URL itself.
    place: str
    # Between the bucket and `sha1/...`: "" or with no slash at either end.
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    account: str | None = None

    @property
    def is_mirror(self) -> bool:
        """True for what can only be read, by HTTP."""
        return self.scheme in WEB

    @property
    def is_template(self) -> bool:
        """True for a mirror of another layout than ours."""
        return self.is_mirror and "{" in self.place

    def __str__(self) -> str:
        """The URL, written in one way: for people, and to tell whether two are the same."""
        if self.is_mirror:
            return self.place
        if self.scheme == FILE:
            return f"file://{self.place}"
        if self.scheme == MEMORY:
            return f"memory:{self.place}"
        told = [(key, getattr(self, key)) for key in ("account", "endpoint", "region")]
        options = "&".join(f"{key}={value}" for key, value in told if value)
        path = f"{self.scheme}://{self.place}/{self.prefix}".rstrip("/")
        return f"{path}?{options}" if options else path

    @property
    def node(self) -> str:
        """64 hex digits that name the bucket where other sources have a node's id."""
        return hashlib.sha256(f"kachery-p2p bucket\0{self}".encode()).hexdigest()

    def of_content(self, content: ContentHash) -> str:
        """Of a mirror: the URL of a content."""
        assert self.is_mirror
        if not self.is_template:
            from kachery_p2p.bucket.layout import key_of

            return f"{self.place}/{key_of(content)}"
        parts = {"hash": content, "aa": content[:2], "bb": content[2:4], "cc": content[4:6]}
        return _PLACES.sub(lambda found: parts[found[1]], self.place)


def parse_bucket_url(text: str) -> BucketUrl:
    """What `text` says, or BucketUrlError."""
    text = text.strip()
    if len(text) > BUCKET_CHARS_MAX or not text.isascii() or not text.isprintable():
        raise BucketUrlError(f"{quoted(text)} is not the URL of a bucket", hint=_FORMS)
    if " " in text or '"' in text or "\\" in text:
        raise BucketUrlError(f"{quoted(text)} has a space, a quote or a backslash", hint=_FORMS)
    scheme = text.partition(":")[0].lower()
    if scheme == MEMORY:
        return BucketUrl(MEMORY, text[len("memory:") :].strip("/") or "default")
    if "@" in text and scheme != FILE:
        # Not quoted: what stands before it may be a password.
        raise BucketUrlError(
            "the URL of the bucket has an @, so a user or a password",
            hint="credentials are never in a URL: `kachery-p2p bucket add --credentials`",
        )
    try:
        split = urlsplit(text)
    except ValueError:
        raise BucketUrlError(f"{quoted(text)} is not a URL", hint=_FORMS) from None
    if split.fragment or "#" in text:
        raise BucketUrlError(f"{quoted(text)} has a #, which says nothing here", hint=_FORMS)
    if scheme == FILE:
        return _directory(text, split.netloc, split.path, split.query)
    if scheme in WEB:
        return _mirror(text, scheme, split.netloc)
    if scheme in CLOUDS:
        return _cloud(text, scheme, split.netloc, split.path, split.query)
    raise BucketUrlError(f"{quoted(text)} is not the URL of a bucket", hint=_FORMS)


def _directory(text: str, host: str, path: str, query: str) -> BucketUrl:
    path = unquote(path).rstrip("/")
    if host not in ("", "localhost") or query or not path or ".." in path.split("/"):
        raise BucketUrlError(
            f"{quoted(text)} is not the URL of a directory", hint="write file:///srv/lab"
        )
    return BucketUrl(FILE, path)


def _mirror(text: str, scheme: str, host: str) -> BucketUrl:
    if not _HOST.fullmatch(host):
        raise BucketUrlError(f"{quoted(text)} names no server", hint=_FORMS)
    named = set(_PLACES.findall(text))
    is_known = not named or ("hash" in named and named <= {"hash", "aa", "bb", "cc"})
    if not is_known or _braces_left(text):
        raise BucketUrlError(
            f"{quoted(text)} is not a template of this kind",
            hint="{hash} is the SHA-1; {aa}, {bb} and {cc} are its first three pairs of digits",
        )
    if not named and "?" in text:
        raise BucketUrlError(
            f"{quoted(text)} does not say where the hash stands", hint="write {hash} there"
        )
    rest = text[len(scheme) :]
    return BucketUrl(scheme, scheme + (rest if named else rest.rstrip("/")))


def _braces_left(text: str) -> bool:
    left = _PLACES.sub("", text)
    return "{" in left or "}" in left


def _cloud(text: str, scheme: str, bucket: str, path: str, query: str) -> BucketUrl:
    if not _BUCKET_NAME.fullmatch(bucket):
        raise BucketUrlError(f"{quoted(text)} names no bucket", hint=_FORMS)
    parts = [part for part in path.split("/") if part]
    if not all(_PREFIX_PART.fullmatch(part) and part.strip(".") for part in parts):
        raise BucketUrlError(
            f"the prefix in {quoted(text)} has characters that are not allowed there",
            hint="letters, digits and . _ ~ = + - are, between slashes",
        )
    options = dict(parse_qsl(query, keep_blank_values=True))
    for key, value in options.items():
        if key not in _OPTIONS[scheme] or not value:
            known = ", ".join(sorted(_OPTIONS[scheme])) or "nothing"
            raise BucketUrlError(
                f"{quoted(text)}: {scheme}:// takes no option {quoted(key)}",
                hint=f"after the ? it takes {known}; credentials are told apart",
            )
    if scheme == AZURE and "account" not in options:
        raise BucketUrlError(
            f"{quoted(text)} does not say which account", hint="add ?account=NAME to the URL"
        )
    endpoint = options.get("endpoint")
    if endpoint is not None:
        endpoint = _endpoint(text, endpoint)
    return BucketUrl(
        scheme, bucket, "/".join(parts), endpoint, options.get("region"), options.get("account")
    )


def _endpoint(text: str, endpoint: str) -> str:
    try:
        split = urlsplit(endpoint)
    except ValueError:
        split = urlsplit("")
    if split.scheme not in WEB or not split.netloc or split.query:
        raise BucketUrlError(
            f"the endpoint in {quoted(text)} is not a URL",
            hint="write endpoint=https://HOST or, in a laboratory's own network, http://HOST:PORT",
        )
    return endpoint.rstrip("/")
