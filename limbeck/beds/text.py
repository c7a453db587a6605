"""Texts: sentiment of film reviews (SST-2), topics of news (AG News), languages of a few characters (UDHR); small encoders from
scratch or pre-trained."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from limbeck.beds.base import Bed
from limbeck.datasets.languages import LANGUAGES, lines_by_language
from limbeck.errors import UsageError
from limbeck.experiments.run import Run
from limbeck.files import digest
from limbeck.models.encoder import Encoder, MaskedLanguageModel, encoder
from limbeck.models.initialize import unit_variance
from limbeck.objectives import Objective
from limbeck.signals import call, first_tensor
from limbeck.tasks.masked import MaskedLanguageModelling
from limbeck.tasks.text import TextClassification
from limbeck.training.config import TrainingConfig
from limbeck.training.procedures import Distil, Supervised

PRETRAINING = (
    "depth",
    "width",
    "heads",
    "dropout",
    "batch_size",
    "pretraining",
    "pretraining_rate",
    "mask_share",
    "unit_variance",
)  # what decides its weights


@functools.lru_cache(maxsize=8)
def _task(dataset: str, vocabulary: int, length: int, languages: tuple[str, ...] | None) -> TextClassification:
    if languages is not None:
        tokenizer = _task(dataset, vocabulary, length, None).tokenizer
        return TextClassification(_windows(2 * length, languages), tokenizer=tokenizer, length=length)
    if dataset == "udhr":
        return TextClassification(_windows(2 * length), vocabulary=vocabulary, length=length)
    return TextClassification(dataset, vocabulary=vocabulary, length=length)


def _windows(size: int, languages: tuple[str, ...] = LANGUAGES) -> dict[str, Any]:
    """Lines in many languages, cut into windows of `size` characters, each half of the one before; their classes are the languages."""
    from datasets import ClassLabel, Dataset, Features, Value

    features, made = Features({"text": Value("string"), "label": ClassLabel(names=sorted(languages))}), {}
    for split, lines in lines_by_language(languages).items():
        cut = [(code, line[at : at + size]) for code, line in lines for at in range(0, len(line) - size + 1, size // 2)]
        made[split] = Dataset.from_dict(
            {"text": [text for _, text in cut], "label": [code for code, _ in cut]}, features
        )
    return made


@dataclass(frozen=True)
class TextBed(Bed):
    """One data set, cut to `length` tokens of a byte-pair vocabulary learnt on its train split; "udhr": windows of 2 `length`
    characters of lines in 32 languages, which are the classes; or of some `languages`, with the same vocabulary.

    labelled: use the labels of only so many train examples, the same for every seed; None uses all. depth, width, heads:
    of the reference, which is also the teacher. pretraining: steps of masked language modelling on all train texts before
    it sees labels; 0: none. (With texts this few, hundreds of steps teach word frequencies and little more; of several
    languages they teach which tokens go together.) mask_share: of the tokens that are to be predicted. unit_variance: draw first weights with deviation
    1 / sqrt(inputs), which narrow models need to learn from masked tokens soon.

    task(), masked()              the classification task; its texts with masked tokens
    encoder(depth, width, heads)  an untrained student
    fit(run, model, ...)          train it on labels, or on any objective with a teacher; counted by the run
    fit_masked(run, model, ...)   train a masked language model, on its own or on an objective with a teacher; counted by the run
    measure(run, model)           accuracy, loss and calibration error on `run.split`
    measure_masked(run, model)    loss and accuracy of masked tokens
    teacher(run)                  the reference, from the store
    pretrained(run)               the reference before it saw labels, from the store; pretrained_masked(run) with its other head
    """

    dataset: str = "ag_news"
    vocabulary: int = 4096
    length: int = 24
    labelled: int | None = None
    depth: int = 4
    width: int = 64
    heads: int = 4
    steps: int = 400
    batch_size: int = 32
    learning_rate: float = 3e-3
    dropout: float = 0.1
    pretraining: int = 0
    pretraining_rate: float = 2e-3
    mask_share: float = 0.15
    unit_variance: bool = False
    languages: tuple[str, ...] | None = None
    lowest: float = 0.7

    @property
    def name(self) -> str:
        return self.dataset if self.labelled is None else f"{self.dataset}_{self.labelled}"

    @property
    def expects(self) -> dict[str, tuple[float, float]]:
        return {"accuracy": (self.lowest, 1.0)}

    def task(self) -> TextClassification:
        return _task(self.dataset, self.vocabulary, self.length, self.languages)

    def masked(self) -> MaskedLanguageModelling:
        return MaskedLanguageModelling(self.task(), share=self.mask_share)

    def digest(self) -> str:
        return digest({"data": self.task().digest(), "labelled": self.labelled})

    def encoder(
        self, depth: int | None = None, width: int | None = None, heads: int | None = None, **more: Any
    ) -> Encoder:
        """An untrained encoder for this bed; sizes that are not given are the reference's."""
        task = self.task()
        sizes = {"depth": depth or self.depth, "width": width or self.width, "heads": heads or self.heads}
        settings = {"dropout": self.dropout, **sizes, **more}
        model = encoder(task.vocabulary_size, classes=len(task.classes), length=self.length, **settings)
        return unit_variance(model, embeddings=sizes["width"] ** -0.5) if self.unit_variance else model

    def masked_model(self, model: Encoder) -> MaskedLanguageModel:
        """An encoder with an untrained head that predicts masked tokens."""
        made = MaskedLanguageModel(model)
        if self.unit_variance:
            unit_variance(made.dense)
        return made

    def config(self, steps: int, learning_rate: float | None = None, **more: Any) -> TrainingConfig:
        """The bed's way to train: AdamW, a linear schedule with warm-up, gradients clipped at 1."""
        settings = {"batch_size": self.batch_size, "learning_rate": learning_rate or self.learning_rate, "warmup": 0.1}
        settings |= {"schedule": "linear", "weight_decay": 0.01, "gradient_clipping": 1.0, "limit": self.labelled}
        return TrainingConfig(steps=steps, **(settings | more))

    def fit(
        self,
        run: Run,
        model: nn.Module,
        objective: Objective | None = None,
        teacher: Any = None,
        *,
        steps: int,
        learning_rate: float | None = None,
        seed: int | None = None,
        counted: bool = True,
        **config: Any,
    ) -> nn.Module:
        """Train `model` in place: on the labels, or on `objective` with `teacher`. Returns it in evaluation mode.

        `config` overrides what `TextBed.config` sets: `limit=None` trains on all texts where the objective needs no labels.
        """
        if objective is None:
            procedure = Supervised(model, self.task())
        else:
            procedure = Distil(model, teacher, objective)
        run.train(procedure, self.task(), self.config(steps, learning_rate, **config), seed=seed, counted=counted)
        return model.eval()

    def measure(self, run: Run, model: nn.Module) -> dict[str, float]:
        """Accuracy, loss and calibration error on the split that `run` measures on."""
        return self.task().evaluate(lambda batch: model(batch["input_ids"], batch["attention_mask"]), run.split)

    def teacher(self, run: Run, seed: int = 0) -> Encoder:
        """The reference, trained once for all arms."""
        key = {"bed": self.digest(), "settings": self.settings(), "what": "teacher", "seed": seed, "version": 1}
        return run.trained(key, self.encoder, lambda model: self._learn(run, model, seed=seed, counted=False))

    def pretrained(self, run: Run, seed: int = 0) -> Encoder:
        """An encoder of the reference's size that learnt to predict masked tokens of all train texts for `pretraining`
        steps, without labels; its head is untrained. Shared by all arms, and by beds that differ in labels only."""
        return self.pretrained_masked(run, seed).encoder

    def pretrained_masked(self, run: Run, seed: int = 0) -> MaskedLanguageModel:
        """The same with the head that predicts tokens."""
        if not self.pretraining:
            raise UsageError("pretraining=0: this bed pre-trains nothing; give its number of steps")
        key = {"bed": self.task().digest(), "what": "masked tokens", "seed": seed, "version": 3}
        key |= {name: getattr(self, name) for name in PRETRAINING}

        def train(model: MaskedLanguageModel) -> None:
            self.fit_masked(
                run, model, steps=self.pretraining, learning_rate=self.pretraining_rate, seed=seed, counted=False
            )

        return run.trained(key, lambda: self.masked_model(self.encoder()), train)

    def fit_masked(
        self,
        run: Run,
        model: MaskedLanguageModel,
        objective: Objective | None = None,
        teacher: Any = None,
        *,
        steps: int,
        learning_rate: float,
        seed: int | None = None,
        counted: bool = True,
        **config: Any,
    ) -> MaskedLanguageModel:
        """Train in place on the train texts with masked tokens: to predict these, or on any objective with a teacher that
        predicts them too. Returns it in evaluation mode; `config` as in `fit`."""
        task = self.masked()
        procedure = Supervised(model, task) if objective is None else Distil(model, teacher, objective)
        how = self.config(steps, learning_rate, **{"limit": None, **config})
        run.train(procedure, task, how, seed=seed, counted=counted)
        return model.eval()

    def measure_masked(self, run: Run, model: MaskedLanguageModel) -> dict[str, float]:
        """Perplexity, loss and accuracy of masked tokens on the split that `run` measures on."""
        return self.masked().evaluate(lambda batch: first_tensor(call(model, batch)), run.split)

    def reference(self, run: Run) -> dict[str, float]:
        return self.measure(run, self._learn(run, self.encoder()))

    def _learn(self, run: Run, model: Encoder, **how: Any) -> Encoder:
        if self.pretraining:
            model.load_state_dict(self.pretrained(run).state_dict())
        return self.fit(run, model, steps=self.steps, **how)

    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "lowest"}


AG_NEWS = TextBed("ag_news", lowest=0.65)
SST2 = TextBed("sst2")
LANGUAGE_WINDOWS = TextBed(
    "udhr", vocabulary=2048, length=16, labelled=200, depth=2, width=48, steps=100, batch_size=64, learning_rate=1e-2, dropout=0.0,
    pretraining=2000, pretraining_rate=1e-2, mask_share=0.3, unit_variance=True, lowest=0.4,
)  # fmt: skip
