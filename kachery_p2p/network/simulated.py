"""A seeded world of nodes on trio's virtual clock: the second implementation of the link.

For tests: hours of a network with delay, loss, partitions, crashes and silent peers
pass in seconds, and the same seed gives the same delays. Run it under
`trio.testing.MockClock(autojump_threshold=0)`. Nothing here is secure: a node is who
it says it is.

    async with World(seed=7) as world:
        alice, bob = world.link(alice_id), world.link(bob_id)
        world.set_path(alice_id, bob_id, Path(delay_s=0.05, loss=0.01))
        await alice.connect(bob.addresses[0])
        world.cut(alice_id, bob_id)
"""

from __future__ import annotations

from ipaddress import ip_address
from random import Random
from types import TracebackType

import trio

from kachery_p2p.identity.keys import NodeId
from kachery_p2p.network.simulated_link import PORT, SimulatedLink
from kachery_p2p.network.simulated_wire import Direction, Path


class World:
    """All nodes and what lies between them."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._links: dict[NodeId, SimulatedLink] = {}
        self.hosts: dict[NodeId, str] = {}
        self._directions: dict[tuple[NodeId, NodeId], Direction] = {}
        self._default_path = Path()
        self._draws: dict[str, int] = {}
        self._nurseries = trio.open_nursery()
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> World:
        self._nursery = await self._nurseries.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        self.nursery.cancel_scope.cancel()
        return await self._nurseries.__aexit__(kind, error, trace)

    # --- nodes ---------------------------------------------------------------------------

    def link(self, node_id: NodeId) -> SimulatedLink:
        """The node's place in this world; after `crash`, a new one at the old address."""
        if node_id not in self._links:
            host = str(ip_address("10.0.0.1") + len(self.hosts))
            self.hosts.setdefault(node_id, host)
            self._links[node_id] = SimulatedLink(self, node_id, self.hosts[node_id])
        return self._links[node_id]

    def crash(self, node_id: NodeId) -> None:
        """Kill a node as `kill -9` does: its handlers stop, its peers' kernels are told."""
        self._links.pop(node_id).die()

    def silence(self, node_id: NodeId) -> None:
        """Stop a node as SIGSTOP or a pulled cable does: nothing comes, and nothing is ended."""
        self._set_silent(node_id, True)

    def wake(self, node_id: NodeId) -> None:
        """Let a silenced node go on."""
        self._set_silent(node_id, False)

    # --- paths ---------------------------------------------------------------------------

    def set_path(
        self, source: NodeId, target: NodeId, path: Path, *, one_way: bool = False
    ) -> None:
        self.direction(source, target).path = path
        if not one_way:
            self.direction(target, source).path = path

    def set_all_paths(self, path: Path) -> None:
        """Every path, also of nodes that come later."""
        self._default_path = path
        for direction in self._directions.values():
            direction.path = path

    def cut(self, source: NodeId, target: NodeId, *, one_way: bool = False) -> None:
        """Let nothing through from `source` to `target`, nor back; connections stay up."""
        self._set_cut(source, target, True)
        if not one_way:
            self._set_cut(target, source, True)

    def heal(self, source: NodeId, target: NodeId, *, one_way: bool = False) -> None:
        """Undo `cut`; what was held up arrives."""
        self._set_cut(source, target, False)
        if not one_way:
            self._set_cut(target, source, False)

    def break_connections(self, one: NodeId, other: NodeId) -> None:
        """Reset every connection between two nodes, as a failing router does."""
        link = self._links.get(one)
        for end in list(link.ends.get(other, [])) if link else []:
            end.connection.break_off("the connection was reset")

    # --- for the links --------------------------------------------------------------------

    @property
    def nursery(self) -> trio.Nursery:
        assert self._nursery is not None, "the world is entered with `async with`"
        return self._nursery

    def direction(self, source: NodeId, target: NodeId) -> Direction:
        if (source, target) not in self._directions:
            self._directions[source, target] = Direction(self._default_path)
        return self._directions[source, target]

    def random_for(self, *what: str) -> Random:
        """A generator of its own for each thing, numbered where there are several."""
        name = "/".join(what)
        self._draws[name] = self._draws.get(name, 0) + 1
        return Random(f"{self.seed}/{name}/{self._draws[name]}")  # noqa: S311 - repeatable is the point

    def at(self, host: str, port: int) -> SimulatedLink | None:
        """The node that listens at an address."""
        return next((k for k in self._links.values() if k.host == host and port == PORT), None)

    def _set_silent(self, node_id: NodeId, silent: bool) -> None:
        for other in list(self.hosts):
            if other != node_id:
                self._set_cut(node_id, other, silent)
                self._set_cut(other, node_id, silent)

    def _set_cut(self, source: NodeId, target: NodeId, cut: bool) -> None:
        self.direction(source, target).set_cut(cut)
