"""What a tensor's name says of it is what the model's modules are."""

import re
from typing import Any

import pytest
import torch
import transformers
from transformers.pytorch_utils import Conv1D

from defensekit.components.tensors import Scored, Scores, TensorView
from defensekit.models.parts import block_of, output_axis_of, role_of
from tests.models.architectures import architectures

FEED_FORWARD = re.compile("MLP|Intermediate|Output|FeedForward|FFN|Moe|Expert|Dense(ReluDense|ActDense)")


def told_by_modules(model: Any, name: str) -> str | None:
    """The role of a parameter by the classes of the modules around it; None where they don't say it."""
    modules = [model]
    for part in name.split(".")[:-1]:
        modules.append(getattr(modules[-1], part))
    kinds = [type(module).__name__ for module in modules[1:]]
    if kinds and "Norm" in kinds[-1]:
        return "norm"
    if not name.startswith(f"{model.base_model_prefix}.") or ".pooler." in name:
        return "head"
    if any("Attention" in kind for kind in kinds) or "attention_bias" in name:
        return "attention"
    if isinstance(modules[-1], torch.nn.Embedding) or any("Embedding" in kind for kind in kinds):
        return "embedding"
    return "feed-forward" if any(map(FEED_FORWARD.search, kinds)) else None


@pytest.mark.parametrize("architecture", architectures())
def test_roles_and_axes(architecture: str) -> None:
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(architectures()[architecture]())
    roles = {name: (role_of(name), told_by_modules(model, name)) for name, _ in model.named_parameters()}
    assert {name: both for name, both in roles.items() if both[1] not in (None, both[0])} == {}
    untold = {name for name, (role, _) in roles.items() if role == "other"}
    assert not untold or architecture in (
        "mobilebert",
        "xlnet",
    )  # a bottleneck, and a vector for a masked word
    assert {"embedding", "norm", "feed-forward", "head"} <= {role for role, _ in roles.values()}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding | Conv1D):
            assert output_axis_of(f"{name}.weight", module.weight.shape) == isinstance(module, Conv1D), name


def test_views_and_scores_say_it() -> None:
    name, weight = "transformer.h.3.mlp.c_fc.weight", torch.zeros(2, 8)
    view = TensorView(name, weight, weight, 0)
    scores = Scores({name: Scored(weight, weight > 0, "h.3")})
    assert (view.role, view.block, view.output_axis) == ("feed-forward", 3, 1)
    assert (scores.role(name), scores.block(name), scores.output_axis(name)) == ("feed-forward", 3, 1)
    assert block_of("embeddings.word_embeddings.weight") is None
