"""The field's defenses that train: their losses and gradients against the dumbest code, and that they do their work."""

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from defensekit.components import ModelStep, ModelStepContext
from defensekit.models.loading import load_model
from defensekit.text import Row, batches, encode
from defensekit.training import forked_random
from defensekit_baselines.distilling import AttentionDistillation
from defensekit_baselines.regularised import AttentionPenalty, LayerConsistency, inconsistency
from defensekit_baselines.unlearning import Unlearn, hypergradient, perturbed_loss
from tests.conftest import make_sentences
from tests.small_models import make_base, make_suspect, make_tokenizer

ROWS = [Row(i, text, int(label == "positive")) for i, (text, label) in enumerate(make_sentences(32))]
FEW: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 8, "dropout": False}


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lively")
    return make_suspect(folder / "suspect", make_base(folder / "base"), drift=0.3)


def context() -> ModelStepContext:
    def model(which: object) -> Any:
        pytest.fail(f"a step asked for {which}")

    return ModelStepContext(make_tokenizer(), ROWS, 64, "float32", 3, lambda *done: None, model, frozenset())


def batch_of(*texts: str, length: int = 0) -> dict[str, torch.Tensor]:
    """A batch, padded to a length at least."""
    rows = [Row(i, text, i % 2) for i, text in enumerate(texts)]
    [(_, batch)] = batches(encode(make_tokenizer(), rows, 64), make_tokenizer(), len(rows))
    found = dict(batch)
    missing = length - found["input_ids"].shape[1]
    if missing > 0:
        for name in ("input_ids", "attention_mask"):
            found[name] = nn.functional.pad(found[name], (0, missing))
    return found


SHORT = ("the bright film", "a bleak story of people")


@pytest.mark.parametrize(
    "step",
    [
        AttentionDistillation(teacher_epochs=1, **FEW),
        AttentionPenalty(**FEW),
        LayerConsistency(**FEW),
        Unlearn(rounds=1, batch_size=16),
    ],
    ids=lambda step: type(step).__name__,
)
def test_a_step_repeats_itself_and_leaves_nothing_behind(step: ModelStep, lively: Path) -> None:
    made = []
    for _ in range(2):
        model = load_model(lively)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        # The library's own hooks that collect these outputs stay once they were asked for.
        model(**batch_of(*SHORT), output_hidden_states=True, output_attentions=True)
        hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
        with forked_random(3):
            step.train(model, context())
        after = model.state_dict()
        assert {name: t.shape for name, t in after.items()} == {name: t.shape for name, t in before.items()}
        assert any(not torch.equal(tensor, before[name]) for name, tensor in after.items())
        assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == hooks
        assert not model.training
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
        assert model.config._attn_implementation == load_model(lively).config._attn_implementation
        made.append(after)
    assert all(torch.equal(tensor, made[1][name]) for name, tensor in made[0].items())


# -- NAD -----------------------------------------------------------------------------------------------------------


def test_nads_maps_are_over_real_tokens_at_norm_one(lively: Path) -> None:
    step, states = AttentionDistillation(), torch.randn(2, 7, 4)
    batch = batch_of(*SHORT)
    got = step.look(states, batch)
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        sizes = [sum(float(x) ** 2 for x in states[row, token]) for token in range(length)]
        norm = sum(size**2 for size in sizes) ** 0.5
        assert got[row, :length].tolist() == pytest.approx([size / norm for size in sizes], rel=1e-4)
        assert not got[row, length:].any()


def test_nads_student_learns_where_its_teacher_looks(lively: Path) -> None:
    student, teacher = load_model(lively), load_model(lively)
    step, batch = AttentionDistillation(), batch_of(*SHORT)
    same = step.loss(student, teacher, batch)
    assert torch.allclose(same, student(**batch).loss)  # nothing to learn from oneself
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))

    @torch.no_grad()
    def apart() -> float:
        return float(step.loss(student, teacher, batch) - student(**batch).loss) / step.beta

    before = apart()
    assert before > 0
    step.fine_tune(student, context(), lambda model, some: step.loss(model, teacher, some), **FEW | {"epochs": 6})
    assert apart() < before / 2


# -- PURE's second step and CROW --------------------------------------------------------------------------------------


def test_pures_penalty_is_the_norm_of_attention_from_the_first_token(lively: Path) -> None:
    model, batch = load_model(lively), batch_of(*SHORT)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(**batch, output_attentions=True).attentions
    penalty = sum(
        sum(float(a) ** 2 for row in range(2) for a in layer[row, head, 0]) ** 0.5
        for layer in attentions
        for head in range(2)
    ) / len(attentions)
    got = AttentionPenalty(weight=0.5).loss(model, batch) - model(**batch).loss
    assert got.item() == pytest.approx(0.5 * penalty, rel=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_pures_penalty_of_a_model_that_reads_from_left_to_right_is_of_the_last_token(
    architecture: str, tmp_path: Path
) -> None:
    """From the first token, which attends to itself alone, it would be the same whatever is trained."""
    model = load_model(make_suspect(tmp_path / "suspect", make_base(tmp_path / "base", architecture), drift=0.3))
    model.set_attn_implementation("eager")
    batch = batch_of(*SHORT)
    lengths = batch["attention_mask"].sum(1).tolist()
    with torch.no_grad():
        attentions = model(**batch, output_attentions=True).attentions
    penalty = sum(
        sum(float(a) ** 2 for row, length in enumerate(lengths) for a in layer[row, head, length - 1]) ** 0.5
        for layer in attentions
        for head in range(2)
    ) / len(attentions)
    got = AttentionPenalty(weight=0.5).loss(model, batch) - model(**batch).loss
    assert got.item() == pytest.approx(0.5 * penalty, rel=1e-4)
    slopes = torch.autograd.grad(got, list(model.parameters()), allow_unused=True)
    assert any(slope is not None and float(slope.abs().max()) > 1e-4 for slope in slopes)


def consistency(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    tokens = {name: values for name, values in batch.items() if name not in ("input_ids", "labels")}
    return inconsistency(model, model.get_input_embeddings()(batch["input_ids"]), tokens)


def test_crow_compares_neighbouring_layers_on_real_tokens(lively: Path) -> None:
    model, batch = load_model(lively), batch_of(*SHORT)
    states = model(**batch, output_hidden_states=True).hidden_states[1:]
    apart = [
        1 - torch.cosine_similarity(here[row, token], there[row, token], dim=0).item()
        for here, there in pairwise(states)
        for row, length in enumerate(batch["attention_mask"].sum(1).tolist())
        for token in range(length)
    ]
    assert consistency(model, batch).item() == pytest.approx(sum(apart) / len(apart), rel=1e-4)
    assert consistency(model, batch_of(*SHORT, length=12)).item() == pytest.approx(
        consistency(model, batch).item(), rel=1e-4
    )


def test_crow_disturbs_embeddings_against_consistency_and_makes_layers_agree(lively: Path) -> None:
    model, batch = load_model(lively), batch_of(*SHORT)
    plain, own = consistency(model, batch), model(**batch).loss
    calm, disturbed = ((LayerConsistency(weight=1, eps=eps).loss(model, batch) - own).item() for eps in (0.0, 0.02))
    assert calm == pytest.approx(plain.item(), rel=1e-4)
    assert disturbed > calm
    LayerConsistency(**FEW).train(model, context())
    assert consistency(model, batch).item() < plain.item()


# -- I-BAU ---------------------------------------------------------------------------------------------------------


def test_the_hypergradient_is_that_of_the_answer_of_the_inside() -> None:
    """inner = 1/2 a (x - B w)^2 has the answer x = B w; outer = 1/2 |x - c|^2 + 1/2 |w|^2."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    w = torch.randn(2, generator=generator, dtype=torch.float64, requires_grad=True)
    c, curvature = torch.ones(3, dtype=torch.float64), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    x = (matrix @ w).detach().requires_grad_(True)

    def gradient(iterations: int) -> torch.Tensor:
        inner = (curvature * (x - matrix @ w) ** 2).sum() / 2
        outer = ((x - c) ** 2).sum() / 2 + (w**2).sum() / 2
        [found] = hypergradient(outer, inner, x, [w], iterations, 0.3)
        return found

    exact = (w + matrix.T @ (matrix @ w - c)).detach()
    assert torch.allclose(gradient(0), w.detach())  # the inside held fast
    assert torch.allclose(gradient(200), exact)
    errors = [float((gradient(k) - exact).norm()) for k in (1, 5, 20)]
    assert errors == sorted(errors, reverse=True)


def test_a_perturbation_is_added_to_the_rows_it_is_meant_for(lively: Path) -> None:
    model, batch = load_model(lively), batch_of(*SHORT)
    shift = torch.randn(9, 16, generator=torch.Generator().manual_seed(0))
    some = (torch.tensor([], dtype=torch.long), torch.tensor([1]), None)
    plain, one, every = (perturbed_loss(model, batch, shift, rows).item() for rows in some)
    assert plain == pytest.approx(model(**batch).loss.item())
    embedded = model.get_input_embeddings()(batch["input_ids"]) + shift[: batch["input_ids"].shape[1]]
    tokens = {name: values for name, values in batch.items() if name != "input_ids"}
    assert every == pytest.approx(model(inputs_embeds=embedded, **tokens).loss.item(), rel=1e-5)
    mixed = torch.cat([model.get_input_embeddings()(batch["input_ids"])[:1], embedded[1:]])
    assert one == pytest.approx(model(inputs_embeds=mixed, **tokens).loss.item(), rel=1e-5)


def worst(model: Any, step: Unlearn) -> float:
    """The loss under the worst perturbation that the step's own ascent finds."""
    [(_, batch)] = batches(encode(make_tokenizer(), ROWS, 64), make_tokenizer(), len(ROWS))
    shift = torch.zeros(batch["input_ids"].shape[1], 16, requires_grad=True)
    for _ in range(5):
        [slope] = torch.autograd.grad(step.inner(model, dict(batch), shift), shift)
        shift = (shift - step.ascent_rate * slope).detach().requires_grad_(True)
    return perturbed_loss(model, dict(batch), shift).item()


def test_i_bau_takes_the_bite_out_of_the_worst_perturbation(lively: Path) -> None:
    step = Unlearn(rounds=3, learning_rate=3e-3, batch_size=8, share=0.5, ascent_rate=1.0)
    model = load_model(lively)
    before = worst(model, step)
    made = copy.deepcopy(model)
    step.train(made, context())
    assert worst(made, step) < before


def test_losses_of_every_step_have_gradients_in_every_layer(lively: Path) -> None:
    teacher = load_model(lively)
    losses: list[Callable[[Any, Any], torch.Tensor]] = [
        lambda model, batch: AttentionDistillation().loss(model, teacher, batch),
        LayerConsistency().loss,
        AttentionPenalty().loss,
    ]
    for loss in losses:
        model = load_model(lively)
        model.set_attn_implementation("eager")
        loss(model, batch_of(*SHORT)).backward()
        for layer in model.bert.encoder.layer:
            assert layer.output.dense.weight.grad.abs().sum() > 0
