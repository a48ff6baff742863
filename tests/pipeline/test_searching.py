"""The search as stages: made apart, shared by the steps that ask for it, and costs of the defense."""

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from defensekit.models.checkpoint import Checkpoint
from defensekit.models.pair import Pair
from defensekit.pipeline.dry_run import requested
from defensekit.pipeline.experiment import Experiment
from defensekit.pipeline.graph import Stage, closure
from defensekit.pipeline.preflight import survey
from defensekit.pipeline.stages import models
from defensekit.recipe.loader import load_recipe
from defensekit.text import Row
from defensekit.training import TrainingSettings
from tests.conftest import shape
from tests.small_models import make_suspect

TRAINED = {"epochs": 2, "learning_rate": 0.003, "batch_size": 16}
NO_PARTS = dict.fromkeys(("defense__choose", "defense__scorer", "defense__selector", "defense__estimator"))


def planned(recipe: Path) -> list[Stage]:
    asked = requested(Experiment(survey(load_recipe(recipe), lambda text: None)).requests())
    return [*closure([one.stage for one in asked if one.stage]).values()]


def of_kind(stages: list[Stage], kind: str) -> list[Stage]:
    return [stage for stage in stages if stage.plain["kind"] == kind]


def test_steps_share_a_search_and_its_parts_wait_for_one_another_only_in_the_end(recipe: Path) -> None:
    other = {"purifier": [{"name": "distil", "texts": 9, **TRAINED}]}
    shape(recipe, defense__purifier=[{"name": "unlearn-triggers", **TRAINED}], **NO_PARTS)
    shape(recipe, defense__compare={"other": other})
    stages = planned(recipe)
    kinds = Counter(stage.plain["kind"] for stage in stages)
    assert {kind: kinds[kind] for kind in ("control", "screen", "judge", "purify")} == {
        "control": 1, "screen": 2, "judge": 2, "purify": 2,
    }  # fmt: skip
    [control], screens, judges = (of_kind(stages, kind) for kind in ("control", "screen", "judge"))
    for purify in of_kind(stages, "purify"):
        assert {*judges} < {*purify.inputs}
    for judge in judges:
        assert {control, *screens} <= {*judge.inputs}
        assert judge not in judges[0].inputs + judges[1].inputs
    assert not {control, *screens} & {one for stage in (control, *screens) for one in stage.inputs}
    longer = {"purifier": [{"name": "distil", "texts": 9, **TRAINED | {"epochs": 3}}]}
    shape(recipe, defense__compare={"other": longer})  # another control: the words are tried once all the same
    kinds = Counter(stage.plain["kind"] for stage in planned(recipe))
    assert (kinds["control"], kinds["screen"], kinds["judge"]) == (2, 2, 4)


def test_what_nothing_can_run_beside_gets_all_cores(
    recipe: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    suspect = make_suspect(tmp_path / "suspect", base)
    given: dict[str, Any] = {"attack": None, "training": None, "data__train": None, "suspect": str(suspect)}
    step = {"name": "unlearn-triggers", **TRAINED}
    shape(recipe, **given, executor="auto", defense__purifier=[step], metrics=["acc"], **NO_PARTS)

    def threads(kind: str) -> set[int]:
        return {stage.plain["machine"]["threads"] for stage in of_kind(planned(recipe), kind)}

    assert (threads("purify"), threads("control"), threads("predict")) == ({4}, {1}, {1})
    shape(recipe, defense__compare={"other": {"purifier": [{"name": "distil", **TRAINED}]}})
    assert threads("purify") == {1}


def test_the_control_learns_as_it_is_asked(base: Path, suspect: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Padded behind, and cut at the end, whatever the suspect's tokenizer says."""
    folder = shutil.copytree(suspect, tmp_path / "left")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"padding_side": "left", "truncation_side": "left"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    seen: list[Any] = []
    monkeypatch.setattr(models.training, "fine_tune", lambda model, tokenizer, *_, **__: seen.append(tokenizer))
    work: Any = SimpleNamespace(
        pair=Pair(Checkpoint(base), Checkpoint(folder)), folder=lambda name: folder, training=TrainingSettings(),
        rows=lambda name: [Row(0, "a film", 0)], stage={"seed": 0}, max_length=32, precision="float32", report=None,
    )  # fmt: skip
    (tmp_path / "files").mkdir()
    models.control(work, SimpleNamespace(files=tmp_path / "files"))  # type: ignore[arg-type]
    assert [(one.padding_side, one.truncation_side) for one in seen] == [("right", "right")]
