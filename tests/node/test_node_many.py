"""A load of many files, as `status` shows it."""

from __future__ import annotations

from kachery_p2p.cli.report import lines_of_loads
from kachery_p2p.limits import PEERS_MAX
from kachery_p2p.node.many_api import many_fields
from kachery_p2p.transfer.batch_wanted import Progress, Running
from kachery_p2p.wire.operations import OPERATIONS


def running() -> Running:
    found = Running(5_000, began=10.0)
    found.progress = Progress(1_200, 4_000_000, ("lab-pc",))
    return found


def test_a_load_of_many_is_among_the_loads_of_status() -> None:
    fields = many_fields(running(), now=12.0)
    assert OPERATIONS["status"].result["loads"].kind.fits([fields])
    assert (fields["files"], fields["files_total"]) == (1_200, 5_000)
    assert fields["content"] is None
    assert (fields["bytes"], fields["rate"]) == (4_000_000, 2_000_000)


def test_no_more_sources_are_named_than_a_row_may_have() -> None:
    many = running()
    many.progress = Progress(1, 1, tuple(map(str, range(2 * PEERS_MAX))))
    assert OPERATIONS["status"].result["loads"].kind.fits([many_fields(many, now=10.0)])


def test_people_see_how_many_files_are_here() -> None:
    (line,) = lines_of_loads([{"size": None, **many_fields(running(), now=12.0)}])
    assert "1200 of 5000 files" in line
    assert "2.0 MB/s" in line
    assert "from lab-pc" in line
