"""The tutorial, from its empty folder to its last table: each block is done as its reader does it."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.test_blocks import TUTORIAL, blocks, commands


def install(package: Path, site: Path) -> None:
    """What `pip install -e` leaves, without an environment of its own and the network that takes."""
    about = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    [(plugin, module)] = about["entry-points"]["defensekit"].items()
    info = site / f"{module}-{about['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n")
    (info / "entry_points.txt").write_text(f"[defensekit]\n{plugin} = {module}\n")
    (site / module).symlink_to(package / module)


@pytest.mark.slow
def test_every_step_of_the_tutorial(tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "folder"
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    printed = ""
    for block in blocks(ROOT / TUTORIAL):
        if named := re.match(r"# (\S+\.(?:py|yaml))\n", block.text):
            (folder / named[1]).write_text(block.text)
        elif block.language == "toml":
            assert block.text in (folder / "defensekit-sharpness/pyproject.toml").read_text()
        for words in commands(block.text) if block.language == "sh" else []:
            if words[:3] == ["pip", "install", "-e"]:
                install(folder / words[3], site)
                continue
            assert words[0] in ("defensekit", "python"), shlex.join(words)
            command = [sys.executable, *(["-m", *words] if words[0] == "defensekit" else words[1:])]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, shlex.join(words) + done.stdout + done.stderr
            printed += done.stdout
    shown = "".join(block.text for block in blocks(ROOT / TUTORIAL) if block.language == "text")
    assert set(re.findall(r"[a-z]{3,}", shown)) <= set(re.findall(r"[a-z]{3,}", printed))
    for count in ("15 of 17 checks ran: 15 passed", "16 passed, 1 skipped"):
        assert count in (ROOT / TUTORIAL).read_text()
        assert count in printed
