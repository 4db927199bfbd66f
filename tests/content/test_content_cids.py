"""CIDs are those that `ipfs add --cid-version=1` gives.

The vectors were made with the npm package ipfs-unixfs-importer 15.4.0 (fixed blocks of 262,144
bytes, raw leaves, balanced layout of 174 children, CID version 1); `make compat-live` makes
them again. The contents are the bytes 0, 1, ... 250, 0, 1, ... of the given length.
"""

from __future__ import annotations

import pytest

from kachery_p2p.content.cids import BLOCK_BYTES, CidBuilder, cid_of
from kachery_p2p.content.hashes import Cid

VECTORS = {
    0: "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
    1: "bafkreidogqfzz75tpkmjzjke425xqcrmpcib2p5tg44hnbirumdbpl5adu",
    13: "bafkreieg5ouupvimfqavod7bxnokkuuvrwv33o2zwbsx6dzg4ip7aepfy4",
    262143: "bafkreiagptg6ztonoojy4wflk3wwusl5xt4vcy6uult4wa7oemsjtxhjsu",
    262144: "bafkreibruh455iawsviqslif5c7uurdcfdemh22mtnytyzvnzn75kpejxy",
    262145: "bafybeiexg2oqkfnj56l7fcmawswqbijt5shq4b5rg6a546uwpkqqzwjioi",
    524288: "bafybeihjlsmgtdumwxouubhh32wpo5k73zuptoz5bcxxcx3tflxmhyct2a",
    524365: "bafybeihknnbh2nuhxd4ovkocqpx7pmeyns43nzywepglbaufyd6xygvdxq",
    45350917: "bafybeigjbshfw72fufwub2nw4sulsktt6oc2cu4j4ifj3s5mkpx5jaai4m",
    45613056: "bafybeihpe5snhzneq7xs53nivmsopto5lrogo3wjynauqylqeym5a3irbm",
    45613057: "bafybeib4y7ghw2rq7bracc4xwtxrbzo7cfvagdpte2tmrkgwl6dyard3cm",
    45875200: "bafybeie73j3heycdgkdsehpoe6cxh2y3iywtf6djpi3dzqrywevvjmazny",
    91226115: "bafybeifslvg23eg3tt5zvpase3eabrgapoiwpygzmq4tbkkwrjndfkwnni",
}
# From the documentation of kachery-cloud.
DOCUMENTED = {
    b"test-content\n": "bafkreiajr6u7obg3mpunezz2mwarr2sptwr3zaedia665vdayvw6mpn5ga",
    b"example text": "bafkreiaossxdnwtp6a4zfjl73w67i4ulmcoq277g5maz7kprxg23kqgygu",
    b'{"example":"dict"}': "bafkreig3edwqihmsm2o7kts6v4cpvtfs66olgonclogykndsu4v7ordox4",
}
CYCLE = bytes(range(251))


@pytest.mark.parametrize("size", VECTORS)
def test_a_content_has_the_cid_that_ipfs_gives_it(size: int) -> None:
    assert _built(size, 1_000_003) == VECTORS[size]


@pytest.mark.parametrize("content", DOCUMENTED)
def test_the_cids_of_the_old_documentation_are_these(content: bytes) -> None:
    assert cid_of(content) == DOCUMENTED[content]


@pytest.mark.parametrize("piece", [1, 77, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1])
def test_the_pieces_in_which_a_content_comes_do_not_matter(piece: int) -> None:
    assert _built(524_365 if piece > 1 else 13, piece) == VECTORS[524_365 if piece > 1 else 13]


def test_a_cid_is_one_that_uris_may_hold() -> None:
    small, large = cid_of(b"x"), cid_of(bytes(BLOCK_BYTES + 1))
    assert Cid.parse(small) == small
    assert Cid.parse(large) == large
    assert large.sha256 is None


def _built(size: int, piece: int) -> Cid:
    builder = CidBuilder()
    content = memoryview(CYCLE * (size // len(CYCLE) + 1))[:size]
    for first in range(0, size, piece):
        builder.update(content[first : first + piece])
    return builder.cid()
