"""Where a model is measured: on the one device, or in whole layers over several GPUs where one has no room for it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from defensekit.training import device_type
from defensekit.utils.logging import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of a GPU's free memory the weights may take a quarter: what is measured takes up to twice as much, and then a batch.
SHARE = 4


def placed(model: "PreTrainedModel") -> "PreTrainedModel":
    """The model on the device; spread by accelerate where there are several GPUs and none has room for it."""
    import torch

    count = torch.cuda.device_count() if device_type() == "cuda" else 0
    if count > 1:
        torch.cuda.empty_cache()  # of models that are gone
    # The others are asked only if the first has no room: what is asked of a GPU takes some of its memory.
    if count < 2 or SHARE * model.get_memory_footprint() <= torch.cuda.mem_get_info()[0]:
        return model.to(device_type())
    devices = device_map(model, {gpu: torch.cuda.mem_get_info(gpu)[0] // SHARE for gpu in range(count)})
    if "" in devices:
        return model.to(f"cuda:{devices['']}")
    from accelerate import dispatch_model  # type: ignore[import-untyped]

    dispatched: PreTrainedModel = dispatch_model(model, devices, main_device=next(iter(devices.values())))
    return dispatched


def device_map(model: "PreTrainedModel", room: Mapping[int, int]) -> dict[str, int]:
    """Which part of a model goes on which GPU, by bytes of room.

    All of it goes on the roomiest one where it fits there; or where it can't be spread, because its class does not say
    what has to stay together, or because all have too little room: then it is seen whether what is measured fits.
    """
    from accelerate import infer_auto_device_map

    roomiest = max(room, key=lambda gpu: room[gpu])
    if model.get_memory_footprint() > room[roomiest] and (together := model._no_split_modules):
        with quiet():
            devices: dict[str, int] = infer_auto_device_map(model, dict(room), no_split_module_classes=list(together))
        if set(devices.values()) <= room.keys():
            return devices
    return {"": roomiest}
