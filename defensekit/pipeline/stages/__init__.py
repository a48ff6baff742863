"""What each stage of a run does. A stage is plain data; `compute` turns it into an artifact, on any machine.

The defender's stages (``statistics``, ``purify``, ``fit``, ...) get base, suspect and clean rows and nothing else; a
filter of training rows gets these as well, and not which of them are poisoned. This guards against mistakes, not
against malice: a plugin is code, and code can open any file.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from defensekit import training
from defensekit.defense.estimation import Report
from defensekit.pipeline.stages import answers, defense, filtering, models, rows
from defensekit.pipeline.stages.context import StageContext
from defensekit.pipeline.store import ArtifactWriter, Store
from defensekit.utils.errors import DefenseKitError, lacks_memory, out_of_memory
from defensekit.utils.seeds import derive_seed


def compute(stage: dict[str, Any], store: Path, report: Report = lambda done, total: None) -> None:
    """Compute a stage whose inputs are in the store, into the store.

    Raises:
        DefenseKitError: the stage failed; names the plugin if one caused it.
    """
    opened = Store(store)
    try:
        # A plugin that uses a global random state affects its own stage alone.
        with opened.create(stage) as draft, training.forked_random(derive_seed(stage["seed"], "global")):
            STAGES[stage["kind"]](StageContext(stage, opened, report), draft)
    except Exception as error:
        if not lacks_memory(error):
            raise
        raise DefenseKitError(f"{stage['title']}: {out_of_memory(error)}") from error


STAGES: dict[str, Callable[[StageContext, ArtifactWriter], None]] = {
    stage.__name__: stage
    for stage in (
        *(rows.data, rows.fold, rows.poison, rows.trigger, rows.given, rows.carry),
        *(models.train, models.learn, models.retune, models.plant, models.control),
        *(defense.statistics, defense.screen, defense.judge, defense.purify),
        *(filtering.features, filtering.score, filtering.keep),
        *(answers.inspect, answers.sanitize, answers.fit, answers.detect, answers.predict),
    )
}
