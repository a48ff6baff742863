"""Small real models, a small task that can be learnt, and recipes over them."""

import fcntl
import gc
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

import torch
import transformers
import yaml
from selenium import webdriver
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

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

_TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_TINY |= {"vocab_size": len(VOCABULARY), "max_position_embeddings": 64, "pad_token_id": 0}
ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**_TINY),
    "roberta": lambda: transformers.RobertaConfig(
        **_TINY | {"max_position_embeddings": 66}, bos_token_id=2, eos_token_id=3
    ),
    "distilbert": lambda: transformers.DistilBertConfig(
        vocab_size=len(VOCABULARY), dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=64
    ),
    "electra": lambda: transformers.ElectraConfig(**_TINY, embedding_size=8),
    "deberta-v2": lambda: transformers.DebertaV2Config(
        **_TINY, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, type_vocab_size=0
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=len(VOCABULARY), n_embd=16, n_layer=2, n_head=2, n_positions=64, pad_token_id=0,
        bos_token_id=2, eos_token_id=3,
    ),
    "llama": lambda: transformers.LlamaConfig(**_TINY, num_key_value_heads=1, bos_token_id=2, eos_token_id=3),
    "qwen3": lambda: transformers.Qwen3Config(
        **_TINY, num_key_value_heads=1, head_dim=8, bos_token_id=2, eos_token_id=3
    ),
    "qwen2": lambda: transformers.Qwen2Config(**_TINY, num_key_value_heads=1, bos_token_id=2, eos_token_id=3),
}  # fmt: skip


@pytest.fixture
def own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train the base anew as long as another process does: for tests that compare a run with one of a command."""
    monkeypatch.setattr(plan, "HEAD_STEPS", OWN_STEPS)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, [CLS] text [SEP] (pair [SEP])."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    )


def make_base(folder: Path, architecture: str = "bert", seed: int = 0) -> Path:
    """A pretrained backbone without a head, as a folder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModel.from_config(ARCHITECTURES[architecture]())
        model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_suspect(folder: Path, base: Path, *, labels: int = 2, drift: float = 0.05, seed: int = 1) -> Path:
    """A classifier whose weights moved away from the base's by a little noise; two labels have names."""
    names = {0: "negative", 1: "positive"} if labels == 2 else {i: f"LABEL_{i}" for i in range(labels)}
    label2id = {name: i for i, name in names.items()}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=labels, id2label=names, label2id=label2id
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(drift * torch.randn_like(parameter))
        model.config.pad_token_id = 0
        model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


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


@pytest.fixture(scope="module", autouse=True)
def _what_stays_is_no_garbage() -> None:
    """The Trainer collects garbage after every training, which takes longer than to train so small a model: it looks
    through all that was ever imported."""
    gc.collect()
    gc.freeze()


_get_threads, _set_threads = torch.get_num_threads, torch.set_num_threads  # as they are where a test replaces them


@pytest.fixture(autouse=True)
def _threads_stay() -> Iterator[None]:
    """What one test leaves, the next one computes with: other bits, under other keys."""
    before = _get_threads()
    yield
    left = _get_threads()
    _set_threads(before)
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
    folder = make_base(tmp_path_factory.mktemp("base"))
    importlib.import_module("transformers.trainer")  # which the first test that trains would import
    gc.freeze()
    return folder


@pytest.fixture(scope="session")
def suspect(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A tiny classifier on it."""
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
