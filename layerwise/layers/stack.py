"""The layers of a network by name, in the order in which data flows through them."""

from torch import nn

LISTS = (nn.ModuleList, nn.Sequential)  # their own classes alone: a subclass is a layer


def stack(network: nn.Module, *names: str) -> dict[str, nn.Module]:
    """The parts with these names, lists of blocks taken apart: {"stem": .., "stages.0.0": ..}.

    Parts without parameters are left out, except the last one, the head, which may share its own.
    """
    found: dict[str, nn.Module] = {}
    for name in names:
        part = network.get_submodule(name)
        if type(part) in LISTS:
            inner = stack(part, *(n for n, _ in part.named_children()))
            found |= {f"{name}.{n}": m for n, m in inner.items()}
        elif name == names[-1] or any(True for _ in part.parameters()):
            found[name] = part
    return found
