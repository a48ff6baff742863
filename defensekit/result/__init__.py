"""The result of one run, for machines and for people."""
