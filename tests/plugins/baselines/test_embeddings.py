"""EP-UR takes rows of the embedding table."""

import math

import pytest
import torch

from defensekit.defense.scoring import score
from defensekit.defense.selection import select
from defensekit.models.pair import Pair
from defensekit_baselines.embeddings import EmbeddingDrift
from defensekit_baselines.selectors import Units
from tests.plugins.baselines.helpers import views


def test_epur_takes_rows_of_the_table_by_drift_over_log_count(pair: Pair) -> None:
    table = "embeddings.word_embeddings.weight"
    base, suspect = (t.double() for t in pair.block(table))
    counts = torch.arange(len(base)).float() ** 2
    made = views(pair, {"token-counts": {table: counts[:, None].expand(base.shape)}})
    scores = score(made, EmbeddingDrift())
    for i in range(len(base)):
        expected = float((suspect[i] - base[i]).norm()) / math.log(max(float(counts[i]), 20))
        assert scores[table].score[i].tolist() == pytest.approx([expected] * 16, rel=1e-5)
    chosen = select(scores, Units(unit="row", count=5))
    assert {name for name, taken in chosen.items() if taken.any()} == {table}
    assert int(chosen[table].any(1).sum()) == 5
