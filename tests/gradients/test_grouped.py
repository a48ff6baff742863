"""Curvature some layers at a time: the same numbers, and memory that can be let go of."""

import errno
import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from defensekit.gradients import mean_squared_gradients
from defensekit.gradients.grouped import HELD, groups
from defensekit.gradients.plain import Batch
from defensekit.utils.errors import DefenseKitError
from tests.gradients.helpers import classifier, close, padded, rows


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(1, 500))
def test_groups_are_neighbours_that_fit(sizes: list[int], held: int) -> None:
    model = nn.Module()
    for i, size in enumerate(sizes):
        model.register_parameter(f"w{i}", nn.Parameter(torch.zeros(size), requires_grad=i % 4 != 3))
    found = groups(model, held)
    assert [name for group in found for name in group] == [n for n, p in model.named_parameters() if p.requires_grad]
    parameters = dict(model.named_parameters())
    for group in found:
        assert len(group) == 1 or HELD * sum(parameters[name].numel() for name in group) <= held
    for one, other in pairwise(found):  # none is smaller than it has to be
        assert HELD * sum(parameters[name].numel() for name in [*one, other[0]]) > held


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
@settings(max_examples=3, deadline=None)
@given(held=st.sampled_from([1, 3_000, 20_000]))
def test_groups_give_what_the_whole_gives(architecture: str, held: int) -> None:
    model = classifier(architecture)
    frozen = next(iter(dict(model.named_parameters()).values()))
    frozen.requires_grad_(False)
    asked: list[int] = []
    seen: list[tuple[int, int]] = []

    def batches() -> list[Batch]:
        asked.append(1)
        return list(padded(rows([3, 7, 5, 1]), size=2))

    whole, norms = mean_squared_gradients(model, batches, 4, held=1 << 40)
    assert len(asked) == 1
    parts, others = mean_squared_gradients(
        model, batches, 4, held=held, report=lambda done, total: seen.append((done, total))
    )
    assert len(asked) - 1 == len(groups(model, held)) > 1
    close(parts, {name: tensor.double() for name, tensor in whole.items()}, rel=1e-6)
    assert torch.allclose(others, norms, rtol=1e-6)
    assert seen[-1] == (4 * len(groups(model, held)),) * 2
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in model.parameters() if p is not frozen)


def test_what_waits_lies_in_files_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = classifier("bert")
    means, _ = mean_squared_gradients(model, lambda: padded(rows([3, 4])), 2, held=50_000)
    assert not list(tmp_path.iterdir())
    mapped = Path("/proc/self/maps").read_text() if Path("/proc/self/maps").exists() else str(tmp_path)
    assert str(tmp_path) in mapped
    assert all(bool(torch.isfinite(mean).all()) for mean in means.values())


def test_no_room_for_what_waits_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(DefenseKitError, match=r"has too little space for .* MiB of curvature \(No space left.*TMPDIR"):
        mean_squared_gradients(classifier("bert"), lambda: padded(rows([3, 4])), 2, held=50_000)
    assert not list(tmp_path.iterdir())
