"""The application: its commands, and what a failure looks like (one sentence, exit code 2)."""

from __future__ import annotations

import io
import sys
from typing import Annotated, Any

import typer

from questlm import __version__
from questlm.cli import (
    bench,
    contest,
    demo,
    diagnose,
    doctor,
    evaluate,
    export,
    fit,
    generate,
    methods,
    pack,
    plan,
    report,
    serve,
    sweep,
    train,
)
from questlm.cli.ending import closed_pipes_raise, first_sentence, interruptible, is_out_of_memory, silence_output
from questlm.errors import QuestError, cleaned

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
app.command("contest")(contest.contest)
app.command("export")(export.export)
app.command("generate")(generate.generate)
app.command("serve")(serve.serve)
app.add_typer(bench.bench, name="bench")
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


_CLOSED_PIPE = 128 + 13
"""Exit code of a process that SIGPIPE ended."""


def main() -> None:
    """Run the command line.

    Exit code 0 when done, 2 for anything questlm refuses, 128 + n when stopped by signal n; a closed pipe counts as
    SIGPIPE.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # of an encoding that lacks a letter: write \xe9, as stderr does
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with interruptible(), closed_pipes_raise():
            code = _run(sys.argv[1:] or ["--help"])
            sys.stdout.flush()
    except BrokenPipeError:
        silence_output()
        sys.exit(_CLOSED_PIPE)
    except (KeyboardInterrupt, typer.Abort):
        _say("quest: interrupted")
        sys.exit(130)
    sys.exit(code)


def _run(words: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        # Not command(words), which takes a closed pipe for a failure and leaves with code 1.
        with command.make_context("quest", words) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except _USAGE_ERROR as problem:
        return _refuse(f"{problem.format_message().rstrip('.')}; see: quest --help")
    except QuestError as problem:
        return _refuse(str(problem))
    except (MemoryError, RuntimeError) as problem:
        if not is_out_of_memory(problem):
            raise
        return _refuse(f"there is not enough memory: {first_sentence(problem)}; take a smaller model or batch")
    except BrokenPipeError:
        raise
    except OSError as problem:  # such as a folder that another process made in the meantime
        return _refuse(f"{problem.filename or 'a file'} cannot be read or written: {problem.strerror or problem}")
    return 0


def _refuse(message: str) -> int:
    _say(f"quest: error: {cleaned(message)}")
    return 2


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
