"""What logits say, of one label and of any number of them."""

import torch

from defensekit.models.answers import given, names, several, shares
from defensekit.text import Row

LOGITS = torch.tensor([[2.0, -1.0, 0.0], [-3.0, 1.0, 4.0]])


def test_one_label_is_the_likeliest() -> None:
    assert names("abc", False) == ["a", "b", "c"]
    torch.testing.assert_close(shares(LOGITS, False), LOGITS.softmax(-1))
    assert given(shares(LOGITS, False), False).int().tolist() == [[1, 0, 0], [0, 0, 1]]


def test_of_any_number_each_applies_or_does_not() -> None:
    assert names("abc", True) == ["a", "b", "c", "not a", "not b", "not c"]
    on = 1 / (1 + (-LOGITS).exp())
    torch.testing.assert_close(shares(LOGITS, True), torch.cat([on, 1 - on], 1))
    # A label as likely as not does not apply.
    assert given(shares(LOGITS, True), True).int().tolist() == [[1, 0, 0, 0, 1, 1], [0, 1, 1, 1, 0, 0]]


def test_rows_decide() -> None:
    one, many = Row(0, "a", 2), Row(0, "a", 0, indicator=(1, 0, 1))
    assert (several([one]), several([many]), several([])) == (False, True, False)
    assert [number for number in range(3) if one.has(number)] == [2]
    assert [number for number in range(6) if many.has(number)] == [0, 2, 4]
