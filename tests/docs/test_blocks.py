"""Every block of code and every command in the documentation runs, or is what it says it is: see `Desk`."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer

from defensekit.cli.main import app, main
from defensekit.host.discovery import load_plugins
from defensekit.leaderboard.entries import load_attack, load_entry
from defensekit.recipe import yaml_document
from defensekit.recipe.json_schema import recipe_schema
from defensekit.recipe.loader import load_recipe
from defensekit.studies.loading import load_study
from defensekit.testing import check_plugin
from defensekit.testing.example import example
from defensekit.testing.pico import pico
from tests.conftest import RECIPE, ROOT, make_sentences, write_table
from tests.small_models import _TINY, make_base, make_suspect

SLOW = {"docs/studies.md", "README.md"}  # studies, reports, whole runs
TUTORIAL = "docs/tutorial.md"  # begins with an empty folder: see `test_tutorial`

PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")], key=lambda path: path.relative_to(ROOT).as_posix()
)

# Blocks that are not run, each marked `<!-- not run: why -->` where it stands.
NOT_RUN = {"README.md": 1, "CONTRIBUTING.md": 2, "docs/examples/defensekit-relative/README.md": 2}
NOT_RUN |= {"docs/executors.md": 1, "docs/quickstart.md": 1, "docs/releasing.md": 4}
NOT_RUN |= {"docs/leaderboard.md": 5, "docs/scan.md": 1, "docs/studies.md": 1}

_GENERATED = re.compile(r"<!-- generated: .*?<!-- end of generated -->", re.DOTALL)
_BLOCK = re.compile(r"^(?:<!-- not run: ([^\n]+) -->\n\n)?```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of code in a page; ``why`` says why it is not run, if it isn't."""

    language: str
    text: str
    why: str


def written(page: Path) -> str:
    """A page without what is generated: `tests/docs/test_docs.py` holds that."""
    return _GENERATED.sub("", page.read_text(encoding="utf-8"))


def blocks(page: Path) -> list[Block]:
    return [Block(language, text, why) for why, language, text in _BLOCK.findall(written(page))]


# -- commands ----------------------------------------------------------------------------------------------------------


def parse(arguments: list[str]) -> None:
    """Compare arguments with the command line, and do nothing: no callback of an option is called.

    Raises:
        Exception: click's own: no such command, no such option, an option without its value.
    """
    command = typer.main.get_command(app)
    while True:
        context = typer.Context(command)
        _, rest, _ = command.make_parser(context).parse_args(list(arguments))
        if not rest or not hasattr(command, "resolve_command"):
            return
        _, command, arguments = command.resolve_command(context, rest)


def run(arguments: list[str]) -> None:
    """Run `defensekit` here, as it would run in a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["defensekit", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    # A scan may find what it looks for, a doctor what is not installed.
    assert (ended.value.code or 0) in {"scan": (0, 1, 3), "doctor": (0, 1)}.get(arguments[0], (0,)), arguments


def commands(text: str) -> list[list[str]]:
    joined = text.replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def check_words(words: list[str]) -> None:
    """What can be said of a command that is not run."""
    program, arguments = Path(words[0]).name, words[1:]
    if program == "defensekit":
        parse(arguments)
    elif program == "make":
        assert re.search(rf"^{arguments[-1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert all(extra in {*extras, "test"} for extra in re.findall(r"\[(\w+)\]", " ".join(arguments))), words
    elif program == "python":
        if arguments[0] == "-c":
            compile(arguments[1], "documentation", "exec")
            return
        if arguments[0] == "-m":
            return
        script = (ROOT / arguments[0]).read_text()
        for option in (word for word in arguments if word.startswith("--")):
            assert f'"{option}"' in script, words


# -- the desk on which the documentation's files lie -------------------------------------------------------------------


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the pages name, as small as it can be."""
    folder = tmp_path_factory.mktemp("desk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(_TINY, "max_position_embeddings", 128)  # what `data.max_length` is where nobody says it
        base = make_base(folder / "base")
        make_suspect(folder / "suspect", base, drift=0.002)
    write_table(folder / "rows.csv", make_sentences(240))
    (folder / "my-reviews.csv").write_text("review,stars\ngood,5\nbad,1\n")
    text = RECIPE.format(base=base)
    for most, least in {"epochs: 8": "epochs: 1", "train: 240": "train: 48", "[0.25, 0.5]": "[0.5]"}.items():
        text = text.replace(most, least)
    (folder / "recipe.yaml").write_text(text)
    (folder / "recipes").mkdir()
    (folder / "recipes/quickstart.yaml").write_text(text.replace("rows.csv", "../rows.csv"))
    (folder / "study.yaml").write_text(
        "name: scorers\nrecipe: recipe.yaml\n"
        "matrix:\n  defense.scorer: [diffusion, magnitude]\n  attack: {word: {}}\nseeds: [0]\n"
    )
    shipped = folder / "shipped"  # what recipes in the pages extend and are beside
    shipped.mkdir()
    (shipped / "quickstart.yaml").write_text((ROOT / "recipes/quickstart.yaml").read_text())
    (shipped / "my-reviews.csv").write_text("review,stars\ngood,5\nbad,1\n")
    first = next(block for block in blocks(ROOT / TUTORIAL) if block.language == "python")
    (folder / "mine.py").write_text(first.text)
    (folder / "workspace").symlink_to(tmp_path_factory.mktemp("workspace"))
    return folder


@dataclass
class Desk:
    """Where the blocks of one page are run, one after the other."""

    folder: Path
    names: dict[str, Any]
    plugins: list[Path]  # what the page is about

    def python(self, text: str) -> None:
        """Runs. One with a hook is a plugin: it loads, and its components pass the kit."""
        exec(compile(text, "documentation", "exec"), self.names)
        if "@hookimpl" not in text:
            return
        file = self.folder / f"plugin_{abs(hash(text))}.py"
        file.write_text(text)
        host = load_plugins([file])
        assert host.problems == []
        mine = [claim for claim in host.claims() if claim.plugin.name == file.name]
        assert mine
        for claim in mine:
            component = host.find(claim.kind, claim.name)
            given = {"shelf": pico().suspect.parent, "model": pico().suspect.name}
            report = check_plugin(example(component, {k: v for k, v in given.items() if k in component.model_fields}))
            assert report.passed, str(report)

    def yaml(self, text: str) -> None:
        """A study, a recipe, a workflow, or a part of a recipe that the schema takes."""
        file = self.folder / "shipped/block.yaml"
        file.write_text(text)
        keys = yaml_document.read(file).data or {}
        if "matrix" in keys:
            load_study(file)
        elif {"licence", "attack"} <= keys.keys():
            load_attack(self.submission(file, keys))
        elif "chosen_by" in keys:
            load_entry(self.submission(file, keys))
        elif "jobs" in keys:
            for line in re.findall(r"run: (.+)", text):
                check_words(shlex.split(line))
        elif keys.keys() & {"name", "extends"}:
            load_recipe(file)
        else:
            jsonschema.Draft7Validator(recipe_schema(load_plugins(self.plugins))["then"]).validate(keys)

    def submission(self, file: Path, keys: dict[str, Any]) -> Path:
        """An entry of a leaderboard or an attack on it, with an empty plugin beside it."""
        if name := keys["plugin"].get("file"):
            (file.parent / name).touch()
        return file

    def sh(self, text: str) -> None:
        """Every line is a `defensekit` command, and runs."""
        for words in commands(text):
            assert words[0] == "defensekit", f"mark the block, or leave this out: {shlex.join(words)}"
            run(words[1:])

    def toml(self, text: str) -> None:
        """Can be read."""
        tomllib.loads(text)

    def text(self, text: str) -> None:
        """Is nothing to run: what something prints, or a drawing."""


def names(folder: Path) -> dict[str, Any]:
    """What the pages speak of as being there."""
    from transformers import AutoModelForSequenceClassification

    from defensekit.models.loading import load_tokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder / "suspect").eval()
    tokenizer = load_tokenizer(folder / "suspect")
    batch = dict(tokenizer(["a bright film", "a stale story"], return_tensors="pt", padding=True))
    batch["labels"] = batch["input_ids"][:, 0] * 0
    return {"base": folder / "base", "suspect": folder / "suspect", "model": model, "batches": [batch]}


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=named(page), marks=[pytest.mark.slow] if named(page) in SLOW else [])
        for page in PAGES
        if named(page) != TUTORIAL
    ],
)
def test_the_blocks_of_a_page(page: Path, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [block for block in blocks(page) if not block.why]
    folder = shutil.copytree(desk, tmp_path / "desk", symlinks=True)  # one workspace for all
    for beside in (folder, page.parent):
        monkeypatch.syspath_prepend(beside)
    there = names(folder) if any(block.language == "python" for block in found) else {}
    place = Desk(folder, there, [*page.parent.glob("defensekit_*/__init__.py")])
    monkeypatch.chdir(folder)
    for block in found:
        getattr(place, block.language)(block.text)


def test_what_is_not_run_is_marked_and_counted() -> None:
    marked = {named(page): sum(bool(block.why) for block in blocks(page)) for page in PAGES}
    assert {page: count for page, count in marked.items() if count} == NOT_RUN


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_line_is_long(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert {number: len(line) for number, line in enumerate(lines, 1) if len(line) > 120} == {}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_code_stands_in_blocks_and_commands_are_commands(page: Path) -> None:
    text = _BLOCK.sub("", written(page))
    assert "```" not in text, "a block that nobody reads"
    assert not re.search(r"(?<=\n\n) {4}\S", text), "a block without a language"
    for block in blocks(page):
        if block.language == "sh":
            subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
            for words in commands(block.text):
                check_words(words)
    for code in re.findall(r"`([^`\n]+)`", text.replace("\n", " ")):
        if re.match(r"benchmarks/\w+\.py", code):
            code = f"python {code}"
        if code.startswith(("defensekit ", ".venv/bin/defensekit ", "python benchmarks/")):
            check_words(shlex.split(code))
