"""The application: its commands, and what a failure looks like (one sentence, exit code 2)."""

from __future__ import annotations

import errno
import os
import sys
from typing import NoReturn

import typer

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


def main() -> None:
    """Run the command line; exit code 0 when done, 2 for anything questlm refuses, 128 + n when stopped by signal n."""
    try:
        app()
    except QuestError as problem:
        _fail(str(problem))
    except KeyboardInterrupt:
        print("quest: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone, as in `quest generate ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EPERM):
            _fail(f"cannot write {problem.filename or 'a file'}: {problem.strerror}; nothing was left half-written")
        raise


def _fail(message: str) -> NoReturn:
    print(f"quest: error: {message}", file=sys.stderr)
    sys.exit(2)
