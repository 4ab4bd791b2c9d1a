"""The rename engine: published tensor names to ours and back, bit for bit, strict on both sides.

A family says in `PUBLISHED[format]`, as pure data, where each of its tensors comes from:

    {"patch_embed.proj": "embeddings.projection",            ours: theirs
     "blocks.{}.q_proj": "layer.{}.attn.qkv[0/3]",
     "blocks.{}.fc1": "layer.{}.mlp.c_fc | transpose",
     "(prefix)": "module.",
     "(drop)": "*.position_ids teacher.*",
     "(alias)": ".gamma=.weight encoder.=bert.encoder."}

- Both sides are prefixes that end at a dot (or at the end) of the name; what follows is the same on
  both. The longest prefix of ours wins; of two equally long, the one with fewer placeholders. The
  empty prefix stands for everything.
- `{}` is a whole number; several keep their order, also as the i of a part (below). `{+1}` on
  their side counts from one.
- `name[i/n]` is part i of n equal parts along the first axis: split on the way in, joined on the
  way out. `name[:, i/n]` is the same along the last axis.
- `| transform` names an entry of TRANSFORMS, from left to right on the way in; where it takes a
  number, that stands in parentheses: `| permute_rope(64)`.
- "(prefix)" is at the front of every source tensor; "(drop)" lists globs of source tensors (without
  the prefix) that are left out on purpose, in both directions. "(copy)" lists name=other: a file
  may hold `name`, equal to `other`, where our network has it once.
- "(alias)" lists older spellings, old=new, that are read but not written: of the end of a name if
  they begin with a dot, of its front otherwise.

Everything else is an error that lists both sides. One exception, which is torch's own: the batch
counters of BatchNorm are missing from files of before 2018 and then start at zero.
"""

import fnmatch
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from layerwise.errors import WeightsError

Rules = Mapping[str, str]
COUNTER = "num_batches_tracked"
SHOWN = 12  # names listed per kind of mismatch before "and n more"


# ---- transforms --------------------------------------------------------------------------------
def _transpose(x: Tensor) -> Tensor:
    return x.t().contiguous() if x.ndim == 2 else x


def _without_1x1(x: Tensor) -> Tensor:
    return x[:, :, 0, 0] if x.ndim == 4 and x.shape[2:] == (1, 1) else x


def _with_1x1(x: Tensor) -> Tensor:
    return x[:, :, None, None] if x.ndim == 2 else x


def permute_rope(x: Tensor, head_dim: int) -> Tensor:
    """Rows of a query or key from rotary pairs (2i, 2i+1) to pairs (i, i + Dh/2)."""
    return x.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).reshape(x.shape)


def unpermute_rope(x: Tensor, head_dim: int) -> Tensor:
    return x.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).reshape(x.shape)


TRANSFORMS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    # name: (theirs to ours, ours to theirs); vectors such as biases pass through all of them
    "transpose": (_transpose, _transpose),  # (in, out), as in TensorFlow: (out, in)
    "squeeze": (_without_1x1, _with_1x1),  # their 1x1 convolution is our linear layer
    "reshape_conv": (_with_1x1, _without_1x1),  # their linear layer is our 1x1 convolution
    "permute_rope": (permute_rope, unpermute_rope),  # Meta's and GGUF's pairs to ours
    "unstack": (lambda x: x[0], lambda x: x[None]),  # of a part: one of several stacked matrices
    "minus_one": (lambda x: x - 1, lambda x: x + 1),  # a norm's scale, kept as what it adds to 1
}


# ---- the grammar -------------------------------------------------------------------------------
@dataclass(frozen=True)
class Source:
    """Where one of our tensors comes from: part `part` of `parts` of the tensor `name`."""

    name: str
    part: int = 0
    parts: int = 1
    axis: int = 0  # along which the parts lie
    transforms: tuple[str, ...] = ()


def locate(name: str, rules: Rules) -> Source | None:
    """The published source of our tensor `name`, or None when no rule names it."""
    best_rank, source = (-1, 0), None
    for ours, theirs in rules.items():
        found = None if ours.startswith("(") else _match(ours, name)
        if found and (rank := (found.end(), -ours.count("{}"))) > best_rank:
            best_rank = rank
            source = theirs, name[found.end() :].lstrip("."), found.groups()
    return source and _source(*source)


def _match(pattern: str, name: str) -> re.Match | None:
    """The front of `name` that the prefix `pattern` covers; its groups are the numbers."""
    expression = re.escape(pattern).replace(r"\{\}", r"(\d+)")
    return re.match(expression + r"(?=\.|$)" if pattern else "", name)


THEIRS = re.compile(
    r"(?P<name>[^\[\]|]*?)\s*(\[(?P<last>:,)?\s*(?P<part>\d+)/(?P<parts>\d+)\])?\s*"
    r"(?P<transforms>(\|\s*\w+(\(\d+\))?\s*)*)"
)


def _source(theirs: str, rest: str, numbers: tuple[str, ...]) -> Source:
    """The right side of a rule with its numbers filled in and the rest of the name appended."""
    left = iter(numbers)

    def number(place: re.Match) -> str:
        return str(int(next(left)) + int(place[1] or 0))

    found = THEIRS.fullmatch(re.sub(r"\{(\+\d+)?\}", number, theirs))
    assert found, f"right side of a PUBLISHED rule that does not parse: {theirs!r}"
    transforms = tuple(t.strip() for t in found["transforms"].split("|") if t.strip())
    known = all(t.split("(")[0] in TRANSFORMS for t in transforms)
    assert known, f"unknown transform in {theirs!r}"
    name = ".".join(filter(None, (found["name"], rest)))
    part, parts = int(found["part"] or 0), int(found["parts"] or 1)
    return Source(name, part, parts, -1 if found["last"] else 0, transforms)


def dropped(name: str, rules: Rules) -> bool:
    """Whether the format leaves out this published tensor on purpose."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in rules.get("(drop)", "").split())


def respelled(name: str, rules: Rules) -> str:
    """A published name in the spelling that the rules know."""
    for alias in rules.get("(alias)", "").split():
        old, new = alias.split("=")
        if old.startswith(".") and name.endswith(old):
            name = name.removesuffix(old) + new
        elif not old.startswith(".") and name.startswith(old):
            name = new + name.removeprefix(old)
    return name


# ---- published to ours -------------------------------------------------------------------------
def rename(
    tensors: Mapping[str, Tensor],
    rules: Rules,
    wanted: Mapping[str, Tensor | tuple[int, ...]],
    what: str = "the weights",
) -> dict[str, Tensor]:
    """Published tensors under our names, exactly as many and of such shapes as `wanted` says.

    wanted: our name -> shape, or a tensor of that shape (a state dict on the meta device will do).
    what: how to call the source in an error ("resnet18.safetensors").
    Errors: one WeightsError that lists what nothing uses, what stays unfilled, what is misshapen.
    """
    prefix = rules.get("(prefix)", "")
    given = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    given = {respelled(n, rules): t for n, t in given.items()}
    given = {n: t for n, t in given.items() if not dropped(n, rules)}
    unused = [(n, t) for n, t in tensors.items() if not n.startswith(prefix)]

    ours: dict[str, Tensor] = {}
    unfilled, misshapen, used = [], [], set()
    for name, spec in wanted.items():
        shape = tuple(spec.shape if isinstance(spec, Tensor) else spec)
        source = locate(name, rules)
        if source is not None and source.name in given:
            theirs = given[source.name]
            used.add(source.name)
            ours[name] = _to_ours(theirs, source)
            if tuple(ours[name].shape) != shape:
                part = f"[{source.part}/{source.parts}]" if source.parts > 1 else ""
                came = f"{prefix}{source.name}{part} is {tuple(theirs.shape)}"
                misshapen.append(f"{name} {shape}: {came}")
        elif name.endswith(COUNTER):
            ours[name] = torch.tensor(0)
        else:
            why = (
                f"looked for {prefix}{source.name}" if source else "this format has no name for it"
            )
            unfilled.append(f"{name} {shape}: {why}")

    left = [n for n in given if n not in used and not _is_copy(n, given, rules)]
    unused += [(prefix + n, given[n]) for n in left]
    if unused or unfilled or misshapen:
        raise mismatch(what, [sized(n, t) for n, t in unused], unfilled, misshapen)
    return ours


def _is_copy(name: str, given: Mapping[str, Tensor], rules: Rules) -> bool:
    """Whether a source tensor only repeats another, as in some files of tied heads."""
    original = dict(pair.split("=") for pair in rules.get("(copy)", "").split()).get(name, "")
    return original in given and torch.equal(given[name], given[original])


def _to_ours(tensor: Tensor, source: Source) -> Tensor:
    if source.parts > 1:
        if not tensor.ndim or tensor.shape[source.axis] % source.parts:
            return tensor  # reported as misshapen
        # a copy, so that a parameter does not hold on to the memory of its siblings
        tensor = tensor.chunk(source.parts, dim=source.axis)[source.part].clone()
    for transform in source.transforms:
        tensor = _transformed(tensor, transform, 0)
    return tensor


def _transformed(tensor: Tensor, transform: str, way: int) -> Tensor:
    name, _, number = transform.rstrip(")").partition("(")
    return TRANSFORMS[name][way](tensor, *([int(number)] if number else []))


def sized(name: str, tensor: Tensor) -> str:
    """A tensor in a list of an error: its name and shape."""
    return f"{name} {tuple(tensor.shape)}"


def mismatch(
    what: str, unused: list[str], unfilled: list[str], misshapen: list[str]
) -> WeightsError:
    """The one error for weights of another network: both sides listed, and what to do."""
    lines = [f"{what}: these are not the weights of this network."]
    for title, names in (
        ("in the file, used by nothing", unused),
        ("in the network, left unfilled", unfilled),
        ("of another shape than the network's", misshapen),
    ):
        if names:
            lines.append(f"  {len(names)} {title}:")
            lines += [f"    {name}" for name in names[:SHOWN]]
            lines += [f"    and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    if not unused and not unfilled and all(n.startswith("head.") for n in misshapen):
        lines.append("Only the head differs: build the network with n_classes as in the file.")
    else:
        lines.append("Check that the size (variant) and the format named are those of the file.")
    return WeightsError("\n".join(lines))


# ---- ours to published -------------------------------------------------------------------------
def publish(
    tensors: Mapping[str, Tensor], rules: Rules, dropped_values: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Our tensors under their published names: the exact inverse of `rename`.

    dropped_values: source tensors that `rename` dropped, to be put back (full published names).
    Errors: WeightsError for tensors of ours that the format has no name for, for parts of a joined
    tensor that are missing, and for two of ours that claim one name with different values.
    """
    prefix = rules.get("(prefix)", "")
    pieces: dict[str, list[tuple[str, Source, Tensor]]] = {}
    nameless = []
    for name, tensor in tensors.items():
        source = locate(name, rules)
        if source is None:
            nameless.append(sized(name, tensor))
        elif not dropped(source.name, rules):
            for transform in reversed(source.transforms):
                tensor = _transformed(tensor, transform, 1)
            pieces.setdefault(prefix + source.name, []).append((name, source, tensor))
    if nameless:
        lines = "\n  ".join(nameless)
        raise WeightsError(
            f"this format has no name for {len(nameless)} tensors of the network:\n  {lines}\n"
            f"Save in layerwise's own layout, or add them to the family's PUBLISHED."
        )
    joined = {name: _join(name, found) for name, found in pieces.items()}
    return joined | dict(dropped_values or {})


def _join(name: str, pieces: list[tuple[str, Source, Tensor]]) -> Tensor:
    """One published tensor from our pieces, in the order of their parts."""
    slots: dict[int, Tensor] = {}
    for ours, source, tensor in pieces:
        if source.part in slots and not torch.equal(slots[source.part], tensor):
            raise WeightsError(
                f"{ours} and another tensor are both published as {name} but differ; "
                f"tie them before saving in this format"
            )
        slots[source.part] = tensor
    parts, axis = pieces[0][1].parts, pieces[0][1].axis
    if lacking := sorted(set(range(parts)) - set(slots)):
        raise WeightsError(f"{name} joins {parts} of our tensors; parts {lacking} are missing")
    return slots[0] if parts == 1 else torch.cat([slots[i] for i in range(parts)], dim=axis)
