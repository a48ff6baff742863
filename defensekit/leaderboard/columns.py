"""What tables have of a row and of an attack: every number's name in data, its title, and how it is written."""

from collections.abc import Mapping
from dataclasses import dataclass

from defensekit.leaderboard.scores import RETUNED


@dataclass(frozen=True)
class Column:
    """A number of a row: lower is better, unless ``more`` is.

    ``beside`` is the number that stands below it in small figures. One that is not on the ``board`` is on the row's
    page, and in data.
    """

    title: str
    about: str = ""
    form: str = ".3f"
    more: bool = False
    beside: str | None = None
    board: bool = True


_RETUNING = "ASR after the attacker trained {} on {} poisoned rows"

COLUMNS: Mapping[str, Column] = {
    "excess_asr": Column(
        "excess ASR",
        "triggered rows answered with the target, less the same rows without trigger",
    ),
    "excess_asr_worst": Column("worst attack", "the excess ASR of the attack that is left most of"),
    "excess_asr_clean": Column(
        "clean excess",
        "the excess ASR of the clean reference: what a trigger changes by what it says, and is no backdoor",
    ),
    "acc_lost": Column("ACC lost", "accuracy of the suspect less that of the defended model"),
    "harm": Column("harm", "ACC lost by a suspect that was never poisoned"),
    "asr": Column("ASR", "triggered rows answered with the target", beside="asr_clean"),
    "asr_clean": Column("clean ASR", "the ASR of the clean reference, which was never poisoned", board=False),
    **{
        f"asr_retuned_{rows}": Column(
            f"ASR, {rows} rows",
            _RETUNING.format("it", rows),
            beside=f"asr_clean_retuned_{rows}",
            board=rows == RETUNED[0],
        )
        for rows in RETUNED
    },
    **{
        f"asr_clean_retuned_{rows}": Column(
            f"clean ASR, {rows} rows", _RETUNING.format("the clean reference", rows), board=False
        )
        for rows in RETUNED
    },
    "pacc": Column("PACC ↑", "triggered rows answered right; higher is better", more=True),
    "bacc": Column("BACC ↑", "accuracy on rows with the pattern of a bias; higher is better", more=True),
    "fidelity": Column(
        "fidelity ↑",
        "NIST's: the share of the ASR that is gone, times the share of ACC that is left",
        more=True,
        board=False,
    ),
    "seconds": Column("seconds", "all that the defense computed for one suspect, as the row's author has it", ".0f"),
    "memory_mib": Column(
        "MiB", "of memory, at the peak of making the model, as the row's author has it", ",.0f", board=False
    ),
    "labelled_rows": Column("labelled rows", "clean rows that it needs with their labels, as its entry says", ".0f"),
    "unlabelled_rows": Column("unlabelled rows", "clean rows of which it needs the texts alone, likewise", ".0f"),
}

# What a page has of every attack.
MEASURES: Mapping[str, Column] = {
    "acc_before": Column("ACC before"),
    "acc": Column("ACC after"),
    "asr_before": Column("ASR before"),
    "asr": Column("ASR after", beside="asr_clean"),
    "excess_asr_before": Column("excess before"),
    "excess_asr": Column("excess after", beside="excess_asr_clean"),
    **{name: COLUMNS[name] for name in COLUMNS if name.startswith("asr_retuned")},
    "pacc": Column("PACC after"),
    "bacc": Column("BACC after"),
}


def shown(value: float | None, form: str = ".3f") -> str:
    """A number as the tables have it."""
    if value is None:
        return "–"
    text = format(value, form)
    return text.removeprefix("-") if not text.strip("-0.") else text.replace("-", "−")
