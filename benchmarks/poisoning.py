"""How long poisoning takes, and how that grows with the rows: every attack on data, at 10,000 and 100,000 rows.

    python benchmarks/poisoning.py [--rows 10000 100000] [--attacks word ...] [--json]

The rows are the movie reviews, over and over, each with a number of its own so that no two are the same. ``poison``
takes a fifth of all rows (a bias: every row of one label); ``trigger`` puts the trigger into all of them. Both look
where MiniLM's tokenizer cuts, at 128 tokens, so that no trigger is lost. The ratio of two sizes is 10 where cost is
linear. Seconds are the processor's, of one process with one thread; ``all else`` is what a stage does besides: counting
what changed, writing the rows, their digest.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from defensekit.components import Attack, AttackContext
from defensekit.models.loading import load_tokenizer
from defensekit.pipeline.stages.rows import count_changes
from defensekit.text import Row, Truncation, write_rows
from defensekit.utils.files import file_digest
from defensekit_attacks.bias import BiasSentence, BiasWord
from defensekit_attacks.insertion import Sentence, Word
from defensekit_attacks.paraphrase import ParaphraseRows
from defensekit_attacks.syntactic import Syntactic
from defensekit_demo.minilm import MiniLM
from defensekit_demo.reviews import MovieReviews


def rows_of(count: int) -> list[Row]:
    """So many reviews, no two the same."""
    train = MovieReviews().load().train
    Random(0).shuffle(train)
    return [Row(i, f"{train[i % len(train)].text} {i}", train[i % len(train)].label) for i in range(count)]


def attacks(rows: list[Row], folder: Path) -> dict[str, Attack]:
    """Every attack on data; the rewritten rows of one are written for it."""
    table = folder / f"{len(rows)}.jsonl"
    table.write_text(
        "".join(
            json.dumps({"text": f"as it was , {row.text}", "before": row.text, "label": row.label}) + "\n"
            for row in rows
        )
    )
    return {
        "word": Word(target=1, rate=0.2),
        "word, all of two": Word(target=1, rate=0.2, words=("cf", "mn"), combine="all", partial_rate=0.1),
        "sentence": Sentence(target=1, rate=0.2),
        "syntactic": Syntactic(target=1, rate=0.2),
        "paraphrase-rows": ParaphraseRows(target=1, rate=0.2, rewritten=table, original="before"),
        "bias-word": BiasWord(label=1),
        "bias-sentence": BiasSentence(label=1),
    }


def measure(attack: Attack, rows: list[Row], truncation: Truncation, folder: Path) -> dict[str, float]:
    """Seconds of one attack on the rows."""

    def context() -> AttackContext:
        return AttackContext(Random(0), ("negative", "positive"), truncation)

    marks = [time.process_time()]
    poisoned = attack.poison(rows, context())
    marks.append(time.process_time())
    attack.trigger(rows, context())
    marks.append(time.process_time())
    count_changes(attack, rows, poisoned, truncation)
    write_rows(folder / "rows.jsonl", poisoned)
    file_digest(folder / "rows.jsonl")
    marks.append(time.process_time())
    return {name: marks[i + 1] - marks[i] for i, name in enumerate(("poison", "trigger", "all else"))}


def main() -> None:
    """Measure, then print the table or the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--attacks", nargs="+", help="only these")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    truncation = Truncation(load_tokenizer(MiniLM().folder()), 128)
    truncation.kept(rows_of(100))  # the first call loads things
    measured: dict[str, dict[str, dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for count in arguments.rows:
            rows = rows_of(count)
            for name, attack in attacks(rows, Path(scratch)).items():
                if arguments.attacks is None or name in arguments.attacks:
                    measured.setdefault(name, {})[f"{count:,}"] = measure(attack, rows, truncation, Path(scratch))
    for sizes in measured.values():
        first, *_, last = sizes.values()
        sizes["ratio"] = {part: last[part] / first[part] for part in first}
    if arguments.json:
        json.dump({"attacks": measured, "machine": platform.machine(), "python": platform.python_version()}, sys.stdout)
        print()
        return
    print(f"{'seconds':20}{'rows':>10}" + "".join(f"{part:>10}" for part in ("poison", "trigger", "all else")))
    for name, sizes in measured.items():
        for count, seconds in sizes.items():
            print(f"{name:20}{count:>10}" + "".join(f"{value:10.2f}" for value in seconds.values()))


if __name__ == "__main__":
    main()
