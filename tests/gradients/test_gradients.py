"""Squared per-sample gradients against the dumbest loop in float64, whatever the model is made of."""

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from defensekit.gradients import batched, mean_gradient, squared_gradients, tokens_within
from defensekit.gradients.plain import add_one_by_one
from defensekit.testing import check_squared_gradients
from defensekit.testing.gradients import squared_gradients_by_loop
from defensekit.text import batches, encode
from defensekit.utils.errors import DefenseKitError
from tests.gradients.helpers import Batch, classifier, close, padded, rows
from tests.gradients.middles import MIDDLES, Output, Owner, Small
from tests.small_models import ARCHITECTURES, make_tokenizer

# -- every architecture --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_squared_gradients_are_the_loops(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, [batch] = classifier(architecture), padded(rows([3, 7, 5, 5]))
    plain = plain_way(monkeypatch)
    got, norms = squared_gradients(model, [batch])
    expected, expected_norms = squared_gradients_by_loop(model, batch)
    close(got, expected)
    assert norms.tolist() == pytest.approx(expected_norms.tolist(), rel=1e-4)
    if architecture == "deberta-v2":  # its positions are projected once for all samples
        assert {name.split(".")[-2] for name in plain} == {"pos_key_proj", "pos_query_proj", "rel_embeddings"}
    else:
        assert not plain
    errors = check_squared_gradients(model, batch)
    assert errors.keys() == expected.keys()


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    labels=st.integers(2, 4),
    size=st.integers(1, 6),
    extra=st.integers(0, 5),
    architecture=st.sampled_from(["bert", "deberta-v2", "gpt2", "qwen3"]),
)
@settings(deadline=None, max_examples=25)
def test_squared_gradients_whatever_the_batches(
    lengths: list[int], labels: int, size: int, extra: int, architecture: str
) -> None:
    """In float64, so that what remains is the arithmetic of batches, padding and order, not rounding."""
    model, made = classifier(architecture, labels).double(), rows(lengths, labels)
    expected, norms = squared_gradients_by_loop(model, padded(made)[0])
    got, got_norms = squared_gradients(model, padded(made, size, extra)[::-1])
    for name, tensor in expected.items():
        assert float((got[name] - tensor).norm()) <= 1e-6 * float(tensor.norm()) + 1e-24 * float(norms.sum()), name
    assert sorted(got_norms.tolist()) == pytest.approx(sorted(norms.tolist()), rel=1e-6)


def test_float32_agrees_whatever_the_batches() -> None:
    model, made = classifier("bert"), rows([3, 7, 5, 9, 1, 12, 4, 4])
    whole, _ = squared_gradients(model, padded(made))
    split, _ = squared_gradients(model, padded(made, 3, 4)[::-1])
    for name, tensor in whole.items():
        if not name.endswith("key.bias"):  # 0 but for rounding
            assert float((split[name] - tensor).norm()) <= 5e-6 * float(tensor.norm()), name


# -- what a model may be made of -----------------------------------------------------------------------------------


def small(middle: str) -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Small(MIDDLES[middle][0]())


def some(samples: int, tokens: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 20, (samples, tokens), generator=generator)
    return {"input_ids": ids, "labels": torch.randint(0, 3, (samples,), generator=generator)}


class Tokens(nn.Module):
    """The channels of a module that wants them second."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.inner(x.transpose(1, 2)).transpose(1, 2)
        return y


def plain_way(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Fills with the names of the parameters that go the plain way."""
    seen: set[str] = set()

    def spy(model: nn.Module, parameters: dict[str, nn.Parameter], *rest: object) -> None:
        seen.update(parameters)
        add_one_by_one(model, parameters, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("defensekit.gradients.batched.add_one_by_one", spy)
    return seen


@pytest.mark.parametrize("middle", MIDDLES)
@pytest.mark.parametrize("first", [1, 4], ids=["one sample first", "several first"])
def test_whatever_the_model_is_made_of(middle: str, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, found = small(middle), [some(first, 4), some(3, 4, 1), some(5, 7, 2), some(4, 3, 3)]
    model.middle = Tokens(model.middle) if middle == "prelu" else model.middle
    plain = plain_way(monkeypatch)
    got, norms = squared_gradients(model, found)
    prefix = "middle.inner." if middle == "prelu" else "middle."
    assert plain == {prefix + name for name in MIDDLES[middle][1]}
    loops = [squared_gradients_by_loop(model, batch) for batch in found]
    close(got, {name: sum(sums[name] for sums, _ in loops) for name in got})  # type: ignore[misc]
    assert norms.tolist() == pytest.approx(torch.cat([n for _, n in loops]).tolist(), rel=1e-4)
    assert all(float(tensor.sum()) > 0 for name, tensor in got.items() if "bias" not in name)


def test_a_model_of_which_nothing_can_be_tapped(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.unused = nn.Parameter(torch.randn(20, 3)), nn.Parameter(torch.ones(2))

        def forward(self, input_ids: torch.Tensor) -> Output:
            return Output(self.table[input_ids].mean(1))

    got, _ = squared_gradients(Odd(), [some(3, 4)])
    assert float(got["table"].sum()) > 0
    assert not got["unused"].any()


def test_frozen_parameters_and_adapters() -> None:
    model = classifier("bert")
    for name, p in model.named_parameters():
        p.requires_grad_("LayerNorm" in name or name.endswith("layer.1.output.dense.bias"))
    [batch] = padded(rows([3, 7, 5]))
    assert check_squared_gradients(model, batch).keys() == {n for n, p in model.named_parameters() if p.requires_grad}

    adapted = peft.get_peft_model(classifier("bert"), peft.LoraConfig(r=2, target_modules=["query", "value"]))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:  # which begins at 0
                p.normal_()
    errors = check_squared_gradients(adapted, batch)
    assert errors.keys() == {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert 0 < len(errors) < 12


def test_weights_in_bfloat16_are_summed_in_float32() -> None:
    model, [batch] = classifier("bert").bfloat16(), padded(rows([3, 7, 5]))
    got, _ = squared_gradients(model, [batch])
    assert {tensor.dtype for tensor in got.values()} == {torch.float32}
    check_squared_gradients(model, batch, tolerance=0.1)


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(6, track_running_stats=False), nn.Dropout(0.5)], ids=["batch statistics", "random"]
)
def test_samples_that_depend_on_each_other_name_the_layer(layer: nn.Module) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine, self.mixing = nn.Linear(6, 6), layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.fine(x)
            self.mixing.train()
            return self.mixing(y.transpose(1, 2)).transpose(1, 2)

    model = Small(Mixed())
    with pytest.raises(DefenseKitError, match=r"^middle\.mixing gives another output for a sample"):
        squared_gradients(model, [some(3, 4)])
    if not isinstance(layer, nn.Dropout):
        with pytest.raises(DefenseKitError, match=r"^middle\.mixing gives another output for a sample"):
            squared_gradients(model, [some(1, 4), some(3, 4)])  # one sample alone gives nothing away
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_self_check_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("layer norm")
    halved = squared_gradients(model, [some(3, 4)])
    halved[0]["head.weight"] /= 2
    monkeypatch.setattr("defensekit.testing.gradients.squared_gradients", lambda *_, **__: halved)
    with pytest.raises(AssertionError, match=r"head\.weight: 0\.5$"):
        check_squared_gradients(model, some(3, 4))


# -- as it was before ----------------------------------------------------------------------------------------------


def test_the_model_is_as_before() -> None:
    model = classifier("bert").train()
    model.classifier.weight.requires_grad_(False)
    model.bert.embeddings.word_embeddings.weight.grad = torch.ones_like(model.bert.embeddings.word_embeddings.weight)
    state = torch.random.get_rng_state()
    sums, _ = squared_gradients(model, padded(rows([4, 2])))
    assert "classifier.weight" not in sums
    assert all(module.training for module in model.modules())
    assert bool((model.bert.embeddings.word_embeddings.weight.grad == 1).all())
    assert model.bert.encoder.layer[0].output.dense.weight.grad is None
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["classifier.weight"]
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(state, torch.random.get_rng_state())


class Broken(nn.Module):
    """The identity, with a gradient of 0 times infinity."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0 * torch.sqrt(x * 0)


@pytest.mark.parametrize("tap", [True, False], ids=["by tap", "the plain way"])
def test_a_gradient_that_is_not_finite_names_its_tensor(tap: bool) -> None:
    model = Small(nn.Sequential(nn.Linear(6, 6) if tap else Owner(), Broken(), nn.LayerNorm(6)))
    name = r"middle\.0\.(weight|bias)" if tap else r"middle\.0\.tensor"
    with pytest.raises(DefenseKitError, match=f"gradient of {name} is NaN or infinite"):
        squared_gradients(model, [some(3, 4)])
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    model = classifier("bert")
    with torch.no_grad():
        model.classifier.bias[0] = float("inf")
    with pytest.raises(DefenseKitError, match="loss is nan"):
        squared_gradients(model, padded(rows([4])))


def test_a_loss_for_the_whole_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a loss per sample, shape \[2\], got \[\]"):
        squared_gradients(small("conv1d"), [some(3, 4)], loss=lambda m, b: m(b["input_ids"]).logits.mean())


# -- gradients of batches ------------------------------------------------------------------------------------------


def test_mean_gradient_is_the_batchs() -> None:
    model, made = classifier("bert"), rows([3, 7, 5, 6])
    [got] = mean_gradient(model, padded(made))
    model.double()
    for [sample] in (padded([row]) for row in made):
        logits = model(**{name: values for name, values in sample.items() if name != "labels"}).logits
        (torch.nn.functional.cross_entropy(logits, sample["labels"]) / 4).backward()
    expected = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    floored = {name: gradient for name, gradient in expected.items() if not name.endswith("key.bias")}
    close({name: got[name] for name in floored}, floored, rel=1e-3)  # rows of two labels cancel


def test_the_batch_size_follows_from_the_budget() -> None:
    model, tokenizer = classifier("bert"), make_tokenizer()
    assert tokens_within(model, 100 * 2 * 4 * (16 + 32)) == 100  # a feed-forward layer of 16 and 32
    assert tokens_within(model, 1) == 1
    encoded = encode(tokenizer, rows([3, 9, 5, 5, 1, 2]), 64)
    found = [batch["input_ids"].shape for _, batch in batches(encoded, tokenizer, 4, tokens=14)]
    assert sum(shape[0] for shape in found) == 6
    assert all(shape[0] * shape[1] <= 14 or shape[0] == 1 for shape in found)
    assert len(found) < 6


class Twice(nn.Module):
    """Applies a layer to tokens, and in longer rows to positions, the same for every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(40, 8), nn.Embedding(40, 8)
        self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, input_ids: torch.Tensor, **_: torch.Tensor) -> Output:
        states = self.layer(self.tokens(input_ids))
        if input_ids.shape[1] > 5:
            states = states + self.layer(self.positions.weight[: input_ids.shape[1]])
        return Output(self.head(torch.tanh(states).mean(1)))


def summed(model: nn.Module, made: list[Batch]) -> dict[str, torch.Tensor]:
    """The sums of squares by a loop in float64."""
    each = [squared_gradients_by_loop(model, batch)[0] for batch in made]
    return {name: torch.stack([one[name] for one in each]).sum(0) for name in each[0]}


def test_a_layer_that_is_called_otherwise_later_counts_once() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Twice()
    made = [*padded(rows([2, 3])), *padded(rows([6, 7, 6]))]
    close(squared_gradients(model, made)[0], summed(model, made))


@pytest.mark.parametrize("architecture", ["xlnet", "t5"])
def test_rows_of_two_tokens_are_no_two_samples(architecture: str) -> None:
    """In which the trial would take samples for tokens."""
    model = classifier(architecture)
    tokenizer = make_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    short, long = (
        [dict(batch) for _, batch in batches(encode(tokenizer, rows(lengths), 64), tokenizer, 8)]
        for lengths in ([0, 0, 0], [4, 5, 4])
    )
    assert short[0]["input_ids"].shape[1] == 2
    close(squared_gradients(model, [*short, *long])[0], summed(model, [*short, *long]))


def test_a_sample_without_a_gradient_tests_no_layer() -> None:
    """Every wrong formula would pass."""
    model, made = classifier("bert"), padded(rows([3, 4, 5]))

    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        losses = nn.functional.cross_entropy(model(**{k: v for k, v in batch.items() if k != "labels"}).logits,
                                             batch["labels"], reduction="none")  # fmt: skip
        return losses * scale

    scale = 0.0
    tried: list[object] = []
    original = batched.try_out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batched, "try_out", lambda *given: tried.append(original(*given)) or tried[-1])
        found, norms = squared_gradients(model, made, loss=loss)
        assert tried == [None]
        assert not norms.any()
        scale = 1.0
        squared_gradients(model, made, loss=loss)
        assert tried[1] is not None
    assert not any(bool(values.any()) for values in found.values())
