"""The command line: parse, call, print."""

import sys


def command() -> None:
    """The `defensekit` command. A Ctrl-C that meets it still importing ends it as one that comes later does."""
    try:
        from defensekit.cli.main import main

        main()
    except KeyboardInterrupt:
        sys.stderr.write("defensekit: stopped\n")
        sys.exit(130)
