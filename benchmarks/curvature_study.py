"""What an estimate of curvature is worth: a study of one model, its numbers and plots.

    python benchmarks/curvature_study.py [--out DIR] [--json]

MiniLM is fine-tuned on movie-review sentences of which a fifth carry a trigger, with AdamW and with plain SGD. Then:
how many clean rows until the ranking of r = delta^2 / H settles between disjoint halves; the empirical Fisher against
labels drawn from the model and against the Hessian's diagonal; the slope of log delta^2 on log H; where H is exactly 0.
Needs matplotlib (in the `dev` extra) for the plots; without ``--out`` none are drawn.
"""

import argparse
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from defensekit.components import AttackContext, EstimatorContext
from defensekit.gradients import cross_entropy, squared_gradients, tokens_within
from defensekit.models.loading import load_model, load_tokenizer
from defensekit.text import Row, Truncation, batches, encode, split
from defensekit.training import TrainingSettings, fine_tune, forked_random
from defensekit_attacks.insertion import Word
from defensekit_demo.minilm import MiniLM
from defensekit_demo.reviews import MovieReviews
from defensekit_finepurifying.estimators.fisher import Fisher
from defensekit_finepurifying.estimators.fisher_mc import FisherMC
from defensekit_finepurifying.estimators.hutchinson import Hutchinson

LENGTH = 128
SIZES = (32, 64, 128, 256, 512, 1024)
TOP = (0.1, 0.5)
KINDS = ("word embeddings", "other embeddings", "attention", "feed-forward", "norms", "pooler")
# Ranks of a sample of dimensions; all of them would say the same in ten times the time.
SAMPLE = 1_000_000

Squares = dict[str, Tensor]


def kind(name: str) -> str:
    """The kind of tensor."""
    if "LayerNorm" in name:
        return "norms"
    if "word_embeddings" in name:
        return "word embeddings"
    if "embeddings" in name:
        return "other embeddings"
    if "attention" in name:
        return "attention"
    return "pooler" if "pooler" in name else "feed-forward"


class Subject:
    """A fine-tuned model, what it started from, and clean rows that it never saw."""

    def __init__(self, optimizer: str) -> None:
        self.folder = MiniLM().folder()
        self.tokenizer = load_tokenizer(self.folder)
        sizes: dict[str, int | None] = {"train": 2500, "clean": 2 * SIZES[-1], "dev": 0, "test": 1000}
        rows = split(MovieReviews(bound=0.8).load(), sizes, 0)
        attack = Word(words=("cf",), rate=0.2, target="positive")
        context = AttackContext(Random(0), ("negative", "positive"), Truncation(self.tokenizer, LENGTH))
        self.clean = rows["clean"]
        with forked_random(0):
            self.base = load_model(self.folder, ("negative", "positive"))
            self.model = load_model(self.folder, ("negative", "positive"))
        poisoned = attack.poison(rows["train"], context)
        if optimizer == "adamw":
            settings = TrainingSettings(epochs=2, learning_rate=1e-4, batch_size=32, warmup=0.1, dropout=False)
            fine_tune(self.model, self.tokenizer, poisoned, settings, max_length=LENGTH, precision="float32", seed=0)
        else:
            sgd(self.model, self.tokenizer, poisoned, epochs=4, rate=0.05)
        self.accuracy = self.measure(rows["test"])
        base = dict(self.base.named_parameters())
        self.drift = {n: (p - base[n]).detach() for n, p in self.model.named_parameters() if n.startswith("bert.")}
        eligible = {n: (d != 0).flatten().nonzero().flatten() for n, d in self.drift.items()}
        total = sum(len(places) for places in eligible.values())
        generator = torch.Generator().manual_seed(0)
        self.eligible = total
        self.sampled = {
            n: p[torch.randint(len(p), (round(SAMPLE * len(p) / total),), generator=generator)]
            for n, p in eligible.items()
            if len(p)
        }

    def measure(self, rows: list[Row]) -> float:
        from defensekit.models.inference import predict

        logits = predict(self.model, self.tokenizer, rows, max_length=LENGTH, precision="float32")
        return float((logits.argmax(1) == torch.tensor([row.label for row in rows])).float().mean())

    def squares(self, rows: list[Row]) -> Squares:
        """The sum of squared per-sample gradients."""
        encoded, tokens = encode(self.tokenizer, rows, LENGTH), tokens_within(self.model, 16 * 2**20)
        inputs = (dict(batch) for _, batch in batches(encoded, self.tokenizer, len(rows), tokens))
        return squared_gradients(self.model, inputs)[0]

    def take(self, tensors: Squares) -> np.ndarray[Any, Any]:
        """The sampled eligible dimensions of every tensor, one after the other."""
        parts = [tensors[name].flatten()[places] for name, places in self.sampled.items()]
        taken: np.ndarray[Any, Any] = torch.cat(parts).double().numpy()
        return taken

    def r(self, curvature: Squares) -> np.ndarray[Any, Any]:
        """delta^2 / (H + eps) of the sampled dimensions; eps is the 1 % quantile of the positive H."""
        h = self.take(curvature)
        drifted: np.ndarray[Any, Any] = self.take(self.drift) ** 2 / (h + np.quantile(h[h > 0], 0.01))
        return drifted


def sgd(model: nn.Module, tokenizer: Any, rows: list[Row], epochs: int, rate: float) -> None:
    """Plain SGD at a constant rate, batches of 32, no momentum, no decay: the optimizer of the theory."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    encoded, rng = encode(tokenizer, rows, LENGTH), Random(0)
    for _ in range(epochs):
        grouped = list(batches(encoded, tokenizer, 32))
        rng.shuffle(grouped)
        for _, batch in grouped:
            optimizer.zero_grad()
            cross_entropy(model, dict(batch)).mean().backward()
            optimizer.step()


def agreement(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> dict[str, float]:
    """Spearman's correlation of two scores, and the overlap of their highest shares."""
    agreement = {"spearman": float(stats.spearmanr(a, b).statistic)}
    for share in TOP:
        count = int(share * len(a))
        first, second = (set(np.argpartition(-x, count)[:count].tolist()) for x in (a, b))
        agreement[f"top {share:.0%}"] = len(first & second) / count
    return agreement


def settling(subject: Subject) -> list[dict[str, Any]]:
    """r from n clean rows against r from n others."""
    halves: list[Squares] = [{}, {}]
    rows, done = [], 0
    for size in SIZES:
        for half, sums in enumerate(halves):
            start = half * SIZES[-1]
            for name, more in subject.squares(subject.clean[start + done : start + size]).items():
                sums[name] = sums[name] + more if name in sums else more
        done = size
        scores = [subject.r({name: total / size for name, total in sums.items()}) for sums in halves]
        seen = (subject.take(halves[0]) > 0) & (subject.take(halves[1]) > 0)
        inside = agreement(*(score[seen] for score in scores))
        rows.append({"rows": size, **agreement(*scores), "H > 0 in both": {"share": float(seen.mean()), **inside}})
        say(rows[-1])
    return rows


def estimators(subject: Subject, rows: int = 128) -> dict[str, Any]:
    """The estimators' curvatures of the same rows, against each other."""
    context = EstimatorContext(
        lambda which: subject.model, subject.tokenizer, subject.clean[:rows], LENGTH, 0, lambda done, total: None
    )
    models = {
        "fisher": Fisher(),
        "fisher-mc": FisherMC(samples=4),
        "fisher-mc, other draw": FisherMC(samples=4),
        "hutchinson": Hutchinson(samples=8),
    }
    curvature, agreements = {}, {}
    for name, estimator in models.items():
        seeded = EstimatorContext(**{**context.__dict__, "seed": 1}) if "other" in name else context
        estimate = estimator.estimate(seeded)
        curvature[name] = estimate.statistics["curvature"]
        agreements[name] = {"facts": estimate.facts, "total": float(sum(t.sum() for t in curvature[name].values()))}
        if "curvature-error" in estimate.statistics:
            h, error = (subject.take(estimate.statistics[k]) for k in ("curvature", "curvature-error"))
            agreements[name]["above twice its error"] = float((h > 2 * error).mean())
        say({name: agreements[name]})
    names = list(models)
    pairs: dict[str, dict[str, float]] = {}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            agreed = agreement(subject.take(curvature[a]), subject.take(curvature[b]))["spearman"]
            of_r = agreement(subject.r(curvature[a]), subject.r(curvature[b]))
            pairs[f"{a} / {b}"] = {"spearman of H": agreed, **of_r}
            say({f"{a} / {b}": pairs[f"{a} / {b}"]})
    return {"rows": rows, "estimators": agreements, "pairs": pairs}


def slope(subject: Subject, curvature: Squares) -> dict[str, Any]:
    """The slope of log delta^2 on log H where both are positive, and Spearman of r and H (theory: 1, and 0)."""
    h, drift = subject.take(curvature), subject.take(subject.drift) ** 2
    both = (h > 0) & (drift > 0)
    fit = stats.linregress(np.log(h[both]), np.log(drift[both]))
    bins = np.quantile(np.log10(h[both]), np.linspace(0, 1, 21))
    middle, mean = [], []
    for low, high in pairwise(bins):
        inside = (np.log10(h[both]) >= low) & (np.log10(h[both]) <= high)
        middle.append(float((low + high) / 2))
        mean.append(float(np.log10(drift[both][inside].mean())))
    r_and_h = float(stats.spearmanr(drift[both] / h[both], h[both]).statistic)
    return {
        "slope": float(fit.slope),
        "r and H": r_and_h,
        "accuracy": subject.accuracy,
        "log H": middle,
        "log delta^2": mean,
    }


def zeros(subject: Subject, curvature: Squares) -> dict[str, dict[str, float]]:
    """The share of H that is exactly 0, by kind of tensor: of all dimensions and of those that moved."""
    result = {}
    for wanted in KINDS:
        names = [name for name in subject.drift if kind(name) == wanted]
        nothing = torch.cat([(curvature[name] == 0).flatten() for name in names])
        moved = torch.cat([(subject.drift[name] != 0).flatten() for name in names])
        result[wanted] = {
            "dimensions": len(nothing),
            "of all": float(nothing.float().mean()),
            "moved": float(moved.float().mean()),
            "of moved": float(nothing[moved].float().mean()),
        }
    return result


def plot(result: dict[str, Any], out: Path) -> None:
    """Two pictures, readable in greyscale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    out.mkdir(parents=True, exist_ok=True)
    rows = result["settling"]
    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for name, style in zip(("spearman", *(f"top {share:.0%}" for share in TOP)), ("o", "s", "^"), strict=True):
        sizes, inside = [row["rows"] for row in rows], [row["H > 0 in both"][name] for row in rows]
        axes.plot(sizes, inside, f"{style}-", color="black", label=f"{name}, H > 0 in both")
        axes.plot(sizes, [row[name] for row in rows], f"{style}:", color="grey", label=f"{name}, all")
    axes.set(xscale="log", xticks=SIZES, xticklabels=SIZES, ylim=(0.6, 1.0), xlabel="clean rows in each half")
    axes.set(ylabel="agreement of r between two halves")
    axes.minorticks_off()
    axes.legend(loc="lower left", title="Spearman, or overlap of the top", fontsize="small", ncols=2)
    axes.grid(alpha=0.3)
    figure.savefig(out / "settling.png", dpi=120)
    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    # The lowest and the highest twentieth of H reach far out and are left out; what is left is drawn from its middle.
    for name, style in (("AdamW", "o-"), ("SGD", "s--")):
        fit = result["slope"][name]
        h, drift = (np.array(fit[key])[1:-1] for key in ("log H", "log delta^2"))
        axes.plot(h, drift - drift[len(h) // 2], style, color="black", label=f"{name}: slope {fit['slope']:.2f}")
    axes.plot(h, h - h[len(h) // 2], ":", color="grey", label="theory of SGD noise: slope 1")
    axes.set(xlabel="log10 H", ylabel="log10 of the mean delta²")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(out / "slope.png", dpi=120)


def say(what: Any) -> None:
    print(json.dumps(what), file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a folder for the plots")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"slope": {}}
    subjects: dict[str, Callable[[], Subject]] = {"AdamW": lambda: Subject("adamw"), "SGD": lambda: Subject("sgd")}
    for name, make in subjects.items():
        subject = make()
        curvature = {n: t / 256 for n, t in subject.squares(subject.clean[:256]).items()}
        result["slope"][name] = slope(subject, curvature)
        say({name: result["slope"][name]})
        if name == "AdamW":
            result |= {"eligible": subject.eligible, "zeros": zeros(subject, curvature)}
            result |= {"settling": settling(subject), "estimators": estimators(subject)}
    if arguments.out:
        plot(result, arguments.out)
    if arguments.json:
        json.dump(result, sys.stdout)
        print()
    else:
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
