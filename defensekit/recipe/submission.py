"""A leaderboard's entry where a recipe is expected: its defense, and the code that it needs."""

from collections.abc import Sequence

from defensekit.recipe.yaml_document import Document, moved

CODE = {"file": "plugins", "requires": "requires"}  # a plugin's keys in a submission, and in a recipe


def overlays(document: Document) -> Sequence[Document] | None:
    """What an entry lays over a recipe of purification; None for a document that is no entry."""
    keys = document.data if isinstance(document.data, dict) else {}
    if "model" in keys or not {"defense", "plugin"} <= keys.keys() or not isinstance(keys["plugin"], dict):
        return None
    given = [moved(document, ("defense",), ("defense",))]
    for key, name in CODE.items():
        if value := keys["plugin"].get(key):
            place = document.place(("plugin", key))
            given.append(moved(Document(document.name, [value], {(): place, (0,): place}), (), (name,)))
    return given
