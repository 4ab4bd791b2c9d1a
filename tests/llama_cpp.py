"""llama.cpp in a process of its own: reads one line of JSON at a time and answers with one.

    python tests/llama_cpp.py [MODEL.gguf]

A request is [what, values]: a path of the server's HTTP interface with its values, or "quantize",
which packs the numbers of one .npy file into another by llama.cpp's own code.
"""

import ctypes
import json
import os
import sys
import urllib.request


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever llama.cpp prints is no answer
    server = serve(sys.argv[1]) if len(sys.argv) > 1 else None
    for line in sys.stdin:
        what, values = json.loads(line)
        answer = quantize(**values) if server is None else asked(server, what, values)
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # the server's own end may wait for ever


def serve(path: str):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.n_predict = 256, 1, 64
    params.warmup, params.cache_ram_mib, params.verbosity = False, 0, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames, params.port = ["127.0.0.1"], 0
    return xllamacpp.Server(params)


def asked(server, what: str, values: dict) -> dict:
    request = urllib.request.Request(
        f"{server.listening_address}/{what}",
        json.dumps(values).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.loads(answer.read())


def quantize(rows: str, packed: str, kind: int) -> int:
    """fp32 numbers (n, k) of one file to bytes of a kind of GGUF in the other; how many bytes."""
    import numpy as np
    import xllamacpp.xllamacpp

    pack = ctypes.CDLL(xllamacpp.xllamacpp.__file__).ggml_quantize_chunk
    pack.restype = ctypes.c_size_t
    pack.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    numbers, raw = np.load(rows), np.load(packed)
    size = pack(kind, numbers.ctypes.data, raw.ctypes.data, 0, *numbers.shape, None)
    np.save(packed, raw)
    return size


if __name__ == "__main__":
    main()
