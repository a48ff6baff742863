"""The bundled model and data: real weights, real text, digests checked, fetched once."""

import subprocess
from pathlib import Path

import pytest

import defensekit
from defensekit.recipe.loader import load_recipe
from defensekit.utils.errors import DefenseKitError
from defensekit_demo import reviews
from defensekit_demo.minilm import MiniLM
from defensekit_demo.reviews import MovieReviews
from tests.conftest import ROOT


def test_minilm_is_the_published_file() -> None:
    assert (MiniLM().folder() / "model.safetensors").stat().st_size == 90_868_376


def test_another_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defensekit_demo.minilm.SHA256", "0" * 64)
    with pytest.raises(DefenseKitError, match="is not the published file"):
        MiniLM().folder()


def test_movie_reviews_counts_and_bound() -> None:
    every, far = MovieReviews(bound=0).load(), MovieReviews(bound=0.8).load()
    assert len(every.train) == 10_568  # 37 of 10,605 have a mean rating of exactly 0: no sign, no label
    assert sum(row.label for row in every.train) == 5_242
    assert len(far.train) == 9_612
    assert far.labels == ("negative", "positive")
    assert "993 of 10,605 sentences" in far.notes[0]
    assert not any(text != text.strip() or "\r" in text for text in (row.text for row in every.train))


def test_it_is_offline_once_it_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    MovieReviews().contents(print)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing is fetched twice")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert MovieReviews().contents(print) == reviews.SHA256
    assert len(MovieReviews().load().train) == 9_612


def test_a_fetch_that_fails_or_brings_something_else_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEFENSEKIT_CACHE", str(tmp_path))
    seen = []

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        (Path(command[command.index("--dest") + 1]) / reviews.ARCHIVE).write_bytes(b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(DefenseKitError, match="could not be downloaded"):
        MovieReviews().contents(print)
    assert "--require-hashes" in seen[0]
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_cache_is_fetched_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    good = reviews.archive(print).read_bytes()
    monkeypatch.setenv("DEFENSEKIT_CACHE", str(tmp_path))
    (tmp_path / reviews.ARCHIVE).write_bytes(good[:1000])

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        (Path(command[command.index("--dest") + 1]) / reviews.ARCHIVE).write_bytes(good)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    said: list[str] = []
    MovieReviews().contents(said.append)
    assert "downloading" in said[0]
    assert (tmp_path / reviews.ARCHIVE).read_bytes() == good


SMALL = """\
name: small
model: minilm
data: {name: movie-reviews, train: 128, clean: 8, dev: 8, test: 60, max_length: 48}
attack: {name: word, words: [cf], rate: 0.3, target: positive}
training: {epochs: 2, learning_rate: 3e-4, batch_size: 16}
precision: auto
defense:
  estimator: fisher
  scorer: diffusion
  selector: {name: fraction, fraction: 0.7}
  purifier: [reset]
  compare: {}
"""


@pytest.mark.slow
def test_a_real_model_on_real_text(tmp_path: Path) -> None:
    """The quickstart in small. What it does to a backdoor takes minutes to see, and is in the slow test."""
    (tmp_path / "small.yaml").write_text(SMALL)
    result = defensekit.run(tmp_path / "small.yaml", tmp_path / "w")
    assert list(result.summary) == ["clean", "suspect", "from-base", "purified"]
    assert (result.summary["suspect"]["asr"] or 0) > 0.9
    reset, statistics = result.models["purified"].reset, result.statistics
    assert reset is not None
    assert statistics is not None
    assert reset.dimensions == 22_713_986
    assert reset.selected == round(0.7 * reset.eligible)
    # Embedding rows that no row touches never move; of those that moved, many are not in the eight clean rows.
    assert 0.4 < reset.eligible / reset.dimensions < 0.6
    assert 0.4 < statistics["zero_curvature"] < 0.6
    assert reset.eligible_where_zero["curvature"] > 0
    assert 1 <= statistics["effective_rows"] <= 8


@pytest.mark.slow
def test_the_quickstart_is_what_the_readme_says(tmp_path: Path) -> None:
    result = defensekit.run(load_recipe(ROOT / "recipes/quickstart.yaml"), tmp_path)
    acc = {name: row["acc"] or 0.0 for name, row in result.summary.items()}
    asr = {name: row["asr"] or 0.0 for name, row in result.summary.items()}
    assert list(acc) == ["clean", "suspect", "from-base", "fine-tuned", "random", "purified"]
    assert asr["suspect"] >= 0.95
    assert acc["suspect"] >= acc["clean"] - 0.04
    assert asr["fine-tuned"] >= 0.9
    assert asr["purified"] <= 0.3
    assert acc["from-base"] < acc["purified"] >= acc["suspect"] - 0.08  # that is what the suspect is worth
