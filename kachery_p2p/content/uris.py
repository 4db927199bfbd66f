"""URIs: `sha1://HASH/name?root=ROOT`, read in every form in which the kachery family named a SHA-1.

    sha1://H                     kachery, kachery-p2p, kachery-client
    sha1://H/name                the same, with the name of the file
    sha1://H?label=name          kachery-cloud
    sha1://H?location=/path      kachery-cloud, files left where they were
    sha1://H/name?manifest=M     kachery, kachery-p2p and kachery-client, large files
    sha1://H?chunkOf=C~0~99      kachery-p2p and kachery-client, one chunk of a large file
    kachery:ZONE:sha1:H:name     kachery 2
    sha1://H/name?root=R         this package, contents above one chunk

What names something else than one content by its SHA-1 is read by `schemes`.

The first kachery-cloud did not percent-encode labels, so a lone `%`, `+` or `#`
stands for itself. Names were given with directories in front; only the last part is
a name. `urllib.parse` costs more to import than all of this file, so it is imported
only for the names that need it.
"""

from __future__ import annotations

from typing import NamedTuple

from kachery_p2p.content.hashes import HEX_DIGITS, ContentHash, Root, quoted
from kachery_p2p.errors import InvalidNameError, UnknownSchemeError, UriError
from kachery_p2p.limits import LABEL_BYTES_MAX, URI_CHARS_MAX

# What RFC 3986 calls unreserved: written as it is, everything else percent-encoded.
PLAIN_CHARS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
# Characters that reorder or break a line: `cod.<RLO>exe` must not read as something else.
UNSEEN_CHARS = frozenset(
    "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)
# Query keys that are believed: two values of one would let two readers check different things.
CHECKED_KEYS = ("root", "manifest", "chunkOf")
# Digits of a position inside a file: a petabyte.
POSITION_CHARS_MAX = 15

ASK_AUTHOR = "ask its author for the sha1:// URI"
STORE_AGAIN = "download the file, then store it to get a sha1:// URI"
# Other schemes of the kachery family: what their URIs name, and what a person who has one can do.
OTHER_SCHEMES = {
    "md5": ("a content by its md5", "store the file again to get a sha1:// URI"),
    "md5dir": ("a directory by its md5", "store the directory again"),
    "sha1dir": (
        "a directory or a file inside one",
        "`kachery-p2p ls --json` gives the sha1:// URIs of the files in it",
    ),
    "sha1-enc": (
        "a content for the members of an access group",
        "`kachery-p2p decrypt-uri` gives it to them",
    ),
    "ipfs": ("a content by its IPFS hash", ASK_AUTHOR),
    "feed": ("a feed or a subfeed", "load it as a feed, not as a file"),
    "kachery-feed": ("a feed on a server of kachery-cloud", "read it with kachery-cloud"),
    "jot": ("a note on a server of kachery-cloud", ASK_AUTHOR),
    "gh": ("a file on GitHub", STORE_AGAIN),
    "zenodo": ("a file on Zenodo", STORE_AGAIN),
    "zenodo-sandbox": ("a file on Zenodo", STORE_AGAIN),
    "http": ("a page on the web", STORE_AGAIN),
    "https": ("a page on the web", STORE_AGAIN),
    "gs": ("an object in a cloud bucket", STORE_AGAIN),
    "s3": ("an object in a cloud bucket", STORE_AGAIN),
}
_BARE_CHARS = len("sha1://") + ContentHash.CHARS
STORE_HINT = "`kachery-p2p store FILE` gives a URI"
COPY_HINT = "copy the whole URI again"


class ChunkOf(NamedTuple):
    """Of which larger content a chunk is, and which of its bytes: `chunkOf=H~start~end`."""

    content: ContentHash
    start: int
    end: int


class Uri(NamedTuple):
    """What a URI says: which content, and what may help to name, check or find it."""

    content: ContentHash
    name: str | None = None
    root: Root | None = None
    manifest: ContentHash | None = None
    chunk_of: ChunkOf | None = None
    # Where the file was for whoever made the URI; what is there now is it only if it has the hash.
    location: str | None = None


class ZoneUri(NamedTuple):
    """A URI of kachery 2: a content, and the zone whose bucket it was put into ("" for none)."""

    zone: str
    uri: Uri


def parse_uri(text: str) -> Uri:
    """What `text` says of one content, or an error that says what is wrong with it.

    Space around it (from pasting) is dropped, hex may be upper case, query keys
    that are not known are ignored. The name comes from the path, else from `label`.
    """
    if len(text) == _BARE_CHARS and text.startswith("sha1://") and not text[7:].strip(HEX_DIGITS):
        return Uri(ContentHash(text[7:]))  # thousands of them may come at once
    scheme, rest = split_scheme(text)
    if scheme == "sha1":
        return read_uri(rest)
    if scheme == "kachery":
        return read_zone_uri(rest).uri
    raise wrong_scheme(scheme)


def format_uri(uri: Uri) -> str:
    """How we write `uri`: `sha1://H[/name][?root=R][&manifest=M]`; `parse_uri` reads it back."""
    path = "" if uri.name is None else "/" + encoded(check_label(uri.name))
    return f"sha1://{uri.content}{path}{_query_of(uri)}"


def format_zone_uri(zone_uri: ZoneUri) -> str:
    """How kachery 2 writes it: `kachery:ZONE:sha1:H[:name]`."""
    zone, uri = zone_uri
    if zone:
        check_label(zone)
    name = "" if uri.name is None else ":" + encoded(check_label(uri.name))
    return f"kachery:{encoded(zone)}:sha1:{uri.content}{name}{_query_of(uri)}"


def check_label(text: str) -> str:
    """`text` itself if it can be the name of a file in a directory, else `InvalidNameError`."""
    if text in ("", ".", ".."):
        raise InvalidNameError(f"{quoted(text)} is not a name that a file can have")
    if PLAIN_CHARS.issuperset(text) and len(text) <= LABEL_BYTES_MAX:
        return text  # most names, and a directory may hold a million
    for char in text:
        if char in "/\\" or char < " " or "\x7f" <= char <= "\x9f" or char in UNSEEN_CHARS:
            raise InvalidNameError(f"the name {quoted(text)} may not hold the character {char!a}")
    try:
        length = len(text.encode())
    except UnicodeEncodeError:  # lone surrogates: how Python spells a file name that is not UTF-8
        raise InvalidNameError(f"the name {quoted(text)} is not Unicode text") from None
    if length > LABEL_BYTES_MAX:
        raise InvalidNameError(
            f"the name {quoted(text)} has {length} bytes, more than {LABEL_BYTES_MAX}"
        )
    return text


# --- the two schemes, after their colon -------------------------------------------------


def read_uri(text: str) -> Uri:
    """What the part of a `sha1://` URI after the slashes says."""
    location, keys = split_query(text)
    hash_text, _, path = location.partition("/")
    content = ContentHash.parse(hash_text)
    return _with_keys(content, last_name(path or keys.get("label", "")), keys)


def read_zone_uri(text: str) -> ZoneUri:
    """What the part of a `kachery:` URI after the first colon says."""
    location, keys = split_query(text)
    parts = location.split(":", 3)
    if len(parts) < 3:
        raise UriError("the URI is not of the form kachery:ZONE:sha1:HASH", hint=COPY_HINT)
    zone, algorithm, hash_text = parts[:3]
    if algorithm.lower() != "sha1":
        raise UnknownSchemeError(
            f"the URI names a content by {quoted(algorithm)}, not by sha1", hint=ASK_AUTHOR
        )
    name = parts[3] if len(parts) > 3 else ""
    uri = _with_keys(ContentHash.parse(hash_text), last_name(name), keys)
    return ZoneUri(check_label(decoded(zone)) if zone else "", uri)


def _with_keys(content: ContentHash, name: str | None, keys: dict[str, str]) -> Uri:
    root, manifest, chunk_of = (keys.get(key) for key in CHECKED_KEYS)
    return Uri(
        content,
        name,
        Root.parse(root) if root is not None else None,
        ContentHash.parse(manifest) if manifest is not None else None,
        _chunk_of(chunk_of) if chunk_of is not None else None,
        _location(decoded(keys.get("location", ""))),
    )


def _chunk_of(text: str) -> ChunkOf:
    parts = text.split("~")
    if len(parts) != 3 or not all(_is_position(part) for part in parts[1:]):
        raise UriError(f"chunkOf={quoted(text)} does not name bytes of a file", hint=COPY_HINT)
    start, end = int(parts[1]), int(parts[2])
    if start >= end:
        raise UriError(f"the chunk from byte {start} to {end} has no bytes", hint=COPY_HINT)
    return ChunkOf(ContentHash.parse(parts[0]), start, end)


def _is_position(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= POSITION_CHARS_MAX


def _location(path: str) -> str | None:
    """A path as kachery-cloud wrote it; like there, what is not absolute says nothing."""
    if not path.startswith("/"):
        return None
    for part in filter(None, path.split("/")):
        check_label(part)
    return path


# --- parts that all schemes share ---------------------------------------------------------


def split_scheme(text: str) -> tuple[str, str]:
    """The scheme in lower case and what follows it, or an error if no kachery ever wrote such."""
    if len(text) > URI_CHARS_MAX:
        raise UriError(f"the URI has {len(text)} characters, more than {URI_CHARS_MAX}")
    text = text.strip()
    scheme, colon, rest = text.partition(":")
    scheme = scheme.lower()
    if colon and scheme == "kachery" and not rest.startswith("//"):
        return scheme, rest
    if rest.startswith("//") and (scheme == "sha1" or scheme in OTHER_SCHEMES):
        return scheme, rest[2:]
    if rest.startswith("//") and scheme and not set(scheme) - PLAIN_CHARS:
        raise UnknownSchemeError(
            f"no kachery package reads URIs like {quoted(text)}", hint=STORE_HINT
        )
    raise UriError(f"{quoted(text)} is not a URI", hint=_hint_for(text))


def wrong_scheme(scheme: str) -> UnknownSchemeError:
    """The error for a URI of the family where the URI of one content is needed."""
    what, hint = OTHER_SCHEMES[scheme]
    return UnknownSchemeError(
        f"URIs with {scheme}:// name {what}, and this needs one with sha1://", hint=hint
    )


def split_query(text: str) -> tuple[str, dict[str, str]]:
    """What stands before the first `?`, and the keys and values after it."""
    location, _, query = text.partition("?")
    keys: dict[str, str] = {}
    # kachery 2 once wrote `?label=x?label=x`, and all the older packages end a value at a `?`.
    for part in query.replace("?", "&").split("&"):
        key, _, value = part.partition("=")
        if keys.setdefault(key, value) != value and key in CHECKED_KEYS:
            raise UriError(f"the URI gives two different values for {key}")
    return location, keys


def last_name(path: str) -> str | None:
    """The name at the end of a path or label, None if there is none; each part must be a name."""
    names = [check_label(decoded(part)) for part in path.split("/") if part]
    return names[-1] if names else None


def decoded(text: str) -> str:
    """`text` without percent-encoding; `InvalidNameError` if that is not UTF-8."""
    if "%" not in text:
        return text
    from urllib.parse import unquote

    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise InvalidNameError(f"the name {quoted(text)} is not UTF-8 text") from None


def encoded(text: str, safe: str = "") -> str:
    """`text` with everything but unreserved characters (and `safe`) percent-encoded."""
    if PLAIN_CHARS.issuperset(text):
        return text
    from urllib.parse import quote

    return quote(text, safe=safe)


def _query_of(uri: Uri) -> str:
    chunk_of, location = uri.chunk_of, uri.location
    keys = (
        ("root", uri.root),
        ("manifest", uri.manifest),
        ("chunkOf", f"{chunk_of.content}~{chunk_of.start}~{chunk_of.end}" if chunk_of else None),
        # kachery-cloud decodes no location: what it must see as a path stays one.
        ("location", encoded(location, safe="/") if location else None),
    )
    query = "&".join(f"{key}={value}" for key, value in keys if value is not None)
    return f"?{query}" if query else ""


def _hint_for(text: str) -> str:
    try:
        return f"did you mean sha1://{ContentHash.parse(text.removeprefix('sha1:').strip('/'))}"
    except UriError:
        return STORE_HINT
