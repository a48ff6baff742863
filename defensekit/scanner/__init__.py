"""A suspect compared with its base: how far it drifted, where, and whether fine-tuning explains it.

Each indicator is a module of its own: `drift` (by layer and kind of tensor), `rows` (rows of the embedding), `law` (r
against Gamma(1/2, 2k)), `triggers` (suspicious tokens tried). `scan` runs them, `verdict` draws the conclusion,
`result` has the schema of what is written.
"""
