"""A language model's last layer, which may share its matrix with the token embedding.

Paper: Press and Wolf, "Using the Output Embedding to Improve Language Models", arXiv:1608.05859.
"""

import torch
from torch import Tensor, nn


class TiedHead(nn.Linear):
    """A linear layer without a weight of its own: it uses that of `embed`, also after a change.

    So the matrix appears once in the state dict and in every list of parameters, and it stays tied
    through copies, moves between devices and loading.
    softcap: outputs y become softcap * tanh(y / softcap); 0 leaves them.
    """

    def __init__(self, embed: nn.Embedding, softcap: float = 0.0):
        nn.Module.__init__(self)
        self.in_features, self.out_features = embed.embedding_dim, embed.num_embeddings
        self.softcap = softcap
        self.register_parameter("bias", None)
        self._embed = (embed,)  # inside a tuple it is no submodule

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # of the embedding, not its own
        return self._embed[0].weight

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return self.softcap * torch.tanh(y / self.softcap) if self.softcap else y


def language_head(
    embed: nn.Embedding, n_classes: int = 0, tied: bool = True, softcap: float = 0.0
) -> nn.Linear:
    """The last layer of a decoder as its config says: scores of the tokens of `embed`, by its own
    matrix where tied; or n_classes scores, with neither tying nor softcap."""
    if tied and not n_classes:
        return TiedHead(embed, softcap)
    return nn.Linear(embed.embedding_dim, n_classes or embed.num_embeddings, bias=False)


def untied_head(embed: nn.Embedding, n_outputs: int) -> nn.Linear:
    """A fresh head (n_outputs, D) without biases, where and as precise as `embed` is."""
    head = nn.Linear(embed.embedding_dim, n_outputs, bias=False)
    nn.init.normal_(head.weight, std=0.02)
    return head.to(embed.weight)


def normal_init(network: nn.Module) -> None:
    """Normal of 0.02 for every matrix; biases start at zero, scales as they are."""
    for name, parameter in network.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
