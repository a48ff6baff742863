"""An observer that remembers what was computed."""

from defensekit.components import Observer


class Watching(Observer):
    """Remembers what was computed."""

    def stage_started(self, title: str) -> None:
        COMPUTED.append(title)


COMPUTED: list[str] = []
