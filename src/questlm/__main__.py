"""`python -m questlm` is the command `quest`."""

from questlm.cli import main

if __name__ == "__main__":
    main()
