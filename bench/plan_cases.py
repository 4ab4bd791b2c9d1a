"""What `bench/plan.py` measures: real families for its table, plain stacks for the constants."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """One configuration: a named size, what its config changes, and the setting of its step."""

    name: str
    side: int  # of the images; values per row for mlp, tokens per row for text
    batch: int
    dtype: str = "fp32"
    optimizer: str = "adamw"
    accumulation: int = 1
    checkpointing: bool = False
    changes: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        more = [f"x{self.accumulation}"] if self.accumulation > 1 else []
        more += ["ckpt"] if self.checkpointing else []
        change = dict(self.changes)
        size = f" {change['dim']}x{change['n_layers']}" if change else ""
        unit = "t" if self.name.startswith(TEXT) else "px"
        return " ".join(
            [
                self.name + size,
                f"{self.side}{unit} b{self.batch}",
                self.dtype,
                self.optimizer,
                *more,
            ]
        )


TEXT = ("gpt", "qwen3", "llama", "bert", "minilm")
WIDE = (("dim", 2048), ("n_layers", 6))


def sized(dim: int, n_layers: int, vocab_size: int, **more: Any) -> tuple[tuple[str, Any], ...]:
    """What makes a small decoder or encoder of a named one."""
    heads = dim // 64
    values = {"dim": dim, "n_layers": n_layers, "vocab_size": vocab_size, "n_heads": heads, **more}
    return tuple(values.items())


def qwen(dim: int, n_layers: int, vocab_size: int) -> tuple[tuple[str, Any], ...]:
    more = {"n_kv_heads": dim // 64, "head_dim": 64, "mlp_dim": 64 * round(dim / 24)}
    return sized(dim, n_layers, vocab_size, **more)


CASES = [
    Case("alexnet", 127, 16),
    Case("alexnet", 127, 32, "bf16", "sgd"),
    Case("alexnet_owt", 95, 64, "bf16", "adamw", 2),
    Case("alexnet_owt", 127, 32, "fp32", "sgd"),
    Case("alexnet", 159, 16, "bf16", "adamw", 1, True),
    Case("resnet18", 64, 32, "fp32", "sgd"),
    Case("resnet18", 64, 64, "bf16", "adamw"),
    Case("resnet18", 96, 16, "fp32", "adamw", 4),
    Case("resnet18_cifar", 32, 64, "bf16", "sgd"),
    Case("resnet20", 32, 256, "fp32", "sgd"),
    Case("resnet20", 32, 256, "bf16", "adamw"),
    Case("resnet56", 32, 64, "bf16", "sgd", 1, True),
    Case("resnet50", 64, 32, "fp32", "adamw"),
    Case("resnet50", 96, 16, "bf16", "sgd"),
    Case("resnet50", 64, 32, "bf16", "adamw", 2),
    Case("resnet50", 96, 32, "bf16", "adamw", 1, True),
    Case("vit_tiny_patch16_224", 224, 8, "fp32", "adamw"),
    Case("vit_tiny_patch16_224", 224, 32, "bf16", "adamw"),
    Case("vit_tiny_patch4_32", 32, 64, "fp32", "sgd"),
    Case("vit_tiny_patch4_32", 32, 128, "bf16", "adamw"),
    Case("vit_tiny_patch4_32", 32, 64, "bf16", "adamw", 4),
    Case("vit_small_patch32_224", 224, 32, "bf16", "adamw"),
    Case("vit_small_patch32_224", 224, 32, "bf16", "adamw", 1, True),
    Case("mobilenet_v1_050", 128, 32, "fp32", "adamw"),
    Case("mobilenet_v1_100", 128, 32, "bf16", "sgd"),
    Case("mobilenetv2_100", 96, 32, "fp32", "sgd"),
    Case("mobilenetv2_100", 128, 32, "bf16", "adamw", 2),
    Case("mobilenetv3_large_100", 96, 32, "bf16", "adamw"),
    Case("mobilenetv2_100", 96, 64, "fp32", "adamw", 1, True),
    Case("squeezenet1_1", 96, 64, "fp32", "adamw"),
    Case("squeezenet1_0", 127, 32, "bf16", "sgd"),
    Case("squeezenet1_1", 159, 16, "bf16", "adamw", 4),
    Case("mlp", 2048, 512, "fp32", "adamw", 1, False, WIDE),
    Case("mlp", 2048, 1024, "bf16", "adamw", 1, False, WIDE),
    Case("mlp", 2048, 512, "bf16", "sgd", 4, False, WIDE),
    Case("mlp_residual", 1024, 1024, "fp32", "muon", 1, False, (("dim", 512), ("n_layers", 6))),
]
CASES += [  # decoders and encoders of text
    Case("gpt2", 256, 4, "bf16", "adamw"),
    Case("gpt2", 128, 4, "fp32", "adamw"),
    Case("gpt2", 256, 8, "bf16", "adamw", 1, True),
    Case("gpt2", 256, 16, "bf16", "muon", 1, False, sized(384, 6, 4096, mlp_dim=1536)),
    Case("gpt2", 256, 12, "fp32", "adamw", 2, False, sized(384, 6, 512, mlp_dim=1536)),
    Case("qwen3_0_6b", 256, 32, "bf16", "muon", 1, False, qwen(128, 2, 1024)),
    Case("qwen3_0_6b", 256, 32, "bf16", "muon", 1, False, qwen(256, 4, 2048)),
    Case("qwen3_0_6b", 256, 16, "bf16", "adamw", 2, False, qwen(384, 6, 8192)),
    Case("qwen3_0_6b", 512, 8, "fp32", "muon", 1, False, qwen(512, 8, 8192)),
    Case("qwen3_0_6b", 512, 8, "bf16", "adamw", 1, True, qwen(768, 12, 32768)),
    Case("qwen3_0_6b", 1024, 4, "bf16", "adamw", 1, False, qwen(512, 8, 32000)),
    Case("bert-base-uncased", 128, 8, "bf16", "adamw"),
    Case("bert-base-uncased", 128, 8, "fp32", "adamw"),
    Case("bert-base-uncased", 256, 16, "bf16", "adamw", 1, True),
    Case(
        "bert-base-uncased", 128, 32, "bf16", "adamw", 1, False, sized(384, 6, 30522, mlp_dim=1536)
    ),
    Case("bert-base-uncased", 64, 64, "fp32", "adamw", 2, False, sized(256, 4, 8192, mlp_dim=1024)),
]
QUICK = [0, 6, 17, 24, 29, 33]

# networks of no family: plain stacks, so that no constant is fitted to what the table measures
CALIBRATION = [
    Case("conv64", 32, 128),
    Case("conv64", 32, 256, "bf16"),
    Case("conv32", 64, 64, "fp32", "sgd", 2),
    Case("conv96", 32, 128, "bf16", "adamw", 1, True),
    Case("conv128", 24, 64, "fp32", "adamw"),
    Case("depthwise64", 48, 64, "fp32", "sgd"),
    Case("depthwise96", 48, 64, "bf16", "adamw"),
    Case("dense1024", 1024, 2048, "fp32", "adamw"),
    Case("dense3072", 3072, 256, "bf16", "adamw"),
    Case("dense2048", 2048, 512, "fp32", "sgd", 2),
    Case("attention128", 64, 64, "fp32", "adamw"),
    Case("attention256", 64, 64, "bf16", "adamw"),
    Case("attention192", 96, 16, "fp32", "sgd", 4),
    Case("attention192", 64, 64, "bf16", "adamw", 1, True),
]


def parts_of(case: Case) -> tuple[Callable[[], Any], Any, Any]:
    """A builder, an example batch on the meta device, and the task."""
    import numpy as np
    import torch

    from layerwise import models
    from layerwise.data.examples import Batch
    from layerwise.tasks.classify import Classify

    task = Classify([str(i) for i in range(10)])
    if case.name.startswith(TEXT):
        return text_parts(case)
    images = not case.name.startswith(("mlp", "dense"))
    shape = (2, 3, case.side, case.side) if images else (2, case.side)
    inputs = torch.zeros(shape, device="meta")
    if images:
        inputs = inputs.to(memory_format=torch.channels_last)
    targets = torch.zeros(2, dtype=torch.int64, device="meta")
    example = Batch({"image" if images else "table": inputs, "targets": targets}, np.arange(2))
    if case in CALIBRATION:
        return lambda: plain_network(case.name, case.side), example, task
    changes: dict[str, Any] = {"n_classes": 10, **dict(case.changes)}
    if not images:
        changes["n_in"] = case.side
    family, config = models.resolve(case.name, **changes)
    return lambda: models.build(family, config), example, task


def text_parts(case: Case) -> tuple[Callable[[], Any], Any, Any]:
    """The same of text: a decoder that continues it, an encoder that sorts it into 10 classes."""
    import numpy as np
    import torch

    from layerwise import models
    from layerwise.data.examples import Batch
    from layerwise.tasks.causal import Causal
    from layerwise.tasks.classify import Classify

    tokens = torch.zeros((2, case.side), dtype=torch.int64, device="meta")
    if not case.name.startswith("bert"):
        family, config = models.resolve(case.name, **dict(case.changes))
        example = Batch({"tokens": tokens, "targets": tokens}, np.arange(2))
        return lambda: models.build(family, config), example, Causal()
    changes = {"n_classes": 10, "head_kind": "class", **dict(case.changes)}
    family, config = models.resolve(case.name, **changes)
    example = Batch({"tokens": tokens, "targets": tokens[:, 0].clone()}, np.arange(2))
    return lambda: models.build(family, config), example, Classify([str(i) for i in range(10)])


def stack(*layers: Any) -> Any:
    """A network of these layers; it reads rows of a table, or images."""
    from torch import nn

    class Stack(nn.Sequential):
        READS, HEADS = ("table", "image"), ("class",)

        def forward(self, table: Any = None, image: Any = None) -> Any:
            return super().forward(image if table is None else table)

        def layers(self) -> dict[str, nn.Module]:
            return dict(self.named_children())

    return Stack(*layers)


def plain_network(name: str, side: int) -> Any:
    """A stack of one kind of layer: conv, depthwise, dense or attention, and its width."""
    from torch import nn

    kind = name.rstrip("0123456789")
    width = int(name.removeprefix(kind))

    def conv(n_in: int, n_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
        layer = nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(n_out), nn.ReLU())

    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if kind == "conv":
        layers = [conv(3, width, 3), conv(width, width, 3), conv(width, 2 * width, 3, 2)]
        layers += [conv(2 * width, 2 * width, 3), conv(2 * width, 2 * width, 1), *pooled]
        return stack(*layers, nn.Linear(2 * width, 10))
    if kind == "depthwise":
        pair = [conv(width, width, 3, groups=width), conv(width, width, 1)]
        return stack(conv(3, width, 3, 2), *pair, *pair, *pooled, nn.Linear(width, 10))
    if kind == "dense":
        hidden = [layer for _ in range(4) for layer in (nn.Linear(width, width), nn.GELU())]
        return stack(*hidden, nn.Linear(width, 10))
    return attention_network(width, side)


def attention_network(width: int, side: int) -> Any:
    from torch import nn

    class Tokens(nn.Sequential):
        def forward(self, input: Any) -> Any:
            return super().forward(input).flatten(2).transpose(1, 2)  # (b, N, D)

    class Mean(nn.Module):
        def forward(self, tokens: Any) -> Any:
            return tokens.mean(1)

    layers = [
        nn.TransformerEncoderLayer(width, 4, 4 * width, 0.1, "gelu", batch_first=True)
        for _ in range(4)
    ]
    return stack(Tokens(nn.Conv2d(3, width, 8, 8)), *layers, Mean(), nn.Linear(width, 10))
