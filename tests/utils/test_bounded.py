"""What a process of its own answers, whatever lies where the user is."""

import ast
from contextlib import suppress
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

import defensekit
from defensekit.utils import bounded
from defensekit.utils.bounded import ask
from defensekit.utils.errors import UsageError

ROOT = Path(defensekit.__file__).parents[1]


def test_a_folder_with_code_in_it_is_not_where_libraries_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "pyarrow", "signal"):
        (tmp_path / f"{name}.py").write_text("import pathlib; pathlib.Path('ran').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bounded, "_IDLE", {})  # what is asked has to be started here
    (tmp_path / "rows.parquet").touch()
    with pytest.raises(UsageError, match="ArrowInvalid: Parquet file size is 0 bytes"):
        ask("defensekit.host.parquet_trial", str(tmp_path / "rows.parquet"), 20, 4, "decode")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("package", ["defensekit", "plugins"])
def test_no_process_that_is_started_looks_for_libraries_there(package: str) -> None:
    commands = [
        [ast.unparse(item) for item in node.elts]
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.List)
    ]
    ours = [command for command in commands if command and command[0] == "sys.executable"]
    assert ours
    assert [command for command in ours if command[1] != "'-P'"] == []


def test_a_process_is_asked_again_until_it_refuses_or_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "_IDLE", {})
    good, bad = tmp_path / "good.parquet", tmp_path / "bad.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), good)
    bad.touch()

    def asked(path: Path) -> int | None:
        with suppress(UsageError):
            ask("defensekit.host.parquet_trial", str(path), 20, 4, "decode")
        return next((process.pid for process in bounded._IDLE.values()), None)

    first = asked(good)
    assert first is not None
    assert asked(good) == first
    bounded._IDLE["defensekit.host.parquet_trial"].kill()
    bounded._IDLE["defensekit.host.parquet_trial"].wait()
    assert asked(good) not in (first, None)
    assert asked(bad) is None
    bounded._end_all()
