"""Whose turn it is, and when something may go: decided on a clock that the tests hold."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from kachery_p2p.limits import (
    PACE_RATE_S,
    PEERS_MAX,
    RATE_BURST_S,
    TURN_S_MAX,
    URGENT_AHEAD_BYTES,
)
from kachery_p2p.network.pace_bucket import Meter, TokenBucket
from kachery_p2p.network.pace_turns import Turn, Turns

PIECE = 1000


class Line:
    """Peers that ask for the next turn as soon as the last one has ended."""

    def __init__(self, quantum: int = PIECE) -> None:
        self.turns = Turns(quantum)
        self.moved: Counter[str] = Counter()
        self.order: list[str] = []
        self.now = 0.0

    def ask(self, peer: str, byte_count: int = PIECE, *, urgent: bool = False) -> Turn:
        turn = Turn(peer, byte_count, urgent=urgent)
        self.turns.ask(turn)
        return turn

    def go(self) -> Turn:
        """The next turn, begun and ended."""
        turn = self.turns.next(self.now)
        assert turn is not None
        self.moved[turn.peer] += turn.byte_count
        self.order.append(turn.peer)
        self.turns.end(turn)
        return turn

    def run(self, steps: int) -> None:
        """Whoever had a turn asks for one like it."""
        for _ in range(steps):
            turn = self.go()
            self.ask(turn.peer, turn.byte_count, urgent=turn.urgent)


# --- fair -----------------------------------------------------------------------------------------


def test_a_peer_with_many_connections_gets_no_more_than_one_with_one() -> None:
    line = Line()
    for _ in range(18):
        line.ask("many")
    line.ask("one")
    line.run(1000)
    assert abs(line.moved["many"] - line.moved["one"]) <= PIECE


def test_peers_share_by_bytes_and_not_by_turns() -> None:
    line = Line()
    for _ in range(4):
        line.ask("large", PIECE)
        line.ask("small", PIECE // 10)
    line.run(2000)
    assert abs(line.moved["large"] - line.moved["small"]) <= 2 * PIECE


@pytest.mark.parametrize("seed", range(5))
def test_whoever_waits_all_the_time_gets_its_share_however_the_others_ask(seed: int) -> None:
    rng, line = random.Random(seed), Line()
    peers = [f"peer{number}" for number in range(10)]
    for peer in peers:
        for _ in range(rng.randrange(1, 6)):
            line.ask(peer, rng.randrange(1, PIECE + 1))
    line.run(5000)
    fewest, most = min(line.moved.values()), max(line.moved.values())
    assert len(line.moved) == 10
    assert most - fewest <= 3 * PIECE, f"seed {seed}: {line.moved}"


def test_who_comes_late_has_saved_up_nothing() -> None:
    line = Line()
    line.ask("early")
    line.run(1000)
    line.ask("late")
    line.order.clear()
    line.run(10)
    assert line.order.count("late") in (4, 5)


def test_a_decision_costs_the_same_with_many_peers_as_with_few() -> None:
    def steps(peers: int) -> int:
        line, count = Line(), 0
        for number in range(peers):
            line.ask(f"peer{number}")
        rotate = line.turns._round.rotate

        class Counted(type(line.turns._round)):  # type: ignore[misc]
            def rotate(self, n: int) -> None:
                nonlocal count
                count += 1
                super().rotate(n)

        line.turns._round = Counted(line.turns._round)
        assert rotate is not None
        line.run(3 * peers)
        return count // (3 * peers)

    assert steps(10) == steps(2000) <= 2


# --- one in hand ----------------------------------------------------------------------------------


def test_a_peer_has_one_turn_in_hand_and_others_do_not_wait_for_it() -> None:
    line = Line()
    first, second, other = line.ask("a"), line.ask("a"), line.ask("b")
    assert line.turns.next(0.0) is first
    assert line.turns.next(0.0) is other
    assert line.turns.next(0.0) is None
    line.turns.end(first)
    line.turns.end(first)
    assert line.turns.next(0.0) is second
    assert line.turns.waiting == 0


def test_a_turn_that_lasts_is_in_nobodys_way() -> None:
    line = Line()
    line.ask("a")
    second = line.ask("a")
    assert line.turns.wait_s(0.0) == math.inf
    line.turns.next(1.0)
    assert line.turns.wait_s(1.0) == TURN_S_MAX
    assert line.turns.next(1.0 + TURN_S_MAX / 2) is None
    assert line.turns.wait_s(1.0 + TURN_S_MAX / 2) == TURN_S_MAX / 2
    assert line.turns.next(1.0 + TURN_S_MAX) is second


def test_who_gives_up_waiting_is_passed_over() -> None:
    line = Line()
    first, second, third = line.ask("a"), line.ask("a"), line.ask("a", urgent=True)
    line.turns.end(first)
    line.turns.end(third)
    assert line.turns.waiting == 1
    assert line.turns.next(0.0) is second
    line.turns.end(second)
    assert line.turns.next(0.0) is None


def test_peers_that_are_gone_are_forgotten() -> None:
    line = Line()
    for number in range(5 * PEERS_MAX):
        line.ask(f"peer{number}")
        line.go()
    assert len(line.turns._peers) <= 2 * PEERS_MAX


# --- urgent ---------------------------------------------------------------------------------------


def test_an_urgent_turn_passes_those_of_its_own_peer_and_of_others() -> None:
    line = Line()
    for peer in ("a", "b", "c"):
        line.ask(peer)
    line.ask("a", urgent=True)
    assert line.go().urgent
    assert line.order == ["a"]


def test_who_calls_everything_urgent_gets_its_share_and_no_more() -> None:
    line = Line(quantum=1 << 20)
    line.ask("honest", 1 << 20)
    line.ask("pushy", 1 << 20, urgent=True)
    line.run(1000)
    assert line.order[:3] == ["pushy"] * 3
    assert line.moved["pushy"] - line.moved["honest"] <= URGENT_AHEAD_BYTES + (2 << 20)


def test_what_is_borrowed_is_paid_back_while_the_peer_does_not_ask() -> None:
    line = Line(quantum=1 << 20)
    line.ask("bulk", 1 << 20)
    line.ask("reader", 1 << 20, urgent=True)
    while line.go().peer == "reader":
        line.ask("reader", 1 << 20, urgent=True)
    assert line.moved["reader"] >= URGENT_AHEAD_BYTES
    line.go()
    line.ask("bulk", 1 << 20)
    line.run(20)
    line.order.clear()
    line.ask("reader", 1 << 20, urgent=True)
    assert line.go().peer == "reader"


def test_who_disturbs_nobody_borrows_nothing() -> None:
    line = Line(quantum=1 << 20)
    for _ in range(100):
        line.ask("reader", 1 << 20, urgent=True)
        line.go()
    line.ask("bulk", 1 << 20)
    line.ask("reader", 1 << 20, urgent=True)
    assert line.go().peer == "reader"


# --- how much -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [128 << 10, 1_000_000, 20_000_000, 1 << 30])
@pytest.mark.parametrize("late_s", [0.0, 0.004])
def test_a_limit_is_kept_within_5_percent_over_10_seconds(rate: int, late_s: float) -> None:
    """However late the thread wakes that was to go on, and whatever its pieces."""
    rng = random.Random(rate)
    piece = max(int(rate * 0.05), 16 << 10)
    bucket, now, moved = TokenBucket(rate), 100.0, 0
    while now < 110.0:
        wait_s = bucket.wait_s(now)
        if wait_s:
            now += wait_s + rng.random() * late_s
            continue
        byte_count = rng.randrange(1, piece + 1)
        bucket.take(byte_count, now)
        moved += byte_count
    assert abs(moved / (10 * rate) - 1) < 0.05


def test_a_pause_saves_up_no_more_than_a_moment() -> None:
    bucket = TokenBucket(1000)
    bucket.take(10, 0.0)
    bucket.take(1000, 500.0)
    assert bucket.wait_s(500.0) == pytest.approx(1.0 - RATE_BURST_S)
    assert bucket.wait_s(500.9) == 0
    # A clock that is read late by another thread does not run backwards.
    assert bucket.wait_s(400.0) == 0


def test_the_wait_that_is_told_is_enough() -> None:
    rng, bucket, now = random.Random(3), TokenBucket(7_777_777), 1e9
    for _ in range(10_000):
        bucket.take(rng.randrange(1 << 20), now)
        now += bucket.wait_s(now)
        assert bucket.wait_s(now) == 0


def test_a_meter_shows_the_rate_and_forgets() -> None:
    meter = Meter()
    assert meter.rate(0.0) == 0.0
    for tenth in range(200):
        meter.add(100, tenth / 10)
    assert meter.rate(19.9) == pytest.approx(1000, rel=0.05)
    assert meter.rate(19.9 + 10 * PACE_RATE_S) < 1
    assert meter.byte_count == 20_000
