"""A plugin, a cluster and what a run comes to without one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import defensekit
from tests.conftest import RECIPE, make_sentences, write_table
from tests.plugins.executors.helpers import ODD, Bench, node, numbers, small


@pytest.fixture(scope="package")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a plugin that does what it is told to."""
    file = tmp_path_factory.mktemp("plugin") / "odd.py"
    file.write_text(ODD)
    return file


@pytest.fixture(scope="package")
def cluster() -> Iterator[Any]:
    """Two nodes on this machine's loopback, a core each; the head has none, and the driver is there."""
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'defensekit[ray]')")
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args=node() | {"num_cpus": 0})
    for _ in range(2):
        found.add_node(**node())
    yield found
    found.shutdown()


@pytest.fixture
def bench(odd: Path, tmp_path: Path) -> Bench:
    return Bench(odd, tmp_path)


@pytest.fixture(scope="package")
def expected(base: Path, odd: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A recipe, and what it comes to in this process."""
    folder = tmp_path_factory.mktemp("expected")
    write_table(folder / "rows.csv", make_sentences(400))
    recipe = folder / "pico.yaml"
    recipe.write_text(RECIPE.format(base=base))
    small(recipe, plugins=[str(odd)], defense__purifier=["reset", "pause"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return recipe, numbers(defensekit.run(recipe, folder / "w"))
    finally:
        torch.set_num_threads(threads)
