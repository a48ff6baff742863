"""Running cells of a row again, drawn by chance, and writing down what came out.

A plugin that came with a row is a stranger's code. It runs only when it is asked for by its name, in a process of its
own, without network where the system can do that; it is no sandbox, and such a process can still read the disk.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

from defensekit.components import Observer
from defensekit.leaderboard.checking import Checker, agreement
from defensekit.leaderboard.composition import study_for
from defensekit.leaderboard.entries import check_trust
from defensekit.leaderboard.freezing import check_frozen
from defensekit.leaderboard.row import VERIFICATIONS, Row, Verification, VerifiedCell, read_row
from defensekit.leaderboard.tracks import Cell, Track
from defensekit.pipeline.graph import closure
from defensekit.result.schema import Result
from defensekit.studies.loading import Study
from defensekit.studies.planning import plan_study
from defensekit.studies.rerun import differences
from defensekit.utils.errors import DefenseKitError
from defensekit.utils.files import atomic_write, data_digest

_TAKEN = ("clean reference", "suspect")
_ALONE = ("unshare", "--user", "--map-root-user", "--net")


def verify(
    track: Track,
    folder: Path,
    cells: int,
    seed: int,
    by: str,
    trust: Sequence[str] = (),
    workspace: Path | None = None,
    observers: Sequence[Observer] = (),
    executor: str | None = None,
) -> Verification:
    """Repeat some cells of a row, compare the answers, and write a verification into the row.

    Args:
        track: the row's track.
        folder: the row's folder.
        cells: how many.
        seed: of the draw.
        by: who does this.
        trust: the plugins that may run, as the entry names them.
        workspace: one with the track's suspects, which are taken from there; all else is made anew, and all of it
            where an attack was submitted.
        observers: are notified of progress.
        executor: where stages run, as YAML. With another number of threads, suspects are made anew as well.

    Raises:
        UsageError: the row's plugin is not trusted.
        DefenseKitError: the row is not right, or a cell failed.
    """
    row = Checker(track).check(folder)
    for submission in track.submissions(row.entry):
        check_trust(submission, trust)
    drawn = sorted(Random(seed).sample(track.cells, min(cells, len(track.cells))))
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch) / "workspace"
        if track.attack is None:  # a submitted one's code makes the rows, and runs in the other process alone
            if workspace is not None:
                _take_suspects(study_for(track, None, drawn, executor), workspace, work)
            check_frozen(track, drawn, work, observers)  # whatever has to be downloaded is here after that
        isolated = repeat(track, row, drawn, work, Path(scratch), executor)
        again = read_row(Path(scratch) / "rows" / track.name / row.name)
        compared = [_compared(cell, row, again) for cell in drawn]
    environment = next(iter(again.cells.values())).environment
    verification = Verification(
        row=row.digest,
        by=by,
        when=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        on={
            "platform": environment.platform,
            "device": f"{environment.device_name}, {environment.device}, threads {environment.threads}",
            **{name: environment.versions[name] for name in ("defensekit", "torch", "transformers")},
        },
        isolated=isolated,
        drawn_with=seed,
        cells=compared,
        same=False,
    )
    verification = verification.model_copy(update={"same": agreement(verification, track)})
    name = f"{verification.when[:10]}-{data_digest(verification.model_dump())[:8]}.json"
    atomic_write(folder / VERIFICATIONS / name, verification.model_dump_json(indent=1).encode() + b"\n")
    return verification


def repeat(
    track: Track, row: Row, cells: Sequence[Cell], workspace: Path, scratch: Path, executor: str | None = None
) -> bool:
    """Run cells of a row's entry into ``scratch/rows``, in a process of its own; whether it had no network.

    Raises:
        DefenseKitError: a cell failed.
    """
    # Copies, since importing a plugin writes beside it.
    copied = [one.copy_into(scratch / one.path.stem, one.path.name) for one in track.submissions(row.entry)]
    only = [option for attack, seed in cells for option in ("--only", f"{attack}:{seed}")]
    action = "attack" if track.attack else "run"
    command = [sys.executable, "-P", "-m", "defensekit", "leaderboard", action, track.document.name, *copied]
    if track.attack:
        only += ["--trust", row.entry.code]
    if executor is not None:
        only += ["--executor", executor]
    options = [*only, "--quiet", "--workspace", workspace.absolute(), "--rows", scratch / "rows"]
    alone = _can_be_alone()
    done = subprocess.run(
        [*(_ALONE if alone else ()), *map(str, (*command, *options))], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip() or "no output").splitlines()[-1]
        raise DefenseKitError(f"{row.folder}: running it again failed: {reason}")
    return alone


def _take_suspects(study: Study, workspace: Path, work: Path) -> None:
    """Copy suspects and clean references, with what they were made from: nothing that a defense made, no answers."""
    stages = plan_study(study, workspace).stages.values()
    for key in closure(stage for stage in stages if stage.plain["title"] in _TAKEN):
        artifact = Path("store/artifacts") / key
        if (workspace / artifact).is_dir():
            shutil.copytree(workspace / artifact, work / artifact)


def _can_be_alone() -> bool:
    """Whether this system starts a process without network for anybody (Linux with user namespaces)."""
    if not shutil.which(_ALONE[0]):
        return False
    return subprocess.run([*_ALONE, "true"], capture_output=True, check=False).returncode == 0


def _compared(cell: Cell, row: Row, again: Row) -> VerifiedCell:
    before, after = row.cells[cell], again.cells[cell]
    inputs = [place for place, _, _ in differences(_inputs(before), _inputs(after))]
    shares: dict[str, float] = {}
    for model in before.models:
        answers, repeated = row.answers(before, model), again.answers(after, model)
        for on in answers:
            one, other = (asked[on].answers() for asked in (answers, repeated))
            differing = float((one != other).mean()) if len(one) == len(other) else 1.0
            shares[on] = max(differing, shares.get(on, 0.0))
    return VerifiedCell(attack=cell[0], seed=cell[1], differing=shares, inputs=inputs[:20])


def _inputs(result: Result) -> dict[str, object]:
    """What decides a row's numbers, but for the machine and for versions of code, which `on` has."""
    facts = result.identified
    parts = {key: {name: part[name] for name in ("name", "parameters")} for key, part in facts["parts"].items()}
    settings = {key: value for key, value in facts["settings"].items() if key != "baselines"}
    used = {"labelled rows": result.clean_budget, "oracle": result.oracle}
    aim = {"target": (result.attack or {}).get("target"), "labels": result.data["labels"]}
    return {"parts": parts, "settings": settings, "contents": facts["contents"], "used": used, "aim": aim}
