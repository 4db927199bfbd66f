"""The command that makes a shell complete our command lines."""

from __future__ import annotations

import click

from kachery_p2p.cli.outcome import PROGRAM, answer

SHELLS = ("bash", "zsh", "fish")
# What the script sets when it asks us for completions; `commands.run_group` looks for it.
VARIABLE = "_KACHERY_P2P_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script that completes commands and options in SHELL.

    \b
    For each new shell, put into
      ~/.bashrc   eval "$(kachery-p2p completion bash)"
      ~/.zshrc    eval "$(kachery-p2p completion zsh)"
    or, once,
      kachery-p2p completion fish > ~/.config/fish/completions/kachery-p2p.fish
    """
    from click.shell_completion import get_completion_class

    from kachery_p2p.cli.commands import cli

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(cli, {}, PROGRAM, VARIABLE)
    answer((script.source_template % script.source_vars()).strip("\n"))
