"""What a machine computes with, and in which precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

Precision = Literal["float32", "bfloat16"]


def native_precision() -> Precision:
    """The faster precision of this machine.

    Returns:
        ``bfloat16`` where the processor or GPU has instructions for it, else ``float32``.
    """
    import torch

    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # An older torch can't say it: then float32 is the safe choice. Emulated bfloat16 takes 25 times as long.
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        fast = any(has for name, has in capabilities.items() if name.endswith("bf16"))
    return "bfloat16" if fast else "float32"


def device_type() -> str:
    """The device type that models run on.

    Returns:
        ``cuda`` where a GPU is available, else ``cpu``.
    """
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def attention_in_float32(precision: Precision) -> Iterator[None]:
    """Within the block a CPU computes attention in float32: going back through it in bfloat16 takes ten times as long.

    In a batch of 32 short rows that is 26 ms a layer for 5, a third of MiniLM's whole step (torch 2.13, AVX-512).

    Args:
        precision: of everything else; nothing changes but under bfloat16.
    """
    if precision == "float32" or device_type() != "cpu":
        yield
        return
    import torch
    from torch.overrides import TorchFunctionMode

    class InFloat32(TorchFunctionMode):
        def __torch_function__(self, call: Any, types: Any, given: Any = (), named: Any = None) -> Any:
            named = named or {}
            if call is not torch.nn.functional.scaled_dot_product_attention:
                return call(*given, **named)
            with torch.autocast("cpu", enabled=False):
                outcome = call(*map(raised, given), **{name: raised(value) for name, value in named.items()})
            return outcome.to(given[0].dtype)

    def raised(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value

    with InFloat32():
        yield
