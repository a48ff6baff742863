"""Parameters are read alike wherever they come from, and what is wrong with them is said in words."""

from pathlib import Path
from typing import Any

import pytest

from defensekit.api import Component, Field
from defensekit.host.parameters import build
from defensekit.utils.errors import KeyedError


class Part(Component):
    """Has parameters."""

    share: float = Field(0.5, gt=0, description="of the rows")
    path: Path | None = None
    values: tuple[int, ...] = ()
    spec: str | dict[str, Any] = ""


def test_python_objects_are_read_as_the_yaml_that_they_are_written_as() -> None:
    made = build(Part, {"share": 1, "path": Path("a"), "values": (1, 2)})
    assert made == Part(share=1.0, path=Path("a"), values=(1, 2))


@pytest.mark.parametrize(
    ("given", "key", "text"),
    [
        ({"share": "1"}, ("share",), 'input should be a valid number, got "1" (share: of the rows)'),
        ({"share": True}, ("share",), "input should be a valid number, got true"),
        ({"values": [1, 2.5]}, ("values", 1), "got 2.5"),
        ({"spec": 3}, ("spec",), "got 3"),  # and not ("spec", "str")
        ({"share": -1, "shar": 1}, ("shar",), "unknown key. Did you mean 'share'?"),
        ({"share": len}, (), "expected plain data, as YAML has it"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(given: dict[str, Any], key: tuple[str | int, ...], text: str) -> None:
    with pytest.raises(KeyedError) as caught:
        build(Part, given)
    assert caught.value.key == key
    assert text in caught.value.text
    assert str(caught.value.below("part", 0)).startswith(".".join(map(str, ("part", 0, *key))) + ": ")
