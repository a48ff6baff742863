"""Statistics: which tensors they speak of, and what a recipe over them may ask."""

from pathlib import Path

import pytest
import torch

import defensekit
from defensekit.defense.scoring import Views
from defensekit.models.checkpoint import Checkpoint
from defensekit.models.pair import Pair
from defensekit.utils.errors import DefenseKitError
from tests.conftest import SMALL, shape


def test_a_statistic_that_says_nothing_of_a_tensor(base: Path, suspect: Path) -> None:
    table = "embeddings.word_embeddings.weight"
    counts = torch.ones(Pair(Checkpoint(base), Checkpoint(suspect)).block(table)[0].shape)
    views = Views(Pair(Checkpoint(base), Checkpoint(suspect)), 0, {"token-counts": {table: counts}.get})
    assert torch.equal(views[table]["token-counts"], counts)
    assert views[table].quantile("token-counts", 0.5) == 1
    other = views["embeddings.LayerNorm.weight"]
    with pytest.raises(DefenseKitError, match=r"gives no 'token-counts' for embeddings\.LayerNorm\.weight"):
        other["token-counts"]


PLUGIN = """
from defensekit.api import hookimpl, scorer

@scorer(needs={{"{statistic}"}})
def mine(t):
    "What the statistic says something about comes first."
    return t.drift.abs() * ("{statistic}" in t.statistics)

@hookimpl
def defensekit_scorers():
    return {{"mine": mine}}
"""


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("input-norm", 13),
        pytest.param("activation", 26, marks=pytest.mark.slow),
        pytest.param("token-counts", 1, marks=pytest.mark.slow),
    ],
)
def test_a_recipe_over_a_statistic_that_says_nothing_of_some_tensors(
    name: str, tensors: int, recipe: Path, warm: Path
) -> None:
    (recipe.parent / "mine.py").write_text(PLUGIN.format(statistic=name))
    text = recipe.read_text().replace("estimator: fisher", f"estimator: {name}").replace("diffusion", "mine")
    recipe.write_text("plugins: [mine.py]\n" + text)
    shape(recipe, **SMALL, defense__purifier=["reset"], defense__compare={}, defense__choose__values=[0.02])
    result = defensekit.run(recipe, warm)
    reset = result.models["purified"].reset
    assert result.statistics is not None
    assert result.statistics["estimator"] == name
    assert reset is not None
    assert 0 < reset.selected == sum(taken for _, _, taken in reset.tensors.values())
    assert sum(taken > 0 for _, _, taken in reset.tensors.values()) <= tensors


def test_a_statistic_of_something_else_is_refused(recipe: Path, warm: Path) -> None:
    (recipe.parent / "mine.py").write_text(
        "import torch\nfrom defensekit.api import Estimate, Estimator, hookimpl\n"
        "class Odd(Estimator):\n"
        "    provides = frozenset({'curvature'})\n"
        "    def estimate(self, context):\n"
        "        return Estimate({'curvature': {'bert.nothing': torch.ones(2)}})\n"
        "@hookimpl\ndef defensekit_estimators():\n    return {'odd': Odd}\n"
    )
    shape(recipe, **SMALL, plugins=["mine.py"], defense__estimator="odd")
    with pytest.raises(DefenseKitError, match=r"Odd gave 'curvature' for bert\.nothing, which the model does not have"):
        defensekit.run(recipe, warm)
