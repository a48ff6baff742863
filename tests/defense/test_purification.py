"""Scores, selection and reset a part at a time: the same bits as by the dumbest code that holds everything."""

import json
import os
import runpy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from defensekit.components import ModelStep, Purifier, Scorer, WeightStep, tensors
from defensekit.components.tensors import TensorView
from defensekit.defense import purification
from defensekit.defense.scoring import Views, score
from defensekit.defense.selection import TensorSelection, select, summary
from defensekit.models.checkpoint import Checkpoint
from defensekit.models.loading import load_model
from defensekit.models.names import layer_of
from defensekit.models.pair import Pair
from defensekit.models.untrusted import read_header
from defensekit.utils.errors import DefenseKitError
from defensekit_baselines.purifiers import Interpolate
from defensekit_baselines.scorers import Magnitude, Random, Spectral
from defensekit_finepurifying.purifiers import Reset
from defensekit_finepurifying.scorers import Diffusion
from defensekit_finepurifying.selectors import Fraction
from tests.conftest import ROOT
from tests.small_models import make_tokenizer

BENCHMARK = runpy.run_path(str(ROOT / "benchmarks/streaming.py"))


@pytest.fixture
def threads() -> Iterator[None]:
    own = torch.get_num_threads()
    yield
    torch.set_num_threads(own)


def write(folder: Path, tensors: dict[str, torch.Tensor], shards: int) -> Path:
    """A model folder of so many files, with metadata of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "made", "hidden_size": 1}))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt", "made": "by hand"})
        return folder
    weight_map = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        held = {name: tensor for name, tensor in tensors.items() if weight_map[name] == file}
        save_file(held, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model folder."""
    model = Checkpoint(folder)
    return {name: model.tensor(name) for name in model.tensors}


@st.composite
def models(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Base, suspect and curvature: few values, so that many scores are equal; any dtype, any shape, 0 sizes too."""
    base, suspect, curvature = {}, {}, {}
    for i in range(draw(st.integers(1, 5))):
        shape = draw(st.lists(st.integers(0, 5), min_size=0, max_size=3)) if i else [draw(st.integers(1, 20))]
        generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
        name = f"layer.{i % 2}.t{i}" if i else "embeddings"
        base[name] = torch.randint(-2, 3, shape, generator=generator).to(draw(dtypes))
        suspect[name] = torch.randint(-2, 3, shape, generator=generator).to(draw(dtypes))
        curvature[name] = torch.randint(0, 3, shape, generator=generator).float()
    suspect["classifier.weight"] = torch.ones(2, 3)
    return base, suspect, curvature


class WholeReset(Reset):
    """A step that is shown whole tensors."""

    elementwise: ClassVar[bool] = False


@given(
    made=models(),
    fraction=st.floats(0, 1),
    scope=st.sampled_from(["global", "layer", "tensor", "embeddings"]),
    scorer=st.sampled_from([Magnitude(), Diffusion(), Random(), Spectral(rank=1)]),
    step=st.sampled_from([Reset(), WholeReset()]),
    part=st.integers(1, 30),
    shards=st.integers(1, 3),
    others=st.integers(1, 3),
    count=st.integers(1, 3),
)
@settings(deadline=None, max_examples=40, phases=[Phase.generate])
@pytest.mark.usefixtures("threads")
def test_a_part_at_a_time_is_all_at_once(
    tmp_path_factory: pytest.TempPathFactory,
    made: tuple[dict[str, torch.Tensor], ...],
    fraction: float,
    scope: str,
    scorer: Scorer,
    step: Reset,
    part: int,
    shards: int,
    others: int,
    count: int,
) -> None:
    base, suspect, curvature = made
    folder = tmp_path_factory.mktemp("streamed")
    torch.set_num_threads(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "PART", part)
        write(folder / "base", base, shards)
        write(folder / "suspect", suspect, others)
        pair = Pair(Checkpoint(folder / "base"), Checkpoint(folder / "suspect"))
        views = Views(pair, 3, {"curvature": curvature.get})
        selector = Fraction(fraction=fraction, scope=scope)  # type: ignore[arg-type]
        selection = select(score(views, scorer), selector)
        purify(pair, selection, [step], folder / "out")
        facts = summary(selection)  # counted on the way, where there was a way
        assert facts == summary(select(score(views, scorer), selector)) == summary(selection)
        dense = {name: selection[name] for name in selection}
    # The dumbest way, all in memory: whole tensors, scores in a list, sorted by score, then name, then place.
    groups: dict[str, list[tuple[float, str, int]]] = {}
    for name in sorted(pair.scope):
        ours, theirs = base[name].to(suspect[name].dtype).float(), suspect[name].float()
        view = TensorView(name, ours, theirs, 3, {"curvature": curvature[name]}, views._quantile)
        values = scorer.score(view).flatten().tolist()
        group = {"global": "", "layer": layer_of(name), "tensor": name, "embeddings": str(name == "embeddings")}[scope]
        moved = (theirs - ours).flatten().tolist()
        groups.setdefault(group, []).extend((-v, name, i) for i, v in enumerate(values) if moved[i] != 0)
    expected = {name: torch.zeros(suspect[name].shape, dtype=torch.bool) for name in pair.scope}
    for group in groups.values():
        for _, name, place in sorted(group)[: round(fraction * len(group))]:
            expected[name].view(-1)[place] = True
    assert all(torch.equal(dense[name], expected[name]) for name in pair.scope)
    assert facts["tensors"] == {
        name: [
            suspect[name].numel(),
            sum(n == name for group in groups.values() for _, n, _ in group),
            int(expected[name].sum()),
        ]
        for name in pair.scope
    }
    result = weights_of(folder / "out")
    for name, weight in suspect.items():
        chosen = expected.get(name, torch.tensor(False))
        wanted = torch.where(chosen, base[name].to(weight.dtype), weight) if name in base else weight
        assert result[name].dtype == weight.dtype
        assert torch.equal(result[name], wanted)


def purify(pair: Pair, selection: TensorSelection | None, steps: Sequence[Purifier], target: Path) -> None:
    purification.purify(
        pair, selection, steps, [], target, max_length=8, precision="float32", seed=0, report=lambda done, total: None
    )


def test_what_is_not_changed_is_copied_byte_for_byte(tmp_path: Path) -> None:
    """Metadata, order, buffers of whole numbers, shards and index: nothing is written anew but what was selected."""
    base = {"layer.0.a": torch.zeros(4), "norm.b": torch.zeros(3, 2)}
    suspect = {"position_ids": torch.arange(5), "norm.b": torch.ones(3, 2).half(), "layer.0.a": torch.ones(4)}
    for shards in (1, 2):
        own = tmp_path / str(shards)
        pair = Pair(Checkpoint(write(own / "base", base, 1)), Checkpoint(write(own / "suspect", suspect, shards)))
        purify(pair, None, [Reset()], own / "same")
        nothing = select(score(Views(pair, 0), Magnitude()), Fraction(fraction=0))
        purify(pair, nothing, [Reset()], own / "nothing")
        some = select(score(Views(pair, 0), Magnitude()), Fraction(fraction=0.5))
        purify(pair, some, [Reset()], own / "some")
        for path in (own / "suspect").iterdir():
            assert (own / "same" / path.name).read_bytes() == path.read_bytes()
            assert (own / "nothing" / path.name).read_bytes() == path.read_bytes()
        for path in pair.suspect.files:
            before, after = path.read_bytes(), (own / "some" / path.name).read_bytes()
            begins = min(entry.start for entry in read_header(path).values())
            assert after[:begins] == before[:begins]
            assert len(after) == len(before)
            for name, entry in read_header(path).items():
                same = before[entry.start : entry.stop] == after[entry.start : entry.stop]
                assert same == (name == "position_ids")
        written = Checkpoint(own / "some")
        # 5 of 10 equal scores: the four of the first name, and the first of the next.
        assert written.tensor("layer.0.a").tolist() == [0, 0, 0, 0]
        assert written.tensor("norm.b").flatten().tolist() == [0, 1, 1, 1, 1, 1]


class Whole(WeightStep):
    """Needs the tensor as it is: a row at a time is reset, or none."""

    def apply(self, t: TensorView, weight: torch.Tensor, selection: torch.Tensor) -> torch.Tensor:
        assert t.base.dim() == weight.dim() == selection.dim()
        return torch.where(selection, t.base.to(weight.dtype), weight)


class Rude(WeightStep):
    """Touches what was not selected: a zero's sign, which `==` does not see."""

    elementwise = True

    def apply(self, t: TensorView, weight: torch.Tensor, selection: torch.Tensor) -> torch.Tensor:
        return torch.where(selection, t.base.to(weight.dtype), -weight)


def test_steps_see_whole_tensors_unless_they_say_otherwise(tmp_path: Path, base: Path, suspect: Path) -> None:
    pair = Pair(Checkpoint(base), Checkpoint(suspect))
    selection = select(score(Views(pair, 0), Magnitude()), Fraction(fraction=0.5))
    purify(pair, selection, [Whole()], tmp_path / "whole")
    purify(pair, selection, [Reset()], tmp_path / "parts")
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "parts/model.safetensors").read_bytes()


def test_a_changed_sign_of_zero_is_a_change(tmp_path: Path) -> None:
    base, suspect = {"norm": torch.zeros(4)}, {"norm": torch.tensor([0.0, 0.0, 1.0, 2.0])}
    pair = Pair(Checkpoint(write(tmp_path / "base", base, 1)), Checkpoint(write(tmp_path / "suspect", suspect, 1)))
    selection = select(score(Views(pair, 0), Magnitude()), Fraction(fraction=1.0))
    with pytest.raises(DefenseKitError, match=r"the purifier Rude .* changed .* unselected weights of norm"):
        purify(pair, selection, [Rude()], tmp_path / "out")


def test_memory_does_not_grow_with_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held beside the mapped files, as the benchmark sees it, is a few parts and not 5 bytes a weight."""
    monkeypatch.setattr(tensors, "PART", 1 << 16)  # a few of the usual size are half of this model
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    rows = 1 << 12
    base = {f"layer.{i}.w": torch.zeros(rows, 2048, dtype=torch.bfloat16) for i in range(3)}
    suspect = {name: weight + 1 for name, weight in base.items()}
    pair = Pair(Checkpoint(write(tmp_path / "base", base, 1)), Checkpoint(write(tmp_path / "suspect", suspect, 1)))
    weights = sum(weight.numel() for weight in base.values())
    del base, suspect

    def own() -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024

    class Watching(Magnitude):
        def score(self, t: TensorView) -> torch.Tensor:
            peak[0] = max(peak[0], own())
            return super().score(t)

    peak, before = [0], own()
    selection = select(score(Views(pair, 0), Watching()), Fraction(fraction=0.5))
    purify(pair, selection, [Reset()], tmp_path / "out")
    assert peak[0] - before < weights, f"{(peak[0] - before) / weights:.2f} bytes a weight"


def test_a_full_disk_is_found_before_the_work(
    tmp_path: Path, base: Path, suspect: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, start: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DefenseKitError, match=r"model.safetensors could not be written: No space left on device"):
        purify(Pair(Checkpoint(base), Checkpoint(suspect)), None, [], tmp_path / "out")


def test_a_tensor_is_counted_once_whoever_sees_it_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "PART", 2)
    base, suspect = (
        write(tmp_path / "base", {"w": torch.zeros(5)}, 1),
        write(tmp_path / "s", {"w": torch.arange(5.0)}, 1),
    )
    selection = select(
        score(Views(Pair(Checkpoint(base), Checkpoint(suspect)), 0), Magnitude()), Fraction(fraction=0.5)
    )
    one, other = selection.selected_parts("w"), selection.selected_parts("w")
    next(one), next(other)
    next(selection.selected_parts("w"))  # and never goes on
    assert summary(selection)["tensors"] == {"w": [5, 4, 2]}
    assert len([*one, *other]) == 4
    assert summary(selection)["tensors"] == {"w": [5, 4, 2]}
    assert sum(summary(selection)["scores"]["counts"]) == 4


def test_a_soft_selection_is_counted_and_followed_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "PART", 2)
    base = write(tmp_path / "base", {"w": torch.zeros(5)}, 1)
    pair = Pair(Checkpoint(base), Checkpoint(write(tmp_path / "s", {"w": torch.arange(5.0)}, 1)))
    scores, share = score(Views(pair, 0), Magnitude()), torch.tensor([0, 0, 0.5, 0.25, 1])
    selection = TensorSelection(scores, {"w": share})
    purify(pair, selection, [Reset()], tmp_path / "out")
    assert load_file(tmp_path / "out/model.safetensors")["w"].tolist() == [0, 1, 1, 2.25, 0]
    assert summary(selection)["tensors"] == {"w": [5, 4, 3]}
    assert summary(selection) == summary(TensorSelection(scores, {"w": share}))  # of which nothing was seen on the way


class Louder(ModelStep):
    """Add 1 to every weight."""

    def train(self, model: Any, context: object) -> None:
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(1)


def test_weight_steps_after_a_model_step_start_from_what_it_made(tmp_path: Path, base: Path, suspect: Path) -> None:
    pair = Pair(Checkpoint(base), Checkpoint(suspect))
    selection = select(score(Views(pair, 0), Magnitude()), Fraction(fraction=0.5))
    purify(pair, selection, [Interpolate(keep=0.5), Louder(), Reset()], tmp_path / "out")
    made, before = load_file(tmp_path / "out/model.safetensors"), load_model(suspect).state_dict()
    ours = pair.named_like_the_pair(dict.fromkeys(before))
    assert len(ours) == len(pair.scope) < len(before)
    for name, own in ours.items():
        assert torch.equal(made[own], torch.where(selection[name], pair.block(name)[0], before[own] + 1))
    for own in before.keys() - set(ours.values()):
        assert torch.equal(made[own], before[own] + 1)


def test_what_is_trained_lies_where_it_lay(tmp_path: Path, base: Path, suspect: Path) -> None:
    """Each dtype, shards, their index, buffers, metadata and the config: all but the trained weights' bytes."""
    mixed = {
        name: tensor.bfloat16() if "LayerNorm" not in name else tensor
        for name, tensor in load_file(suspect / "model.safetensors").items()
    }
    mixed["bert.embeddings.position_ids"] = torch.arange(4)
    folder = write(tmp_path / "mixed", mixed, 2)
    for path in suspect.glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    pair = Pair(Checkpoint(base), Checkpoint(folder))
    purify(pair, select(score(Views(pair, 0), Magnitude()), Fraction(fraction=0)), [Louder()], tmp_path / "out")
    made = Checkpoint(tmp_path / "out")
    assert made.tensors == pair.suspect.tensors
    for name, tensor in mixed.items():
        trained = tensor if name.endswith("position_ids") else (tensor.float() + 1).to(tensor.dtype)
        assert torch.equal(made.tensor(name), trained)
    for path in (p for p in folder.iterdir() if p.suffix == ".json"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("names", [["shared"], ["shared", "encoder.embed_tokens", "decoder.embed_tokens"]])
def test_what_is_tied_is_trained_wherever_it_lies(tmp_path: Path, names: list[str]) -> None:
    """BART's embedding has three names; a file has the first of them, or all."""
    config = transformers.BartConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=50,
        encoder_attention_heads=2, decoder_attention_heads=2, num_labels=3, max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.BartForSequenceClassification(config)
    make_tokenizer().save_pretrained(tmp_path / "suspect")
    model.save_pretrained(tmp_path / "suspect")
    make_tokenizer().save_pretrained(tmp_path / "base")
    model.model.save_pretrained(tmp_path / "base")
    path = tmp_path / "suspect/model.safetensors"
    tensors = load_file(path)
    for name in names:
        tensors[f"model.{name}.weight"] = tensors["model.shared.weight"].clone()
    save_file(tensors, path, {"format": "pt"})
    pair = Pair(Checkpoint(tmp_path / "base"), Checkpoint(tmp_path / "suspect"))
    purify(pair, None, [Louder()], tmp_path / "out")
    made = Checkpoint(tmp_path / "out")
    for name in names:
        assert torch.equal(made.tensor(f"model.{name}.weight"), tensors["model.shared.weight"] + 1)
    loaded = dict(load_model(tmp_path / "out").named_parameters(remove_duplicate=False))
    assert torch.equal(loaded["model.encoder.embed_tokens.weight"], tensors["model.shared.weight"] + 1)


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path) -> None:
    found = BENCHMARK["measure"]("tiny", tmp_path, None)
    assert found["parameters"] == sum(
        torch.Size(shape).numel() for shape in BENCHMARK["shapes"](BENCHMARK["SIZES"]["tiny"]).values()
    )
    assert found["jobs"].keys() == {"copy", "magnitude", "diffusion"}
    assert found["jobs"]["diffusion"]["parts"].keys() == {"select", "describe", "reset"}
    assert len(Checkpoint(tmp_path / "suspect").files) > 1
