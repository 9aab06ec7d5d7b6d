"""The application: its commands, and what a failure looks like (one sentence, exit code 2)."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import click
import typer

from questlm import __version__
from questlm.cli import demo, doctor, evaluate, generate, pack, train
from questlm.errors import QuestError

__all__ = ["app", "main"]

app = typer.Typer(
    name="quest",
    help="Train language models born in 1 to 8 bits, pack them, and run exactly what was trained.",
    epilog="Start with: quest demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("pack")(pack.pack)
app.command("generate")(generate.generate)
app.command("doctor")(doctor.doctor)


@app.callback()
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; exit code 0 when done, 2 for anything questlm refuses, 128 + n when stopped by signal n."""
    try:
        code = app(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as problem:
        problem.show()
        sys.exit(2)
    except click.ClickException as problem:
        _fail(f"{problem.format_message().rstrip('.')}; see: quest --help")
    except QuestError as problem:
        _fail(str(problem))
    except (KeyboardInterrupt, click.Abort):
        print("quest: interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as problem:
        _fail(f"{problem.filename or 'a file'} cannot be read or written: {problem.strerror or problem}")
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    print(f"quest: error: {message}", file=sys.stderr)
    sys.exit(2)
