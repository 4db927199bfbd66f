"""URIs of kachery-client as objects."""

from __future__ import annotations

from kachery_p2p.errors import UriError


class KacheryUri:
    """The parts of a URI."""

    def __init__(self, *, algorithm: str, hash: str, filename: str) -> None:
        if algorithm.lower() != "sha1":
            raise UriError(f"the algorithm {algorithm[:64]!r} is not sha1")
        self.algorithm = algorithm
        self.hash = hash
        self.filename = filename

    def emit_uri(self) -> str:
        """The URI: `sha1://HASH/FILENAME`."""
        return f"{self.algorithm}://{self.hash}/{self.filename}"

    def __str__(self) -> str:
        return self.emit_uri()

    def __repr__(self) -> str:
        parts = f"algorithm={self.algorithm!r}, hash={self.hash!r}, filename={self.filename!r}"
        return f"KacheryUri({parts})"


def parse_uri(uri: str) -> KacheryUri:
    """The parts of a sha1:// URI. UriError if it is none."""
    from kachery_p2p.content.uris import parse_uri as parse

    found = parse(uri)
    return KacheryUri(algorithm="sha1", hash=str(found.content), filename=found.name or "")


def build_uri(uri_object: KacheryUri) -> str:
    """The URI of its parts."""
    return uri_object.emit_uri()
