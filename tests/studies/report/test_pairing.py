"""Two models on the same test rows, from their stored answers."""

from pathlib import Path

from defensekit.pipeline.store import Artifact, Store
from defensekit.recipe import yaml_document
from defensekit.studies.frame import Finished
from defensekit.studies.loading import load_study
from defensekit.studies.report.pairing import Stored
from defensekit.studies.running import run_study


def test_two_trials_beyond_six_digits_keep_their_own_answers(lean: Path, warm: Path, tmp_path: Path) -> None:
    values = (0.25000001, 0.25000002)  # `%g` writes both as 0.25
    data = yaml_document.read(lean).data
    data["defense"]["choose"] = {"rule": "accuracy-floor", "values": list(values), "max_drop": 0.1}
    lean.write_text(yaml_document.dump(data))
    (tmp_path / "study.yaml").write_text(f"name: close\nrecipe: {lean}\nmatrix: {{}}\n")
    done = run_study(load_study(tmp_path / "study.yaml"), warm)
    assert not done.failed
    stored = Stored(Finished(done.folder))
    opened = []

    class Watched(Store):
        def open(self, key: str) -> Artifact:
            opened.append(key)
            return super().open(key)

    stored.store = Watched(stored.store.root)
    [run] = stored.study.runs
    for value in values:
        assert stored.row_values(run.id, value, "asr") is not None
    assert len(set(opened)) == 2
    assert stored.row_values(run.id, 0.3, "asr") is None
