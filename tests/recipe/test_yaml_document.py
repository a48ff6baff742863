"""Recipes that build on others, settings over them, and whatever else someone may feed us."""

import contextlib
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from defensekit.recipe import yaml_document
from defensekit.recipe.loader import load_recipe
from defensekit.utils.errors import UsageError


def write(folder: Path, **files: str) -> Path:
    """Files named after the keywords; the first one's path."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(files))}.yaml"


def test_the_last_word_counts(tmp_path: Path) -> None:
    top = write(
        tmp_path,
        top="extends: middle.yaml\na: {x: 1}\nlist: [9]",
        middle="extends: bottom.yaml\na: {x: 2, y: 2}\nb: 2",
        bottom="a: {x: 3, y: 3, z: 3}\nb: 3\nlist: [1, 2, 3]\nonly: here",
    )
    assert yaml_document.load(top).data == {"a": {"x": 1, "y": 2, "z": 3}, "b": 2, "list": [9], "only": "here"}
    changed = yaml_document.load(top, ["a.x=4", "a.x=5", "b=[6, {c: 7}]", "new.key = text"])
    assert changed.data["a"] == {"x": 5, "y": 2, "z": 3}
    assert changed.data["b"] == [6, {"c": 7}]
    assert changed.data["new"] == {"key": "text"}


def test_every_key_remembers_where_it_came_from(tmp_path: Path) -> None:
    top = write(tmp_path, top="extends: bottom.yaml\n\na: {x: 1}", bottom="a:\n  x: 2\n  y: 3\nb: {c: 1}")
    document = yaml_document.load(top, ["b.c=2"])
    assert document.location(("a", "x")) == f"{tmp_path}/top.yaml:3"
    assert document.location(("a", "y")) == f"{tmp_path}/bottom.yaml:3"
    assert document.location(("b", "c")) == "--set b.c=2"
    assert document.location(("b", "c", "deeper")) == "--set b.c=2"
    assert document.location(("nowhere",)) == f"{tmp_path}/bottom.yaml:1"


def test_an_option_is_told_without_the_key_that_it_stands_for(tmp_path: Path) -> None:
    for name in ("rows.csv", "other.csv"):
        path = write(tmp_path, one=f"a: 1\ndata:\n  name: {name}\n  clean: 5")
        document = yaml_document.load(
            path, [yaml_document.option("--clean", "data.name", "rows.csv"), "data.test=2"], {("data",): ["clean"]}
        )
        assert document.data["data"] == {"name": "rows.csv", "clean": 5, "test": 2}
        assert document.describe_location(("data",)) == document.describe_location(("data", "name")) == "--clean"
        assert document.describe_location(("data", "clean")) == f"{path}:4: data.clean"
        assert document.describe_location(("data", "test")) == "--set data.test=2: data.test"
        assert document.describe_location(("data", "dev")) == "data.dev"
        assert document.describe_location(()) == f"{path}:1"


@pytest.mark.parametrize(
    ("above", "expected"),
    [
        ("scorer: {exponent: 2}", {"name": "diffusion", "exponent": 2, "eps": 1}),
        ("scorer: {name: diffusion, exponent: 2}", {"name": "diffusion", "exponent": 2, "eps": 1}),
        ("scorer: {name: spectral, k: 2}", {"name": "spectral", "k": 2}),
        ("scorer: spectral", "spectral"),
    ],
)
def test_another_component_leaves_no_parameters_behind(tmp_path: Path, above: str, expected: Any) -> None:
    below = "scorer: {name: diffusion, exponent: 1, eps: 1}"
    assert yaml_document.load(write(tmp_path, top="extends: below.yaml\n" + above, below=below)).data == {
        "scorer": expected
    }


def test_a_components_parameters_can_be_set_where_only_its_name_stands(tmp_path: Path) -> None:
    path = write(tmp_path, one="scorer: diffusion\nsteps: [reset, tune]")
    changed = yaml_document.load(path, ["scorer.exponent=0.5", "steps.1.epochs=3"])
    assert changed.data["scorer"] == {"name": "diffusion", "exponent": 0.5}
    assert changed.data["steps"] == ["reset", {"name": "tune", "epochs": 3}]
    assert changed.location(("scorer", "name")) == f"{path}:1"


def test_null_takes_a_key_back(tmp_path: Path) -> None:
    path = write(tmp_path, top="extends: below.yaml\na: null\nb: {c: ~}", below="a: 1\nb: {c: 1, d: 1}\ne: 1")
    assert yaml_document.load(path, ["e="]).data == {"b": {"d": 1}}


@pytest.mark.parametrize(
    ("top", "setting", "parts"),
    [
        ("extends: [x.yaml]", None, ["top.yaml:1: extends: expected the path of a recipe"]),
        ("a: 1\nextends: bellow.yaml", None, ["top.yaml:2: extends: there is no file", "Did you mean 'below.yaml'"]),
        ("extends: top.yaml", None, ["extends: it extends itself (top.yaml -> top.yaml)"]),
        ("extends: round.yaml", None, ["round.yaml:1", "top.yaml -> round.yaml -> top.yaml"]),
        ('extends: "\\0"', None, ["top.yaml:1: extends", "is no path"]),
        ("extends: ${NOT_SET_ANYWHERE}/a.yaml", None, ["NOT_SET_ANYWHERE is not set"]),
        ("a: [1]", "a.1=2", ["--set a.1=2: a is a list and has no item '1' (0 to 0)"]),
        ("a: [1]", "a.b=2", ["has no item 'b'"]),
        ("a: 1", "a", ["--set a: expected path=value"]),
        ("a: 1", "a..b=1", ["expected path=value"]),
        ("a: 1", "a={b", ["--set a={b: not YAML"]),
        ("a: 1", "a={b: 1, b: 2}", ["--set a={b: 1, b: 2}: the key 'b' is duplicated"]),
        ("a: 1", "a=!!python/object/apply:os.system [ls]", ["the tag", "refused"]),
        ("1: a", None, ["top.yaml:1: the key 1 is not text"]),
        ("a: 1\nb: &b {c: *b}", None, ["top.yaml:2: nested too deeply"]),
        ("a: " + "[" * 5000 + "]" * 5000, None, ["top.yaml:1: nested too deeply"]),
        ("a: !!bool x", None, ["top.yaml:1: 'x' can't be read as bool"]),
        ('a: !!int ""', None, ["can't be read as int"]),
        ("!!bool x: 1", None, ["can't be read as bool"]),
        ("!!timestamp x: 1", None, ["the tag", "refused"]),
        ('a: 1\nb: "\\ud800"', None, ["top.yaml:2: ", "can't be read as str"]),
        ("a: 1\nb: \x01", None, ["top.yaml:2: not YAML"]),
        ("a: [1]", f"a.{'9' * 5000}.x=1", ["has no item"]),
        ("a: 1", "extends=below.yaml", ["--set extends=below.yaml: `extends` can only be set in the recipe's file"]),
        ("extends: text.yaml", None, ["top.yaml:1: extends:", "is no recipe"]),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path: Path, top: str, setting: str | None, parts: list[str]) -> None:
    path = write(tmp_path, top=top, below="a: 1", round="extends: top.yaml", text="abc")
    with pytest.raises(UsageError) as caught:
        yaml_document.load(path, [setting] if setting else [])
    for part in parts:
        assert part in str(caught.value)


def test_settings_and_files_that_extend_make_a_recipe(recipe: Path, tmp_path: Path) -> None:
    mine = tmp_path / "deeper/mine.yaml"
    mine.parent.mkdir()
    mine.write_text("extends: ../pico.yaml\nname: mine\ndefense: {scorer: {exponent: 2}}")
    with pytest.raises(UsageError, match=r"pico.yaml:9: defense.selector: needs a `scorer:` beside it"):
        load_recipe(mine, ["defense.scorer="])
    loaded = load_recipe(mine, ["training.epochs=1", "defense.purifier.1.epochs=9"])
    assert loaded.name == "mine"
    assert loaded.defense.scorer.yaml()["exponent"] == 2
    assert loaded.training.epochs == 1
    assert loaded.defense.purifier[1].yaml()["epochs"] == 9
    assert loaded.data.yaml()["path"] == str(tmp_path / "rows.csv")  # beside the file that names it


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("model=" + "a" * 300, ["--set model=aaa", "model: File name too long"]),
        ("data=" + "a" * 300, ["data: File name too long"]),
        ("suspect=" + "a" * 300, ["expected either `attack:`"]),
        ("plugins=[mien.py]", ["--set plugins=[mien.py]: plugins.0: there is no file"]),
        ("defense.compare={clean reference: {scorer: magnitude}}", ["a model that every run reports"]),
        ("defense.compare={trial x: {scorer: magnitude}}", ["a model that every run reports"]),
        ('defense.compare={"a\\eb": {scorer: magnitude}}', ["expected a name of letters"]),
        ("trainig.epochs=3", ["--set trainig.epochs=3: trainig: unknown key", "Did you mean 'training'"]),
        ("training.epochs=x", ["--set training.epochs=x: training.epochs: ", 'got "x"']),
        ("defense.scorer=difusion", ["--set defense.scorer=difusion: defense.scorer.name", "'diffusion'"]),
        ("defense.scorer.exponnt=1", ["--set defense.scorer.exponnt=1: defense.scorer.exponnt", "'exponent'"]),
        ("name=a/b", ["--set name=a/b: name"]),
    ],
)
def test_a_wrong_setting_is_told_as_it_was_typed(recipe: Path, setting: str, parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(recipe, [setting])
    for part in parts:
        assert part in str(caught.value)


def test_paths_start_where_they_are_written(
    recipe: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "other.csv").write_text("text,label\na,x\nb,y\n")
    monkeypatch.chdir(here)
    monkeypatch.setenv("ROWS", str(tmp_path))
    assert load_recipe(recipe, ["data.name=./other.csv"]).data.yaml()["path"] == str(here / "other.csv")
    assert load_recipe(recipe, ["data.name=${ROWS}/rows.csv"]).data.yaml()["path"] == str(tmp_path / "rows.csv")
    written = load_recipe(recipe, ["data={name: file, path: '${ROWS}/rows.csv'}"]).data.yaml()
    assert written["path"] == str(tmp_path / "rows.csv")
    with pytest.raises(UsageError, match=r"the environment variable ROW is not set\. Did you mean 'ROWS'"):
        load_recipe(recipe, ["data.name=${ROW}/rows.csv"])
    with pytest.raises(UsageError, match="name"):  # nothing but paths reads the environment
        load_recipe(recipe, ["name=${ROWS}"])


def test_a_dollar_in_a_folder_is_a_dollar(recipe: Path, base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a$b ${c}"
    folder.mkdir()
    for name in ("pico.yaml", "rows.csv"):
        (folder / name).write_text((tmp_path / name).read_text())
    loaded = load_recipe(folder / "pico.yaml")
    (tmp_path / "resolved.yaml").write_text(yaml_document.dump(loaded.resolved()))
    again = load_recipe(tmp_path / "resolved.yaml")
    assert again.resolved() == loaded.resolved()
    assert again.data.component.parameters()["path"] == str(folder / "rows.csv")


@pytest.mark.parametrize("setting", ["data=other.csv", "data.name=other.csv", "data={name: other.csv, text: t}"])
def test_other_data_keep_the_rows_of_each_role(recipe: Path, tmp_path: Path, setting: str) -> None:
    (tmp_path / "other.csv").write_text("t,label\na,x\nb,y\n")
    loaded = load_recipe(recipe, ["data.pair=p", setting.replace("other.csv", str(tmp_path / "other.csv"))])
    assert loaded.sizes == load_recipe(recipe).sizes
    assert loaded.data.yaml()["pair"] is None


def test_a_list_of_a_megabyte_is_counted_as_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, one="a: [" + "1," * 490_000 + "]")
    began = time.process_time()
    with pytest.raises(UsageError, match=r"one.yaml:1: more than 10,000 values"):
        yaml_document.read(path)
    assert time.process_time() - began < 5  # read whole, and counted then, it takes ten


@pytest.mark.parametrize("named", ["/dev/zero", "/proc/self/mem", "pipe.yaml", "huge.yaml", "/"])
def test_only_a_file_that_ends_is_extended(tmp_path: Path, named: str) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with (tmp_path / "huge.yaml").open("wb") as file:
        file.truncate(yaml_document.BYTES + 1)
    with pytest.raises(UsageError):
        yaml_document.load(write(tmp_path, top=f"extends: {named}"))


def test_a_file_that_has_nothing_yet_is_not_waited_for(tmp_path: Path) -> None:
    """It fails by never ending. If the kernel has just said something, that is read, and may even be YAML."""
    with suppress(UsageError):
        yaml_document.load(write(tmp_path, top="extends: /proc/kmsg"))


def test_a_long_chain_of_files_is_refused(tmp_path: Path) -> None:
    files = {f"f{i}": f"extends: f{i + 1}.yaml" for i in range(2_000)}
    with pytest.raises(UsageError, match=r"f50.yaml:1: extends: more than 50 files build on each other"):
        yaml_document.load(write(tmp_path, **files))


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(yaml_document.BYTES + 1)
    with pytest.raises(UsageError, match="refused"):
        yaml_document.read(path)


_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_keys = st.sampled_from(
    [
        "name",
        "model",
        "data",
        "attack",
        "suspect",
        "triggered",
        "training",
        "precision",
        "defense",
        "metrics",
        "seed",
        "plugins",
        "executor",
        "observers",
        "extends",
        "defense.scorer",
        "defense.purifier",
        "defense.purifier.1",
        "defense.choose",
        "defense.choose.over",
        "defense.choose.values",
        "defense.compare",
        "defense.compare.random",
        "data.name",
        "data.path",
        "data.train",
        "attack.words",
        "attack.target",
        "model.name",
        "model.revision",
    ]
)
_quiet = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@_quiet
@given(st.lists(st.tuples(_keys, _plain), min_size=1, max_size=3))
def test_no_settings_make_a_traceback(recipe: Path, chosen: list[tuple[str, Any]]) -> None:
    written = [f"{key}={yaml_document.dump(value).removesuffix('...' + os.linesep)}" for key, value in chosen]
    with contextlib.suppress(UsageError):  # anything else fails
        load_recipe(recipe, written)


@_quiet
@given(st.text(max_size=60), st.text(max_size=30))
def test_no_text_makes_a_traceback(recipe: Path, text: str, setting: str) -> None:
    path = recipe.with_name("fuzzed.yaml")
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    for attempt in ((path, ()), (recipe, (setting,)), (recipe, (f"data={text}",))):
        with contextlib.suppress(UsageError):
            load_recipe(*attempt)


@pytest.mark.parametrize("lower", ["rows.csv", "other.csv"])
def test_data_named_anew_are_beside_the_file_that_names_them(lower: str, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    write(tmp_path / "lib", base=f"data: {{name: {lower}, clean: 10}}")
    kept = {("data",): ["clean"]}
    for text in ("data: rows.csv", "data: {name: rows.csv}"):
        document = yaml_document.load(write(tmp_path, mine=f"extends: lib/base.yaml\n{text}"), (), kept)
        assert document.data["data"] == {"name": "rows.csv", "clean": 10}
        assert document.place(("data", "name")).folder == tmp_path
        assert document.place(("data", "clean")).folder == tmp_path / "lib"
    document = yaml_document.load(tmp_path / "lib/base.yaml", ["data=rows.csv"], kept)
    assert document.location(("data", "name")) == "--set data=rows.csv"
