"""Recipes: what is accepted, and errors that say file, line, key and what is close."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from defensekit.recipe import yaml_document
from defensekit.recipe.loader import load_recipe
from defensekit.utils.errors import UsageError
from tests.conftest import ROOT


def edit(recipe: Path, before: str, after: str) -> Path:
    text = recipe.read_text()
    assert text.count(before) == 1, before
    recipe.write_text(text.replace(before, after))
    return recipe


def test_loads_and_fills_in_defaults(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    assert loaded.defense.scorer.component.parameters() == {"exponent": 1.0, "eps_quantile": 0.01}
    assert loaded.model.name == "folder"
    assert [metric.name for metric in loaded.metrics] == ["acc", "asr", "excess-asr"]


def test_resolved_recipe_is_itself_a_recipe(recipe: Path, tmp_path: Path) -> None:
    resolved = load_recipe(recipe).resolved()
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "resolved.yaml").write_text(yaml_document.dump(resolved))
    assert load_recipe(other / "resolved.yaml").resolved() == resolved


@pytest.mark.parametrize("native", ["float32", "bfloat16"])
def test_auto_is_the_precision_of_the_machine(recipe: Path, native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defensekit.recipe.loader.native_precision", lambda: native)
    loaded = load_recipe(edit(recipe, "name: pico", "name: pico\nprecision: auto"))
    assert loaded.precision == native
    assert loaded.resolved()["precision"] == native  # what repeats the run elsewhere is what it ran with


def test_shipped_recipes_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFENSEKIT_TEST_DATA", "/nowhere")
    monkeypatch.setenv("DEFENSEKIT_OTHER_MODEL", "/nowhere")
    found = sorted((ROOT / "recipes").glob("*.yaml"))
    assert found
    for path in found:
        assert load_recipe(path).name == path.stem


@pytest.mark.parametrize(
    ("before", "after", "line", "parts"),
    [
        (
            "scorer: diffusion",
            "scorer: difusion",
            8,
            ["defense.scorer", "no scorer 'difusion'", "Did you mean 'diffusion'"],
        ),
        ("scorer: diffusion", "scorerr: diffusion", 8, ["defense.scorerr", "unknown key", "'scorer'"]),
        ("fraction: 0.5}", "fraction: 1.5}", 9, ["defense.selector.fraction", "less than or equal to 1", "got 1.5"]),
        ("fraction: 0.5}", "fraction: half}", 9, ["defense.selector.fraction", "valid number", 'got "half"']),
        ("fraction: 0.5}", "fraction: .nan}", 9, ["defense.selector.fraction", "finite"]),
        ("epochs: 8", "epochs: true", 5, ["training.epochs", "integer", "got true"]),
        ("epochs: 8", 'epochs: "8"', 5, ["training.epochs", "integer"]),
        ("epochs: 8", "epoch: 8", 5, ["training.epoch", "unknown key", "'epochs'"]),
        ("rate: 0.2", "rate: 0", 4, ["attack.rate", "greater than 0"]),
        ("rate: 0.2, ", "", 4, ["attack:", "either `rate`"]),
        ("  scorer: diffusion\n", "", 8, ["defense.selector", "needs a `scorer:` beside it"]),
        ("  selector: {name: fraction, fraction: 0.5}\n", "", 8, ["defense.scorer", "needs a `selector:` beside it"]),
        (
            "  scorer: diffusion\n  selector: {name: fraction, fraction: 0.5}\n",
            "",
            8,
            ["defense.purifier", "reset changes selected weights, and nothing is selected"],
        ),
        ("name: word", "name: wrod", 4, ["attack.name", "Did you mean 'word'"]),
        ("  estimator: fisher\n", "", 7, ["defense.scorer", "needs curvature", "fisher"]),
        ("purifier: [reset,", "purifier: [resett,", 10, ["defense.purifier.0", "Did you mean 'reset'"]),
        ("rule: accuracy-floor,", "rule: accuracy-flor,", 11, ["defense.choose.rule", "Did you mean 'accuracy-floor'"]),
        ("values: [0.25, 0.5]", "values: [0.25, 5]", 11, ["defense.choose.values.1", "can't be 5"]),
        ("values: [0.25", "over: selector.fractoin, values: [0.25", 11, ["choose.over", "Did you mean 'fraction'"]),
        ("values: [0.25", "over: fraction, values: [0.25", 11, ["choose.over", "no part ''"]),
        ("rows.csv", "row.csv", 3, ["data", "no file", "Did you mean 'rows.csv'"]),
        ("name: rows.csv", "name: movie-review", 3, ["data", "Did you mean 'movie-reviews'"]),
        ("target: positive", "target: positiv", 4, ["attack.target", "no label 'positiv'", "Did you mean 'positive'"]),
        ("dev: 32", "dev: 320", 3, ["data", "`clean`", "has 20"]),
        (
            "test: 60",
            "tset: 60",
            3,
            ["data.tset: unknown key. Did you mean 'test'?", "(known: ", "test", "path", "label"],
        ),
        (
            "rows.csv, train",
            "opinions, trian",
            3,
            ["data.trian: unknown key. Did you mean 'train'? (known: train, clean"],
        ),
        ("test: 60", "test: 60, text: texts", 3, ["no column 'texts'", "Did you mean 'text'"]),
        ("train: 240", "train: 240, pair: second", 3, ["no column 'second'"]),
        ("name: pico", "name: ../pico", 1, ["name", "pattern"]),
        ("name: pico", "name: pico\nname: other", 2, ["the key 'name' is duplicated"]),
        ("name: pico", "name: !!python/name:os.system x", 1, ["tag", "refused"]),
        ("name: pico", "name: pico\nsuspect: here", 1, ["either `attack:`"]),
        ("name: pico", "name: [pico", 2, ["not YAML"]),
        ("name: pico", "name: pico\nplugins: [nothing.py]", 2, ["plugins", "no file"]),
        ("name: pico", "name: pico\nmetrics: [accuracy]", 2, ["metrics.0", "no metric 'accuracy'"]),
        ("name: pico", "name: pico\nmetrics: [acc, asr, acc]", 2, ["metrics.2", "'acc' stands there twice"]),
        ("name: pico", "name: pico\nmetrics: []", 2, ["metrics", "at least 1"]),
        ("name: pico", "name: pico\nseed: 010", 2, ["seed", "integer"]),
        ("name: pico", "name: pico\nplugins: ['~nobody_of_that_name/x.py']", 2, ["plugins.0", "is no path"]),
        ("name: rows.csv", 'name: "rows\\0.csv"', 3, ["data", "is no path"]),
        ("name: rows.csv", "name: rows.csv, path: other.csv", 3, ["data.path", "already"]),
        ("max_length: 32", "max_length: 65", 3, ["data.max_length", "64 positions"]),
        ("words: [cf]", 'words: [" "]', 4, ["attack.words.0", "pattern"]),
        (
            "  scorer: diff",
            "  compare: {t: {selector: {name: threshold, above: 1.0}}}\n  scorer: diff",
            8,
            ["compare.t", "fraction"],
        ),
    ],
)
def test_errors_say_where_and_what_is_close(
    recipe: Path, tmp_path: Path, before: str, after: str, line: int, parts: list[str]
) -> None:
    from defensekit import run

    edit(recipe, before, after)
    with pytest.raises(UsageError) as caught:
        run(recipe, tmp_path / "workspace")
    text = str(caught.value)
    assert text.startswith(f"{recipe}:{line}:"), text
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("above", "said"),
    [
        ("attack: null", "above.yaml:2: attack: expected either"),
        ("suspect: x", "above.yaml:2: suspect: expected either"),
    ],
)
def test_what_a_file_takes_back_or_adds_is_said_with_its_place(recipe: Path, above: str, said: str) -> None:
    upper = recipe.with_name("above.yaml")
    upper.write_text(f"extends: {recipe.name}\n{above}\n")
    with pytest.raises(UsageError, match=said):
        load_recipe(upper)
    with pytest.raises(UsageError, match=r"^--set attack=null: attack: expected either"):
        load_recipe(recipe, ["attack=null"])


def test_model_that_is_nothing_known(recipe: Path, base: Path) -> None:
    edit(recipe, f"model: {base}", "model: minilmm")
    with pytest.raises(UsageError, match=r"pico.yaml:2: model: 'minilmm' is no model source.*Did you mean 'minilm'"):
        load_recipe(recipe)
    (recipe.parent / "models/mine").mkdir(parents=True)
    edit(recipe, "model: minilmm", "model: models/mime")
    with pytest.raises(UsageError, match=r"'models/mime' needs a revision: .*Did you mean 'mine'\?"):
        load_recipe(recipe)
    edit(recipe, "model: models/mime", "model: modles")
    with pytest.raises(UsageError, match=r"'modles' is no model source.*Did you mean 'models'\?"):
        load_recipe(recipe)


def test_hub_ids_need_a_revision(recipe: Path, base: Path) -> None:
    edit(recipe, f"model: {base}", "model: owner/model@v1.0")
    assert load_recipe(recipe).model.yaml() == {"name": "hub", "id": "owner/model", "revision": "v1.0"}
    edit(recipe, "name: rows.csv", "name: owner/data@main")
    assert load_recipe(recipe).data.component.parameters()["revision"] == "main"
    edit(recipe, "owner/data@main", "owner/data")
    with pytest.raises(UsageError, match="needs a revision: write owner/data@main"):
        load_recipe(recipe)


def test_alias_bomb_is_refused(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join(['*' + old] * 10)}]" for old, new in zip("abcdefg", "bcdefgh", strict=True)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(UsageError, match="aliases"):
        yaml_document.read(path)


@pytest.mark.parametrize(("text", "value"), [("no", "no"), ("1e-4", 1e-4), ("2026-01-01", "2026-01-01"), ("~", None)])
def test_yaml_scalars_are_what_they_look_like(tmp_path: Path, text: str, value: object) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"key: {text}")
    assert yaml_document.read(path).data == {"key": value}


_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(data=st.dictionaries(st.text(), _plain, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_dumped_yaml_reads_back(tmp_path: Path, data: dict[str, object]) -> None:
    path = tmp_path / "any.yaml"
    path.write_text(yaml_document.dump(data), encoding="utf-8")
    assert yaml_document.read(path).data == data


@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_file_makes_a_traceback(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        load_recipe(path)


@given(key=st.sampled_from(["name", "model", "data", "attack", "training", "defense", "seed", "plugins"]), value=_plain)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_no_value_makes_a_traceback(recipe: Path, key: str, value: object) -> None:
    document = yaml_document.read(recipe).data
    path = recipe.with_name("changed.yaml")
    path.write_text(yaml_document.dump({**document, key: value}), encoding="utf-8")
    try:
        load_recipe(path)
    except UsageError as error:
        assert str(path) in str(error)  # noqa: PT017 - either is fine, but an error says where
