"""Models that several tests of defenses start from."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from defensekit.models.checkpoint import Checkpoint
from defensekit.models.pair import Pair
from tests.plugins.baselines.helpers import TEXTS
from tests.small_models import ARCHITECTURES, make_base, make_suspect, make_tokenizer


@pytest.fixture(scope="package")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    base = make_base(folder / "base")
    return Pair(Checkpoint(base), Checkpoint(make_suspect(folder / "suspect", base, drift=0.3)))


@pytest.fixture(scope="package")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("gpt2")
    base = make_base(folder / "base", "gpt2")
    return Pair(Checkpoint(base), Checkpoint(make_suspect(folder / "suspect", base, drift=0.3)))


@pytest.fixture(scope="package")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 that read the task's sentences, none of which has the word `cf`."""
    folder, tokenizer = tmp_path_factory.mktemp("reader"), make_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(ARCHITECTURES["gpt2"]()).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        for start in range(0, 40 * 300, 50):
            part = slice(start % 300, start % 300 + 50)
            inputs = {"input_ids": batch.input_ids[part], "attention_mask": batch.attention_mask[part]}
            optimizer.zero_grad()
            model(**inputs, labels=labels[part]).loss.backward()
            optimizer.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
