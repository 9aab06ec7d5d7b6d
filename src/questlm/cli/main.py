"""The application: its commands, and what a failure looks like (one sentence, exit code 2)."""

from __future__ import annotations

import sys
from typing import Annotated, Any, NoReturn

import typer

from questlm import __version__
from questlm.cli import demo, diagnose, doctor, evaluate, fit, generate, methods, pack, plan, report, sweep, train
from questlm.errors import QuestError

__all__ = ["app", "main"]

app = typer.Typer(
    name="quest",
    help="Train language models born in 1 to 8 bits, pack them, and run exactly what was trained.",
    epilog="Start with: quest demo",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
# Typer carries a click of its own in some versions and the package in others; this names the right one in both.
_USAGE_ERROR: type[Any] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("methods")(methods.methods)
app.command("eval")(evaluate.evaluate)
app.command("pack")(pack.pack)
app.command("generate")(generate.generate)
app.command("fit")(fit.fit)
app.command("plan")(plan.plan)
app.command("sweep")(sweep.sweep)
app.command("report")(report.report)
app.command("diagnose")(diagnose.diagnose)
app.command("doctor")(doctor.doctor)


@app.callback(invoke_without_command=True)  # so that --version needs no command beside it
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; exit code 0 when done, 2 for anything questlm refuses, 128 + n when stopped by signal n."""
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except _USAGE_ERROR as problem:
        _fail(f"{problem.format_message().rstrip('.')}; see: quest --help")
    except QuestError as problem:
        _fail(str(problem))
    except (KeyboardInterrupt, typer.Abort):
        print("quest: interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as problem:  # such as a folder that another process made in the meantime
        _fail(f"{problem.filename or 'a file'} cannot be read or written: {problem.strerror or problem}")
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    print(f"quest: error: {message}", file=sys.stderr)
    sys.exit(2)
