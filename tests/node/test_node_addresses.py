"""Whom a node dials first, from what it keeps on its disk."""

from __future__ import annotations

from pathlib import Path

from kachery_p2p.channels.channel import OWNED, generate_secret
from kachery_p2p.channels.channel_file import ChannelFile
from kachery_p2p.channels.files import _check_known, join_shared
from kachery_p2p.channels.joined import joined_one
from kachery_p2p.channels.owned import join_owned
from kachery_p2p.identity.keys import NodeId
from kachery_p2p.limits import PEERS_MAX
from kachery_p2p.network.discovery import AddressBook
from kachery_p2p.network.files import save_peers
from kachery_p2p.network.multiaddrs import address_of
from kachery_p2p.node.config import NodeConfig
from kachery_p2p.node.networking import _address_book
from kachery_p2p.node.node import _make_private, _prepare

INVITED, NAMED = (NodeId.of_raw(bytes([n]) * 32) for n in (1, 2))


def test_what_an_invite_told_is_no_wish_of_the_user_after_a_restart_either(tmp_path: Path) -> None:
    """`status` once reported who had invited, and was away, as a bootstrap node."""
    config = NodeConfig(str(tmp_path / "config"), str(tmp_path / "store"))
    _make_private(config.config_dir)
    invited, named, moved = (
        str(address_of(host, 20432, node))
        for host, node in [("192.0.2.1", INVITED), ("192.0.2.2", NAMED), ("192.0.2.3", INVITED)]
    )
    secret = bytes(20)
    join_owned(config.config_dir, "ab" * 32, secret, "field", now=1.0, bootstrap=[invited])
    join_shared(config.config_dir, "lab", generate_secret(secret), [named])
    parts, _ = _prepare(config, lambda line: None)
    book = _address_book(parts)
    assert {node for node, _ in book.due(0.0)} == {INVITED, NAMED}
    for node in (INVITED, NAMED):
        book.failed(node, 0.0, 1.0)
    assert book.unreached_by_user() == (NAMED,)
    book.add(INVITED, [moved], proved=True)
    assert book.addresses_of(INVITED) == (moved, invited), "and it stays"


def test_what_a_channel_file_names_of_an_owned_channel_is_the_users_wish(tmp_path: Path) -> None:
    config = NodeConfig(str(tmp_path / "config"), str(tmp_path / "store"), channels=("field",))
    _make_private(config.config_dir)
    invited, named = (
        str(address_of(host, 20432, node))
        for host, node in [("192.0.2.1", INVITED), ("192.0.2.2", NAMED)]
    )
    join_owned(config.config_dir, "ab" * 32, bytes(20), "field", now=1.0, bootstrap=[invited])
    known = joined_one(config.config_dir, "field")
    file = ChannelFile(path="", name="field", kind=OWNED, bootstrap=(named,))
    _check_known(config.config_dir, known, file, {})
    parts, _ = _prepare(NodeConfig(config.config_dir, config.storage_dir), lambda line: None)
    assert (parts.bootstrap, parts.invited_at) == ((named,), ())


def test_who_invited_has_a_place_in_a_book_full_of_members(tmp_path: Path) -> None:
    config = NodeConfig(str(tmp_path / "config"), str(tmp_path / "store"))
    _make_private(config.config_dir)
    invited = str(address_of("192.0.2.1", 20432, INVITED))
    join_owned(config.config_dir, "ab" * 32, bytes(20), "field", now=1.0, bootstrap=[invited])
    full = AddressBook(NodeId.of_raw(bytes(32)))
    for number in range(PEERS_MAX):
        node = NodeId.of_raw(number.to_bytes(32, "big"))
        full.add(node, [str(address_of("192.0.2.9", 20432, node))], proved=True)
    parts, _ = _prepare(config, lambda line: None)
    save_peers(config.peers_path, full.known())
    assert _address_book(parts).addresses_of(INVITED) == (invited,)
