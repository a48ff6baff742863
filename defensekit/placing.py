"""Where a model is measured: on the one device, or in whole layers over several GPUs where one has no room for it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from defensekit.logs import quiet
from defensekit.training import device_type

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of a GPU's free memory the weights may take a third: their gradients or sums and what a batch needs come beside them.
SHARE = 3


def placed(model: "PreTrainedModel") -> "PreTrainedModel":
    """The model on the device; spread by accelerate where there are several GPUs and none has room for it."""
    import torch
    from accelerate import dispatch_model  # type: ignore[import-untyped]

    if device_type() == "cpu" or torch.cuda.device_count() == 1:
        return model.to(device_type())
    free = (torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count()))
    places = spread(model, {gpu: bytes_free // SHARE for gpu, bytes_free in enumerate(free)})
    if "" in places:
        return model.to(f"cuda:{places['']}")
    made: PreTrainedModel = dispatch_model(model, places, main_device=next(iter(places.values())))
    return made


def spread(model: "PreTrainedModel", room: Mapping[int, int]) -> dict[str, int]:
    """Which part of a model goes on which GPU, by bytes of room.

    All of it goes on the roomiest one where it fits there; or where it can't be spread, because its class does not say
    what has to stay together, or because all have too little room: then it is seen whether what is measured fits.
    """
    from accelerate import infer_auto_device_map

    size = sum(p.numel() * p.element_size() for p in model.parameters())
    roomiest = max(room, key=lambda gpu: room[gpu])
    if size > room[roomiest] and (together := model._no_split_modules):
        with quiet():
            places: dict[str, int] = infer_auto_device_map(model, dict(room), no_split_module_classes=list(together))
        if set(places.values()) <= room.keys():
            return places
    return {"": roomiest}
