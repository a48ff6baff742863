"""Work done at once comes in order."""

import pytest
import torch

from defensekit.utils.parallel import concurrently


def test_work_done_at_once_comes_in_order_and_ends_with_its_error() -> None:
    assert list(concurrently(lambda i: i * i, range(50), 3)) == [i * i for i in range(50)]
    own = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        list(concurrently(lambda i: 1 // (20 - i), range(50), 3))
    assert torch.get_num_threads() == own
