"""`defensekit plugins`: every component, what it takes, and what keeps it from loading."""

from pathlib import Path

from tests.cli.helpers import command


def test_plugins_list_names_every_component() -> None:
    text = command("plugins", "list", COLUMNS="120").stdout
    for name in ("diffusion", "accuracy-floor", "fine-tune", "word", "minilm", "movie-reviews", "asr"):
        assert name in text


def test_plugins_list_shows_a_broken_file_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found")
    done = command("plugins", "list", str(tmp_path / "broken.py"))
    assert done.returncode == 0
    assert "plugin 'broken.py'" in done.stdout
    assert "pip install nowhere_to_be_found" in done.stdout
    assert "diffusion" in done.stdout


def test_plugins_show_says_what_a_component_takes() -> None:
    text = command("plugins", "show", "diffusion", COLUMNS="120").stdout
    for part in ("scorer diffusion", "exponent", "number (>= 0, <= 4)", "1.0", "needs: curvature", "scorers.py:"):
        assert part in text
    text = command("plugins", "show", "hub", COLUMNS="120").stdout
    assert "dataset hub" in text
    assert "model hub" in text
    assert "(required)" in text


def test_plugins_show_says_all_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from defensekit.api import hookimpl, scorer\n\n@scorer()\ndef mine(t):\n    'Of mine.'\n    return t.drift\n\n"
        "@hookimpl\ndef defensekit_scorers():\n    return {'mine': mine, 'yours': mine}\n"
    )
    text = command("plugins", "show", str(file), COLUMNS="120").stdout
    assert text.count("Of mine.") == 2
    assert "scorer mine" in text
    assert "scorer yours" in text
    file.write_text("import nowhere_to_be_found")
    assert "pip install nowhere_to_be_found" in command("plugins", "show", str(file)).stderr


def test_plugins_show_says_what_keeps_a_component_from_loading(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text(
        "from defensekit.api import hookimpl, scorer\n\n@hookimpl\ndef defensekit_scorers():\n"
        "    return {'gone': 'nowhere_to_be_found:Gone'}\n"
    )
    done = command("plugins", "show", "gone", str(tmp_path / "half.py"))
    assert done.returncode == 1
    assert "pip install nowhere_to_be_found" in done.stderr
    assert "plugin 'half.py'" in done.stdout
