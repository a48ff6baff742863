"""Tracks: frozen tasks, each a file whose bytes are its identity."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from defensekit.leaderboard.keys import UNPOISONED, Digests, TrackKeys
from defensekit.recipe import yaml_document
from defensekit.recipe.reader import Reader
from defensekit.recipe.yaml_document import Document
from defensekit.utils.errors import UsageError, listing, nearest
from defensekit.utils.files import file_digest

COMPARED = ("acc", "asr", "excess-asr")  # metrics that every track has
Cell = tuple[str, int]  # an attack of a track, and a seed


@dataclass(frozen=True)
class Track:
    """A track: its keys, the document that they come from, and the digest of its file."""

    keys: TrackKeys
    document: Document
    digest: str

    @property
    def name(self) -> str:
        """With its version."""
        return self.keys.name

    @property
    def attacks(self) -> list[str]:
        """Backdoors, biases, and the innocent suspect."""
        return [*self.keys.attacks, *self.keys.biases, UNPOISONED]

    @property
    def cells(self) -> list[Cell]:
        """Every attack with every seed."""
        return list(product(self.attacks, self.keys.seeds))

    def cell(self, text: str) -> Cell:
        """A cell as a user writes it, ``ATTACK:SEED``.

        Raises:
            UsageError: there is no such cell.
        """
        known = {f"{attack}:{seed}": (attack, seed) for attack, seed in self.cells}
        if text not in known:
            raise UsageError(f"there is no cell {text!r}.{nearest(text, known)} (cells: {listing(known)})")
        return known[text]

    @property
    def digests(self) -> Digests:
        """What it rests on.

        Raises:
            UsageError: it is not frozen yet.
        """
        if self.keys.digests is None:
            raise UsageError(
                f"{self.document.name} is not frozen yet: `defensekit leaderboard freeze` writes its digests"
            )
        return self.keys.digests


def load_track(named: str) -> Track:
    """A track by the name of a shipped one, or by its file.

    Raises:
        UsageError: there is none, or a key is wrong.
    """
    path = folder() / f"{named}.yaml" if named in names() else Path(named)
    if not path.is_file():
        raise UsageError(f"there is no track {named!r}.{nearest(named, names())} (shipped: {listing(names())})")
    document = yaml_document.read(path)
    document.check_mapping(TrackKeys.model_fields)
    reader = Reader(document, {})
    keys = reader.keys(TrackKeys, document.data, ())
    attacks = [*keys.attacks, *keys.biases]
    for group, label in (("attacks", label) for label in keys.attacks):
        if label == UNPOISONED or label in keys.biases:
            raise reader.error((group, label), "is the name of another attack of the track")
    if twice := [seed for i, seed in enumerate(keys.seeds) if seed in keys.seeds[:i]]:
        raise reader.error(("seeds",), f"{twice[0]} is duplicated")
    if "defense" in keys.recipe or "seed" in keys.recipe:
        raise reader.error(("recipe",), "has neither `defense:`, which is the entry's, nor `seed:`")
    metrics = [spec.get("name") if isinstance(spec, dict) else spec for spec in keys.recipe.get("metrics", ())]
    if missing := [name for name in COMPARED if name not in metrics]:
        raise reader.error(("recipe",), f"its `metrics:` lack {missing[0]!r}, by which rows are compared")
    if keys.digests:
        _check_digests(reader, keys.digests, [*attacks, UNPOISONED], len(keys.seeds))
    return Track(keys, document, file_digest(path))


def _check_digests(reader: Reader, digests: Digests, attacks: Sequence[str], seeds: int) -> None:
    for part, values in (("rows", digests.rows), ("labels", digests.labels)):
        if list(values) != list(attacks) or any(len(each) != seeds for each in values.values()):
            expected = f"{seeds} of each of {listing(attacks)}"
            raise reader.error(("digests", part), f"expected {expected}; `leaderboard freeze` writes them again")


def folder() -> Path:
    """The folder of the shipped tracks: inside an installed package, beside it in a checkout."""
    inside = Path(__file__).parent / "tracks"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "leaderboard/tracks"


def names() -> list[str]:
    """The shipped tracks, sorted."""
    return sorted(path.stem for path in folder().glob("*.yaml"))
