"""Every option of a run, once: the command line's flags and Python's keyword arguments.

Imports nothing heavy, so `layerwise fit --help` answers at once. Values are checked here; an
unknown name or value is an error with the nearest known one.
"""

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Any

from layerwise.errors import OptionError, unknown


def option(default: object, text: str, choices: str = "") -> Any:
    """choices: names with blanks between them."""
    return field(default=default, metadata={"help": text, "choices": tuple(choices.split())})


METHODS = "auto base knn probe lora full scratch"
LORA = "lora rslora dora"
TARGETS = "auto class classes number"


@dataclass(frozen=True)
class Settings:
    """The options of `fit`. "auto" means: chosen from the data and the machine, and said."""

    model: str = option("auto", "network by name, e.g. resnet18 (see `layerwise models`)")
    base: str = option("auto", "pre-trained base: a name, a path, or none")
    method: str = option("auto", "how the base is used; scratch ignores it", METHODS)
    budget: str = option("", "time for the whole run, e.g. 90s, 10m, 2h: climbs the ladder")
    epochs: float = option(0.0, "passes over the training rows (0: chosen)")
    steps: int = option(0, "optimiser updates, instead of epochs (0: from epochs)")
    device_batch_size: int = option(0, "rows per micro-batch, at most (0: chosen)")
    grad_accum_steps: int = option(1, "micro-batches per step, at least")
    lr: float = option(0.0, "peak learning rate (0: chosen)")
    optimizer: str = option("auto", "update rule", "auto adamw sgd muon")
    weight_decay: float = option(-1.0, "decoupled weight decay (-1: chosen)")
    schedule: str = option("cosine", "course of the learning rate", "cosine linear wsd constant")
    warmup_steps: int = option(-1, "steps of linear warm-up (-1: 5% of all)")
    grad_clip: float = option(1.0, "largest gradient norm (0: no clipping)")
    ema: float = option(0.0, "decay of an averaged copy of the weights, e.g. 0.999 (0: none)")
    label_smoothing: float = option(-1.0, "share of the target spread over all classes (-1: 0.1)")
    layer_decay: float = option(1.0, "learning rate times this per layer from the head down")
    unfreeze: str = option("all", "layers that train: all, head, or progressive")
    lora_rank: int = option(8, "rank of LoRA updates")
    lora_alpha: float = option(0.0, "their scale, over the rank (0: chosen)")
    lora_variant: str = option("lora", "plain, alpha over sqrt(rank), or separate lengths", LORA)
    lora_dropout: float = option(0.0, "dropout of what enters an update")
    lora_targets: str = option("*", "layers with an update, e.g. q_proj,v_proj")
    quantize: str = option("none", "bits of the frozen base under LoRA", "none 8 4")
    augment: str = option("auto", "image augmentation", "auto none light flip_crop full")
    max_seq_len: int = option(0, "tokens of a text or window (0: chosen)")
    image_size: int = option(0, "side in pixels that images are brought to (0: chosen)")
    task: str = option("auto", "what is learned, where rows allow several")
    dims: str = option("", "shorter vectors that also have to work, e.g. 64,128 (embed)")
    kind: str = option("auto", "what the rows are")
    target: str = option("", "column to learn, for tables and metadata files")
    target_kind: str = option("auto", "one class, several labels, or a number", TARGETS)
    split_column: str = option("", "column that says train, val or test")
    val: float = option(0.1, "share of rows to validate on, where the data gives no split")
    test: float = option(0.2, "share of rows to score on, where the data gives no split")
    audit: bool = option(True, "look for unreadable, duplicate, leaked and mislabelled rows")
    cure: bool = option(False, "apply the cure of a diagnosis and train again")
    checkpointing: bool = option(False, "recompute activations: less memory, more time")
    compile: str = option("auto", "compile each layer when it pays", "auto on off")
    dtype: str = option("auto", "arithmetic", "auto fp32 bf16 fp16")
    device: str = option("auto", "cpu, cuda, mps or auto")
    threads: int = option(0, "processor threads (0: all cores)")
    loader_threads: int = option(2, "threads that prepare batches")
    seed: int = option(0, "the one seed everything random follows from")
    evaluate_every: int = option(0, "steps between validations (0: each epoch)")
    checkpoint_every: int = option(0, "steps between checkpoints (0: at each validation)")
    keep: int = option(2, "checkpoints kept besides the best and the last good one")
    watch_every: int = option(25, "steps between looks at gradients and activations (0: never)")
    depth: bool = option(True, "probe what each layer learned, for the report")
    output: str = option("", "folder of the run (empty: runs/<time>-<data>)")

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = vars(self)[f.name]
            choices = f.metadata["choices"]
            if choices and value not in choices:
                raise unknown(f"value of --{f.name.replace('_', '-')}", str(value), choices)
            check_number(f.name, value)
        if self.quantize != "none" and self.method != "lora":
            raise OptionError("--quantize packs a frozen base, so it goes with --method lora alone")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


POSITIVE = {"grad_accum_steps", "lora_rank", "loader_threads", "keep"}
SHARES = {"val", "test", "ema", "lora_dropout", "label_smoothing"}
CHOSEN = {"weight_decay", "warmup_steps", "label_smoothing"}  # where they are -1


def check_number(name: str, value: object) -> None:
    """Errors: a number outside its range, with the range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if name == "seed" or (name in CHOSEN and value == -1):
        return
    flag = "--" + name.replace("_", "-")
    if name in POSITIVE and value < 1:
        raise OptionError(f"{flag} must be 1 or more; {value} was given")
    if name in SHARES and not 0 <= value < 1:
        raise OptionError(f"{flag} must be at least 0 and below 1; {value} was given")
    if value < 0:
        raise OptionError(f"{flag} must not be negative; {value} was given")


def settings(**options: Any) -> Settings:
    """Settings from keyword arguments.

    Errors: an unknown name (with the nearest one), a value of the wrong type or range.
    """
    types = {f.name: type(f.default) for f in dataclasses.fields(Settings)}
    for name, value in options.items():
        if name not in types:
            raise unknown("option", name, types)
        options[name] = convert(name, value, types[name])
    return Settings(**options)


def convert(name: str, value: object, wanted: type) -> Any:
    """`value` as the option's type: integers pass for floats, paths for strings."""
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        flag = "--" + name.replace("_", "-")
        raise OptionError(f"{flag} takes {wanted.__name__}; {value!r} was given")
    return value


def seconds(text: str) -> float:
    """ "90s", "10m", "1.5h" or a bare number of seconds, in seconds."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = (text[:-1], text[-1]) if text[-1:].isalpha() else (text, "s")
    try:
        value = float(number) * units[unit]
    except (ValueError, KeyError):
        value = -1.0
    if not value > 0:
        raise OptionError(f"a time such as 90s, 10m or 2h was expected; {text!r} was given")
    return value
