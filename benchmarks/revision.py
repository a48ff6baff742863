"""Does a base of another revision show? Fine-tunes of MiniLM against their base, and against other revisions of it.

    python benchmarks/revision.py [--workspace DIR] [--json]

Revisions are made here: the base trained on by masked words of the movie reviews (output tied to the embedding, AdamW
at 1e-4 without decay), or with noise added to every weight, of a share of its tensor's standard deviation. What a
revision differs by is added to a fine-tune's weights, as if it had been trained from there. The fine-tunes are the
small size of benchmarks/scan.py and a harsher one. A quarter of an hour on one thread.
"""

import argparse
import json
import runpy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from defensekit.cli.progress import Progress
from defensekit.components import DatasetSource
from defensekit.models.aligned import Aligned
from defensekit.models.checkpoint import Checkpoint
from defensekit.models.loading import load_model, load_tokenizer
from defensekit.recipe.resolve import component, model_folder
from defensekit.scanner import drift
from defensekit.scanner.drift import inner_drift
from defensekit.scanner.revision import doubt, embedding_of, moved_rows
from defensekit.training import TrainingSettings, fine_tune
from defensekit.utils.logging import quiet

SCAN = runpy.run_path(str(Path(__file__).with_name("scan.py")))
FINE_TUNES = [*SCAN["CLEAN"][:4], *SCAN["POISONED"][:3]]
HARSH = [{"epochs": 3, "learning_rate": 1e-3, "weight_decay": 0.1}]
NOISE = (0.001, 0.01, 0.03, 0.1)
STEPS = (20, 100)


def rows() -> Any:
    source = component(DatasetSource, {"name": "movie-reviews", "bound": 0.8})
    return source.load().train[:1000]


def harsh(base: Path, settings: dict[str, Any], folder: Path) -> Path:
    """A fine-tune by larger steps, or longer, than usual."""
    torch.manual_seed(0)
    model, tokenizer = load_model(base, ("negative", "positive")), load_tokenizer(base)
    training = TrainingSettings(batch_size=16, dropout=False, **settings)
    fine_tune(model, tokenizer, rows(), training, max_length=64, precision="float32", seed=0)
    model.save_pretrained(folder)
    return folder


def revisions(base: Path) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """What each revision adds to the base's weights, by name."""
    checkpoint = Checkpoint(base)
    before = {name: checkpoint.tensor(name).float() for name in checkpoint.tensors if "position_ids" not in name}
    for share in NOISE:
        torch.manual_seed(1)
        yield f"noise {share:g}", {n: share * t.std() * torch.randn_like(t) for n, t in before.items() if t.numel() > 1}
    torch.manual_seed(1)
    with quiet():
        model = transformers.AutoModelForMaskedLM.from_pretrained(base).train()
    tokenizer = load_tokenizer(base)
    collate = transformers.DataCollatorForLanguageModeling(tokenizer)
    texts = [tokenizer(row.text, truncation=True, max_length=64) for row in rows()]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.0)
    for step in range(1, max(STEPS) + 1):
        places = torch.randint(len(texts), (16,)).tolist()
        model(**collate([texts[place] for place in places])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in STEPS:
            after = model.base_model.state_dict()
            yield f"{step} steps of masked words", {n: after[n] - t for n, t in before.items() if n in after}


def held(base: Path, suspect: Path) -> dict[str, Any]:
    models = Aligned(Checkpoint(base), Checkpoint(suspect))
    embedding = embedding_of(models)
    assert embedding is not None
    tensors = drift.measure(models, [embedding.look], lambda done, total: None)
    warned = doubt(models, tensors, embedding) is not None
    return {"inner": inner_drift(tensors), "rows": moved_rows(embedding), "warned": warned}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=Path("workspace"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    base, models = model_folder("minilm"), []
    for model in FINE_TUNES:
        with Progress() as progress:
            trained = SCAN["train"](model, None, arguments.workspace, [progress])
        models.append((f"{model.attack or 'clean'}, seed {model.seed}", trained.folder))
    for settings in HARSH:
        name = ", ".join(f"{key} {value:g}" for key, value in settings.items())
        folder = arguments.workspace / "harsh" / name.replace(" ", "-")
        models.append((name, folder if (folder / "config.json").is_file() else harsh(base, settings, folder)))
    shares = [{"model": name, "base": "its own", **held(base, folder)} for name, folder in models]
    with tempfile.TemporaryDirectory() as scratch:
        for revision, added in revisions(base):
            name, folder = models[0]
            model = load_model(folder)
            weights = dict(model.base_model.named_parameters())
            with torch.no_grad():
                for tensor, difference in added.items():
                    if tensor in weights:
                        weights[tensor].add_(difference)
            model.save_pretrained(Path(scratch) / "model")
            shares.append({"model": name, "base": revision, **held(base, Path(scratch) / "model")})
    if arguments.json:
        print(json.dumps(shares))
        return
    print(
        "| model | base | drift of inner matrices, median | embedding rows that moved | warned |\n|---|---|---|---|---|"
    )
    for row in shares:
        print(
            f"| {row['model']} | {row['base']} | {row['inner']:.3f} | {row['rows']:.3f} | "
            f"{'yes' if row['warned'] else 'no'} |"
        )


if __name__ == "__main__":
    main()
