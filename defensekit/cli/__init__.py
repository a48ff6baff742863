"""The command line: parse, call, print."""

import gc
import sys


def command() -> None:
    """The `defensekit` command. Ctrl-C during imports ends it in the same way as later."""
    # Imported modules stay in memory: collecting garbage among them takes a tenth of a quick command's time. A longer
    # run turns the collector on again.
    gc.disable()
    try:
        from defensekit.cli.main import main

        main()
    except KeyboardInterrupt:
        sys.stderr.write("defensekit: stopped\n")
        sys.exit(130)
