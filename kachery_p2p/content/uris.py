"""URIs: `sha1://HASH/name?root=ROOT`, read in every form that the kachery family wrote for SHA-1.

    sha1://H                  kachery, kachery-p2p, kachery-client
    sha1://H/name             the same, with the name of the file
    sha1://H?label=name       kachery-cloud
    sha1://H/name?manifest=M  kachery-p2p and kachery-client, files above 20 MB
    sha1://H/name?root=R      this package, contents above one chunk

Nobody ever percent-encoded labels in `?label=`, so a lone `%`, `+` or `#` stands
for itself. `urllib.parse` costs more to import than all of this file, so it is
imported only for the names that need it.
"""

from __future__ import annotations

from typing import NamedTuple

from kachery_p2p.content.hashes import ContentHash, Root, quoted
from kachery_p2p.errors import InvalidNameError, UnknownSchemeError, UriError
from kachery_p2p.limits import LABEL_BYTES_MAX, URI_CHARS_MAX

# What RFC 3986 calls unreserved: written as it is, everything else percent-encoded.
PLAIN_CHARS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
# Characters that reorder or break a line: `cod.<RLO>exe` must not read as something else.
UNSEEN_CHARS = frozenset(
    "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)
# Other schemes of the kachery family, with what a person who has one can do.
FAMILY_SCHEMES = {
    "md5": "store the file again to get a sha1:// URI",
    "sha1dir": "ask for the sha1:// URI of the file inside the directory",
    "sha1-enc": "ask its author for the sha1:// URI",
    "ipfs": "ask its author for the sha1:// URI",
    "feed": "feeds are read with an older kachery-p2p",
    "kachery-feed": "feeds are read with an older kachery-cloud",
    "kachery": "write the hash at its end as sha1://HASH",
    "jot": "ask its author for the sha1:// URI",
    "gh": "download the file, then store it to get a sha1:// URI",
    "zenodo": "download the file, then store it to get a sha1:// URI",
    "http": "download the file, then store it to get a sha1:// URI",
    "https": "download the file, then store it to get a sha1:// URI",
    "gs": "download the file, then store it to get a sha1:// URI",
    "s3": "download the file, then store it to get a sha1:// URI",
}
STORE_HINT = "`kachery-p2p store FILE` gives a URI"


class Uri(NamedTuple):
    """What a URI says: which content, and what may help to name, check or find it."""

    content: ContentHash
    name: str | None = None
    root: Root | None = None
    manifest: ContentHash | None = None


def parse_uri(text: str) -> Uri:
    """What `text` says, or an error that says what is wrong with it.

    Space around it (from pasting) is dropped, hex may be upper case, query keys
    that are not known are ignored. The name comes from the path, else from `label`.
    """
    if len(text) > URI_CHARS_MAX:
        raise UriError(f"the URI has {len(text)} characters, more than {URI_CHARS_MAX}")
    location, _, query = _after_scheme(text.strip()).partition("?")
    hash_text, _, path = location.partition("/")
    content = ContentHash.parse(hash_text)
    keys = _query_keys(query)
    root, manifest = keys.get("root"), keys.get("manifest")
    return Uri(
        content,
        _decoded_name(path or keys.get("label", "")),
        Root.parse(root) if root is not None else None,
        ContentHash.parse(manifest) if manifest is not None else None,
    )


def format_uri(uri: Uri) -> str:
    """How we write `uri`: `sha1://H[/name][?root=R][&manifest=M]`; `parse_uri` reads it back."""
    path = "" if uri.name is None else "/" + _encoded_name(check_label(uri.name))
    keys = [("root", uri.root), ("manifest", uri.manifest)]
    query = "&".join(f"{key}={value}" for key, value in keys if value is not None)
    return f"sha1://{uri.content}{path}" + (f"?{query}" if query else "")


def check_label(text: str) -> str:
    """`text` itself if it can be the name of a file in a directory, else `InvalidNameError`."""
    if text in ("", ".", ".."):
        raise InvalidNameError(f"{quoted(text)} is not a name that a file can have")
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


def _after_scheme(text: str) -> str:
    scheme, colon, rest = text.partition(":")
    scheme = scheme.lower()
    if scheme == "sha1" and rest.startswith("//"):
        return rest[2:]
    if colon and scheme in FAMILY_SCHEMES and (rest.startswith("//") or scheme == "kachery"):
        slashes = "" if scheme == "kachery" else "//"
        raise UnknownSchemeError(
            f"this version does not read {scheme}:{slashes} URIs", hint=FAMILY_SCHEMES[scheme]
        )
    if rest.startswith("//") and scheme and not set(scheme) - PLAIN_CHARS:
        raise UnknownSchemeError(
            f"no kachery package reads URIs like {quoted(text)}", hint=STORE_HINT
        )
    raise UriError(f"{quoted(text)} is not a URI", hint=_hint_for(text))


def _hint_for(text: str) -> str:
    try:
        return f"did you mean sha1://{ContentHash.parse(text.removeprefix('sha1:').strip('/'))}"
    except UriError:
        return STORE_HINT


def _query_keys(query: str) -> dict[str, str]:
    keys: dict[str, str] = {}
    for part in query.split("&"):
        key, _, value = part.partition("=")
        # Two roots would let two readers of one URI check against different ones.
        if keys.setdefault(key, value) != value and key in ("root", "manifest"):
            raise UriError(f"the URI gives two different values for {key}")
    return keys


def _decoded_name(text: str) -> str | None:
    if "%" in text:
        from urllib.parse import unquote

        try:
            text = unquote(text, errors="strict")
        except UnicodeDecodeError:
            raise InvalidNameError(f"the name {quoted(text)} is not UTF-8 text") from None
    return check_label(text) if text else None


def _encoded_name(name: str) -> str:
    if PLAIN_CHARS.issuperset(name):
        return name
    from urllib.parse import quote

    return quote(name, safe="")
