"""Models placed on a device, or layer by layer on several GPUs where they don't fit on one."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from defensekit.training import device_type
from defensekit.utils.logging import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The weights may take a quarter of a GPU's free memory: statistics take up to twice as much, and a batch the rest.
SHARE = 4


def placed(model: "PreTrainedModel") -> "PreTrainedModel":
    """The model on the device; distributed by accelerate where there are several GPUs and it fits on none."""
    import torch

    count = torch.cuda.device_count() if device_type() == "cuda" else 0
    if count > 1:
        torch.cuda.empty_cache()  # free what earlier models used
    # The other GPUs are queried only if it does not fit on the first: a query takes some of a GPU's memory.
    if count < 2 or SHARE * model.get_memory_footprint() <= torch.cuda.mem_get_info()[0]:
        return model.to(device_type())
    devices = device_map(model, {gpu: torch.cuda.mem_get_info(gpu)[0] // SHARE for gpu in range(count)})
    if "" in devices:
        return model.to(f"cuda:{devices['']}")
    from accelerate import dispatch_model  # type: ignore[import-untyped]

    dispatched: PreTrainedModel = dispatch_model(model, devices, main_device=next(iter(devices.values())))
    return dispatched


def device_map(model: "PreTrainedModel", free: Mapping[int, int]) -> dict[str, int]:
    """The GPU of each part of a model.

    All of it goes on the GPU with the most memory where it fits there, or where it can't be distributed: because its
    class does not say which modules have to stay together, or because all GPUs together have too little memory.

    Args:
        model: the model.
        free: the bytes that the weights may take, by GPU.

    Returns:
        GPUs by module name; ``{"": gpu}`` for the whole model.
    """
    from accelerate import infer_auto_device_map

    largest = max(free, key=lambda gpu: free[gpu])
    if model.get_memory_footprint() > free[largest] and (together := model._no_split_modules):
        with quiet():
            devices: dict[str, int] = infer_auto_device_map(model, dict(free), no_split_module_classes=list(together))
        if set(devices.values()) <= free.keys():
            return devices
    return {"": largest}
