"""What `doctor --model` says of a folder: each file's part, and what scan and purify would refuse."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from defensekit.cli.main import main
from defensekit.models.inventory import inventory
from defensekit.utils.errors import DefenseKitError, UsageError
from defensekit.workflows.purify_model import purify_model
from defensekit.workflows.scan import scan
from tests.models.helpers import make_adapter

WEIGHTS = "model.safetensors"


def said(folder: Path) -> dict[str, tuple[str, str]]:
    return {item.name: (item.state, item.why) for item in inventory(folder)}


def keys(file: str, **changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(data | changes))

    return change


def renamed(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors = {name.replace("encoder.layer.1", "encoder.block.1"): value for name, value in tensors.items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def not_a_number(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["classifier.bias"][0] = torch.nan
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def two_sets(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")


REFUSED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a link": (lambda folder: (folder / "vocab.txt").symlink_to("/etc/hosts"), "vocab.txt", "a link that leaves"),
    "a pipe": (lambda folder: os.mkfifo(folder / "merges.txt"), "merges.txt", "no regular file"),
    "code": (keys("config.json", auto_map={"AutoModel": "own.Model"}), "config.json", "`auto_map` names code"),
    "code of a tokenizer": (keys("tokenizer_config.json", auto_map={}), "tokenizer_config.json", "`auto_map` names"),
    "other weights": (keys("config.json", transformers_weights="a"), "config.json", "names other weights"),
    "quantised": (keys("config.json", quantization_config={"quant_method": "awq"}), "config.json", "quantised"),
    "damaged": (lambda folder: os.truncate(folder / WEIGHTS, 9_000), WEIGHTS, "is damaged"),
    "a pickle alone": (lambda folder: (folder / WEIGHTS).rename(folder / "a.bin"), "(model)", "only as a pickle"),
    "two sets of weights": (two_sets, "(model)", "Remove the one that is not meant: model.safetensors, or"),
    "other names": (renamed, "(model)", "transformers draws it at random"),
    "not a number": (not_a_number, "(model)", "NaN or infinity in classifier.bias"),
    "a tokenizer that fails": (keys("tokenizer.json", normalizer={"type": "No"}), "tokenizer.json", "is refused"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "(tokenizer)", "tokenizer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_scan_refuses_is_refused_file_by_file(name: str, base: Path, suspect: Path, tmp_path: Path) -> None:
    change, file, why = REFUSED[name]
    folder: Path = shutil.copytree(suspect, tmp_path / "model")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    change(folder)
    before = sorted(folder.iterdir())
    found = said(folder)
    assert found[file][0] == "refused"
    assert why in found[file][1]
    assert [item for item, (state, _) in found.items() if state == "refused"] == [file]
    assert {path.name for path in before} == {item for item in found if not item.startswith("(")}
    assert sorted(folder.iterdir()) == before
    assert not (tmp_path / "ran").exists()
    use = scan if file == "(tokenizer)" else purify_model  # a reset needs no tokenizer
    with pytest.raises(DefenseKitError):
        use(base, folder, tmp_path / "out")


def test_each_file_has_a_part(base: Path, suspect: Path, tmp_path: Path) -> None:
    folder: Path = shutil.copytree(suspect, tmp_path / "model")
    for name in ("own.py", "training_args.bin", "other.safetensors", "model.safetensors.index.json", "README.md"):
        (folder / name).write_text("not read")
    (folder / "logs").mkdir()
    found = said(folder)
    assert {name for name, (state, _) in found.items() if state == "read"} == {
        *(path.name for path in suspect.iterdir()),
        *("(model)", "(tokenizer)"),
    }
    assert {state for state, _ in found.values()} == {"read", "ignored"}
    assert found["(model)"][1] == "by its tensors: sequence classification, with the labels negative, positive"
    assert found["other.safetensors"] == ("ignored", "the weights are in model.safetensors")
    assert said(base)["(model)"] == ("read", "by its tensors: BertModel")
    adapter = said(make_adapter(tmp_path / "adapter", base, target_modules=["query"]))
    assert adapter["(adapter)"] == ("read", "LORA of 2 matrices and 2 whole tensors, on the base that you name")
    with pytest.raises(UsageError, match="there is no model folder"):
        inventory(tmp_path / "gone")


def test_the_command(
    suspect: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder: Path = shutil.copytree(suspect, tmp_path / "model")
    (folder / "a\x1b[31m\n\u202e.txt").write_text("")
    monkeypatch.setattr("sys.argv", ["defensekit", "doctor", "--model", str(folder)])
    with suppress(SystemExit):
        main()
    out = capsys.readouterr().out
    assert len(out.splitlines()) == len(inventory(folder)) + 1
    assert r"a\x1b[31m\n\u202e.txt" in out
    assert out.endswith("nothing is refused\n")
    (folder / WEIGHTS).write_bytes(b"")
    with pytest.raises(SystemExit, match="1"):
        main()
    out = capsys.readouterr().out
    assert "refused model.safetensors" in out
    assert out.endswith("1 refused: `scan` and `purify` would not take it\n")
