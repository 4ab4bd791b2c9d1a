"""What every network offers, whatever its family. Legend: B rows, D width, C classes.

For type checkers alone: families are plain modules and inherit nothing from here. The battery in
`tests/models/test_battery.py` holds every family to it.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from layerwise.layers.cache import Cache


class Network(nn.Module):
    """READS: the tensors it takes by name, the main one first; it does without those that a batch
    lacks. HEADS: what it can end in: "class" (also numbers and labels), "pooled" (classes from the
    mean of a text), "tag", "span", "embed", "masked", "causal".
    config: a frozen dataclass of scalars. unit_vectors: whether `pooled` has length 1.
    """

    READS: ClassVar[tuple[str, ...]]
    HEADS: ClassVar[tuple[str, ...]]
    config: Any
    head: nn.Linear  # most often
    unit_vectors: bool
    transform: nn.Module  # of encoders: what stands before the head
    score: Callable[..., Tensor]  # of encoders: the head on features

    def features(self, *args: object, **given: object) -> Tensor:
        """What the head reads: (B, D), (B, T, D) of tokens, or (B, D, h, w) of places."""
        raise NotImplementedError

    def pooled(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """One vector for each row, of its features: (B, D). mask: (B, T), True for tokens."""
        raise NotImplementedError

    def layers(self) -> dict[str, nn.Module]:
        """The stack in the order in which data flows through it."""
        raise NotImplementedError

    def reset_head(self, n_classes: int, kind: str = "class") -> None:
        """A fresh head of one of HEADS; everything below keeps what it learned."""
        raise NotImplementedError


class Decoder(Network):
    """Reads tokens one after another; `features` takes `cache=`.

    BALANCES: whether training adds `balance`, of what `features(routed=)` collects.
    """

    BALANCES: ClassVar[bool]
    balance: Callable[[list[Tensor], Tensor], Tensor]

    def make_cache(self, batch: int, length: int) -> Cache:
        raise NotImplementedError


def head_kind(network: Network) -> str:
    """What the network ends in now."""
    return network.HEADS[0] if len(network.HEADS) == 1 else network.config.head_kind


def reads_tokens(network: Network) -> bool:
    return network.READS[0] == "tokens"
