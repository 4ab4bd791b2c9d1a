"""Toy networks that several tests share."""

from torch import nn


class Stack(nn.Sequential):
    """Layers one after the other, for images."""

    READS = ("image",)
