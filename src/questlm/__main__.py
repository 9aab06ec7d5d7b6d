"""`python -m questlm` is the command `quest`."""

import signal

__all__ = ["run"]


def run() -> None:
    """Run the command line. Ctrl-C before or after it has a handler in place ends the process without a traceback."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # shells start background jobs so
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from questlm.cli import main

    main()


if __name__ == "__main__":
    run()
