"""The command that says what is wrong, and what mends it."""

from __future__ import annotations

import json

import click

from kachery_p2p.cli.checks import BAD, Check, check_all
from kachery_p2p.cli.outcome import answer
from kachery_p2p.client.wording import printable
from kachery_p2p.errors import EXIT_FAILURE


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def doctor(as_json: bool) -> None:
    """Look at everything that a node needs: one line each, with what mends it.

    Nothing is changed. The exit code is 1 if something is bad.
    """
    checks = []
    for check in check_all():
        checks.append(check)
        if not as_json:
            answer(_line(check))
    bad = sum(check.state == BAD for check in checks)
    if as_json:
        answer(json.dumps({"bad": bad, "checks": [check._asdict() for check in checks]}))
    if bad:
        raise click.exceptions.Exit(EXIT_FAILURE)


def _line(check: Check) -> str:
    mend = f"; mend: {check.mend}" if check.mend else ""
    return printable(f"{check.state:6}{check.name:11}{check.what}{mend}")
