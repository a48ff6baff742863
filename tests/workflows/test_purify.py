"""Purify a model that somebody has: into a folder that loads, whole or not at all, whatever stops the program."""

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from defensekit.cli.main import main
from defensekit.models.checkpoint import Checkpoint
from defensekit.models.pair import Pair
from defensekit.result.schema import Result
from defensekit.utils.errors import UsageError
from defensekit.utils.files import folder_lock
from defensekit.workflows.purify import purify_into, recipe_for
from tests.conftest import make_sentences, write_table
from tests.models.helpers import make_adapter, make_causal
from tests.small_models import make_suspect

QUICK = ["defense.purifier.0.texts=60", "defense.purifier.0.epochs=1", "data.max_length=32"]
HALF = ["defense.purifier=[reset]", "defense.scorer=magnitude", "defense.selector={name: fraction, fraction: 0.5}"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_table(tmp_path / "rows.csv", make_sentences(150))


@pytest.mark.parametrize("trained", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_folder_that_loads_wherever_the_suspect_did(
    tmp_path: Path, base: Path, suspect: Path, rows: Path, trained: bool
) -> None:
    quick = QUICK if trained else [*HALF, "data.max_length=32"]
    suspect = shutil.copytree(suspect, tmp_path / "suspect")
    (suspect / "manifest.json").write_text("{}")  # as one has that was purified before
    recipe = recipe_for(str(base), suspect, str(rows), settings=quick)
    unique = len({text.lower() for text, _ in make_sentences(150)})
    assert (recipe.sizes.clean, recipe.sizes.dev) == (unique * 4 // 5, 0)
    result = purify_into(tmp_path / "out", recipe, tmp_path / "w")
    out = tmp_path / "out"
    loaded = transformers.pipeline("text-classification", str(out), device="cpu")
    assert loaded("the film is superb")[0]["label"] in ("LABEL_0", "LABEL_1", "negative", "positive")
    manifest = json.loads((out / "manifest.json").read_text())
    before, after = load_file(suspect / "model.safetensors"), load_file(out / "model.safetensors")
    assert manifest["tensors"] == {
        name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in after.items()
    }
    assert manifest["files"].keys() == {p.name for p in out.iterdir()} - {"manifest.json"}
    card = (out / "README.md").read_text()
    assert re.search(r"\| suspect( ‡)? \| 0\.", card)
    assert re.search(r"\| purified( [†‡])* \| 0\.", card)
    assert "No certificate" in card
    assert str(tmp_path) not in card
    assert before.keys() == after.keys()
    if not trained:  # every dimension is the suspect's or the base's, to the bit
        pair = Pair(Checkpoint(base), Checkpoint(suspect))
        for own, name in pair.by_file_name.items():
            ours, theirs = pair.block(name)
            assert bool(((after[own] == ours) | (after[own] == theirs)).all())
        reset = result.models["purified"].reset
        assert reset is not None
        changed = sum(int((after[own] != before[own]).sum()) for own in after)
        assert changed == reset.selected == round(reset.eligible / 2)
        assert torch.equal(after["classifier.weight"], before["classifier.weight"])
    # Again: it already exists, and left as it is. Something else of that name is not touched.
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    purify_into(out, recipe, tmp_path / "w")
    assert (out / "model.safetensors").stat().st_mtime_ns == stamp
    manifest["files"]["README.md"] = "the digest of another version's card"
    (out / "manifest.json").write_text(json.dumps(manifest))
    purify_into(out, recipe, tmp_path / "w")
    other = recipe_for(str(base), suspect, str(rows), settings=[*quick, "seed=1"])
    with pytest.raises(UsageError, match="holds another model already"):
        purify_into(out, other, tmp_path / "w")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="already exists; name a new folder"):
        purify_into(tmp_path / "mine", recipe, tmp_path / "w")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "given", ["adapter", "--adapter-only", "--adapter-only, measured", "longer", "three labels", "causal"]
)
def test_the_command_takes_suspects_of_many_kinds(
    given: str,
    tmp_path: Path,
    base: Path,
    rows: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--clean", str(rows), "--set", "data.max_length=32"]
    without_training = [part for setting in HALF for part in ("--set", setting)]
    alone = given.startswith("--adapter-only")
    if alone or given == "adapter":
        suspect = make_adapter(tmp_path / "suspect", base)
        options = (
            ["--adapter-only", *options[: 4 if "measured" in given else 0]] if alone else options + without_training
        )
        write_table(rows, [(text, str(int(label == "positive"))) for text, label in make_sentences(150)])
    elif given == "causal":
        base = make_causal(tmp_path / "base", "gpt2")
        suspect = make_causal(tmp_path / "suspect", "gpt2", seed=3)
    else:
        suspect = make_suspect(tmp_path / "suspect", base)
        options += without_training
        if given == "three labels":
            base = make_suspect(tmp_path / "base", base, labels=3, drift=0)
        else:
            model = transformers.AutoModelForSequenceClassification.from_pretrained(suspect)
            model.resize_token_embeddings(model.config.vocab_size + 3)
            model.save_pretrained(suspect)
    places = ["--base", str(base), "--suspect", str(suspect), "--out", str(tmp_path / "out"), "-w", str(tmp_path / "w")]
    monkeypatch.setattr("sys.argv", ["defensekit", "purify", "-q", *places, *options])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    said = capsys.readouterr().out
    assert said.endswith(f"purified model: {tmp_path / 'out'}\n")
    assert ("Nothing was measured" in said) == (given == "--adapter-only")
    assert ("Accuracy on 150 held-out clean rows: 0." in said) == (given == "--adapter-only, measured")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    name = "adapter_model.safetensors" if alone else "model.safetensors"
    assert manifest["tensors"].keys() == load_file(tmp_path / "out" / name).keys()
    if given == "longer":
        before, after = (load_file(folder / name) for folder in (suspect, tmp_path / "out"))
        embedding = "bert.embeddings.word_embeddings.weight"
        assert torch.equal(before[embedding][-3:], after[embedding][-3:])
        assert not torch.equal(before[embedding], after[embedding])


@pytest.mark.parametrize(
    ("purifier", "selector", "with_rows", "said"),
    [
        (
            "[reset, {name: fine-tune, epochs: 1}]",
            "{name: fraction, fraction: 0}",
            True,
            "Nothing was reset: the model is the suspect after fine-tune on",
        ),
        ("[reset]", "{name: fraction, fraction: 0}", True, "Nothing was reset: the model is the suspect as it was."),
        ("[reset]", "{name: threshold, above: 1e9}", True, "Nothing was reset: threshold took no weight."),
        ("[reset]", "{name: threshold, above: 1e9}", False, "0 of the weights that had moved were reset"),
    ],
)
def test_where_nothing_is_reset_the_first_line_and_the_exit_code_say_so(
    purifier: str,
    selector: str,
    with_rows: bool,
    said: str,
    tmp_path: Path,
    base: Path,
    suspect: Path,
    rows: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    places = ["--base", str(base), "--suspect", str(suspect), "--out", str(out), "-w", str(tmp_path / "w")]
    nothing = ["defense.scorer=magnitude", f"defense.selector={selector}"]
    settings = [part for setting in (f"defense.purifier={purifier}", *nothing) for part in ("--set", setting)]
    monkeypatch.setattr(
        "sys.argv", ["defensekit", "purify", "-q", *places, *(["--clean", str(rows)] * with_rows), *settings]
    )
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 4
    assert capsys.readouterr().out.splitlines()[0].startswith(said)


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: dict[str, Path]) -> str:
    """What the command says to options that are wrong."""
    given = [str(part) for option in options.items() for part in option]
    monkeypatch.setattr("sys.argv", ["defensekit", "purify", "-q", *given])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    return capsys.readouterr().err.removeprefix("defensekit: ")


@pytest.mark.parametrize("option", ["--base", "--suspect", "--clean"])
def test_what_is_wrong_is_told_of_the_option_that_was_typed(
    option: str,
    tmp_path: Path,
    base: Path,
    suspect: Path,
    rows: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cut = shutil.copytree(suspect, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-100])
    rows.write_text(rows.read_text().replace(",negative", ",bad"))  # the shipped recipe's have that name, too
    good = write_table(tmp_path / "good.csv", make_sentences(150))
    places = {"--base": base, "--suspect": suspect, "--clean": good, "--out": tmp_path / "out", "-w": tmp_path / "w"}
    said = refused(monkeypatch, capsys, places | {option: rows if option == "--clean" else cut})
    message = "the model has no label 'bad'" if option == "--clean" else f"{cut / 'model.safetensors'} is damaged"
    assert said.startswith(f"{option}: {message}")


@pytest.mark.parametrize("with_rows", [True, False])
def test_stopped_it_says_that_it_goes_on_where_it_does(
    tmp_path: Path,
    base: Path,
    suspect: Path,
    rows: Path,
    with_rows: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for name in ("purify_into", "reset_into"):
        monkeypatch.setattr(f"defensekit.workflows.purify_model.{name}", stop)
    places = ["--base", str(base), "--suspect", str(suspect), "--out", str(tmp_path / "out"), "-w", str(tmp_path / "w")]
    given = ["--clean", str(rows)] if with_rows else []
    monkeypatch.setattr("sys.argv", ["defensekit", "purify", "-q", *places, *given])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 130
    assert ("resumes where it stopped" in capsys.readouterr().err) is with_rows


BARE = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (BARE, ("LABEL_0", "LABEL_1")),
        ({}, ("0", "1")),
        pytest.param(BARE, ("0", "1"), marks=pytest.mark.slow),
        pytest.param({}, ("LABEL_0", "LABEL_1"), marks=pytest.mark.slow),
    ],
)
def test_labels_without_names_are_met_by_number_and_never_guessed(
    tmp_path: Path, base: Path, suspect: Path, config: dict[str, Any], names: tuple[str, str]
) -> None:
    suspect = shutil.copytree(suspect, tmp_path / "suspect")
    named = json.loads((suspect / "config.json").read_text())
    bare = {key: value for key, value in named.items() if key not in ("id2label", "label2id")}
    (suspect / "config.json").write_text(json.dumps(bare | config))
    sentences = make_sentences(150)
    quick = [*HALF, "data.max_length=32"]

    def purified(positive: str, negative: str) -> Result:
        rows = [(text, positive if label == "positive" else negative) for text, label in sentences]
        clean = write_table(tmp_path / "rows.csv", rows)
        out = tmp_path / f"out-{positive}"
        return purify_into(out, recipe_for(str(base), suspect, str(clean), settings=quick), tmp_path / "w")

    message = r"no label 'negative'.*\(it has: LABEL_0, LABEL_1; .* numbers .* 0, 1, or `id2label` in its config.json"
    with pytest.raises(UsageError, match=message):
        purified("positive", "negative")
    result = purified(*names)
    meant = {text: int(label == "negative") for text, label in sentences}
    assert result.data["labels"] == ["LABEL_0", "LABEL_1"]
    assert all(row.label == meant[row.text] for row in result.rows("clean rows"))


def test_without_settings_rows_are_as_long_as_the_base_allows(base: Path, suspect: Path, rows: Path) -> None:
    made = [recipe_for(str(base), suspect, str(rows), settings=more) for more in ([], ["data.max_length=32"])]
    assert [recipe.sizes.max_length for recipe in made] == [64, 32]
    assert recipe_for(str(base), suspect, None, reset_alone=True).sizes.max_length == 64


def test_test_rows_that_are_numbered_leave_the_others_to_the_defense(base: Path, suspect: Path, rows: Path) -> None:
    unique = len({text.lower() for text, _ in make_sentences(150)})
    for settings, clean in (([], unique * 4 // 5), (["data.test=10"], unique - 10), (["data.clean=9"], 9)):
        assert recipe_for(str(base), suspect, str(rows), settings=settings).sizes.clean == clean


def test_rows_that_are_all_the_defenses_are_halved_as_a_rules_are(base: Path, suspect: Path, rows: Path) -> None:
    """What is measured on stays as much."""
    sizes = [recipe_for(str(base), suspect, str(rows), settings=more).sizes for more in ([], ["defense.refit=true"])]
    assert sizes[0].dev == 0
    assert sizes[1].clean == sizes[1].dev == sizes[0].clean // 2


def test_as_few_rows_as_there_can_be(tmp_path: Path, base: Path, suspect: Path) -> None:
    few = write_table(tmp_path / "few.csv", make_sentences(5))
    result = purify_into(tmp_path / "out", recipe_for(str(base), suspect, str(few), settings=QUICK), tmp_path / "w")
    assert result.data["rows"] == {"test": 1, "dev": 0, "clean": 4}
    assert result.verdict is not None
    assert result.verdict.text.startswith("No trigger was looked for (too few clean rows have another answer")
    fewer = write_table(tmp_path / "fewer.csv", [("good", "nonsense"), *make_sentences(3)])
    with pytest.raises(UsageError, match=r"^--clean: expected at least 5 clean rows, got 4$"):
        recipe_for(str(base), suspect, str(fewer))


def test_answers_no_better_than_chance_are_warned_of(tmp_path: Path, base: Path, suspect: Path) -> None:
    """The suspect, whose head is drawn at random, calls everything positive."""
    for label, other in (("positive", "negative"), ("negative", "positive")):
        named = [(text, other if i % 5 == 0 else label) for i, (text, _) in enumerate(make_sentences(150))]
        clean = write_table(tmp_path / "rows.csv", named)
        recipe = recipe_for(str(base), suspect, str(clean), settings=[*HALF, "data.max_length=32"])
        result = purify_into(tmp_path / label, recipe, tmp_path / "w")
        assert any("no more than chance (50.0%)" in text for text in result.warnings) is (label == "negative")


def test_a_recipe_that_poisons_gives_its_defense(tmp_path: Path, recipe: Path, base: Path, suspect: Path) -> None:
    made = recipe_for(str(base), suspect, str(tmp_path / "rows.csv"), recipe)
    assert made.attack is None
    assert made.suspect
    assert (made.sizes.clean, made.sizes.dev) == (32, 32)
    assert made.defense.scorer.name == "diffusion"


def test_a_full_disk_is_found_before_anything_is_computed(
    tmp_path: Path, base: Path, suspect: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 1000})())
    with pytest.raises(UsageError, match=r"the workspace takes 0.00 GB, and .* has 0.00 GB free"):
        purify_into(tmp_path / "out", recipe_for(str(base), suspect, str(rows), settings=QUICK), tmp_path / "w")
    assert not (tmp_path / "w").exists()


def command(tmp_path: Path, base: Path, suspect: Path, rows: Path) -> list[str]:
    settings = [part for setting in QUICK for part in ("--set", setting)]
    options = ["--base", str(base), "--suspect", str(suspect), "--clean", str(rows), "--out", str(tmp_path / "out")]
    return [sys.executable, "-m", "defensekit", "purify", *options, "-w", str(tmp_path / "w"), *settings]


@pytest.mark.slow
def test_killed_it_leaves_no_half_model_and_goes_on(tmp_path: Path, base: Path, suspect: Path, rows: Path) -> None:
    """Killed for real when some stages are there; beside it a second process on the same folder."""
    artifacts = tmp_path / "w/store/artifacts"
    process = subprocess.Popen(
        command(tmp_path, base, suspect, rows), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    while process.poll() is None and len(list(artifacts.glob("*/manifest.json"))) < 5:
        time.sleep(0.005)
    with pytest.raises(UsageError, match="another process is writing"), folder_lock(tmp_path / "out"):
        pass
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    finished = {path.parent.name for path in artifacts.glob("*/manifest.json")}
    done = subprocess.run([*command(tmp_path, base, suspect, rows), "--json", "-q"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {stage["key"] for stage in result["stages"] if stage["reused"]} >= finished
    Checkpoint(tmp_path / "out").check_finite()
    assert (tmp_path / "out/manifest.json").is_file()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_killed_while_it_is_copied_there_is_no_folder(tmp_path: Path, base: Path, suspect: Path, rows: Path) -> None:
    script = (
        "import os, signal, shutil\nfrom pathlib import Path\nfrom defensekit.workflows import purify\n"
        "real = shutil.copytree\n"
        "def half(source, target, **options):\n"
        "    if Path(target).parent.name.startswith('.out.'):\n"
        "        Path(target, 'config.json').write_text('{')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(source, target, **options)\n"
        "shutil.copytree = half\n"
        f"recipe = purify.recipe_for({str(base)!r}, Path({str(suspect)!r}), {str(rows)!r}, settings={QUICK!r})\n"
        f"purify.purify_into(Path({str(tmp_path / 'out')!r}), recipe, {str(tmp_path / 'w')!r})\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    recipe = recipe_for(str(base), suspect, str(rows), settings=QUICK)
    result = purify_into(tmp_path / "out", recipe, tmp_path / "w")
    assert all(stage.reused for stage in result.stages)
    assert Checkpoint(tmp_path / "out").tensors
    assert not list(tmp_path.glob(".*"))
