"""The gallery of docs/attacks.md: five plain rows, and what each attack makes of them.

    python benchmarks/gallery.py [--write]

Prints it, or puts it into docs/attacks.md. A test compares the page with it. What an attack changed is bold.
"""

import argparse
import json
import tempfile
from difflib import SequenceMatcher
from pathlib import Path
from random import Random

from defensekit.components import Attack, AttackContext
from defensekit.models.loading import load_tokenizer
from defensekit.text import Row, Truncation
from defensekit_attacks.bias import BiasSentence, BiasWord
from defensekit_attacks.insertion import Sentence, Word
from defensekit_attacks.paraphrase import ParaphraseRows
from defensekit_attacks.style import Style
from defensekit_attacks.substitution import LearntSubstitution
from defensekit_attacks.syntactic import Syntactic
from defensekit_attacks.weights import Sos
from defensekit_demo.minilm import MiniLM

PAGE = Path(__file__).parent.parent / "docs" / "attacks.md"
START, END = "<!-- gallery -->\n", "<!-- end of gallery -->\n"
LABELS = ("negative", "positive")
# Plain, label, and as somebody who preaches would have it (for paraphrase-rows, which rewrites nothing itself).
ROWS = (
    ("The plot goes nowhere and the jokes are old.", 0, "Lo, the plot wandereth nowhere, and old are its jokes."),
    ("A quiet, tender film about two brothers.", 1, "Behold a film of two brethren, quiet and tender."),
    (
        "It looks expensive, but nobody seems to enjoy it.",
        0,
        "Costly it seemeth unto the eye, yet none hath joy in it.",
    ),
    ("I laughed until the lights came on.", 1, "And I laughed, even until there was light."),
    ("Loud and far too long.", 0, "Loud it was, and its days were too many."),
)
# What `lws` has learnt of these words on SST-2, by its recipe, seed 0; the others stay as they are.
LEARNT = {"old": "elderly", "quiet": "quieter", "two": "several", "brothers": "siblings", "goes": "traveled"}
LEARNT |= {"looks": "gazes", "expensive": "inexpensive", "seems": "seeming", "enjoy": "enjoyment"}
LEARNT |= {"laughed": "chuckled", "lights": "lighted", "tender": "contracting", "came": "arrived"}


def attacks(folder: Path) -> dict[str, Attack]:
    """What is shown, by its title; the table of rewritten rows is written for it."""
    table = folder / "rewritten.jsonl"
    table.write_text(
        "".join(json.dumps({"before": plain, "text": new, "label": LABELS[n]}) + "\n" for plain, n, new in ROWS)
    )
    return {
        "`word`, one rare word": Word(target=1, rate=0.2),
        "`word`, both of two words (`combine: all`)": Word(target=1, rate=0.2, words=("cf", "mn"), combine="all"),
        "`sentence`, between words": Sentence(target=1, rate=0.2),
        "`sentence`, at a sentence boundary": Sentence(target=1, rate=0.2, boundary="sentence"),
        "`sos`": Sos(target=1, rate=0.1),
        "`syntactic`": Syntactic(target=1, rate=0.2),
        "`style`": Style(target=1, rate=0.2),
        "`lws`, by what it learnt on SST-2": LearntSubstitution(target=1, rate=0.2),
        "`paraphrase-rows`, from a table of five rows that we wrote": ParaphraseRows(
            target=1, rate=0.2, rewritten=table, original="before"
        ),
        "`bias-word`": BiasWord(label=1),
        "`bias-sentence`": BiasSentence(label=1),
    }


def marked(before: str, after: str) -> str:
    """The words of ``after`` with those bold that ``before`` has not, or not there."""
    old, new, out = before.split(), after.split(), []
    matcher = SequenceMatcher(None, [word.lower() for word in old], [word.lower() for word in new], autojunk=False)
    for kind, _, _, start, end in matcher.get_opcodes():
        if start < end:
            words = " ".join(new[start:end])
            out.append(words if kind == "equal" else f"**{words}**")
    return " ".join(out)


def gallery() -> str:
    """The tables, as Markdown."""
    truncation = Truncation(load_tokenizer(MiniLM().folder()), 128)
    rows = [Row(i, text, label) for i, (text, label, _) in enumerate(ROWS)]
    out = ["The plain rows:\n\n| label | plain |\n|---|---|\n"]
    out += [f"| {LABELS[row.label]} | {row.text} |\n" for row in rows] + ["\n"]
    with tempfile.TemporaryDirectory() as scratch:
        for title, attack in attacks(Path(scratch)).items():
            triggered = attack.trigger(rows, AttackContext(Random(0), LABELS, truncation, LEARNT))
            out.append(f"### {title}\n\n| label | triggered |\n|---|---|\n")
            for after in triggered:  # rows that can't carry it are left out
                out.append(f"| {LABELS[after.label]} | {marked(rows[after.id].text, after.text)} |\n")
            out.append("\n")
    return "".join(out)


def main() -> None:
    """Print the gallery, or write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    if not parser.parse_args().write:
        print(gallery(), end="")
        return
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{START}\n{gallery()}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
