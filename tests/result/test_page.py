"""A run's page: what it says, that nothing on it runs, and how it looks in a browser."""

import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

import defensekit
from defensekit.recipe.loader import load_recipe
from defensekit.result.page import _pieces, heat, render, write
from defensekit.result.schema import Result
from tests.conftest import SMALL, make_sentences, open_page, shape, write_table
from tests.result.helpers import EVIL, poisoned


@pytest.fixture(scope="module")
def shown(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the run."""
    return write(result, tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def hostile(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with markup wherever text from outside may stand."""
    return write(poisoned(result), tmp_path_factory.mktemp("hostile"))


def test_the_page_says_what_was_measured(result: Result, shown: Path) -> None:
    page = shown.read_text()
    models = result.models
    for part in (
        f"ACC went from {models['suspect'].metrics['acc'].value:.1%} to {models['purified'].metrics['acc'].value:.1%}",
        f"where a model that was never poisoned has {result.floors['asr']:.1%}",
        f"{models['purified'].metrics['asr'].low:.3f} to {models['purified'].metrics['asr'].high:.3f}",
        "48 of which carry the attack",
        "selector.fraction = ",
        "<mark>cf</mark>",
        f"defensekit run {result.folder}/recipe.yaml --workspace {Path(result.folder).parents[1]}",
        result.environment.versions["torch"],
        "attention.self.query.weight",
        "statistics (fisher)",
        "Curvature is exactly 0 on",
    ):
        assert part in page, part


def test_the_same_result_is_the_same_page(result: Result, shown: Path) -> None:
    assert shown.read_text() == render(Result.model_validate(result.model_dump()))


def test_nothing_is_fetched_and_nothing_runs(hostile: Path) -> None:
    page = hostile.read_text()
    assert EVIL not in page
    assert "default-src 'none'" in page
    tags: list[tuple[str, dict[str, str | None]]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append((tag, dict(attrs)))  # type: ignore[method-assign]
    parser.feed(page)
    assert {"img", "table", "mark"} <= {tag for tag, _ in tags}
    assert "script" not in {tag for tag, _ in tags}
    for tag, attributes in tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "action", "data", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, name)


def test_a_page_of_a_suspect_without_attack_or_choice(recipe: Path, tmp_path: Path, suspect: Path) -> None:
    rows = [(text, str(int(label == "positive"))) for text, label in make_sentences(200)]
    write_table(recipe.parent / "rows.csv", rows)
    settings = [
        "attack=",
        "training=",
        f"suspect={suspect}",
        "data.train=",
        "defense.choose=",
        "defense.compare={}",
        "metrics=[acc]",
    ]
    page = render(defensekit.run(load_recipe(recipe, settings), tmp_path / "w"))
    assert "A given model was compared with its base." in page
    assert "The choice" not in page
    assert "Triggered rows" not in page
    assert "Scores" in page


def test_a_page_of_a_run_in_which_nothing_was_reset(recipe: Path, warm: Path) -> None:
    shape(recipe, **SMALL, defense__choose=None, defense__compare={}, defense__purifier=["reset"])
    page = render(defensekit.run(load_recipe(recipe, ["defense.selector.fraction=0"]), warm))
    assert "Nothing was reset." in page
    assert "Where it was reset" not in page


def test_the_heat_map_is_the_selection(result: Result) -> None:
    reset = result.models["purified"].reset
    assert reset is not None
    found = heat(reset)
    assert found.columns == ["0", "1"]
    name = "encoder.layer.1.attention.self.query.weight"
    [full] = [tensor for tensor in reset.tensors if tensor.endswith(name)]
    _, eligible, selected = reset.tensors[full]
    cell = found.rows["attention.self.query.weight"][1]
    assert (cell.share, cell.eligible) == (selected / eligible, eligible)
    assert sum(map(len, found.rows.values())) + len(found.others) == len(reset.tensors)


@pytest.mark.parametrize(
    ("plain", "text", "expected"),
    [
        ("a b c", "a cf b c", [(False, "a "), (True, "cf"), (False, " "), (False, "b c")]),
        ("a b", "a b cf", [(False, "a b"), (False, " "), (True, "cf")]),
        ("", "cf", [(True, "cf")]),
        (None, "a cf", [(False, "a cf")]),
        ("a", "a", [(False, "a")]),
    ],
)
def test_what_an_attack_put_there_is_marked(plain: str | None, text: str, expected: list[tuple[bool, str]]) -> None:
    found = _pieces(plain, text)
    assert "".join(piece for _, piece in found) == text
    assert [piece for put, piece in found if put] == [piece for put, piece in expected if put]


def test_the_command_that_repeats_a_run_is_one_for_a_shell(result: Result) -> None:
    page = render(result.model_copy(update={"folder": "/my ws/runs/x"}))
    assert "defensekit run &#39;/my ws/runs/x/recipe.yaml&#39; --workspace &#39;/my ws&#39;" in page


def test_a_text_of_any_length_is_shown_at_once() -> None:
    started = time.perf_counter()
    [(put, shown)] = _pieces("word " * 5000, "cf " + "word " * 5000)
    assert not put
    assert len(shown) < 2100
    assert time.perf_counter() - started < 5  # it took minutes


# -- in a browser ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1200, 360])
def test_everything_is_visible_at_any_width(browser: webdriver.Chrome, shown: Path, width: int) -> None:
    assert open_page(browser, shown, width) == []
    for name in ("models", "choice", "curve", "scores", "spread", "where", "heat", "examples", "repeat"):
        element = browser.find_element(By.ID, name)
        assert element.is_displayed(), name
        assert element.size["height"] > 10, name
    for image in browser.find_elements(By.TAG_NAME, "img"):
        assert browser.execute_script("return arguments[0].naturalWidth", image) > 100
        assert image.size["width"] > 500  # its letters would be too small to read
    # Wide tables scroll within their boxes; the page itself never does, and no text is small beyond reading.
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('td, th, p, small')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 11
    assert len(browser.find_elements(By.CSS_SELECTOR, "#examples ~ .scroll tbody tr")) >= 10


def test_text_from_outside_is_text_in_the_browser_too(browser: webdriver.Chrome, result: Result, hostile: Path) -> None:
    assert open_page(browser, hostile, 1200) == []
    assert browser.title == f"{result.name} – DefenseKit"
    assert EVIL in browser.find_element(By.CSS_SELECTOR, ".warning").text
    assert not browser.find_elements(By.CSS_SELECTOR, "script, img[onerror]")


def test_cells_of_the_heat_map_can_be_read_in_greyscale(
    browser: webdriver.Chrome, result: Result, tmp_path: Path
) -> None:
    data = result.model_dump()
    data["models"]["purified"]["reset"]["tensors"] = {f"layer.{i}.weight": [100, 100, 5 * i] for i in range(21)}
    open_page(browser, write(Result.model_validate(data), tmp_path), 1200)
    colours = browser.execute_script(
        "const c = document.createElement('canvas').getContext('2d', {willReadFrequently: true});"
        "const rgb = s => { c.fillStyle = s; c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data] };"
        "return [...document.querySelectorAll('#heat tbody td')].map(e => {"
        "const s = getComputedStyle(e); return [rgb(s.backgroundColor), rgb(s.color)] })"
    )

    def luminance(rgb: list[int]) -> float:
        linear = [v / 255 / 12.92 if v / 255 <= 0.04045 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in rgb[:3]]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    grounds = [luminance(ground) for ground, _ in colours]
    assert len(grounds) == 21
    assert grounds == sorted(grounds, reverse=True)  # more is darker, without colour too
    for ground, ink in colours:
        light, dark = sorted((luminance(ground), luminance(ink)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2, level AA
