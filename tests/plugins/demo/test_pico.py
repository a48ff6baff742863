"""The model and the data set that are made on the spot: always the same ones, and enough to see a backdoor go."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import defensekit
from defensekit.models.loading import load_tokenizer
from defensekit.recipe.loader import load_recipe
from defensekit.utils.files import file_digests
from defensekit_demo import opinions, pico
from defensekit_demo.opinions import Opinions
from defensekit_demo.pico import Pico
from tests.conftest import ROOT


def test_the_opinions_are_unique_and_half_of_them_positive() -> None:
    data = Opinions().load()
    assert data.labels == ("negative", "positive")
    assert len({row.key for row in data.train}) == len(data.train) == 1_200
    assert sum(row.label for row in data.train) == 600
    assert any(" but " in row.text for row in data.train)


def test_the_opinions_are_the_same_in_every_process() -> None:
    code = "from defensekit_demo.opinions import Opinions; print(Opinions().contents(print))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == Opinions().contents(print)


def test_other_opinions_have_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    before, rows = Opinions().contents(print), Opinions().load().train
    monkeypatch.setattr(opinions, "_rows", lambda: (*rows[:-1], rows[-1].with_text("bad bread")))
    assert Opinions().contents(print) != before


def test_pico_is_the_same_whenever_it_is_made(tmp_path: Path) -> None:
    torch.manual_seed(1)
    pico.build(tmp_path / "a")
    torch.manual_seed(2)
    state = torch.get_rng_state()
    pico.build(tmp_path / "b")
    assert file_digests(tmp_path / "a") == file_digests(tmp_path / "b")
    assert torch.equal(torch.get_rng_state(), state)


def test_pico_is_made_once_and_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEFENSEKIT_CACHE", str(tmp_path))
    build = pico.build

    def stopped(folder: Path) -> None:
        build(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(pico, "build", stopped)
    with pytest.raises(KeyboardInterrupt):
        Pico().folder()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(pico, "build", build)
    made = Pico().folder()
    monkeypatch.setattr(pico, "build", stopped)
    assert Pico().folder() == made
    assert list(tmp_path.iterdir()) == [made]


def test_pico_takes_the_one_of_a_process_that_was_faster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEFENSEKIT_CACHE", str(tmp_path))
    build = pico.build

    def beaten(folder: Path) -> None:
        build(folder)
        monkeypatch.setattr(pico, "build", build)
        Pico().folder()

    monkeypatch.setattr(pico, "build", beaten)
    assert (Pico().folder() / "model.safetensors").is_file()
    assert len(list(tmp_path.iterdir())) == 1


def test_pico_knows_every_word_of_the_opinions_and_spells_others() -> None:
    tokenizer = load_tokenizer(Pico().folder())
    for row in Opinions().load().train:
        assert tokenizer.tokenize(row.text) == row.text.split()
    assert tokenizer.tokenize("Cf 3D!") == ["c", "##f", "3", "##d", "!"]


def test_pico_shows_what_a_backdoor_and_a_defense_are(tmp_path: Path) -> None:
    result = defensekit.run(load_recipe(ROOT / "recipes/pico.yaml"), tmp_path)
    acc = {name: row["acc"] or 0.0 for name, row in result.summary.items()}
    asr = {name: row["asr"] or 0.0 for name, row in result.summary.items()}
    assert min(acc.values()) > 0.8
    assert asr["clean"] < 0.3
    assert asr["suspect"] > 0.95
    assert asr["fine-tuned"] > 0.5
    assert asr["purified"] < 0.4
