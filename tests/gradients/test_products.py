"""Sums of squared products: the kernel and what stands in for it, against einsum in float64."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from defensekit.gradients import kernel
from defensekit.gradients.products import _batched, add_squared_products, add_squared_sums
from defensekit.testing import check_squared_gradients
from tests.gradients.helpers import classifier, padded, rows


@given(
    samples=st.integers(1, 9),
    tokens=st.integers(1, 20),
    a=st.integers(1, 70),
    b=st.integers(1, 70),
    kept=st.floats(0, 1),
    seed=st.integers(0, 99),
    way=st.sampled_from(["kernel", "no kernel", "batched"]),
)
@settings(deadline=None, max_examples=60)
def test_products_of_any_size(samples: int, tokens: int, a: int, b: int, kept: float, seed: int, way: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(samples, tokens, a, generator=generator)
    right = torch.randn(samples, tokens, b, generator=generator)
    used = torch.rand(samples, tokens, generator=generator) < kept
    left *= used[..., None]
    sums, norms = torch.ones(a, b), torch.ones(samples, dtype=torch.float64)
    if way == "batched":
        _batched(left, right, sums, norms)
    else:
        with pytest.MonkeyPatch.context() as patch:
            if way == "no kernel":
                patch.setattr(kernel, "load", lambda: None)
            add_squared_products(left, right, used, sums, norms)
    products = torch.einsum("nta,ntb->nab", left.double(), right.double()).square()
    torch.testing.assert_close(sums.double(), 1 + products.sum(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norms, 1 + products.sum((1, 2)), rtol=1e-4, atol=1e-5)


@given(
    samples=st.integers(1, 9),
    tokens=st.integers(0, 20),
    features=st.integers(1, 150),
    factor=st.booleans(),
    apart=st.booleans(),
    seed=st.integers(0, 99),
    way=st.sampled_from(["kernel", "no kernel"]),
)
@settings(deadline=None, max_examples=60)
def test_sums_of_any_size(
    samples: int, tokens: int, features: int, factor: bool, apart: bool, seed: int, way: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    g, f = (torch.randn(samples, tokens, 2 * features, generator=generator) for _ in range(2))
    g, f = (g[..., ::2], f[..., ::2]) if apart else (g[..., :features].contiguous(), f[..., :features].contiguous())
    sums, norms = torch.ones(features), torch.ones(samples, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        if way == "no kernel":
            patch.setattr(kernel, "load", lambda: None)
        add_squared_sums(g, f if factor else None, sums, norms)
    squared = (g.double() * (f.double() if factor else 1)).sum(1).square()
    torch.testing.assert_close(sums.double(), 1 + squared.sum(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norms, 1 + squared.sum(1), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def large() -> tuple[torch.Tensor, ...]:
    """More outputs than make one piece of work, more rows than are packed at a time, one sample longer than that, one
    without a row; and the answer."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(3, 2300, n, generator=generator) for n in (300, 90))
    used = torch.rand(3, 2300, generator=generator) < torch.tensor([0.95, 0.0, 0.3])[:, None]
    left *= used[..., None]
    products = torch.einsum("nta,ntb->nab", left.double(), right.double()).square()
    return left, right, used, products.sum(0), products.sum((1, 2))


def check_large(large: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    left, right, used, expected, expected_norms = large
    sums, norms = torch.zeros(300, 90), torch.zeros(3, dtype=torch.float64)
    add_squared_products(left, right, used, sums, norms)
    torch.testing.assert_close(sums.double(), expected, rtol=1e-3, atol=1e-1)
    torch.testing.assert_close(norms, expected_norms, rtol=1e-5, atol=0)
    return sums, norms


def test_the_kernel_does_not_depend_on_the_number_of_threads(large: tuple[torch.Tensor, ...]) -> None:
    if kernel.load() is None:
        pytest.skip("there is no C compiler")
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(check_large(large))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(sums, found[0][0]) and torch.equal(norms, found[0][1]) for sums, norms in found)


def test_products_in_blocks(large: tuple[torch.Tensor, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defensekit.gradients.products.CPU_TILE", 700)
    monkeypatch.setattr("defensekit.gradients.products.GPU_TILE", 4000)
    left, right, _, expected, expected_norms = large
    sums, norms = torch.zeros(300, 90), torch.zeros(3, dtype=torch.float64)
    _batched(left, right, sums, norms)
    torch.testing.assert_close(sums.double(), expected, rtol=1e-3, atol=1e-1)
    torch.testing.assert_close(norms, expected_norms, rtol=1e-5, atol=0)
    monkeypatch.setattr(kernel, "load", lambda: None)
    check_large(large)


def test_products_that_do_not_fit_are_refused_before_anything_is_written() -> None:
    left, right, used = torch.ones(2, 3, 4), torch.ones(2, 3, 6), torch.ones(2, 3, dtype=torch.bool)
    norms = torch.zeros(2, dtype=torch.float64)
    for sums in (torch.zeros(2, 6), torch.zeros(6, 4).T, torch.zeros(4, 6, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"expected \(N, T, A\)"):
            add_squared_products(left, right, used, sums, norms)
    with pytest.raises(ValueError, match=r"got \[\[2, 3, 4\], \[2, 2, 6\]"):
        add_squared_products(left, right[:, :2], used, torch.zeros(4, 6), norms)


@pytest.fixture
def no_kernel_yet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """As on the first day: nothing compiled, nothing loaded."""
    monkeypatch.setenv("DEFENSEKIT_CACHE", str(tmp_path))
    kernel.load.cache_clear()
    yield tmp_path
    kernel.load.cache_clear()


def test_without_a_compiler_everything_works(
    no_kernel_yet: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with caplog.at_level("INFO", "defensekit"):
        check_squared_gradients(classifier("bert"), padded(rows([3, 7]))[0])
    assert (
        "computed without the compiled kernel: [Errno 2] No such file or directory: 'no-such-compiler'" in caplog.text
    )
    assert kernel.load() is None


def test_the_kernel_can_be_switched_off(no_kernel_yet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFENSEKIT_KERNEL", "off")
    assert kernel.load() is None
    assert list(no_kernel_yet.iterdir()) == []


def test_a_compiler_that_fails_is_no_compiler(no_kernel_yet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    assert kernel.load() is None
    assert list(no_kernel_yet.rglob("*.so")) == []


@pytest.mark.parametrize("capability", ["AVX512", "AVX2", "DEFAULT"])
def test_the_kernel_is_right_for_every_processor(
    no_kernel_yet: Path, capability: str, large: tuple[torch.Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled for each; run for those that this one understands."""
    if kernel.load() is None:
        pytest.skip("there is no C compiler")
    if capability != "DEFAULT" and os.uname().machine != "x86_64":
        pytest.skip("an x86 capability")
    assert kernel.build("cc", capability).is_file()
    order = ["DEFAULT", "AVX2", "AVX512"]
    here = torch.backends.cpu.get_cpu_capability()
    if here not in order or order.index(capability) > order.index(here):
        return
    kernel.load.cache_clear()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    check_large(large)
