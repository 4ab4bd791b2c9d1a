"""RMSNorm: Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv:1910.07467."""

import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """torch's, also where autocast hands it inputs of less precision than its scale."""

    def forward(self, x: Tensor) -> Tensor:
        scale = None if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, self.normalized_shape, scale, self.eps)
