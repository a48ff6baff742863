"""From a result to a page."""

import re
import shlex
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from defensekit.recipe import yaml_document
from defensekit.recipe.vocabulary import MODELS, described
from defensekit.result import plots
from defensekit.result.narrative import DETECTORS_MEAN, FILTERED, FILTERED_MEANS, detector_table, filtered_cells, story
from defensekit.result.schema import Example, ModelResult, ResetCounts, Result
from defensekit.utils.files import atomic_write
from defensekit.utils.html import fill


def write(result: Result, folder: str | Path | None = None) -> Path:
    """Write the page of a result as ``report.html``.

    Args:
        result: the result of a run.
        folder: where to write it; the run's folder by default.

    Returns:
        The path of the page.
    """
    path = Path(folder or result.folder) / "report.html"
    atomic_write(path, render(result).encode())
    return path


def render(result: Result) -> str:
    """The page. Every text that comes from outside is escaped, and nothing on it runs or is fetched."""
    names = list(dict.fromkeys(name for model in result.models.values() for name in model.metrics))
    reset = result.models[result.defended].reset
    scorer = result.recipe["defense"].get("scorer", {}).get("name", "")
    return fill(
        __package__,
        "page.html",
        result=result,
        story=story(result),
        metrics=names,
        meanings={name: metric.meaning for name, metric in result.metrics.items() if metric.meaning},
        ended=MODELS[result.defended][0],
        models=[(name, described(name), model) for name, model in result.models.items()],
        filtered_columns=FILTERED,
        filtered_means=FILTERED_MEANS,
        filtered={name: filtered_cells(model.filtered) for name, model in result.models.items() if model.filtered},
        share=_share,
        detectors=detector_table(result) if result.detectors else None,
        detectors_mean=DETECTORS_MEAN,
        shorten=_shorten,
        curve=plots.image(plots.curve(result)) if result.chosen and result.curve else None,
        scores=plots.image(plots.scores(reset.scores, scorer)) if reset and sum(reset.scores.counts) else None,
        heat=heat(reset) if reset else None,
        examples=[(example, _pieces(example.plain, example.text), _pair(example)) for example in result.examples],
        stages=sorted(result.stages, key=lambda stage: -(stage.seconds or 0)),
        recipe=yaml_document.dump(result.recipe),
        command=_command(Path(result.folder)),
    )


def _command(folder: Path) -> str:
    """What repeats a run, for a shell: with the workspace that has its stages."""
    return shlex.join(["defensekit", "run", str(folder / "recipe.yaml"), "--workspace", str(folder.parent.parent)])


def _share(model: ModelResult, which: str) -> str:
    return "–" if model.reset is None else f"{getattr(model.reset, which):.1%}"


# -- the heat map ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeatCell:
    """Selected as a share of the eligible dimensions: ``share`` in [0, 1], None where nothing is eligible."""

    share: float | None
    eligible: int

    @property
    def dark(self) -> bool:
        """Whether white text is what can be read on it."""
        return (self.share or 0.0) > 0.67


@dataclass(frozen=True)
class Heat:
    """``rows`` are kinds of tensor, ``columns`` layers; ``others`` are tensors outside of any layer."""

    columns: list[str]
    rows: dict[str, list[HeatCell]]
    others: dict[str, HeatCell]


_LAYER = re.compile(r"^(?P<before>.*?)\.(?P<layer>\d+)\.(?P<kind>.+)$")


def heat(reset: ResetCounts) -> Heat:
    """The selected share by layer and kind of tensor."""
    layers: dict[str, dict[int, HeatCell]] = {}
    others = {}
    for name, (_, eligible, selected) in reset.tensors.items():
        cell = HeatCell(selected / eligible if eligible else None, eligible)
        if match := _LAYER.match(name):
            layers.setdefault(match["kind"], {})[int(match["layer"])] = cell
        else:
            others[name] = cell
    numbers = sorted({number for cells in layers.values() for number in cells})
    nothing = HeatCell(None, 0)
    rows = {kind: [cells.get(number, nothing) for number in numbers] for kind, cells in sorted(layers.items())}
    return Heat([str(number) for number in numbers], rows, dict(sorted(others.items())))


# -- examples ----------------------------------------------------------------------------------------------------------


LONGEST = 2000  # characters of a text that are shown; telling two texts apart takes the square of their words


def _pieces(plain: str | None, text: str) -> list[tuple[bool, str]]:
    """A text in pieces, each with whether the attack put it there."""
    if plain is None or max(len(plain), len(text)) > LONGEST:
        return [(False, _shorten(text))]
    before, after = re.findall(r"\s+|\S+", plain), re.findall(r"\s+|\S+", text)
    operations = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    pieces = [
        (operation in ("insert", "replace"), "".join(after[start:end])) for operation, _, _, start, end in operations
    ]
    return [piece for inserted, text in pieces for piece in _around(inserted, text)]


def _shorten(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _around(inserted: bool, text: str) -> list[tuple[bool, str]]:
    """What was put there without the blanks around it."""
    inner = text.strip() if inserted else text
    if not inner:
        return [(False, text)] if text else []
    before, _, after = text.partition(inner)
    return [piece for piece in ((False, before), (inserted, inner), (False, after)) if piece[1]]


def _pair(example: Example) -> list[tuple[bool, str]]:
    return [] if example.pair is None else _pieces(example.plain_pair, example.pair)
