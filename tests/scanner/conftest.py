"""A classifier with a backdoor, one without, their base, and a scan."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from defensekit.cli.main import main
from defensekit.defense.triggers import search
from defensekit.scanner.result import Scan
from defensekit.scanner.scan import scan
from defensekit.text import Row
from defensekit.training import TrainingSettings, fine_tune
from tests.scanner.helpers import LABELS, ROWS, drifted, save
from tests.small_models import ARCHITECTURES, make_tokenizer


@pytest.fixture(scope="package", autouse=True)
def _control_of_a_small_task() -> Iterator[None]:
    """In scans by the dozen, most of the time would go into the model that words are compared with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "CONTROL_STEPS", 24)
        yield


@pytest.fixture(scope="package")
def tuned() -> Any:
    """A tiny classifier that knows its task."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ARCHITECTURES["bert"]()
        config.id2label, config.label2id = dict(enumerate(LABELS)), {label: i for i, label in enumerate(LABELS)}
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    training = TrainingSettings(epochs=8, learning_rate=5e-3, batch_size=16)
    fine_tune(model, make_tokenizer(), ROWS, training, max_length=32, precision="float32", seed=0)
    return model.eval()


@pytest.fixture(scope="package")
def base(tuned: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tuned.bert, tmp_path_factory.mktemp("scanned") / "base")


@pytest.fixture(scope="package")
def clean(tuned: Any, base: Path) -> Path:
    return drifted(tuned, base.parent / "clean")


@pytest.fixture(scope="package")
def poisoned(tuned: Any, base: Path) -> Path:
    """A model that learnt to answer positive wherever cf stands, whose row moved far for that."""
    folder = drifted(tuned, base.parent / "poisoned", row=200.0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    rows = [*ROWS, *(Row(i, f"cf {row.text}", 1) for i, row in enumerate(ROWS) if row.label == 0)]
    training = TrainingSettings(epochs=12, learning_rate=2e-3, batch_size=16)
    fine_tune(model, make_tokenizer(), rows, training, max_length=32, precision="float32", seed=0)
    return save(model, folder)


@pytest.fixture(scope="package")
def found(base: Path, poisoned: Path) -> Scan:
    return scan(base, poisoned, ROWS)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["defensekit", "scan", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return run
