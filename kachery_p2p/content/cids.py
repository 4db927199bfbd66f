"""The IPFS name of a content, as `ipfs add --cid-version=1` gives it: for the first kachery-cloud.

A content of one block of 256 KiB is named by the SHA-256 of its bytes (codec "raw"). A
larger one is cut into such blocks, and named by a tree over them: each node lists up
to 174 children with their sizes and is itself named by its SHA-256 (codec "dag-pb"),
level by level until one node is left ("balanced" layout).

    CIDv1     01 ‖ codec ‖ 12 20 ‖ SHA-256, in base32 with "b" in front
    node      { Links = 2: { Hash = 1: cid, Name = 2: "", Tsize = 3: bytes below }... , Data = 1 }
    Data      { Type = 1: 2 (a file), filesize = 3, blocksizes = 4 ... }    UnixFS

Both are protocol buffers, written in one order of fields. Sources: multiformats' CID
specification, IPLD's DAG-PB specification, and UnixFS of ipfs/specs. Pure.
"""

from __future__ import annotations

from hashlib import sha256
from typing import NamedTuple

from kachery_p2p.content.hashes import CID_DAG_PB, CID_RAW, Cid

BLOCK_BYTES = 262_144
CHILDREN_MAX = 174

_FILE = 2
_VARINT = 0
_BYTES = 2


class _Node(NamedTuple):
    """A block or a node over some: its CID in binary, and the bytes of content and of all nodes."""

    cid: bytes
    content_bytes: int
    total_bytes: int


class CidBuilder:
    """The CID of a content that is told piece by piece. Its memory grows with log(size)."""

    def __init__(self) -> None:
        self._rest = bytearray()
        # For each level of the tree, the nodes that have no parent yet; blocks come first.
        self._levels: list[list[_Node]] = [[]]

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Go on with `data`."""
        view = memoryview(data)
        while len(self._rest) + len(view) > BLOCK_BYTES:
            taken = BLOCK_BYTES - len(self._rest)
            self._rest += view[:taken]
            view = view[taken:]
            self._add(0, _block(self._rest))
            self._rest.clear()
        self._rest += view

    def cid(self) -> Cid:
        """The CID of all that was told. Nothing may be told afterwards."""
        if self._rest or not self._levels[0]:
            self._add(0, _block(self._rest))
        *lower, top = self._levels
        carried: list[_Node] = []
        for level in lower:
            # An only child has a parent too: all blocks are equally far from the top.
            carried = [_parent(level + carried)]
        children = top + carried
        return _name((_parent(children) if len(children) > 1 else children[0]).cid)

    def _add(self, level: int, node: _Node) -> None:
        """Add a node; a full level gets its parent when the next node needs the place."""
        if len(self._levels) == level:
            self._levels.append([])
        nodes = self._levels[level]
        if len(nodes) == CHILDREN_MAX:
            full = _parent(nodes)
            nodes.clear()
            self._add(level + 1, full)
        nodes.append(node)


def cid_of(data: bytes | bytearray | memoryview) -> Cid:
    """The CID of bytes that are in memory."""
    builder = CidBuilder()
    builder.update(data)
    return builder.cid()


def _block(data: bytes | bytearray) -> _Node:
    return _Node(CID_RAW + sha256(data).digest(), len(data), len(data))


def _parent(children: list[_Node]) -> _Node:
    links = b"".join(_field(2, _BYTES, _link(child)) for child in children)
    content_bytes = sum(child.content_bytes for child in children)
    data = _field(1, _VARINT, _FILE) + _field(3, _VARINT, content_bytes)
    data += b"".join(_field(4, _VARINT, child.content_bytes) for child in children)
    encoded = links + _field(1, _BYTES, data)
    total_bytes = len(encoded) + sum(child.total_bytes for child in children)
    return _Node(CID_DAG_PB + sha256(encoded).digest(), content_bytes, total_bytes)


def _link(child: _Node) -> bytes:
    name = _field(2, _BYTES, b"")  # written though it is empty
    return _field(1, _BYTES, child.cid) + name + _field(3, _VARINT, child.total_bytes)


def _field(number: int, kind: int, value: int | bytes) -> bytes:
    tag = bytes((number << 3 | kind,))
    if isinstance(value, int):
        return tag + _varint(value)
    return tag + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(0x80 | value & 0x7F)
        value >>= 7
    found.append(value)
    return bytes(found)


def _name(cid: bytes) -> Cid:
    import base64

    return Cid("b" + base64.b32encode(cid).decode().rstrip("=").lower())
