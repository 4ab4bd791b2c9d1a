"""Inference on ResNet-50 at 224 x 224: ours beside timm, ONNX Runtime and OpenVINO.

    python bench/inference.py [--quick]

The same random weights everywhere (batch normalisations with statistics of their own); inputs are
ImageNet samples where LAYERWISE_DATA has them. Quality: the largest logit error against fp32,
relative to the largest logit, and how often the likeliest class is the same.
"""

import json
import os
import pathlib
import sys

import sidebyside

CONTENDERS = (
    "ours bf16",
    "ours fp32",
    "timm",
    "onnxruntime fp32",
    "openvino fp32",
    "openvino bf16",
)
DATA = pathlib.Path(
    os.environ.get("LAYERWISE_DATA", pathlib.Path(__file__).parents[1] / "../shared/data")
)


def images(n: int):
    """Real photographs as ImageNet networks take them, or noise where there are none."""
    import torch

    from layerwise.kinds.image.processor import ImageProcessor

    files = sorted((DATA / "imagenet-1k-samples").rglob("*.jp*g"))[:n]
    if len(files) < n:
        return torch.randn(n, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    processor = ImageProcessor(
        size=(224, 224), resize=256, interpolation="bilinear",
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    )  # fmt: skip
    return processor(files).contiguous()


def network():
    """ResNet-50 with the same weights in every child, its statistics set on real images."""
    import torch

    from layerwise import models

    torch.manual_seed(0)
    net = models.build(*models.resolve("resnet50"))
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain mean over the calibration batch
    with torch.no_grad():
        net.train()(images(16))
        net.head.weight.mul_(8)  # logits as far apart as a trained network's
    return net.eval()


def predictor(who: str, batch: int):
    """A function from a torch batch to logits, prepared as the runtime's documentation advises."""
    import torch

    net = network()
    if who.startswith("ours"):
        from layerwise import runtime
        from layerwise.adapt.fuse import fused

        runtime.start(threads=2)
        dtype = torch.bfloat16 if "bf16" in who else torch.float32
        return fused(net, torch.zeros(batch, 3, 224, 224), dtype)
    torch.set_num_threads(2)
    if who == "timm":
        from layerwise.models import resnet
        from layerwise.weights.names import publish

        theirs = sidebyside.import_timm().create_model("resnet50").eval()
        theirs.load_state_dict(publish(net.state_dict(), resnet.PUBLISHED["timm"]))
        return theirs
    if who.startswith("onnxruntime"):
        return onnxruntime_predictor(net, batch)
    return openvino_predictor(net, batch, who.endswith("bf16"))


def onnxruntime_predictor(net, batch: int):
    import tempfile

    import onnxruntime
    import torch

    path = os.path.join(tempfile.mkdtemp(), "net.onnx")
    torch.onnx.export(net, (torch.zeros(batch, 3, 224, 224),), path, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(path, options)
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def openvino_predictor(net, batch: int, bf16: bool):
    import openvino
    import torch

    model = openvino.convert_model(net, example_input=torch.zeros(batch, 3, 224, 224))
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "INFERENCE_NUM_THREADS": 2,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    return lambda x: torch.from_numpy(request.infer([x.numpy()])[0].copy())


def child(who: str, batch: int, seconds: float) -> None:
    import torch

    x = images(batch)
    with torch.inference_mode():
        predict = predictor(who, batch)
        speed = sidebyside.rate(lambda: predict(x), batch, seconds)
        peak = sidebyside.peak_mb()
        many = images(64 // batch * batch if batch <= 64 else batch)
        want = network()(many)
        got = torch.cat([predict(part) for part in many.split(batch)])
    print(
        json.dumps(
            {
                "images": speed,
                "peak_mb": peak,
                "error": float((got - want).abs().max() / want.abs().max()),
                "agree": float((got.argmax(1) == want.argmax(1)).float().mean()),
            }
        )
    )


def main() -> None:
    quick = "--quick" in sys.argv
    rows = []
    for batch in (32, 1):
        runs = sidebyside.rounds(
            __file__, CONTENDERS, [str(batch), "3" if quick else "8"], 1 if quick else 3
        )
        ours = sidebyside.first_of_ours(runs)
        for who, r in runs.items():
            rows.append(
                [batch, who, f"{sidebyside.median(r, 'images'):.1f}",
                 f"{sidebyside.ratio(runs[ours], r, 'images'):.2f}x",
                 f"{sidebyside.median(r, 'error'):.1e}",
                 f"{100 * sidebyside.median(r, 'agree'):.0f}%",
                 f"{sidebyside.median(r, 'peak_mb'):.0f}"]
            )  # fmt: skip
    sidebyside.markdown(
        ["batch", "who", "images/s", f"{ours} is faster by", "logit error", "top-1 agreement",
         "peak MB"], rows,
    )  # fmt: skip


if __name__ == "__main__":
    if "--child" in sys.argv:
        i = sys.argv.index("--child")
        child(sys.argv[i + 1], int(sys.argv[i + 2]), float(sys.argv[i + 3]))
    else:
        main()
