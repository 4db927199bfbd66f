"""The table of commands. Each command's module is imported when it is called, or for its help."""

from __future__ import annotations

import importlib
import os
from typing import Any

import click

from kachery_p2p.cli.outcome import PROGRAM, say_error, speak_warnings

# Command: module and name of its click command. The order is that of `--help`.
COMMANDS = {
    "start": "node:start",
    "stop": "node:stop",
    "status": "node:status",
    "store": "files:store",
    "link": "files:link",
    "load": "files:load",
    "cat": "files:cat",
    "ls": "directories:ls",
    "info": "files:info",
    "find": "sharing:find",
    "share": "files:share",
    "unshare": "sharing:unshare",
    "shared": "sharing:shared",
    "verify": "upkeep:verify",
    "rm": "upkeep:rm",
    "cache": "cache:cache",
    "doctor": "doctor:doctor",
    "channel": "channels:channel",
    "bucket": "buckets:bucket",
    "feed": "feeds:feed",
    "group": "groups:group",
    "encrypt-uri": "groups:encrypt_uri",
    "decrypt-uri": "groups:decrypt_uri",
    "keys": "keys:keys",
    "completion": "completion:completion",
    "node-id": "node:node_id",
    "version": "node:version",
}


class LazyGroup(click.Group):
    """A group that knows its commands by name only."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        where = COMMANDS.get(cmd_name)
        if where is None:
            return None
        module, _, name = where.partition(":")
        command = getattr(importlib.import_module(f"kachery_p2p.cli.{module}"), name)
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 2 usage, 3 not found, 4 no daemon, 5 refused, 6 storage, "
    "7 corrupt, 8 timeout, 9 in use, 10 configuration, 130 interrupted.",
)
def cli() -> None:
    """Store files under the hash of their content, and load them from whoever has them.

    Settings come from the environment: KACHERY_STORAGE_DIR, KACHERY_P2P_CONFIG_DIR,
    KACHERY_DAEMON_HOST, KACHERY_DAEMON_PORT, KACHERY_DAEMON_TOKEN, KACHERY_P2P_DAEMON_SOCKET,
    KACHERY_OFFLINE_STORAGE_DIR, KACHERY_TEMP_DIR.
    """


def run_group(arguments: list[str]) -> int:
    """Run a command line with click; its exit code. Our own errors pass through."""
    if "_KACHERY_P2P_COMPLETE" in os.environ:
        cli.main(arguments, prog_name=PROGRAM)
    if arguments[:1] != ["start"]:
        speak_warnings()
    try:
        with cli.make_context(PROGRAM, arguments) as context:
            cli.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return error.exit_code
    except click.UsageError as error:
        say_error(_sentence(error), f"see `{_path(error)} --help`")
        return error.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    return 0


def _sentence(error: click.UsageError) -> str:
    """click's message as we write messages: lower case, one line, no full stop."""
    text = " ".join(error.format_message().split()).rstrip(".")
    return text[:1].lower() + text[1:]


def _path(error: click.UsageError) -> Any:
    return error.ctx.command_path if error.ctx is not None else PROGRAM
