"""A look at a suspect beside its base: how far it drifted, where, and whether that is what fine-tuning does.

Each indicator is a module of its own: `drift` (by layer and kind of tensor), `rows` (rows of the embedding), `law` (r
against Gamma(1/2, 2k)), `triggers` (suspicious tokens tried). `scanning` runs them, `verdict` says what they come to,
`result` is what is left. The core knows no method; these are measurements.
"""
