"""The kind contract: what raw data is. `Kind` has the usual answer to every question that has one.

A row has named fields, each of a kind: {"image"}, {"text_a", "text_b"}, {"audio", "text"}. A kind
finds its rows in files, reads and shows their values, and turns them into tensors and back.

Legend: n rows, B rows of a batch, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from layerwise.data.examples import Examples, Finding, Severity
from layerwise.data.groups import first_alike
from layerwise.data.listing import Place
from layerwise.data.records import Reading
from layerwise.data.sources import Source, Tensors
from layerwise.data.splits import content_hashes
from layerwise.errors import OptionError
from layerwise.models.network import Network
from layerwise.runtime import Runtime
from layerwise.settings import Settings
from layerwise.storage import write_json

P = TypeVar("P", bound="Processor")  # of a kind
CONFIG = "preprocessor_config.json"  # of a saved model


class Processor(Protocol):
    """What turns raw values into a network's tensors: the same in training and when serving."""

    def to_dict(self) -> dict[str, Any]: ...


class PlainFeatures(Protocol):
    """Features of rows that need no network, fitted on training rows."""

    what: str  # them with a linear model, in words

    def of(self, examples: Examples) -> Any:
        """(n, V), perhaps sparse."""
        ...

    def of_field(self, values: Sequence[Any]) -> Any:
        """Of the values of one field: (n, V) of length 1."""
        ...


class Recognised(NamedTuple):
    """A kind's claim on a place. sure: from 0 to 1; the surest is opened first. open: its rows, or
    None where a closer look shows something else."""

    sure: float
    open: Callable[[], Examples | None]


@dataclass(frozen=True)
class Ends:
    """What a task asks of a network, see `models.network`: the kind of head and its outputs."""

    kind: str
    n_outputs: int
    reader: str = "text"  # how texts are read


@dataclass(frozen=True)
class Choice:
    """A network that can be built, its processors, and why it was chosen."""

    variant: str
    family: str
    config: Any
    processors: dict[str, Any]
    why: str
    fitted: dict[str, Any] = field(default_factory=dict)  # fields of the recipe that come with it
    most_steps: int = 0  # that would pay, where there is time for more than the recipe has


@dataclass(frozen=True)
class Start:
    """Where a recipe starts from, before the user's own settings.

    flexible: the number of passes follows from the number of rows. least_read, most_passes: little
    data is read again until so many rows. rate_for: the rate by the network's width.
    """

    lr: float
    batch: int
    epochs: float
    optimizer: str = "adamw"
    weight_decay: float = 0.05
    schedule: str = "cosine"
    flexible: bool = False
    grad_clip: bool = True
    most_passes: int = 0
    least_read: int = 0
    rate_for: Callable[[float, int], float] = lambda lr, width: lr


@dataclass
class Looks:
    """What one look at every row gave.

    keep: (n,) bool, rows that can be used. exact, groups: (n,) the first row with the same content,
    and the first that is the same or nearly. features: of rows (k,), without a network, by which
    labels are judged where there is no base.
    """

    keep: np.ndarray
    exact: np.ndarray
    groups: np.ndarray
    findings: list[Finding]
    features: Callable[[np.ndarray, int], np.ndarray] | None = None


@dataclass(frozen=True)
class Shown:
    """A value for a person: words, or a picture as a data URI, or both."""

    text: str = ""
    image: str = ""

    def to_dict(self) -> dict[str, str]:
        return {k: v for k, v in (("text", self.text), ("image", self.image)) if v}


class Kind(Protocol[P]):
    """What raw values of one kind are, and all that is special about them."""

    name: ClassVar[str]
    noun: ClassVar[str]  # several of them in a sentence: "images"
    tensor: ClassVar[str]  # the main one that its processors give, and that networks read
    ground: ClassVar[str]  # what the lowest floor of a report is called
    accepts: ClassVar[str]  # what is recognised, for the message when nothing is
    bases: ClassVar[tuple[str, ...]] = ()  # published bases on the hub, the preferred one first
    suggested: ClassVar[str] = ""  # the base to name where none is in reach; "": there are none
    alike: ClassVar[str] = "have nearly the same content as another"  # of near copies
    copies: ClassVar[Severity] = "warning"  # of the finding that two rows are equal
    insists: ClassVar[bool] = False  # whether its models read data so, whatever they look like
    has_vectors: ClassVar[bool] = True  # whether `embed` takes them

    # ---- finding and reading -------------------------------------------------------------------
    def recognise(self, place: Place, reading: Reading) -> Recognised | None:
        """Whether, and how surely, this place holds rows of this kind."""
        ...

    def of_values(self, values: Sequence[Any]) -> Examples:
        """Values that the user has in hand, as rows without targets."""
        ...

    def unlearnable(self, examples: Examples) -> str:
        """Why no task fits these rows, and what to do."""
        return (
            f"{examples.source} holds {len(examples)} {self.noun} but no labels to learn: put the "
            f"{self.noun} of each class in a folder of its own, or add metadata.csv with the "
            "columns file_name and label; to use a trained model on them, `layerwise predict "
            "MODEL DATA`"
        )

    def look(self, examples: Examples) -> Looks:
        """A look at every row: what cannot be used, what is equal, what is odd."""
        exact = first_alike(content_hashes(examples))
        return Looks(np.ones(len(examples), bool), exact, exact, [])

    def show(self, examples: Examples, row: int, side: int = 96) -> Shown:
        """A row as a person sees it. side: of a picture, in pixels."""
        ...

    # ---- tensors -------------------------------------------------------------------------------
    def source(
        self,
        examples: Examples,
        processor: P,
        augment: object,
        dtype: torch.dtype,
        **options: object,
    ) -> Source:
        """The rows as tensors by name. augment: what `augmentation` gave; None: as they are."""
        ...

    def raw_picture(self, examples: Examples, row: int, processor: P) -> np.ndarray | None:
        """What the network is given of a row as a picture, uint8 (h, w, 3), where it is one."""
        return None

    def lengths(self, examples: Examples, processor: P, whole: bool = False) -> np.ndarray | None:
        """Tokens of each row (n,), where rows differ in length. whole: before anything is cut."""
        return None

    def longest_padded(self, length: int, processor: P, rows: int) -> int:
        """What a batch of so many rows of this length is filled up to."""
        return length

    def cut(self, examples: Examples, processor: P) -> tuple[np.ndarray, str]:
        """Rows of which the end is not read, and in a sentence how much that leaves out."""
        return np.zeros(0, np.int64), ""

    def cut_off(self, examples: Examples, row: int, processor: P) -> Sequence[int]:
        """The tokens of a row that are not read."""
        return ()

    def example(self, family: str, variant: str, config: object, size: int, rows: int) -> Tensors:
        """Tensors of the shapes that a network takes, for a plan. size: 0 for its natural one."""
        ...

    # ---- choosing ------------------------------------------------------------------------------
    def reader(self, train: Examples, ends: Ends, settings: Settings, known: P | None) -> Any:
        """The processor that makes task rows (windows) of these, where a task asks for one.

        known: a base's processor."""
        return known

    def describe(self, parts: Mapping[str, Examples], processor: P) -> str:
        """What became of the rows of each split, in a line."""
        return ""

    def choose(
        self, train: Examples, ends: Ends, settings: Settings, reader: P | None = None
    ) -> Choice:
        """Network and processor to train from nothing. reader: what `reader` gave.

        Errors: a network for something else."""
        ...

    def processor_for(self, train: Examples, ends: Ends, settings: Settings) -> P:
        """The processor of these rows where they have another kind first, which chooses."""
        raise OptionError(f"{self.noun} beside other kinds are learned from a base only: name one")

    def start(self, way: str, train: Examples, choice: Choice) -> Start:
        """The recipe to start from. way: "scratch", "full" or "lora"."""
        ...

    def study(self, train: Examples, settings: Settings) -> tuple[Any, list[str]]:
        """What augmentation has to know about the training rows, found once; notes for the user."""
        return None, []

    def augmentation(self, processor: P, settings: Settings, studied: object) -> Any:
        """What is changed at random in training rows; None for nothing. studied: by `study`."""
        return None

    def for_base(self, processor: P, network: Network, ends: Ends, settings: Settings) -> P:
        """A base's processor as this task asks for it. Errors: the base cannot do this."""
        return processor

    def machine(self, machine: Runtime, settings: Settings) -> Runtime:
        """The machine as it is best used for these rows."""
        return machine

    def plain_features(self, train: Examples) -> PlainFeatures | None:
        """Features without a network, for baselines; None where there are none worth it."""
        return None

    # ---- saving --------------------------------------------------------------------------------
    def save(self, processor: P, folder: Path) -> dict[str, Any]:
        """Write what other tools read into the folder; what belongs in layerwise.json."""
        write_json(folder / CONFIG, processor.to_dict())
        return {}

    def load(self, folder: Path, saved: Mapping[str, Any], config: Any) -> P:
        """The processor that `save` wrote. config: of the network."""
        ...

    def of_card(self, card: object, network: object, tokenizer: Callable[[], Any]) -> Any:
        """The processor of a published network, by its card."""
        ...

    def published_config(self, processor: P, labels: Sequence[str]) -> dict[str, Any]:
        """Keys of a published `config.json` that say how rows are prepared."""
        return {}
