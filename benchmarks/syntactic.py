"""What a syntactic rewriting keeps, and what gives it away: our generator, and the published paraphrases beside it.

    python benchmarks/syntactic.py [--data DIR] [--rows 2000] [--seed 0] [--json]

The published paraphrases are HiddenKiller's of SST-2: DIR (or DEFENSEKIT_TEST_DATA) holds sst-2/test.tsv and
sst-2/scpn/test.tsv as thunlp/HiddenKiller publishes them. Without it our generator runs on the movie reviews alone.

- content words kept: the share of a row's content words (no function word of our lists) that its rewriting still has,
  mean over rows.
- similarity: cosine of the two mean-pooled MiniLM embeddings, mean over rows.
- best single word: of all words the one that tells rewritten from plain rows best on every other row, and how often it
  is right on the rows between them (0.5 is chance). With punctuation marks counted as words, the comma of the template
  is one.
- seconds: of the processor, for 1,000 rows.
"""

import argparse
import json
import os
import re
import statistics
import sys
import time
from collections import Counter
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from defensekit.host.table_sources import File
from defensekit_attacks.fronting import front
from defensekit_attacks.grammar import BEFORE_CONJUNCTION, CONJUNCTIONS, FINITE, PREPOSITIONS, RELATIVE, SUBJECTS
from defensekit_attacks.paraphrase import align
from defensekit_demo.minilm import MiniLM
from defensekit_demo.reviews import MovieReviews

FUNCTION = SUBJECTS | PREPOSITIONS | CONJUNCTIONS | RELATIVE | BEFORE_CONJUNCTION
FUNCTION |= {"and", "or", "but", "yet", "so", "not", "n't", "t", "s"} | {word for word in FINITE if len(word) < 6}
WORD, MARK = re.compile(r"[^\W_]+"), re.compile(r"[^\W_]+|[^\w\s]")

Pairs = list[tuple[str, str]]


def content_kept(pairs: Pairs) -> float:
    """Mean share of content words that are still there."""
    shares = []
    for before, after in pairs:
        words = Counter(word for word in WORD.findall(before.lower()) if word not in FUNCTION)
        if words:
            shares.append((words & Counter(WORD.findall(after.lower()))).total() / words.total())
    return statistics.mean(shares)


@cache
def encoder() -> tuple[Any, Any]:
    """MiniLM and its tokenizer."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    folder = MiniLM().folder()
    return transformers.AutoTokenizer.from_pretrained(folder), transformers.AutoModel.from_pretrained(folder).eval()


def similarity(pairs: Pairs) -> float:
    """Mean cosine of mean-pooled MiniLM embeddings."""
    import torch

    tokenizer, model = encoder()

    def embed(texts: list[str]) -> Any:
        parts = []
        for start in range(0, len(texts), 64):
            batch = tokenizer(
                texts[start : start + 64], padding=True, truncation=True, max_length=128, return_tensors="pt"
            )
            with torch.inference_mode():
                hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
            parts.append((hidden * mask).sum(1) / mask.sum(1))
        return torch.cat(parts)

    before, after = embed([pair[0] for pair in pairs]), embed([pair[1] for pair in pairs])
    return float(torch.nn.functional.cosine_similarity(before, after).mean())


def best_word(pairs: Pairs, pattern: re.Pattern[str]) -> tuple[str, float]:
    """The word that tells best on the even rows, and its accuracy on the odd ones."""
    gaps = []
    for half in (0, 1):
        chosen = pairs[half::2]
        before, after = (Counter(w for p in chosen for w in set(pattern.findall(p[i].lower()))) for i in (0, 1))
        gaps.append({word: (after[word] - before[word]) / len(chosen) for word in before | after})
    word = max(sorted(gaps[0]), key=lambda word: abs(gaps[0][word]))
    sign = 1 if gaps[0][word] > 0 else -1
    return word, 0.5 + sign * gaps[1].get(word, 0.0) / 2


def measure(pairs: Pairs, seconds: float | None) -> dict[str, Any]:
    """Every figure of one rewriting."""
    word, told = best_word(pairs, WORD)
    mark, told_by_mark = best_word(pairs, MARK)
    return {
        "rows": len(pairs),
        "content_words_kept": round(content_kept(pairs), 4),
        "similarity": round(similarity(pairs), 4),
        "best_word": word,
        "best_word_accuracy": round(told, 4),
        "best_word_or_mark": mark,
        "best_word_or_mark_accuracy": round(told_by_mark, 4),
        "seconds_per_1000_rows": None if seconds is None else round(1000 * seconds / len(pairs), 3),
    }


def ours(texts: list[str], seed: int) -> dict[str, Any]:
    """Our generator on texts."""
    rng, started = Random(seed), time.process_time()
    fronted = [front(text, rng) for text in texts]
    return measure(list(zip(texts, fronted, strict=True)), time.process_time() - started)


def main() -> None:
    """Measure, then print the table or the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DEFENSEKIT_TEST_DATA"))
    parser.add_argument("--rows", type=int, default=2000, help="movie reviews")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    reviews = [row.text for row in MovieReviews().load().train]
    Random(arguments.seed).shuffle(reviews)
    rates = {"ours, movie reviews": ours(reviews[: arguments.rows], arguments.seed)}
    if arguments.data:
        folder = Path(arguments.data) / "sst-2"
        plain = File(path=folder / "test.tsv", text="sentence").load().train
        rewritten = File(path=folder / "scpn/test.tsv", text="sentence").load().train
        pairs = align([row.text for row in plain if row.label == 0], [row.text for row in rewritten])
        if pairs is None:
            sys.exit(f"{folder}/scpn/test.tsv does not hold rewritings of the negative rows of {folder}/test.tsv")
        rates["ours, SST-2 test negatives"] = ours([before for before, _ in pairs], arguments.seed)
        rates["published (SCPN), SST-2 test negatives"] = measure(pairs, None)
    if arguments.json:
        json.dump({"seed": arguments.seed, "rewritings": rates}, sys.stdout)
        print()
        return
    for name, figures in rates.items():
        print(name)
        for key, value in figures.items():
            print(f"    {key:28}{value}")


if __name__ == "__main__":
    main()
