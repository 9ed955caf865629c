"""The command line: parse, call, print. ``main`` is the command ``wald``.

Data goes to standard output, talk to standard error. A user's mistake is two lines, never a
traceback: ``error[code]: message`` and ``hint: ...``, and the exit code of its class.
"""

import difflib
import os
import sys
from importlib import import_module
from traceback import walk_tb

import click

from wald.cli.output import Group, print_error
from wald.errors import EXIT_INTERRUPTED, EXIT_USAGE, OutputFailed, WaldError

COMMANDS = {
    "run": "wald.cli.run:run",
    "serve": "wald.cli.serve:serve",
    "append": "wald.cli.append:append",
    "tail": "wald.cli.tail:tail",
    "status": "wald.cli.status:status",
    "wait": "wald.cli.status:wait",
    "replay": "wald.cli.replay:replay",
    "log": "wald.cli.log:log",
    "dlq": "wald.cli.dlq:dlq",
    "batch": "wald.cli.batch:batch",
    "route": "wald.cli.route:route",
    "audit": "wald.cli.audit:audit",
    "check": "wald.cli.check:check",
    "demo": "wald.cli.demo:demo",
    "torture": "wald.cli.torture:torture",
    "version": "wald.cli.version:version",
}


class LazyGroup(Group):
    """Imports the module of a command only when it is named, or listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of a record's life, not of the alphabet."""
        del ctx
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Say which command was probably meant by a slip of the fingers."""
        wrong = args[0]
        close = difflib.get_close_matches(wrong, COMMANDS, n=1)
        if wrong not in COMMANDS and close:
            msg = f"No such command {wrong!r}. Did you mean {close[0]!r}?"
            raise click.UsageError(msg, ctx)
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; None if there is none of that name."""
        del ctx
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        found = getattr(import_module(module), name)
        assert isinstance(found, click.Command)
        return found


def _print_version(ctx: click.Context, _: click.Parameter, value: object) -> None:
    if value:
        command = ctx.command
        assert isinstance(command, click.Group)
        version = command.get_command(ctx, "version")
        assert version is not None
        ctx.invoke(version)
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="As 'wald version'.",
)
def wald() -> None:
    """Durable write-ahead-log batching: acknowledged means durable, delivered exactly once.

    A daemon takes records over a Unix socket, makes them durable with one flush for everybody
    who waits, acknowledges, and delivers them in batches to a target store.

    \b
    wald run --to sqlite:events.db -- CMD    a daemon for the life of one command
    wald serve --to sqlite:events.db         a daemon in the foreground
    wald append STREAM FILE                  records from a file or standard input
    """  # noqa: D301 - click takes the character itself: lines that stand as they are


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run_command(sys.argv[1:] if arguments is None else arguments))


def run_command(arguments: list[str]) -> int:
    """Run a command and return its exit code."""
    try:
        return _run(arguments)
    except OSError as error:
        if not _is_of_output(error):
            raise
        # what is left in the buffer is given up, or the interpreter would try again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print_error(OutputFailed.code, f"the output cannot be written: {error.strerror}")
        return OutputFailed.exit_code


def _run(arguments: list[str]) -> int:
    try:
        result = wald.main(args=arguments, prog_name="wald", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return EXIT_USAGE
    except click.ClickException as error:
        _print_usage_error(error)
        return EXIT_USAGE
    except WaldError as error:
        print_error(error.code, error.message, error.hint)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return result if isinstance(result, int) else 0


def _is_of_output(error: OSError) -> bool:
    """Whether an error arose where everything is printed, and nowhere deeper."""
    *_, (innermost, _) = walk_tb(error.__traceback__)
    return innermost.f_code is click.echo.__code__


def _print_usage_error(error: click.ClickException) -> None:
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        click.echo(context.get_usage(), err=True)
    help_of = context.command_path if context is not None else "wald"
    print_error("usage", error.format_message(), f"see: {help_of} --help")
