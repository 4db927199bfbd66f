"""What a process costs that uses kachery_p2p, before it does anything with the network."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from processes import KACHERY_P2P, child, environment, run
from settings import Settings
from table import Row, at_most, figure, median_text, sample

IMPORT_MS_MAX = 30
LOAD_MS_MAX = 60


def measure(settings: Settings) -> list[Row]:
    """Starts of processes, taken in turn so that a disturbance meets all of them."""
    env = environment(settings.room("startup"))
    uri = child(env, "clients.store_texts", ["a text that is stored"])["uris"][0]
    commands = {
        "bare": [sys.executable, "-c", "pass"],
        "import": [sys.executable, "-c", "import kachery_p2p"],
        "version": [*KACHERY_P2P, "version"],
        "load": [*KACHERY_P2P, "load", uri],
    }
    wall: dict[str, list[float]] = {name: [] for name in commands}
    cpu: dict[str, list[float]] = {name: [] for name in commands}
    for command in commands.values():
        run(command, env)  # writes the bytecode, reads the files
    for _ in settings.times(20):
        for name, command in commands.items():
            done = run(command, env)
            wall[name].append(done.seconds)
            cpu[name].append(done.cpu_s)
    return _rows(wall, cpu)


def _rows(wall: dict[str, list[float]], cpu: dict[str, list[float]]) -> list[Row]:
    added = [loaded - bare for loaded, bare in zip(wall["import"], wall["bare"], strict=True)]
    import_ms = sample(added, "ms", 1e3)
    load = sample(wall["load"], "ms", 1e3)

    def against_bare(values: Sequence[float]) -> str:
        bare = sample(wall["bare"], "ms").median
        return f"{figure(sample(values, 'ms').median / bare)}x bare python"

    return [
        Row("`python -c pass`", sample(wall["bare"], "ms", 1e3), cpu=median_text(cpu["bare"])),
        Row(
            "`import kachery_p2p` adds",
            import_ms,
            f"whole process {against_bare(wall['import'])}",
            median_text(cpu["import"]),
            budget=at_most(IMPORT_MS_MAX, import_ms.median, "ms"),
        ),
        Row(
            "`kachery-p2p version`",
            sample(wall["version"], "ms", 1e3),
            against_bare(wall["version"]),
            median_text(cpu["version"]),
        ),
        Row(
            "`kachery-p2p load` of a stored file",
            load,
            against_bare(wall["load"]),
            median_text(cpu["load"]),
            budget=at_most(LOAD_MS_MAX, load.median, "ms") + " (aim 40)",
        ),
    ]
