"""Tracks: frozen tasks, each a file whose bytes are its identity."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from defensekit.leaderboard.entries import Attack, Entry, Submission
from defensekit.leaderboard.keys import UNPOISONED, Digests, TrackKeys
from defensekit.recipe import yaml_document
from defensekit.recipe.reader import Reader
from defensekit.recipe.yaml_document import Document, moved, overlay
from defensekit.utils.errors import UsageError, listing, nearest
from defensekit.utils.files import data_digest, file_digest

COMPARED = ("acc", "asr", "excess-asr")  # metrics that every track has
ON = "-on-"  # between the names of a submitted attack and of the track that it is tried on
ATTACK = "attack.yaml"  # a submitted attack, in the folder of the rows that it was tried on
Cell = tuple[str, int]  # an attack of a track, and a seed


@dataclass(frozen=True)
class Track:
    """A track: its keys, the document that they come from, and the digest of its file.

    One ``of`` another track and an ``attack`` is that track with the submitted attack in place of its own.
    """

    keys: TrackKeys
    document: Document
    digest: str
    of: "Track | None" = None
    attack: Attack | None = None

    @property
    def name(self) -> str:
        """With its version."""
        return self.keys.name

    @property
    def path(self) -> Path:
        """The file with its digests."""
        return self.attack.path if self.attack else Path(self.document.name)

    def submissions(self, entry: Entry | None) -> list[Submission[Any]]:
        """What a row is made of: the attack, if it is none of the track's, and the entry."""
        return [one for one in (self.attack, entry) if one is not None]

    @property
    def attacks(self) -> list[str]:
        """Backdoors, biases, and the innocent suspect, which a submitted attack has not."""
        return [*self.keys.attacks, *self.keys.biases, *([] if self.attack else [UNPOISONED])]

    @property
    def specs(self) -> dict[str, dict[str, Any]]:
        """How every attack is made, by its name."""
        keys = self.keys
        return {**keys.attacks, **keys.biases, **({} if self.attack else {UNPOISONED: keys.unpoisoned})}

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
            command = "attack" if self.attack else "freeze"
            raise UsageError(f"{self.path} is not frozen yet: `defensekit leaderboard {command}` writes its digests")
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
    for group, labels, others in (("attacks", keys.attacks, {}), ("biases", keys.biases, keys.attacks)):
        for label in (label for label in labels if label == UNPOISONED or label in others):
            raise reader.error((group, label), "is the name of another attack of the track")
    if twice := [seed for i, seed in enumerate(keys.seeds) if seed in keys.seeds[:i]]:
        raise reader.error(("seeds",), f"{twice[0]} is duplicated")
    if "defense" in keys.recipe or "seed" in keys.recipe:
        raise reader.error(("recipe",), "has neither `defense:`, which is the entry's, nor `seed:`")
    metrics = [spec.get("name") if isinstance(spec, dict) else spec for spec in keys.recipe.get("metrics", ())]
    if missing := [name for name in COMPARED if name not in metrics]:
        raise reader.error(("recipe",), f"its `metrics:` lack {missing[0]!r}, by which rows are compared")
    track = Track(keys, document, file_digest(path))
    _check_digests(track)
    return track


def attacked(track: Track, attack: Attack) -> Track:
    """A track with a submitted attack in place of its own ones.

    Raises:
        UsageError: the attack's digests are not of this track.
    """
    keys, digests = attack.keys, attack.keys.digests
    given = {
        "name": f"{keys.name}{ON}{track.name}",
        "about": keys.about,
        "attacks": {keys.name: keys.attack},
        "biases": {},
        "digests": digests,
    }
    document = overlay(
        moved(track.document, ("recipe",), ("recipe",)),
        moved(attack.document, ("attack",), ("attacks", keys.name)),
        {},
    )
    part = {"track": track.digest, "attack": file_digest(attack.path)}
    if keys.name in track.attacks:
        raise UsageError(f"{attack.document.describe_location(('name',))}: is the name of an attack of {track.name}")
    extended = Track(track.keys.model_copy(update=given), document, data_digest(part), track, attack)
    _check_digests(extended)
    if digests and (digests.model, digests.data) != (track.digests.model, track.digests.data):
        raise UsageError(f"{attack.path}: digests: its base or its data are not those of {track.name}")
    return extended


def _check_digests(track: Track) -> None:
    digests, seeds = track.keys.digests, len(track.keys.seeds)
    for part in ("rows", "labels") if digests else ():
        values: dict[str, list[str]] = getattr(digests, part)
        if list(values) != track.attacks or any(len(each) != seeds for each in values.values()):
            command = "attack" if track.attack else "freeze"
            expected = f"{seeds} of each of {listing(track.attacks)}; `leaderboard {command}` writes them again"
            raise UsageError(f"{track.path}: digests.{part}: expected {expected}")


def folder() -> Path:
    """The folder of the shipped tracks: inside an installed package, beside it in a checkout."""
    inside = Path(__file__).parent / "tracks"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "leaderboard/tracks"


def names() -> list[str]:
    """The shipped tracks, sorted."""
    return sorted(path.stem for path in folder().glob("*.yaml"))
