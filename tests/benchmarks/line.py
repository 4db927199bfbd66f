"""A line between two network namespaces of this computer: slow and lossy, as told, in user space.

usage: line.py NAMESPACE NAMESPACE ONE_WAY_S LOSS [SEED] < PIPE    (as root)

Makes the two namespaces, in which 192.0.2.1 and 192.0.2.2 (RFC 5737) are a line apart, prints
`ready`, and carries packets until its standard input ends. Then everything is gone again. Of the
packets a part LOSS is lost, the rest arrives in order. Linux has netem for this, but not every
kernel is built with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

PLACES = ("192.0.2.1", "192.0.2.2")
TUN = "/dev/net/tun"
# Jumbo frames: what carries the packets is Python, and is not what is to be measured.
PACKET_BYTES_MAX = 9000
# What is on the line and waits for it; beyond it is lost, as on a router.
LINE_BYTES_MAX = 64 << 20
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x0001 | 0x1000
_BURST = 64
_START_S_MAX = 10.0


class Packet(NamedTuple):
    due: float
    to: int
    data: bytes


class Line:
    """What is under way between two ends, in order. Pure: told the time."""

    def __init__(self, one_way_s: float, loses: Callable[[], bool]) -> None:
        self._one_way_s = one_way_s
        self._loses = loses
        self._under_way: deque[Packet] = deque()
        self._bytes = 0

    def enter(self, data: bytes, to: int, now: float) -> None:
        if not self._loses() and self._bytes + len(data) <= LINE_BYTES_MAX:
            self._under_way.append(Packet(now + self._one_way_s, to, data))
            self._bytes += len(data)

    def arrived(self, now: float) -> Iterator[Packet]:
        while self._under_way and self._under_way[0].due <= now:
            packet = self._under_way.popleft()
            self._bytes -= len(packet.data)
            yield packet

    def next_s(self, now: float) -> float | None:
        """In how many seconds the next one arrives; None if nothing is under way."""
        return max(0.0, self._under_way[0].due - now) if self._under_way else None


def unavailable() -> str:
    """Why there can be no such line here; empty if there can."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    if shutil.which("ip") is None:
        return "no `ip` (Debian: iproute2)"
    return "" if Path(TUN).exists() else f"no {TUN}"


def within(namespace: str) -> tuple[str, ...]:
    """What to put in front of a command so that it runs in the namespace."""
    return ("ip", "netns", "exec", namespace)


@contextlib.contextmanager
def line(one_way_s: float, loss: float, seed: int = 1) -> Iterator[tuple[str, str]]:
    """The names of two namespaces which are a line apart; with processes that end here."""
    names = f"kp{os.getpid()}a", f"kp{os.getpid()}b"
    command = [sys.executable, __file__, *names, str(one_way_s), str(loss), str(seed)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"no line: it ended with {process.wait(_START_S_MAX)}")
        # Leaving closes its input, by which it ends, and waits for it.
        yield names


def main(names: tuple[str, str], one_way_s: float, loss: float, seed: int) -> None:
    """Make the line, carry packets until the input ends, and remove it."""
    chance = random.Random(seed)
    made: list[str] = []
    try:
        for name in names:
            _ip("netns", "add", name)
            made.append(name)
        ends = [_end(*one) for one in zip(names, PLACES, reversed(PLACES), strict=True)]
        print("ready", flush=True)
        _carry(ends, Line(one_way_s, lambda: loss > 0 and chance.random() < loss))
    finally:
        for name in made:
            _ip("netns", "delete", name)


def _end(namespace: str, own: str, other: str) -> int:
    """A descriptor from which comes what is sent in the namespace, and which takes it there."""
    descriptor = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    device = f"{namespace}t"
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TUN_NO_PI))
    _ip("link", "set", device, "netns", namespace)
    _ip("-n", namespace, "link", "set", "lo", "up")
    _ip("-n", namespace, "addr", "add", own, "peer", other, "dev", device)
    mtu = ("mtu", str(PACKET_BYTES_MAX), "txqueuelen", "10000")
    _ip("-n", namespace, "link", "set", device, *mtu, "up")
    return descriptor


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _carry(ends: list[int], line: Line) -> None:
    import select

    others = {ends[0]: ends[1], ends[1]: ends[0]}
    poll = select.poll()
    for descriptor in (0, *ends):
        poll.register(descriptor, select.POLLIN)
    while True:
        wait_s = line.next_s(time.monotonic())
        ready = poll.poll(None if wait_s is None else wait_s * 1e3)
        for descriptor, _ in ready:
            if descriptor == 0:
                return
            _take(descriptor, others[descriptor], line)
        for packet in line.arrived(time.monotonic()):
            with contextlib.suppress(OSError):  # an end that is no longer up
                os.write(packet.to, packet.data)


def _take(descriptor: int, to: int, line: Line) -> None:
    now = time.monotonic()
    with contextlib.suppress(BlockingIOError):
        for _ in range(_BURST):
            line.enter(os.read(descriptor, PACKET_BYTES_MAX), to, now)


if __name__ == "__main__":
    one, other, one_way, part, *seeds = sys.argv[1:]
    main((one, other), float(one_way), float(part), int(seeds[0]) if seeds else 1)
