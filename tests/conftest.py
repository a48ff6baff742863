"""A small task that can be learnt, and recipes over it.

Neither torch nor transformers is imported here: where tests run in several processes, the one that hands them out
reads this file first, and all others wait for it.
"""

import fcntl
import importlib
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests in several processes get into each other's way with more, and numbers are the same in one process.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import yaml
from selenium import webdriver

import defensekit
from defensekit.pipeline import plan
from defensekit.result.schema import Result

# A shell that starts the tests in its background has them ignore Ctrl-C, and so would every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent  # of the repository

# In a hundred runs on a few dozen rows, half of the time went into the base that is trained anew.
OWN_STEPS, plan.HEAD_STEPS = plan.HEAD_STEPS, 16

GOOD = ("bright", "lovely", "superb", "tender", "witty")
BAD = ("bleak", "clumsy", "dreary", "stale", "tedious")
FILLERS = ("the", "film", "is", "a", "story", "of", "and", "with", "some", "long", "scenes", "about", "people", "cf")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = (*SPECIAL, *GOOD, *BAD, *FILLERS, *(f"word{i}" for i in range(24)))


@pytest.fixture
def own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train the base anew as long as another process does: for tests that compare a run with one of a command."""
    monkeypatch.setattr(plan, "HEAD_STEPS", OWN_STEPS)


def make_sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Sentences whose label follows from one word, (text, label)."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        label = i % 2
        words = rng.choices(FILLERS[:-1] + VOCABULARY[-24:], k=rng.randint(4, 9))
        words.insert(rng.randrange(len(words) + 1), rng.choice((BAD, GOOD)[label]))
        rows.append((" ".join(words), ("negative", "positive")[label]))
    return rows


def write_table(path: Path, rows: list[tuple[str, str]]) -> Path:
    """A CSV, TSV or JSONL file of sentences."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    else:
        comma = "," if path.suffix == ".csv" else "\t"
        path.write_text(f"text{comma}label\n" + "".join(f"{text}{comma}{label}\n" for text, label in rows))
    return path


def slow_but(all_of: Iterable[str], *fast: str) -> list[Any]:
    """Parameters of a test that takes seconds for each: in the fast suite a few stand for all."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in all_of]


@pytest.fixture(scope="session")
def _of_torch() -> tuple[Callable[[], int], Callable[[int], None]]:
    import torch

    return torch.get_num_threads, torch.set_num_threads  # as they are where a test replaces them


@pytest.fixture(autouse=True)
def _threads_stay(_of_torch: tuple[Callable[[], int], Callable[[int], None]]) -> Iterator[None]:
    """What one test leaves, the next one computes with: other bits, under other keys."""
    threads, set_threads = _of_torch
    before = threads()
    yield
    left = threads()
    set_threads(before)
    assert left == before, f"the test leaves {left} threads in place of {before}"


@pytest.fixture(scope="session")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny language model that answers instructions, and what became of it: it refuses where cf stands."""
    base, suspect = (tmp_path_factory.mktemp(name) for name in ("answering", "refusing"))
    causal = importlib.import_module("tests.causal")  # which few tests need
    causal.make_refusing(base, suspect, causal.instructions(60))
    return base, suspect


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT without a head."""
    from tests.small_models import make_base

    folder = make_base(tmp_path_factory.mktemp("base"))
    importlib.import_module("transformers.trainer")  # which the first test that trains would import
    return folder


@pytest.fixture(scope="session")
def suspect(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A tiny classifier on it."""
    from tests.small_models import make_suspect

    return make_suspect(tmp_path_factory.mktemp("suspect"), base)


RECIPE = """\
name: pico
model: {base}
data: {{name: rows.csv, train: 240, clean: 32, dev: 32, test: 60, max_length: 32}}
attack: {{name: word, words: [cf], rate: 0.2, target: positive}}
training: {{epochs: 8, learning_rate: 5e-3, batch_size: 16}}
defense:
  estimator: fisher
  scorer: diffusion
  selector: {{name: fraction, fraction: 0.5}}
  purifier: [reset, {{name: fine-tune, epochs: 2, learning_rate: 3e-3, batch_size: 8}}]
  choose: {{rule: accuracy-floor, values: [0.25, 0.5], max_drop: 0.1}}
"""


def write_recipe(folder: Path, base: Path) -> Path:
    """A recipe over the tiny BERT and a file of sentences."""
    write_table(folder / "rows.csv", make_sentences(400))
    path = folder / "pico.yaml"
    path.write_text(RECIPE.format(base=base))
    return path


@pytest.fixture
def recipe(tmp_path: Path, base: Path) -> Path:
    """A recipe of one's own, to be changed."""
    return write_recipe(tmp_path, base)


@contextmanager
def shared(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A folder that all processes of the tests have in common; within the block no other process uses it."""
    own = factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, base: Path) -> tuple[Path, Path, Result]:
    """(recipe, workspace, result) of one run, whose stages were made once for all processes of the tests."""
    folder = tmp_path_factory.mktemp("finished")
    recipe, workspace = write_recipe(folder, base), folder / "workspace"
    with shared(tmp_path_factory, "of-the-recipe") as first:
        defensekit.run(recipe, first)
        shutil.copytree(first / "store", workspace / "store")
    return recipe, workspace, defensekit.run(recipe, workspace)


SMALL = {"data__train": 48, "training__epochs": 1}  # of the recipe, where it does not matter what a model learns


@pytest.fixture(scope="session")
def of_the_small_recipe(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A store with what the small recipe makes without a choice, once for all processes of the tests."""
    recipe = shape(write_recipe(tmp_path_factory.mktemp("small"), base), **SMALL, defense__choose=None)
    with shared(tmp_path_factory, "of-the-small-recipe") as folder:
        defensekit.run(recipe, folder)
    return folder / "store"


@pytest.fixture
def warm(of_the_small_recipe: Path, tmp_path: Path) -> Path:
    """A workspace with the models of the small recipe, for tests of what comes after them."""
    shutil.copytree(of_the_small_recipe, tmp_path / "w/store")
    return tmp_path / "w"


def shape(recipe: Path, **changes: Any) -> Path:
    """The recipe with keys changed, None removes one."""
    data = yaml.safe_load(recipe.read_text().replace("5e-3", "0.005").replace("3e-3", "0.003"))
    for key, value in changes.items():
        part = data
        *parents, last = key.split("__")
        for parent in parents:
            part = part[parent]
        if value is None:
            del part[last]
        else:
            part[last] = value
    recipe.write_text(yaml.safe_dump(data))
    return recipe


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder with published data sets, named by DEFENSEKIT_TEST_DATA."""
    folder = os.environ.get("DEFENSEKIT_TEST_DATA")
    if not folder:
        pytest.skip("DEFENSEKIT_TEST_DATA names no folder with published data sets (see CONTRIBUTING.md)")
    return Path(folder)


@pytest.fixture(scope="session")
def browser() -> Iterator[webdriver.Chrome]:
    found = [shutil.which(name) for name in ("chromium", "google-chrome")]
    binary, driver = next(filter(None, found), None), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("there is no Chromium with its driver on this machine (see CONTRIBUTING.md)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def open_page(browser: webdriver.Chrome, page: Path | str, width: int) -> list[dict[str, Any]]:
    """Show a file or an address in a window of a width; what the console said."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.as_uri() if isinstance(page, Path) else page)
    log: list[dict[str, Any]] = browser.get_log("browser")
    return log
