"""Every URI that a kachery package ever wrote, as what it names.

    sha1://H/name  kachery:ZONE:sha1:H:name    one content: `Uri`, `ZoneUri` (see `uris`)
    md5://H/name                               kachery, with `algorithm='md5'`
    sha1dir://H.label/path/inside              kachery, directories (see `directories`)
    ipfs://CID                                 the first kachery-cloud
    feed://ID/name  feed://ID/~HASH            kachery-p2p and kachery-client
    sha1-enc://CODE.ag_GROUP                   encrypted for an access group; kachery-cloud,
                                               by its server; this package, by a key
    gh://owner/repo/branch/path  https://...   kachery-cloud and kachery 2, files elsewhere

Whoever needs the bytes of one content calls `parse_uri`, which refuses the others with
a sentence; `parse_any` is for whoever can do something with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kachery_p2p.content.hashes import Cid, ContentHash, FeedId, Md5, quoted
from kachery_p2p.content.uris import (
    COPY_HINT,
    PLAIN_CHARS,
    Uri,
    ZoneUri,
    check_label,
    decoded,
    encoded,
    format_uri,
    format_zone_uri,
    last_name,
    read_uri,
    read_zone_uri,
    split_query,
    split_scheme,
    wrong_scheme,
)
from kachery_p2p.errors import InvalidNameError, UriError

if TYPE_CHECKING:
    from collections.abc import Callable

# What base64 and hex are written with; the codes of sha1-enc are one of them.
CODE_CHARS = PLAIN_CHARS | frozenset("+=:") - {"."}


class Md5Uri(NamedTuple):
    """`md5://H/name`: a content by its MD5, which vouches for nothing any more."""

    md5: Md5
    name: str | None = None


class DirectoryUri(NamedTuple):
    """`sha1dir://H.label/path/inside`: a snapshot of a directory, or what is at a path inside it.

    `content` is the directory's list (see `directories`), itself stored like a file.
    """

    content: ContentHash
    label: str | None = None
    path: tuple[str, ...] = ()


class IpfsUri(NamedTuple):
    """`ipfs://CID`: a content by its IPFS name."""

    cid: Cid
    name: str | None = None


class FeedUri(NamedTuple):
    """`feed://ID`, `feed://ID/name` or `feed://ID/~HASH`: a feed, or one of its subfeeds."""

    feed: FeedId
    # A subfeed's name can be any text. "~" and 40 hex characters stand for a name that is not told.
    subfeed: str | None = None

    @property
    def subfeed_hash(self) -> ContentHash | None:
        """What the older packages know the subfeed by: the SHA-1 of its name; None for a feed."""
        if self.subfeed is None:
            return None
        if self.subfeed.startswith("~"):
            return ContentHash(self.subfeed[1:])
        from kachery_p2p.content.hashes import sha1_of

        return sha1_of(self.subfeed.encode())


class EncryptedUri(NamedTuple):
    """`sha1-enc://CODE.ag_GROUP`: a URI that only the members of a group can read.

    Encrypted by a server of kachery-cloud, or by this package (`client.encrypted_uris`).
    """

    code: str
    group: str
    name: str | None = None


class GithubUri(NamedTuple):
    """`gh://owner/repo/branch/path`: a file as it is now on GitHub; no hash vouches for it."""

    owner: str
    repo: str
    branch: str
    path: tuple[str, ...]


class WebUri(NamedTuple):
    """`http://...` or `https://...`: whatever a web server answers; no hash vouches for it."""

    url: str


AnyUri = (
    Uri | ZoneUri | Md5Uri | DirectoryUri | IpfsUri | FeedUri | EncryptedUri | GithubUri | WebUri
)


def parse_any(text: str) -> AnyUri:
    """What `text` names; `UriError` if nothing, `UnknownSchemeError` if only others can read it."""
    scheme, rest = split_scheme(text)
    if scheme in ("http", "https"):
        return _web(scheme, rest)
    read = READERS.get(scheme)
    if read is None:
        raise wrong_scheme(scheme)
    return read(rest)


def format_any(uri: AnyUri) -> str:
    """How we write `uri`; `parse_any` reads it back as it was."""
    match uri:
        case Uri():
            return format_uri(uri)
        case ZoneUri():
            return format_zone_uri(uri)
        case Md5Uri(md5, name):
            return f"md5://{md5}{_path((name,))}"
        case DirectoryUri(content, label, path):
            dotted = f".{encoded(check_label(label))}" if label is not None else ""
            return f"sha1dir://{content}{dotted}{_path(path)}"
        case IpfsUri(cid, name):
            return f"ipfs://{cid}{_path((name,))}"
        case FeedUri(feed, subfeed):
            return f"feed://{feed}" + (f"/{encoded(subfeed)}" if subfeed is not None else "")
        case EncryptedUri(code, group, name):
            label = f"?label={encoded(check_label(name))}" if name is not None else ""
            return f"sha1-enc://{code}.ag_{encoded(check_label(group))}{label}"
        case GithubUri(owner, repo, branch, path):
            return "gh:/" + _path((owner, repo, branch, *path))
        case WebUri(url):
            return url


def _path(names: tuple[str | None, ...]) -> str:
    return "".join(f"/{encoded(check_label(name))}" for name in names if name is not None)


def _names(path: str) -> tuple[str, ...]:
    """The names of a path; an empty one (a slash too many) is none."""
    return tuple(check_label(decoded(part)) for part in path.split("/") if part)


# --- one reader for each scheme, after its slashes ----------------------------------------


def _md5(text: str) -> Md5Uri:
    location, keys = split_query(text)
    hash_text, _, path = location.partition("/")
    return Md5Uri(Md5.parse(hash_text), last_name(path or keys.get("label", "")))


def _directory(text: str) -> DirectoryUri:
    location, _ = split_query(text)
    head, _, path = location.partition("/")
    hash_text, _, label = head.partition(".")
    content = ContentHash.parse(hash_text)
    return DirectoryUri(content, check_label(decoded(label)) if label else None, _names(path))


def _ipfs(text: str) -> IpfsUri:
    location, keys = split_query(text)
    cid, _, path = location.partition("/")
    return IpfsUri(Cid.parse(cid), last_name(path or keys.get("label", "")))


def _feed(text: str) -> FeedUri:
    location, _ = split_query(text)
    feed, _, path = location.partition("/")
    subfeed = decoded(path)
    if subfeed.startswith("~"):
        subfeed = "~" + ContentHash.parse(subfeed[1:])
    if any("\ud800" <= char <= "\udfff" for char in subfeed):  # how Python spells a stray byte
        raise InvalidNameError(f"the subfeed name {quoted(subfeed)} is not Unicode text")
    return FeedUri(FeedId.parse(feed), subfeed or None)


def _encrypted(text: str) -> EncryptedUri:
    location, keys = split_query(text)
    head, _, path = location.partition("/")
    code, _, group = head.partition(".ag_")
    group = group or keys.get("ag", "")  # as the first version wrote it
    if not code or not CODE_CHARS.issuperset(code) or not group:
        raise UriError("the URI is not of the form sha1-enc://CODE.ag_GROUP", hint=COPY_HINT)
    name = last_name(path or keys.get("label", ""))
    return EncryptedUri(code, check_label(decoded(group)), name)


def _github(text: str) -> GithubUri:
    location, _ = split_query(text)
    names = _names(location)
    if len(names) < 4:
        raise UriError("the URI is not of the form gh://OWNER/REPO/BRANCH/FILE", hint=COPY_HINT)
    return GithubUri(names[0], names[1], names[2], names[3:])


def _web(scheme: str, text: str) -> WebUri:
    host = text.partition("/")[0].partition("?")[0].partition("#")[0]
    if not host or any(char.isspace() or not char.isprintable() for char in text):
        raise UriError(f"{quoted(f'{scheme}://{text}')} is not the address of a page")
    return WebUri(f"{scheme}://{text}")


READERS: dict[str, Callable[[str], AnyUri]] = {
    "sha1": read_uri,
    "kachery": read_zone_uri,
    "md5": _md5,
    "sha1dir": _directory,
    "ipfs": _ipfs,
    "feed": _feed,
    "sha1-enc": _encrypted,
    "gh": _github,
}
