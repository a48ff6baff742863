"""A model over several GPUs: where its parts go, and that what is measured is the same; the GPUs are made up."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from transformers import PreTrainedModel

from defensekit.gradients import squared_gradients
from defensekit.models import devices
from defensekit.models.devices import device_map, placed
from tests.gradients.helpers import classifier, close, padded, rows

SPREADABLE = ("bert", "roberta", "gpt2", "llama", "qwen2")


def two_gpus(monkeypatch: pytest.MonkeyPatch, free: int) -> dict[str, Any]:
    """Two GPUs with so much memory free, the second with a little more; where a model is put."""
    asked: dict[str, Any] = {}

    def dispatch(model: Any, places: Mapping[str, int], **more: Any) -> Any:
        asked["places"] = places
        return model

    def to(model: Any, device: str) -> Any:
        asked["to"] = device
        return model

    monkeypatch.setattr(devices, "device_type", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu=0: (free + 10 * devices.SHARE * gpu, 1 << 40))
    monkeypatch.setattr("accelerate.dispatch_model", dispatch)
    monkeypatch.setattr(PreTrainedModel, "to", to)
    return asked


@pytest.mark.parametrize(("short_of", "place"), [(0, "cuda"), (9, "cuda:1")])
def test_one_gpu_that_has_room_takes_all(monkeypatch: pytest.MonkeyPatch, short_of: int, place: str) -> None:
    model = classifier("bert")
    asked = two_gpus(monkeypatch, devices.SHARE * (model.get_memory_footprint() - short_of))
    assert placed(model) is model
    assert asked == {"to": place}


def test_what_fits_none_is_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier("llama")
    asked = two_gpus(monkeypatch, devices.SHARE * model.get_memory_footprint() * 19 // 20)
    assert placed(model) is model
    assert asked.keys() == {"places"}
    assert set(asked["places"].values()) == {0, 1}


@pytest.mark.parametrize("architecture", SPREADABLE)
def test_layers_stay_whole_and_everything_has_a_place(architecture: str) -> None:
    model = classifier(architecture)
    places = device_map(model, dict.fromkeys((0, 1), model.get_memory_footprint() * 19 // 20))
    assert set(places.values()) == {0, 1}

    def place(name: str) -> int:
        [found] = {gpu for part, gpu in places.items() if name == part or name.startswith(f"{part}.")}
        return found

    for name, _ in model.named_parameters():
        place(name)
    for name, module in model.named_modules():
        if type(module).__name__ in model._no_split_modules:
            assert len({place(f"{name}.{part}") for part, _ in module.named_parameters()}) == 1


@pytest.mark.parametrize("architecture", ["deberta-v2", "llama"])
def test_what_can_not_be_spread_goes_where_there_is_most_room(architecture: str) -> None:
    """Of the first nobody says what stays together; for the second both GPUs have too little room."""
    assert device_map(classifier(architecture), {0: 1_000, 1: 2_000}) == {"": 1}


@pytest.mark.parametrize("architecture", SPREADABLE)
def test_squares_of_a_spread_model_are_those_of_the_whole(architecture: str) -> None:
    """With accelerate's hooks on every layer; the two devices are the same one."""
    batches = list(padded(rows([3, 7, 5, 1]), size=2))
    expected, norms = squared_gradients(classifier(architecture), batches)
    model = classifier(architecture)
    places = device_map(model, dict.fromkeys((0, 1), model.get_memory_footprint() * 19 // 20))
    model = dispatch_model(model, dict.fromkeys(places, "cpu"), main_device="cpu", force_hooks=True)
    assert all(hasattr(module, "_hf_hook") for module in model.modules() if list(module.parameters(recurse=False)))
    found, others = squared_gradients(model, batches)
    close(found, {name: tensor.double() for name, tensor in expected.items()}, rel=1e-5)
    assert torch.allclose(others, norms, rtol=1e-5)
