"""The command line: parse, call, print."""

import gc
import sys


def command() -> None:
    """The `defensekit` command. A Ctrl-C that meets it still importing ends it as one that comes later does."""
    # What is imported stays: to look for garbage among it takes a tenth of the time of a quick command. A run that
    # goes on for longer turns it on again.
    gc.disable()
    try:
        from defensekit.cli.main import main

        main()
    except KeyboardInterrupt:
        sys.stderr.write("defensekit: stopped\n")
        sys.exit(130)
