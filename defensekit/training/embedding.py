"""Training the rows of an embedding table that occur: most words of a language are in no training row."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def compact_embedding(model: "PreTrainedModel", tokens: Iterable[int]) -> Iterator[None]:
    """Within the block, a model's input embedding holds the rows of some tokens only; afterwards all, in place.

    The model still sees the tokens' own numbers, which lead to other rows, and its parameters keep their names. The
    rows that are left out get no gradient, so that AdamW would do no more than decay them; that is done at the end.
    Where more than look-ups depends on the table, such as a tied output layer, nothing is changed.

    Args:
        model: the model.
        tokens: those that it is given; it fails on others but its own, such as the one that a decoder starts with.
    """
    import torch

    table = model.get_input_embeddings().weight
    holders = [module for module in model.modules() if any(p is table for p in module.parameters(recurse=False))]
    embeddings = [module for module in holders if isinstance(module, torch.nn.Embedding)]
    if not embeddings or len(embeddings) < len(holders) or not table.requires_grad or table._backward_hooks:
        yield
        return
    paddings = [embedding.padding_idx for embedding in embeddings]
    own = {token for name, token in model.config.to_dict().items() if name.endswith("_token_id") and type(token) is int}
    read = {*tokens, *own, *(padding for padding in paddings if padding is not None)} & {*range(len(table))}
    rows = torch.tensor(sorted(read), device=table.device)
    places = torch.full((len(table),), -1, device=table.device)
    places[rows] = torch.arange(len(rows), device=table.device)
    # Nothing looks up the last row, of ones: in the end it is what weight decay has left of the rows that are not here.
    compact = torch.nn.Parameter(torch.cat([table.detach()[rows], torch.ones_like(table[:1])]))

    def look_up(embedding: Any, ids: "tuple[torch.Tensor, ...]") -> "tuple[torch.Tensor, ...]":
        return embedding.places[ids[0]], *ids[1:]

    hooks = [embedding.register_forward_pre_hook(look_up) for embedding in embeddings]
    for embedding, padding in zip(embeddings, paddings, strict=True):
        embedding.register_buffer("places", places, persistent=False)
        embedding.weight = compact
        embedding.padding_idx = None if padding is None else int(places[padding])
    try:
        yield
    finally:
        with torch.no_grad():
            table.data = table.to(compact.device)  # where training has moved the model
            table.mul_(compact[-1, 0])
            table[rows.to(compact.device)] = compact[:-1]
        for embedding, padding, hook in zip(embeddings, paddings, hooks, strict=True):
            hook.remove()
            del embedding.places
            embedding.weight, embedding.padding_idx = table, padding
