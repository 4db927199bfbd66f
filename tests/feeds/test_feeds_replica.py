"""What a node believes of a subfeed: heads, forks, tombstones, and lies about them."""

from __future__ import annotations

import pytest

from kachery_p2p.errors import HeadError, ProofError
from kachery_p2p.feeds.replica import Replica, Standing, UnprovableError
from kachery_p2p.feeds.told import Told
from kachery_p2p.feeds.tombstones import Tombstone
from kachery_p2p.identity.keys import NODE_KEY_BYTES, NodeKey
from kachery_p2p.limits import FEED_ANSWER_BYTES
from kachery_p2p.log.heads import LogId, SignedHead
from kachery_p2p.log.proofs import prove_consistency
from tests.feeds.feed_parts import KEY, LOG, MemoryLog, messages


def owner(count: int = 0, what: str = "m") -> Replica:
    log = MemoryLog(key=KEY)
    if count:
        log.append(messages(count, what=what))
    return Replica(log)


def memory(replica: Replica) -> MemoryLog:
    assert isinstance(replica.log, MemoryLog)
    return replica.log


def nobody(place: int) -> bytes:
    raise UnprovableError("nobody")


def told_by(teller: Replica, hearer: Replica) -> Told:
    return teller.tell(hearer.best)


def fetch(hearer: Replica, teller: Replica) -> None:
    """What a catch-up does, from one source."""
    judges = hearer.judges if hearer.log.fork else (teller.shown,)
    while hearer.is_behind:
        first = hearer.log.size
        for judge in judges:
            if judge is None or not first < judge.size <= teller.log.size:
                continue
            count = min(hearer.size, judge.size) - first
            entries = teller.log.entries(first, count, FEED_ANSWER_BYTES)
            end = first + len(entries)
            path = prove_consistency(end, judge.size, teller.log.read_hash)
            try:
                frontier, stored = hearer.grown(hearer.log.frontier(), entries, path, judge)
            except ProofError:
                continue
            hearer.keep(entries, frontier, stored)
            break
        else:
            return


def meet(hearer: Replica, teller: Replica) -> Standing:
    """`hearer` asks `teller`; what is in doubt is proved, what is missing is fetched."""
    heard = hearer.hear(told_by(teller, hearer))
    if heard.standing is Standing.DOUBT:
        assert teller.shown is not None
        try:
            hearer.prove(teller.shown, teller.log.read_hash, nobody)
        except UnprovableError:
            assert hearer.log.fork is not None
    if heard.standing in (Standing.AGREES, Standing.FORKED, Standing.DOUBT):
        fetch(hearer, teller)
    return heard.standing


def reader_of(*tellers: Replica) -> Replica:
    reader = Replica(MemoryLog())
    for teller in tellers:
        meet(reader, teller)
    return reader


# --- growing ------------------------------------------------------------------------------------


def test_a_late_reader_gets_everything() -> None:
    reader = reader_of(owner(1_000))
    assert memory(reader).kept == messages(1_000)
    assert reader.shown == reader.best


def test_news_with_their_entries_need_no_question() -> None:
    author = owner(10)
    reader = reader_of(author)
    memory(author).append(messages(3, first=10))
    heard = reader.hear(author.tell_news(10))
    assert heard == (Standing.AGREES, True, 10, messages(3, first=10))
    assert memory(reader).kept == messages(13)


def test_news_that_were_heard_in_part_already_are_taken_from_there_on() -> None:
    author = owner(10)
    reader = reader_of(author)
    memory(author).append(messages(3, first=10))
    news = author.tell_news(5)
    assert reader.hear(news).standing is Standing.AGREES
    assert memory(reader).kept == messages(13)


def test_the_head_is_durable_before_the_entries_are_there() -> None:
    author = owner(10)
    reader = reader_of(author)
    memory(author).append(messages(100_000 // 100, first=10))
    reader.hear(told_by(author, reader))
    again = Replica(memory(reader))
    assert again.best == author.best
    assert again.is_behind
    assert again.readable == 10


def test_a_reader_never_goes_back_to_an_older_head_after_a_restart() -> None:
    author = owner(10)
    old = author.tell(None)
    memory(author).append(messages(10, first=10))
    reader = Replica(memory(reader_of(author)))
    assert reader.hear(old).standing is Standing.AGREES
    assert reader.best == author.best


def test_a_path_from_another_head_is_not_held_against_who_told_it() -> None:
    author = owner(10)
    reader = reader_of(author)
    stale = author.tell(reader.best)
    memory(author).append(messages(10, first=10))
    news = author.tell_news(10)
    memory(author).append(messages(10, first=20))
    later = author.tell_news(20)._replace(entries=())
    assert reader.hear(later).standing is Standing.UNKNOWN
    assert reader.hear(news).standing is Standing.AGREES
    assert reader.hear(stale).standing is Standing.AGREES


def test_a_copy_that_lacks_entries_shows_its_last_whole_head_and_how_it_goes_on() -> None:
    author = owner(10)
    copy = reader_of(author)
    memory(author).append(messages(2_000, first=10))
    copy.hear(told_by(author, copy))
    assert copy.is_behind
    reader = Replica(MemoryLog())
    reader.hear(author.tell(None))
    told = copy.tell(reader.best)
    assert told.head is not None
    assert told.head.size == 10
    assert reader.hear(told).standing is Standing.AGREES


# --- lies -----------------------------------------------------------------------------------------


def head_by(key: NodeKey, log: LogId = LOG) -> SignedHead:
    other = MemoryLog(log._replace(owner=key.node_id), key)
    other.append(messages(20))
    assert other.signed is not None
    return other.signed


def test_a_head_that_the_owner_did_not_sign_is_a_lie() -> None:
    reader = reader_of(owner(10))
    thief = head_by(NodeKey.generate(bytes([5]) * NODE_KEY_BYTES))
    with pytest.raises(HeadError):
        reader.hear(Told(thief))
    forged = thief._replace(head=thief.head._replace(log=LOG))
    with pytest.raises(HeadError):
        reader.hear(Told(forged))
    assert reader.size == 10


def test_a_wrong_path_is_a_lie_that_its_teller_cannot_prove_a_fork_with() -> None:
    author = owner(10)
    reader = reader_of(author)
    memory(author).append(messages(10, first=10))
    told = told_by(author, reader)
    wrong = told._replace(path=(*told.path[:-1], bytes(32)))
    assert reader.hear(wrong).standing is Standing.DOUBT
    assert told.head is not None
    with pytest.raises(ProofError):
        reader.prove(told.head, author.log.read_hash, nobody)
    with pytest.raises(ProofError):
        reader.prove(told.head, lambda place: bytes([place % 251]) * 32, nobody)
    assert reader.log.fork is None
    assert reader.hear(told).standing is Standing.AGREES


def test_entries_that_were_not_signed_are_found_out_before_they_are_kept() -> None:
    author = owner(10)
    reader = Replica(MemoryLog())
    reader.hear(told_by(author, reader))
    assert author.shown is not None
    for wrong in (messages(10, what="x"), messages(9), [*messages(9), b""], messages(11)):
        with pytest.raises(ProofError):
            reader.grown(reader.log.frontier(), wrong, (), author.shown)
    assert memory(reader).kept == []


def test_news_with_entries_that_do_not_fit_are_not_taken() -> None:
    author = owner(10)
    reader = reader_of(author)
    memory(author).append(messages(2, first=10))
    news = author.tell_news(10)._replace(entries=messages(2, first=20))
    assert reader.hear(news).standing is Standing.UNKNOWN
    assert reader.readable == reader.size == 10


def test_news_that_prove_themselves_are_no_lie_to_who_lacks_the_entries_before() -> None:
    author = owner(10)
    reader = Replica(MemoryLog())
    reader.hear(told_by(author, reader))
    memory(author).append(messages(2, first=10))
    news = author.tell_news(10)
    assert news.entries
    assert not news.path
    assert reader.hear(news).standing is Standing.UNKNOWN


# --- forks ----------------------------------------------------------------------------------------


def forked(common: int, one: int, other: int) -> tuple[Replica, Replica]:
    """Two writers with one key that have `common` entries in common and go on apart."""
    first = MemoryLog(key=KEY)
    if common:
        first.append(messages(common))
    second = first.cloned()
    second.restored = False
    first.append(messages(one, common, "one"))
    second.append(messages(other, common, "other"))
    return Replica(first), Replica(second)


SHAPES = [(0, 1, 1), (0, 5, 9), (7, 1, 1), (7, 3, 3), (7, 3, 9), (8, 1, 100), (41, 100, 1)]


@pytest.mark.parametrize("common, one, other", SHAPES)
def test_whoever_hears_both_histories_keeps_a_proof_and_freezes_where_they_part(
    common: int, one: int, other: int
) -> None:
    left, right = forked(common, one, other)
    for first, second in ((left, right), (right, left)):
        reader = reader_of(first, second)
        fork = reader.log.fork
        assert fork is not None
        fork.verify(LOG)
        assert len(fork.encode()) <= 2_048
        assert reader.readable == reader.size == common
        assert memory(reader).kept[:common] == messages(common)


@pytest.mark.parametrize("common, one, other", SHAPES)
def test_a_proof_passed_on_convinces_whoever_has_heard_only_one_side(
    common: int, one: int, other: int
) -> None:
    left, right = forked(common, one, other)
    witness, innocent = reader_of(left, right), reader_of(left)
    assert meet(innocent, witness) in (Standing.FORKED, Standing.DOUBT, Standing.AGREES)
    assert innocent.log.fork is not None
    assert innocent.readable == common


@pytest.mark.parametrize("common, one, other", SHAPES)
@pytest.mark.parametrize("side", [0, 1])
def test_a_newcomer_reads_the_common_part_from_either_side(
    common: int, one: int, other: int, side: int
) -> None:
    writers = forked(common, one, other)
    witness = reader_of(*writers)
    newcomer = Replica(MemoryLog())
    newcomer.hear(Told(fork=witness.log.fork))
    meet(newcomer, writers[side])
    assert memory(newcomer).kept == messages(common)


def test_an_owner_that_hears_of_the_other_history_keeps_the_proof_too() -> None:
    left, right = forked(7, 3, 5)
    meet(left, right)
    assert left.log.fork is not None
    assert left.limit == 7


def test_a_reader_that_lacks_entries_asks_for_the_hashes_of_its_side() -> None:
    left, right = forked(7, 3_000, 2_000)
    reader = Replica(MemoryLog())
    reader.hear(told_by(left, reader))
    assert reader.is_behind
    assert reader.hear(told_by(right, reader)).standing in (Standing.UNKNOWN, Standing.DOUBT)
    assert right.shown is not None
    with pytest.raises(UnprovableError):
        reader.prove(right.shown, right.log.read_hash, nobody)
    assert reader.prove(right.shown, right.log.read_hash, left.log.read_hash)
    assert reader.limit == 7


def test_wrong_hashes_of_our_side_accuse_nobody() -> None:
    left, right = forked(7, 3_000, 2_000)
    reader = Replica(MemoryLog())
    reader.hear(told_by(left, reader))
    assert right.shown is not None
    with pytest.raises(UnprovableError):
        reader.prove(right.shown, right.log.read_hash, lambda place: bytes(32))
    assert reader.log.fork is None


# --- restored writers and tombstones ------------------------------------------------------------


def test_a_restored_writer_is_confirmed_by_whoever_has_as_much_and_by_nobody_else() -> None:
    author = owner(10)
    behind = reader_of(author)
    memory(author).append(messages(5, first=10))
    equal = reader_of(author)
    restored = Replica(memory(author).cloned())
    meet(restored, behind)
    assert restored.log.restored
    meet(restored, equal)
    assert not restored.log.restored


def test_a_restored_writer_catches_up_with_what_it_had_signed_before_it_may_sign() -> None:
    author = owner(10)
    backup = memory(author).cloned()
    memory(author).append(messages(5, first=10))
    copy = reader_of(author)
    restored = Replica(backup)
    assert restored.hear(told_by(copy, restored)).standing is Standing.AGREES
    assert restored.is_behind
    assert restored.log.restored
    fetch(restored, copy)
    backup.append(messages(1, first=15))
    assert meet(copy, restored) is Standing.AGREES
    assert memory(copy).kept == messages(16)


def ended(replica: Replica, size: int, time_ms: int = 5) -> Tombstone:
    root = replica.log.root_at(size)
    return Tombstone(LOG, size, root, None, time_ms).signed(KEY)


def test_a_tombstone_is_passed_on_and_nothing_behind_it_is_read() -> None:
    author = owner(10)
    reader, late = reader_of(author), Replica(MemoryLog())
    author.log.end(ended(author, 8))
    assert reader.hear(told_by(author, reader)).news
    meet(late, reader)
    assert reader.readable == late.readable == 8
    assert late.tombstones == author.tombstones


def test_a_tombstone_of_another_history_is_nobodys_lie() -> None:
    left, right = forked(7, 3, 5)
    reader = reader_of(left)
    told = told_by(right, reader)._replace(tombstones=(ended(right, 9),))
    assert reader.hear(told).standing is Standing.DOUBT
    assert reader.tombstones == ()


def test_a_tombstone_that_the_owner_did_not_sign_is_a_lie() -> None:
    reader = reader_of(owner(10))
    forged = ended(owner(10), 3)._replace(size=2)
    with pytest.raises(HeadError):
        reader.hear(Told(tombstones=(forged,)))
