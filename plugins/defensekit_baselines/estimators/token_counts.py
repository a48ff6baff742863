"""How often a token occurs."""

from typing import ClassVar

from defensekit.api import Estimate, Estimator, EstimatorContext


class TokenCounts(Estimator):
    """How often each token occurs in the clean rows, for every entry of its row of the word-embedding table.

    E-PUR divides the drift of an embedding row by the logarithm of such a count (Zhang et al., Findings of EMNLP
    2022). Padding does not count, the special tokens that a tokenizer adds do.

        estimator: {name: token-counts}
    """

    provides: ClassVar[frozenset[str]] = frozenset({"token-counts"})
    any_loss: ClassVar[bool] = True

    def estimate(self, context: EstimatorContext) -> Estimate:
        import torch

        model = context.model("suspect")
        table = model.get_input_embeddings().weight
        [name] = [name for name, p in model.named_parameters() if p is table]
        counts = torch.zeros(len(table), device=table.device)
        done = 0
        for indices, batch in context.batches(model, size=1024):
            tokens = batch["input_ids"][batch["attention_mask"].bool()]
            counts += torch.bincount(tokens, minlength=len(table))
            done += len(indices)
            context.report(done, len(context.rows))
        return Estimate({"token-counts": {name: counts[:, None].expand(table.shape)}})
