"""Multilayer perceptron: linear layers and a nonlinearity, with the options that decide whether a
deep one can learn. The network for tables, and the testbed for depth.

Papers: Rumelhart, Hinton, Williams, "Learning representations by back-propagating errors", Nature
323, 1986. Why deep ones did not learn, and what changed that: Glorot and Bengio, "Understanding the
difficulty of training deep feedforward neural networks", AISTATS 2010; He et al.,
arXiv:1502.01852 (initialisation) and arXiv:1603.05027 (identity mappings).
Published weights: none.

With `residual`, every layer after the first adds to its input what it computes, in the order of
"identity mappings": x + fc(dropout(activation(norm(x)))). The added parts start 1 / sqrt(n_layers)
smaller, so that the sum over all of them keeps its scale however deep the network is.

Shapes: B rows, n values per row, D width, C classes.
"""

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.errors import DataError, OptionError, unknown
from layerwise.layers.dropout import Dropout
from layerwise.layers.stack import stack

# each with its gain: 1 / sqrt(mean of f(z)^2) for normal z keeps the size of a signal through one
# layer; for tanh and sigmoid the customary values (Glorot: the slope at zero is what counts)
ACTIVATIONS = {
    "relu": (F.relu, 1.4142),
    "gelu": (F.gelu, 1.5335),
    "tanh": (F.tanh, 1.6667),
    "sigmoid": (F.sigmoid, 1.0),
    "silu": (F.silu, 1.6765),
    "leaky_relu": (F.leaky_relu, 1.4141),
}
NORMS = {"none": nn.Identity, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}

# initialisation: standard deviation of the weights in units of gain / sqrt(fan_in)
SCALES = {"kaiming": 1.0, "small": 0.1, "large": 5.0}
INITS = ("default", "xavier", "normal1", *SCALES)


@dataclass(frozen=True)
class Config:
    n_in: int = 64  # values per row, after flattening
    dim: int = 256
    n_layers: int = 3  # hidden layers; the head comes on top
    n_classes: int = 10
    activation: str = "relu"  # relu, gelu, tanh, sigmoid, silu, leaky_relu
    init: str = "kaiming"  # default (PyTorch's), kaiming, xavier, small, large, normal1
    norm: str = "none"  # none, batch, layer
    residual: bool = False
    dropout: float = 0.0
    zero_init: bool = False  # what residual layers add starts at zero

    def __post_init__(self):
        for field, known in (("activation", ACTIVATIONS), ("init", INITS), ("norm", NORMS)):
            if getattr(self, field) not in known:
                raise unknown(f"{field} of mlp", getattr(self, field), known)
        if self.n_layers < 1:
            raise OptionError(f"n_layers of mlp is {self.n_layers}; at least 1 is needed")


DEEP = Config(dim=128, n_layers=30)

VARIANTS = {
    "mlp": Config(activation="gelu", norm="layer", dropout=0.1),
    "mlp_residual": Config(
        n_layers=6, activation="gelu", norm="layer", residual=True, dropout=0.1
    ),  # after the ResNet for tables of Gorishniy et al., arXiv:2106.11959
    # the classic problem of depth and its remedies: from what could not learn in 1990 to what can
    "mlp_deep_sigmoid": replace(DEEP, activation="sigmoid", init="default"),
    "mlp_deep_relu": replace(DEEP, activation="relu", init="default"),
    "mlp_deep_kaiming": replace(DEEP, activation="relu", init="kaiming"),
    "mlp_deep_residual": replace(DEEP, activation="relu", init="kaiming", residual=True),
}


class PlainLayer(nn.Module):
    """dropout(activation(norm(fc(x)))): (B, n) to (B, D)."""

    def __init__(self, config: Config, n_in: int):
        super().__init__()
        self.fc = nn.Linear(n_in, config.dim)
        self.norm = NORMS[config.norm](config.dim)
        self.activation, _ = ACTIVATIONS[config.activation]
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.activation(self.norm(self.fc(x))))


class ResidualLayer(nn.Module):
    """x + fc(dropout(activation(norm(x)))): (B, D) to (B, D)."""

    def __init__(self, config: Config):
        super().__init__()
        self.norm = NORMS[config.norm](config.dim)
        self.activation, _ = ACTIVATIONS[config.activation]
        self.dropout = Dropout(config.dropout)
        self.fc = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(self.dropout(self.activation(self.norm(x))))


class Mlp(nn.Module):
    """Rows (B, n_in), or images (B, ...) of n_in values each, to class scores (B, C)."""

    READS, HEADS, unit_vectors = ("table", "image"), ("class",), False

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        if config.residual:  # the activation precedes a layer, so the last is followed by one more
            first = nn.Linear(config.n_in, config.dim)
            others = [ResidualLayer(config) for _ in range(config.n_layers - 1)]
            self.norm = NORMS[config.norm](config.dim)
            self.activation, _ = ACTIVATIONS[config.activation]
        else:
            first = PlainLayer(config, config.n_in)
            others = [PlainLayer(config, config.dim) for _ in range(config.n_layers - 1)]
            self.norm = nn.Identity()
            self.activation = nn.Identity()
        self.blocks = nn.ModuleList([first, *others])
        self.head = nn.Linear(config.dim, config.n_classes)
        init_weights(self)

    def forward(self, table: Tensor | None = None, image: Tensor | None = None) -> Tensor:
        return self.head(self.features(table, image))  # (B, C)

    def features(self, table: Tensor | None = None, image: Tensor | None = None) -> Tensor:
        """The outputs of the last hidden layer: (B, D)."""
        inputs = image if table is None else table
        assert inputs is not None, "rows of a table, or images"
        x = inputs.flatten(1)  # (B, n)
        if x.shape[1] != self.config.n_in:
            raise DataError(
                f"mlp expects rows of {self.config.n_in} values, these have {x.shape[1]} "
                f"(of shape {tuple(inputs.shape[1:])}): build it with n_in={x.shape[1]}, "
                f"or prepare the data as in training"
            )
        for block in self.blocks:
            x = block(x)
        return self.activation(self.norm(x))

    def pooled(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        return features

    def layers(self) -> dict[str, nn.Module]:
        """The stack in the order in which data flows through it."""
        return stack(self, "blocks", "norm", "head")

    def reset_head(self, n_classes: int, kind: str = "class") -> None:
        """A fresh last layer for another set of classes; everything below keeps what it learned."""
        self.config = replace(self.config, n_classes=n_classes)
        head = nn.Linear(self.head.in_features, n_classes)
        init_linear(head, self.config)
        self.head = head.to(self.head.weight)


def init_weights(network: Mlp) -> None:
    """Every linear layer as `config.init` says, and what residual layers add smaller or zero."""
    config = network.config
    for module in network.modules():
        if isinstance(module, nn.Linear):
            init_linear(module, config)
    for module in network.modules():
        if isinstance(module, ResidualLayer):
            scale = 0.0 if config.zero_init else config.n_layers**-0.5
            module.fc.weight.data.mul_(scale)
            module.fc.bias.data.mul_(scale)


def init_linear(linear: nn.Linear, config: Config) -> None:
    """Weights as `config.init` says; biases at zero, except in PyTorch's default."""
    if config.init == "default":
        return  # uniform within 1 / sqrt(fan_in): a gain of 0.58, which fades over many layers
    nn.init.zeros_(linear.bias)
    if config.init == "xavier":
        nn.init.xavier_uniform_(linear.weight)
    elif config.init == "normal1":
        nn.init.normal_(linear.weight)
    else:
        gain = ACTIVATIONS[config.activation][1]
        std = SCALES[config.init] * gain / linear.in_features**0.5
        nn.init.normal_(linear.weight, std=std)


Model = Mlp

PUBLISHED: dict[str, dict[str, str]] = {}  # nobody publishes weights of these
