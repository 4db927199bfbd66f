"""How far a transfer is: told what happens, on a clock that the tests turn."""

from __future__ import annotations

import os
from typing import Any

import pytest
import trio

from kachery_p2p.errors import (
    PeerGoneError,
    PeerRefusedError,
    PeerTimeoutError,
    ProtocolError,
    VerificationError,
)
from kachery_p2p.limits import (
    CHUNK_BYTES,
    GIVEN_TOLD_S,
    PROGRESS_LATE_S,
    PROGRESS_SOURCES_MAX,
    PROGRESS_TOLD_PER_S_MAX,
    PROGRESS_TOLD_S,
)
from kachery_p2p.network.simulated_wire import Path as NetworkPath
from kachery_p2p.transfer.given import Given
from kachery_p2p.transfer.progress import (
    ASKING,
    FETCHING,
    FINISHING,
    HASHING,
    LATE,
    LEFT,
    LIED,
    SERVING,
    STALLED,
    Listeners,
    Snapshot,
    TransferProgress,
    View,
    state_after,
)
from kachery_p2p.transfer.schedule import ChunkSchedule

MIB = CHUNK_BYTES


def fetching(*nodes: str, size: int = 100 * MIB, now: float = 0.0) -> TransferProgress:
    """A transfer of 100 MiB with these sources at work."""
    made = TransferProgress()
    made.size = size
    made.entered(FETCHING)
    for node in nodes:
        made.joined(node, f"label of {node}", "channel", now)
    return made


def deliver(made: TransferProgress, node: str, chunks: int, start: float, each_s: float) -> float:
    """`chunks` chunks come from `node`; when the last of them has."""
    for number in range(1, chunks + 1):
        made.came(node, MIB, start + number * each_s, needed=True)
    return start + chunks * each_s


def test_at_first_it_asks_and_knows_nothing() -> None:
    assert TransferProgress().snapshot(5.0) == Snapshot(ASKING)


def test_a_steady_source_has_the_rate_and_the_time_left_that_it_should() -> None:
    made = fetching("a")
    now = deliver(made, "a", 50, 0.0, 0.1)
    shown = made.snapshot(now)
    assert (shown.bytes, shown.size) == (50 * MIB, 100 * MIB)
    assert shown.rate == pytest.approx(10 * MIB)
    assert shown.eta_s == pytest.approx(5.0)
    assert shown.waiting_for is None


def test_the_rate_is_of_all_and_each_source_has_its_own() -> None:
    made, now = fetching("fast", "slow"), 0.0
    for _ in range(20):
        now += 0.1
        made.came("fast", MIB, now, needed=True)
        made.came("fast", MIB, now, needed=True)
        made.came("slow", MIB, now, needed=True)
    rates = {one.node: one.rate for one in made.snapshot(now).sources}
    assert rates["fast"] == pytest.approx(20 * MIB) and rates["slow"] == pytest.approx(10 * MIB)
    assert made.snapshot(now).rate == pytest.approx(30 * MIB)


def test_what_an_earlier_run_left_counts_as_done_but_not_as_fast() -> None:
    made = TransferProgress()
    made.size = 100 * MIB
    made.entered(HASHING)
    made.found(90 * MIB)
    assert made.snapshot(0.0).phase == HASHING
    made.entered(FETCHING)
    made.joined("a", "a", "channel", 0.0)
    shown = made.snapshot(deliver(made, "a", 5, 0.0, 1.0))
    assert (shown.bytes, shown.reused) == (95 * MIB, 90 * MIB)
    assert shown.rate == pytest.approx(MIB) and shown.eta_s == pytest.approx(5.0)


def test_what_came_twice_or_wrong_is_wasted_and_never_counted_as_done() -> None:
    made = fetching("a", "b")
    made.came("a", MIB, 1.0, needed=True)
    made.came("b", MIB, 1.1, needed=False)
    made.lost("b", MIB)
    shown = made.snapshot(2.0)
    assert (shown.bytes, shown.wasted) == (MIB, 2 * MIB)
    assert [(one.bytes, one.wasted) for one in shown.sources] == [(MIB, 0), (0, 2 * MIB)]


def test_a_silent_transfer_gets_slower_and_slower_and_says_what_it_waits_for() -> None:
    made = fetching("a", "b")
    now = deliver(made, "a", 10, 0.0, 0.1)
    made.came("b", MIB, now, needed=True)
    rates = [made.snapshot(now + passed).rate for passed in (0.0, 1.0, 5.0, 20.0)]
    assert rates == sorted(rates, reverse=True) and rates[-1] < rates[0] / 10
    assert made.snapshot(now + PROGRESS_LATE_S / 2).waiting_for is None
    late = made.snapshot(now + PROGRESS_LATE_S)
    assert [one.state for one in late.sources] == [LATE, LATE]
    assert late.waiting_for == "late sources"
    made.came("a", MIB, now + PROGRESS_LATE_S, needed=True)
    one_serves = made.snapshot(now + PROGRESS_LATE_S)
    assert [one.state for one in one_serves.sources] == [SERVING, LATE]
    assert one_serves.waiting_for is None
    for node in "ab":
        made.left(node)
    assert made.snapshot(now + 3).waiting_for == "a source"


def test_who_left_is_shown_with_what_it_brought_until_it_comes_back() -> None:
    made = fetching("a", "b")
    now = deliver(made, "a", 3, 0.0, 0.1)
    made.left("a")
    gone = made.snapshot(now).sources[0]
    assert (gone.state, gone.rate, gone.bytes) == (LEFT, 0.0, 3 * MIB)
    made.joined("a", "a", "channel", now)
    back = made.snapshot(now).sources[-1]
    assert (back.node, back.state, back.bytes) == ("a", SERVING, 3 * MIB)


@pytest.mark.parametrize(
    "error,state",
    [
        (PeerTimeoutError("sent nearly nothing"), STALLED),
        (VerificationError("wrong"), LIED),
        (ProtocolError("junk"), LIED),
        (PeerGoneError("gone"), LEFT),
        (PeerRefusedError("no"), LEFT),
    ],
)
def test_a_source_that_failed_shows_how(error: Exception, state: str) -> None:
    made = fetching("a")
    made.left("a", state_after(error))  # type: ignore[arg-type]
    made.left("a")
    assert made.snapshot(0.0).sources[0].state == state


def test_news_of_a_source_that_is_not_known_disturb_nothing() -> None:
    made = fetching("a")
    made.left("x", LIED)
    made.came("x", MIB, 1.0, needed=True)
    made.lost("x", MIB)
    shown = made.snapshot(1.0)
    assert (shown.bytes, shown.wasted, len(shown.sources)) == (MIB, MIB, 1)


def test_of_very_many_sources_those_at_work_are_told_and_the_sums_are_right() -> None:
    made = fetching("first")
    for number in range(3 * PROGRESS_SOURCES_MAX):
        node = f"n{number}"
        made.joined(node, node, "channel", float(number))
        made.came(node, MIB, float(number), needed=True)
        made.left(node)
    shown = made.snapshot(1000.0)
    assert len(shown.sources) == PROGRESS_SOURCES_MAX
    assert shown.bytes == 3 * PROGRESS_SOURCES_MAX * MIB
    assert shown.sources[0].node == "first", "it is still at work"


def test_a_time_that_nobody_can_tell_is_not_told() -> None:
    made = fetching("a", size=1 << 62)
    assert made.snapshot(0.0).eta_s is None
    made.came("a", 1, 1.0, needed=True)
    assert made.snapshot(100.0).eta_s is None
    made.size = 1
    assert made.snapshot(100.0).eta_s == 0.0


def test_whoever_waits_for_a_part_sees_how_far_the_part_is() -> None:
    made = fetching("a")
    shown = made.snapshot(deliver(made, "a", 10, 0.0, 1.0)).of_part(MIB, 3 * MIB)
    assert (shown.bytes, shown.size) == (MIB, 3 * MIB)
    assert shown.eta_s == pytest.approx(2.0) and shown.rate == pytest.approx(MIB)


@pytest.mark.parametrize(
    "start,end,held",
    [
        (0, 4 * MIB, 2 * MIB),
        (0, 0, 0),
        (10, 10, 0),
        (5, MIB, MIB - 5),
        (MIB - 1, MIB + 1, 1),
        (3 * MIB - 1, 4 * MIB - 7, MIB - 7),
        (MIB, 3 * MIB, 0),
    ],
)
def test_the_bytes_of_a_range_that_are_held_are_counted_to_the_byte(
    start: int, end: int, held: int
) -> None:
    schedule = ChunkSchedule(4)
    schedule.hold(0)
    schedule.hold(3)
    assert schedule.held_bytes(start, end) == held


# --- who is told ------------------------------------------------------------------------------


class Told:
    def __init__(self) -> None:
        self.views: list[View] = []

    def __call__(self, view: View) -> None:
        self.views.append(view)


def view(now: float) -> Snapshot:
    return Snapshot(FETCHING)


def test_not_every_chunk_is_told_but_every_phase() -> None:
    listeners, told = Listeners(), Told()
    listeners.add(told, view)
    for chunk in range(1000):
        listeners.tell(chunk / 1000, FETCHING)
    assert len(told.views) == pytest.approx(1 / PROGRESS_TOLD_S, abs=1)
    listeners.tell(1.0, FINISHING)
    before = len(told.views)
    listeners.tell(1.001, HASHING)
    assert len(told.views) == before + 1


def test_who_joins_later_is_told_at_once_and_who_left_no_more() -> None:
    listeners, first, second = Listeners(), Told(), Told()
    one = listeners.add(first, view)
    assert first.views == [], "there is nothing to tell yet"
    listeners.tell(0.0, FETCHING)
    two = listeners.add(second, view)
    assert len(second.views) == 1
    listeners.remove(one)
    listeners.tell(9.0, FETCHING)
    assert (len(first.views), len(second.views)) == (1, 2)
    listeners.remove(two)
    listeners.tell(99.0, FETCHING)


def test_a_thousand_who_wait_are_told_seldom() -> None:
    listeners, told = Listeners(), Told()
    for _ in range(1000):
        listeners.add(told, view)
    for chunk in range(10_000):
        listeners.tell(chunk / 500, FETCHING)
    assert len(told.views) <= 20 * PROGRESS_TOLD_PER_S_MAX + 1000


# --- what is given ------------------------------------------------------------------------------


def test_who_is_given_something_is_told_with_its_rate_until_a_minute_has_passed() -> None:
    given, now = Given(), 0.0
    given.look({}, now)
    for second in range(2, 22, 2):
        now = float(second)
        given.look({"a": second * MIB, "b": MIB}, now)
    told = {one.node_id: one for one in given.to(now)}
    assert told["a"].bytes == 20 * MIB and told["a"].rate == pytest.approx(MIB)
    assert told["b"].bytes == MIB and told["b"].rate < MIB / 10
    given.look({"b": MIB}, 2.0 + GIVEN_TOLD_S)
    assert [one.node_id for one in given.to(2.0 + GIVEN_TOLD_S)] == ["a"]
    given.look({}, now + GIVEN_TOLD_S)
    assert given.to(now + GIVEN_TOLD_S) == []


def test_a_count_that_falls_is_a_new_connection_and_never_negative() -> None:
    given = Given()
    given.look({"a": 10 * MIB}, 0.0)
    given.look({"a": MIB}, 2.0)
    given.look({"a": 3 * MIB}, 4.0)
    assert [one.bytes for one in given.to(4.0)] == [12 * MIB]


# --- whole nodes ------------------------------------------------------------------------------


class Watch:
    """Looks each time that a load tells it to."""

    def __init__(self) -> None:
        self.seen: list[Snapshot] = []

    def __call__(self, view: View) -> None:
        self.seen.append(view(trio.current_time()))


async def test_a_load_shows_who_brought_what_and_ends_complete(lab: Any) -> None:
    alice, bob, carol = [await lab.node(label) for label in ("alice", "bob", "carol")]
    data = os.urandom(12 * MIB + 5)
    stored = alice.store(data)
    carol.store(data)
    await lab.together(alice, bob, carol)
    # Else one of them is enough.
    lab.world.set_all_paths(NetworkPath(bytes_per_s=20 * MIB))
    watch = Watch()
    await bob.downloads.load(stored.content, stored.root, watch)
    assert [one.phase for one in watch.seen][-1] == FINISHING
    last = watch.seen[-1]
    assert last.bytes == last.size == len(data)
    assert sum(one.bytes for one in last.sources) == len(data)
    assert {one.node for one in last.sources} == {alice.id, carol.id}
    assert all(one.name.startswith(("alice", "carol")) for one in last.sources)
    counts = [one.bytes for one in watch.seen]
    assert counts == sorted(counts)


async def test_what_is_resumed_is_shown_as_reused_and_hashed_first(lab: Any) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    stored = alice.store(os.urandom(10 * MIB))
    await lab.together(alice, bob)
    lab.world.set_path(alice.id, bob.id, NetworkPath(bytes_per_s=MIB), one_way=True)
    with trio.move_on_after(2.5):
        await bob.downloads.load(stored.content, stored.root, Watch())
    await trio.sleep(0.1)
    assert bob.downloads.active() == []
    lab.world.set_path(alice.id, bob.id, NetworkPath(), one_way=True)
    watch = Watch()
    await bob.downloads.load(stored.content, stored.root, watch)
    last = watch.seen[-1]
    assert watch.seen[0].phase == HASHING
    assert 0 < last.reused < 10 * MIB and last.bytes == 10 * MIB
    assert sum(one.bytes for one in last.sources) == 10 * MIB - last.reused


async def test_a_reader_of_a_range_sees_the_range_and_status_the_whole(lab: Any) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    stored = alice.store(os.urandom(10 * MIB))
    await lab.together(alice, bob)
    watch = Watch()
    start, end = 2 * MIB + 3, 4 * MIB + 1
    descriptor, _ = await bob.downloads.load_range(stored.content, stored.root, start, end, watch)
    os.close(descriptor)
    assert {one.size for one in watch.seen} == {end - start}
    (active,) = bob.downloads.active()
    assert (active.content, active.state.size) == (stored.content, 10 * MIB)
    assert active.state.bytes >= 3 * MIB


async def test_many_who_wait_for_one_transfer_see_one_and_the_same(lab: Any) -> None:
    alice, bob = await lab.node("alice"), await lab.node("bob")
    stored = alice.store(os.urandom(8 * MIB))
    await lab.together(alice, bob)
    watches = [Watch() for _ in range(5)]
    async with trio.open_nursery() as nursery:
        for watch in watches:
            nursery.start_soon(bob.downloads.load, stored.content, stored.root, watch)
    assert len({watch.seen[-1].sources for watch in watches}) == 1
    assert alice.server.bytes_served == 8 * MIB
    assert alice.server.served_to.get(bob.id, 8 * MIB) == 8 * MIB
