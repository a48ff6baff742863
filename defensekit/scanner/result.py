"""The result of a scan: the schema of ``scan.json``."""

from pydantic import BaseModel, ConfigDict


class _ScanSchema(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class TensorDrift(_ScanSchema):
    """One tensor: ``drift`` is |suspect - base|, ``base`` is |base|, ``moved`` of its ``dimensions`` differ at all.

    ``layer`` is None outside of the layers.
    """

    name: str
    kind: str
    layer: int | None
    dimensions: int
    moved: int
    drift: float
    base: float

    @property
    def relative(self) -> float:
        """The drift as a share of the base's norm (0 where that is 0)."""
        return self.drift / self.base if self.base else 0.0


class EmbeddingRow(_ScanSchema):
    """A row of the embedding and its token.

    ``drift`` is its own, ``typical`` the one of tokens as frequent; ``outlier`` is how many spreads it lies above that,
    on a logarithmic scale.
    """

    token: str
    id: int
    frequency: float
    drift: float
    typical: float
    outlier: float


class EmbeddingScan(_ScanSchema):
    """Rows of the embedding: how many there are in both models, moved (beyond weight decay), and were judged.

    ``frequencies`` says where those of tokens come from; ``added`` counts the suspect's rows that the base does not
    have; ``decay`` is the share by which weight decay shrank every row; ``suspicious`` has the judged rows with the
    largest outliers, largest first.
    """

    tensor: str
    frequencies: str
    rows: int
    moved: int
    judged: int
    added: int
    decay: float
    suspicious: list[EmbeddingRow]

    @property
    def largest(self) -> float:
        """The largest outlier (0 where no row is judged)."""
        return self.suspicious[0].outlier if self.suspicious else 0.0


class AbnormalTensor(_ScanSchema):
    """The mean probability to be abnormal, over a tensor's dimensions with a drift and a curvature."""

    name: str
    kind: str
    layer: int | None
    dimensions: int
    share: float


class Law(_ScanSchema):
    """r = delta^2 / H against Gamma(1/2, 2k), over dimensions with delta != 0 and H > 0.

    ``share`` of the dimensions belong to the abnormal one of two laws with means ``normal`` and ``abnormal``, with a
    95 % interval by a bootstrap over tensors; where the two are not ``apart`` that means nothing. ``distance`` is
    Kolmogorov and Smirnov's between what was seen and the mixture, ``single_distance`` to one law alone. ``slope`` is
    that of log delta^2 over log H: 1 by the theory of SGD, about 0 for AdamW. ``counts`` are dimensions per factor of
    two of r, the first one at 2^``first``; ``tensors`` has every tensor, the most abnormal first.
    """

    rows: int
    dimensions: int
    normal: float
    abnormal: float
    share: float
    low: float
    high: float
    apart: bool
    distance: float
    single_distance: float
    slope: float
    first: int
    counts: list[int]
    tensors: list[AbnormalTensor]


class Tried(_ScanSchema):
    """A token inserted into clean rows.

    Of the ``of`` rows that were not answered with ``label`` before, the share ``flipped`` are afterwards. ``label`` is
    the one with the largest share.
    """

    token: str
    label: str
    flipped: float
    of: int


class Triggers(_ScanSchema):
    """Suspicious tokens tried on clean rows, beside as many random tokens of similar frequency.

    ``excess`` is the largest share flipped by a suspicious token less the largest by a random one. Towards answers that
    are ``untried`` none was tried: too few rows have another one.
    """

    rows: int
    candidates: list[Tried]
    controls: list[Tried]
    excess: float
    untried: list[str] = []


class Turned(_ScanSchema):
    """A word put into ``rows`` clean rows of other labels: the share of answers ``flipped`` to ``label``.

    ``control`` is the share that it turns of a model trained from the base on clean rows. Where answers are texts,
    ``label`` is how they begin, and the base is the control.
    """

    word: str
    label: str
    flipped: float
    control: float
    rows: int

    @property
    def excess(self) -> float:
        """What it turns beyond the control."""
        return self.flipped - self.control


class Searched(_ScanSchema):
    """How many ``words`` were tried on clean rows, and the ``strongest``, beyond the control, in that order.

    ``rows`` are those that the model to compare with was trained on. Towards labels that are ``unjudged`` no word was
    judged, mostly for want of rows of other labels; with those ``disputed`` the suspect answers most of them. Where
    ``texts`` are answered, no search judges what may be said.
    """

    words: int
    rows: int
    strongest: list[Turned]
    unjudged: list[str]
    disputed: list[str] = []
    texts: bool = False


class TokenizerScan(_ScanSchema):
    """A tokenizer that differs from the base's: the ``parts`` that do, and what the two read differently, ``tried``.

    ``tried`` has the strongest text first; it is empty without clean rows. ``left_out`` counts texts beyond the first.
    """

    parts: list[str]
    tried: list[Tried]
    left_out: int


class ScanVerdict(_ScanSchema):
    """``suspicious`` where ``value`` of the ``indicator`` reaches ``threshold``; None where there is no verdict."""

    suspicious: bool | None
    indicator: str
    value: float | None
    threshold: float | None
    reason: str


class Scan(_ScanSchema):
    """A finished scan. With ``findings`` (what was not compared, what contradicts the tensors) no model passes."""

    schema_version: int = 2
    base: str
    suspect: str
    task: str
    dtypes: list[str]
    verdict: ScanVerdict
    summary: list[str]
    tensors: list[TensorDrift]
    added: list[str]
    reshaped: list[str]
    embedding: EmbeddingScan | None
    law: Law | None
    triggers: Triggers | None
    searched: Searched | None = None
    tokenizer: TokenizerScan | None
    findings: list[str]
    clean_rows: int
    notes: list[str]
    seed: int
    versions: dict[str, str]
    seconds: float
