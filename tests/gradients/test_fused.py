"""The kernel for GPUs against products in float64: on a GPU, and without one where Triton is there to interpret it."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from defensekit.gradients import products
from tests.conftest import ROOT

TRITON = importlib.util.find_spec("triton") is not None
SIZES = [(1, 1, 1, 1), (3, 5, 70, 33), (2, 40, 64, 64), (4, 7, 130, 1)]  # samples, tokens, A, B


def compare(device: str) -> None:
    from defensekit.gradients import fused

    for size in SIZES:
        samples, tokens, a, b = size
        generator = torch.Generator().manual_seed(0)
        left, right = (torch.randn(samples, tokens, width, generator=generator) for width in (a, b))
        used = torch.rand(samples, tokens, generator=generator) < 0.7
        sums, norms = torch.ones(a, b, device=device), torch.ones(samples, dtype=torch.float64, device=device)
        fused.squared_products(left.to(device), right.to(device), used.to(device), sums, norms)
        expected = torch.einsum("nta,ntb->nab", (left * used[..., None]).double(), right.double()).square()
        torch.testing.assert_close(sums.cpu().double(), 1 + expected.sum(0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(norms.cpu(), 1 + expected.sum((1, 2)), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not TRITON, reason="Triton is not installed")
def test_interpreted() -> None:
    """In a process of its own: Triton reads the variable when it is imported."""
    command = [sys.executable, "-c", f"from {__name__} import compare; compare('cpu')"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_without_triton_or_a_gpu_the_plain_path_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFENSEKIT_KERNEL", "off")
    products._fused.cache_clear()
    assert products._fused() is None
    monkeypatch.delenv("DEFENSEKIT_KERNEL")
    products._fused.cache_clear()
    assert (products._fused() is None) is not (TRITON and torch.cuda.is_available())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu() -> None:
    if TRITON:
        compare("cuda")
    left, right = torch.randn(6, 30, 96, device="cuda"), torch.randn(6, 30, 200, device="cuda")
    used = torch.rand(6, 30, device="cuda") < 0.7
    left *= used[..., None]
    sums, norms = torch.zeros(96, 200, device="cuda"), torch.zeros(6, dtype=torch.float64, device="cuda")
    products.add_squared_products(left, right, used, sums, norms)
    expected = torch.einsum("nta,ntb->nab", left.double(), right.double()).square()
    torch.testing.assert_close(sums.double(), expected.sum(0), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(norms, expected.sum((1, 2)), rtol=1e-4, atol=1e-3)
