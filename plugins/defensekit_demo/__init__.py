"""Models and data sets that need no hub: those of `make demo`, and tiny ones; extras `[demo]` and `[demo-llm]`."""

from defensekit.api import hookimpl


@hookimpl
def defensekit_datasets():  # type: ignore[no-untyped-def]
    """The datasets of this plugin, by name."""
    return {"movie-reviews": "defensekit_demo.reviews:MovieReviews", "opinions": "defensekit_demo.opinions:Opinions"}


@hookimpl
def defensekit_models():  # type: ignore[no-untyped-def]
    """The models of this plugin, by name."""
    return {
        "minilm": "defensekit_demo.minilm:MiniLM",
        "pico": "defensekit_demo.pico:Pico",
        "smollm2": "defensekit_demo.smollm2:SmolLM2",
    }
