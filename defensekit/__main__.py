"""`python -m defensekit`."""

from defensekit.cli import main

main()
