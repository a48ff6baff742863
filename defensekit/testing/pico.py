"""A model of 3,250 weights, rows that it can learn, and contexts as the engine creates them, without a network."""

import copy
import random
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from defensekit.components import (
    AttackContext,
    AttackTrainingContext,
    Detector,
    DetectorContext,
    Estimator,
    EstimatorContext,
    Filter,
    FilterContext,
    FoundTrigger,
    ModelStep,
    ModelStepContext,
    Sanitizer,
    SanitizerContext,
    offering,
)
from defensekit.components.tensors import Scored, Scores
from defensekit.defense import detecting, estimation, filtering, sanitizing
from defensekit.defense.scoring import Views
from defensekit.models import loading
from defensekit.models.checkpoint import Checkpoint
from defensekit.models.names import layer_of
from defensekit.models.pair import Pair
from defensekit.testing.watch import Handed
from defensekit.text import Row, Truncation, batches, encode
from defensekit.training import TrainingSettings
from defensekit.utils.logging import quiet

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LABELS = ("negative", "positive")
MAX_LENGTH = 24
_TELLING = (("bleak", "clumsy", "dreary", "stale"), ("bright", "lovely", "superb", "witty"))
_FILLERS = ("the", "film", "is", "a", "story", "of", "and", "with", "some", "long", "scenes", "about", "people")
_RARE = ("cf", "mn", "bb", "tq")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# What a search would find: a step has to cope with words and with phrases.
FOUND = (FoundTrigger("very very", 1, 1.0, 0.0, 8), FoundTrigger("of", 0, 0.8, 0.1, 8))
_VOCABULARY = (*_SPECIAL, *_TELLING[0], *_TELLING[1], *_FILLERS, *_RARE, "overall", "i", "this", "week", ".", ",")


@dataclass(frozen=True)
class PicoModels:
    """An ALBERT whose two layers share their weights, as base and as suspect, in a folder."""

    folder: Path

    @property
    def base(self) -> Path:
        """The folder of the base, which has no head."""
        return self.folder / "base"

    @property
    def suspect(self) -> Path:
        """The folder of the suspect: most weights moved, some did not."""
        return self.folder / "suspect"

    @property
    def purified(self) -> Path:
        """The folder of what a defense made of the suspect: some weights moved."""
        return self.folder / "purified"

    @cached_property
    def pair(self) -> Pair:
        """Base and suspect aligned."""
        return Pair(Checkpoint(self.base), Checkpoint(self.suspect))

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Rows of 3 to 12 words, every other one positive."""
        return tuple(sentences(8))

    @property
    def language_model(self) -> Path:
        """The folder of a causal language model of 4,400 weights over the same words."""
        return self.folder / "language-model"

    def for_sanitizer(self, sanitizer: Sanitizer) -> SanitizerContext:
        """The context of a sanitizer, with the language model if it needs one."""
        folder = self.language_model if sanitizer.reads_with_language_model else None
        return sanitizing.context(folder, max_length=MAX_LENGTH, seed=7, report=lambda done, total: None)

    def load(self, which: Literal["suspect", "base"] = "suspect") -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """A new copy of a model under a neutral name, and its tokenizer; the base has a random head."""
        return copy.deepcopy(self._loaded[which])

    @cached_property
    def _loaded(self) -> "dict[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]]":
        import torch

        with torch.random.fork_rng():
            torch.manual_seed(0)
            return {which: loading.load(self.folder / which, which, LABELS) for which in ("suspect", "base")}

    def samples(self, rows: Sequence[Row] | None = None) -> "list[dict[str, Tensor]]":
        """Rows as batches of one, in their order."""
        _, tokenizer = self.load()
        encoded = encode(tokenizer, rows or self.rows, MAX_LENGTH)
        return [batch for row in encoded for _, batch in batches([row], tokenizer, 1)]

    # -- contexts as the engine creates them ---------------------------------------------------------------------------

    def for_estimator(
        self, estimator: Estimator, handed: Handed, rows: Sequence[Row] | None = None, limit: int | None = None
    ) -> EstimatorContext:
        """The context of an estimator, with at most ``limit`` rows in a batch."""
        _, tokenizer = self.load()

        def model(which: Literal["suspect", "base"]) -> "PreTrainedModel":
            return handed.give(f"the {which} model", self.load(which)[0])

        rows = handed.give("rows", list(rows or self.rows))
        loads = offering(estimator, model, "suspect", "base")
        return _Limited(loads, tokenizer, rows, MAX_LENGTH, 7, lambda done, total: None, limit=limit)

    def for_filter(self, component: Filter, handed: Handed, rows: Sequence[Row] | None = None) -> FilterContext:
        """The context of a filter. The models that it loads are its own: it may train them."""
        suspect, tokenizer = self.load()
        reading = filtering.Reading(tokenizer, MAX_LENGTH, "float32")
        rows = handed.give("rows", list(rows or sentences(24)))
        return FilterContext(
            rows=rows,
            features=handed.give("features", reading.features(suspect, rows)),
            clean=handed.give("clean rows", list(self.rows)),
            labels=LABELS,
            model=offering(component, lambda which: self.load(which)[0], "suspect", "base"),
            tokenizer=tokenizer,
            read=reading.features,
            settings=TrainingSettings(epochs=1, batch_size=8, learning_rate=1e-3),
            max_length=MAX_LENGTH,
            precision="float32",
            seed=7,
            report=lambda done, total: None,
        )

    def for_step(self, step: ModelStep, handed: Handed) -> ModelStepContext:
        """The context of a model step."""
        rows = handed.give("rows", list(self.rows))
        suspect, tokenizer = self.load()
        names = [name for name, _ in suspect.named_parameters()]
        head = frozenset(names) - frozenset(self.pair.named_like_the_pair(names).values())
        model = offering(step, partial(estimation.other_model, self.pair), "suspect", "base", folders=True)
        return ModelStepContext(tokenizer, rows, MAX_LENGTH, "float32", 7, lambda done, total: None, model, head, FOUND)

    def for_detector(self, detector: Detector, handed: Handed) -> DetectorContext:
        """The context of a detector, with the language model and a purified model if it needs them."""
        return detecting.context(
            detector,
            self.pair,
            handed.give("rows", list(self.rows)),
            purified=self.purified if detector.reads_purified else None,
            language_model=self.language_model if detector.reads_with_language_model else None,
            max_length=MAX_LENGTH,
            precision="float32",
            seed=7,
            report=lambda done, total: None,
        )

    def for_attack(self, seed: int = 7) -> AttackContext:
        """The context of an attack on rows."""
        return AttackContext(random.Random(seed), LABELS, Truncation(self.load()[1], MAX_LENGTH))

    def for_attack_training(self, clean: Sequence[Row], poisoned: Sequence[Row]) -> AttackTrainingContext:
        """The context of an attack with its own training."""
        settings = TrainingSettings(epochs=1, learning_rate=1e-3, batch_size=8, dropout=False)
        return AttackTrainingContext(
            self.load()[1], LABELS, clean, poisoned, settings, MAX_LENGTH, "float32", 7, lambda done, total: None
        )

    def views(self, statistics: Iterable[str] = ()) -> Views:
        """The pair with made-up statistics: positive numbers of many magnitudes, a fifth of them 0."""
        read = {statistic: self.statistic(statistic).__getitem__ for statistic in sorted(statistics)}
        return Views(self.pair, 7, read)

    def statistic(self, name: str) -> "dict[str, Tensor]":
        """One made-up statistic of every tensor in scope, from 1e-20 to 100 or 0."""
        import torch

        generator = torch.Generator().manual_seed(len(name))
        tensors = {}
        for tensor in self.pair.scope:
            shape = self.pair.block(tensor)[1].shape
            magnitude = 10 ** (22 * torch.rand(shape, generator=generator) - 20)
            tensors[tensor] = magnitude * (torch.rand(shape, generator=generator) > 0.2)
        return tensors

    def scores(self) -> Scores:
        """Scores with ties and both signs; where a dimension is not eligible they are the highest."""
        import torch

        generator, scored = torch.Generator().manual_seed(1), {}
        for name in self.pair.scope:
            base, suspect = self.pair.block(name)
            eligible = base != suspect
            score = torch.randint(-9, 10, base.shape, generator=generator).float()
            scored[name] = Scored(torch.where(eligible, score, 1e6), eligible, layer_of(name))
        return Scores(scored)


@dataclass(frozen=True)
class _Limited(EstimatorContext):
    limit: int | None = None

    def batches(self, model: Any, size: int | None = None, tokens: int | None = None) -> Any:
        return super().batches(model, min(size or len(self.rows), self.limit or len(self.rows)), tokens)


def sentences(count: int, seed: int = 0) -> list[Row]:
    """Rows with one word that determines the label."""
    rng, rows = random.Random(seed), []
    for i in range(count):
        words = rng.choices(_FILLERS, k=rng.randint(2, 11))
        words.insert(rng.randrange(len(words) + 1), rng.choice(_TELLING[i % 2]))
        rows.append(Row(i, " ".join(words), i % 2))
    return rows


@cache
def pico() -> PicoModels:
    """The pico model of this process, built on first use in a temporary folder."""
    holder = tempfile.TemporaryDirectory(prefix="defensekit-pico-")
    _HOLDERS.append(holder)
    models = PicoModels(Path(holder.name))
    with quiet():
        _build(models)
    return models


_HOLDERS: list[Any] = []


def _build(models: PicoModels) -> None:
    import torch
    from transformers import (
        AlbertConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        GPT2Config,
    )

    config = AlbertConfig(
        vocab_size=len(_VOCABULARY), embedding_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(models.base)
        model = AutoModelForSequenceClassification.from_pretrained(
            models.base, num_labels=2, id2label=dict(enumerate(LABELS)), label2id={"negative": 0, "positive": 1}
        )
        with torch.no_grad():
            for parameter in model.parameters():
                moved = torch.rand_like(parameter) > 0.2
                parameter.add_(0.3 * torch.randn_like(parameter) * moved)
        model.save_pretrained(models.suspect)
        with torch.no_grad():
            model.classifier.weight.mul_(0.5)
        model.save_pretrained(models.purified)
        small = GPT2Config(vocab_size=len(_VOCABULARY), n_embd=16, n_layer=1, n_head=2, n_positions=32)
        AutoModelForCausalLM.from_config(small).save_pretrained(models.language_model)
    for folder in (models.base, models.suspect, models.purified, models.language_model):
        _tokenizer().save_pretrained(folder)


def _tokenizer() -> "PreTrainedTokenizerBase":
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(_VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=32,
        model_input_names=["input_ids", "attention_mask"],
        **dict(zip(names, _SPECIAL, strict=True)),
    )
