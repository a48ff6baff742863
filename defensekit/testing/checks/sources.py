"""Checks of sources of data and models."""

from pathlib import Path
from typing import Any

from defensekit.components import Dataset, DatasetSource, ModelSource
from defensekit.models.checkpoint import Checkpoint
from defensekit.models.loading import load_tokenizer
from defensekit.recipe.keys import Sizes
from defensekit.testing.kit import Subject, check, expect, ordinary_use
from defensekit.testing.pico import PicoModels
from defensekit.testing.watch import Handed
from defensekit.utils.errors import listing


@ordinary_use(DatasetSource)
def load(source: DatasetSource, pico: PicoModels, handed: Handed) -> Any:
    """Read the contents' digest and the rows."""
    return source.contents(lambda text: None), source.load()


@ordinary_use(ModelSource)
def folder(source: ModelSource, pico: PicoModels, handed: Handed) -> Any:
    """Return the model's folder."""
    return source.folder()


def _roles(dataset: Dataset) -> "dict[str, list[Any]]":
    roles = {"train": dataset.train, "dev": dataset.dev, "test": dataset.test}
    return {role: rows for role, rows in roles.items() if rows is not None}


@check(DatasetSource)
def numbers_its_rows_once(subject: Subject) -> None:
    """Row ids are unique over train, dev and test, and at least 0."""
    seen: dict[int, str] = {}
    for role, rows in _roles(subject.component.load()).items():
        for row in rows:
            first = seen.setdefault(row.id, role)
            expect(
                first == role and row.id >= 0, f"expected a unique id for every row, got {row.id} in {first} and {role}"
            )
        expect(
            len({row.id for row in rows}) == len(rows),
            f"expected a unique id for every row, got duplicates in {role}",
        )


@check(DatasetSource)
def labels_its_rows(subject: Subject) -> None:
    """There are at least two labels, every row's is one of them, and its text is not empty.

    Of instructions there are none, and every row has a response.
    """
    dataset = subject.component.load()
    count, answers = len(dataset.labels), subject.component.task == "generation"
    right = count == 0 if answers else count > 1
    expect(right, f"expected {'no labels' if answers else 'two labels or more'}, got {dataset.labels}")
    for role, rows in _roles(dataset).items():
        expect(rows, f"expected rows as {role}, got none (None where there is no such role)")
        for row in rows:
            if answers:
                expect(row.response, f"expected a response, got {row} in {role}")
            else:
                wanted = f"expected a label from 0 to {count - 1}"
                expect(0 <= row.label < count, f"{wanted}, got {row.label} in {role}: {row}")
            expect(row.text.strip(), f"expected a text, got {row} in {role}")


@check(DatasetSource, calls=False)
def leaves_the_sizes_their_names(subject: Subject) -> None:
    """No parameter is called like a key under `data` that says how many rows a role has, and the like."""
    taken = sorted(Sizes.model_fields.keys() & type(subject.component).model_fields.keys())
    expect(not taken, f"expected other names than those of keys under `data`, got {listing(taken)}")


@check(DatasetSource)
def digests_its_contents(subject: Subject) -> None:
    """`contents` is a digest, a text that is not empty; it is part of the stages' keys."""
    digest = subject.component.contents(lambda text: None)
    expect(isinstance(digest, str) and digest, f"expected a digest as text, got {digest!r}")


@check(ModelSource)
def gives_a_readable_model(subject: Subject) -> None:
    """The folder has a config, a tokenizer, and finite weights as safetensors."""
    path = subject.component.folder()
    expect(isinstance(path, Path) and path.is_dir(), f"expected a folder, got {path!r}")
    checkpoint = Checkpoint(path)
    expect(checkpoint.tensors, f"expected weights in {path}, got none")
    checkpoint.check_finite()
    load_tokenizer(path)
