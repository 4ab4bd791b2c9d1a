"""The command line: `layerwise VERB ...`, each verb a function of the same name in Python.

Exit codes: 0 done; 1 a defect of layerwise itself, or found by `selftest`; 2 an option; 3 the data;
4 the weights; 5 does not fit; 6 the run stopped itself; 7 storage; 130 interrupted.
"""

import argparse
import dataclasses
import difflib
import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from layerwise.errors import LayerwiseError, OptionError
from layerwise.kinds import KINDS
from layerwise.settings import Settings
from layerwise.tasks import TASKS


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors name the nearest known option."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message}. `{self.prog} --help` lists what there is")

    def parse_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> Any:
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            known = [o for a in self.all_actions(parsed) for o in a.option_strings]
            near = difflib.get_close_matches(rest[0].split("=")[0], known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else "."
            verb = f"{self.prog} {getattr(parsed, 'verb', '')}".strip()
            raise OptionError(f"unknown option {rest[0]}{hint} `{verb} --help` lists what there is")
        return parsed

    def all_actions(self, parsed: argparse.Namespace | None) -> list[argparse.Action]:
        verb = getattr(parsed, "verb", None)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction) and verb in action.choices:
                return action.choices[verb]._actions
        return self._actions


def parser() -> Parser:
    top = Parser(
        prog="layerwise",
        description="Deep learning: from a folder of raw files to a trained, explained model.",
        epilog="Start with: layerwise demo, then: layerwise fit FOLDER",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="store_true", help="print the version and exit")
    verbs = top.add_subparsers(dest="verb", metavar="VERB")
    for name, (text, add_arguments) in VERBS.items():
        sub = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        add_arguments(sub)
        sub.add_argument("--json", action="store_true", help="print one JSON document instead")
        sub.add_argument("--debug", action="store_true", help="show tracebacks")
    return top


# ---- arguments of each verb ------------------------------------------------------------------


READ = (
    "class folders, a folder with metadata.csv|jsonl|parquet, Parquet with images, .npz, MNIST "
    "idx, CIFAR archives, a CSV/Parquet table, text (.txt, JSON, CSV, CoNLL), or recordings"
)


def fit_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("data", nargs="?", default="", help=READ)
    p.add_argument("--resume", default="", metavar="RUN", help="go on with an interrupted run")
    add_settings(p)


AUDITED = ("base", "kind", "target", "target_kind", "split_column", "seed")


def add_settings(p: argparse.ArgumentParser, only: tuple[str, ...] = ()) -> None:
    named = {"kind": ("auto", *KINDS), "task": ("auto", *TASKS)}
    for f in dataclasses.fields(Settings):
        if only and f.name not in only:
            continue
        choices = named.get(f.name) or f.metadata["choices"]
        flag = "--" + f.name.replace("_", "-")
        text = f.metadata["help"].replace("%", "%%")
        how: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        if not isinstance(f.default, bool):
            text += "" if f.default in ("", 0, 0.0, -1, -1.0) else f" [{f.default}]"
            shown = {"choices": choices} if choices else {"metavar": f.name.upper()}
            how = {"type": type(f.default), **shown}
        p.add_argument(flag, default=argparse.SUPPRESS, help=text, **how)


def predict_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", help="folder of a model or run, a weights file, or a published name")
    p.add_argument("data", nargs="+", help="files or folders to predict on")
    p.add_argument("--top", type=int, default=3, help="likeliest labels to print [3]")
    p.add_argument("--confidence", type=float, default=0.0, help="e.g. 0.9: also a set, or unsure")


def evaluate_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", nargs="+", help="one model, or two to compare, then the data")
    p.add_argument("--target", default="", help="column with the answers")
    p.add_argument("--split", default="auto", help="train, val, test, all or auto [auto]")


def embed_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", help="folder of a model or run, or a published name")
    p.add_argument("data", help="texts in files of any kind, or images")
    p.add_argument("--output", default="", help=".npz or .parquet to search in, .npy of vectors")
    names, said = ("--normalise", "--normalize"), "to length 1 [as the model does]"
    p.add_argument(*names, action=argparse.BooleanOptionalAction, help=said)
    p.add_argument("--dims", type=int, default=0, help="numbers kept of each vector [all]")


def search_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("index", help="what `layerwise embed --output` wrote")
    p.add_argument("query", nargs="+", help="what to look for; several are asked one by one")
    p.add_argument("--top", type=int, default=5, help="how many to find [5]")
    p.add_argument("--model", default="", help="what embeds the queries [the index's own]")


def plan_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", nargs="?", default="auto", help="by name; auto: by --data and --budget")
    p.add_argument("--data", default="", help="plan for this data's rows and classes, or this text")
    p.add_argument("--budget", default="", help="time, e.g. 30m: which decoder to train on a text")
    p.add_argument("--rows", type=int, default=0, help="training rows, where no data is given")
    p.add_argument("--batch", type=int, default=32, help="rows per step [32]")
    p.add_argument("--grad-accum-steps", type=int, default=1, help="micro-batches per step [1]")
    p.add_argument("--epochs", type=float, default=10.0, help="passes over the rows [10]")
    p.add_argument("--image-size", type=int, default=0, help="side in pixels [the model's own]")
    p.add_argument("--max-seq-len", type=int, default=0, help="tokens of a text [512]")
    p.add_argument("--classes", type=int, default=0, help="number of classes [the model's own]")
    p.add_argument("--optimizer", default="adamw", help="adamw, sgd or muon [adamw]")
    p.add_argument("--dtype", default="auto", help="fp32, bf16 or auto [auto]")
    p.add_argument("--checkpointing", action="store_true", help="recompute activations")
    p.add_argument("--hardware", default="cpu", help="cpu, h100, h200, a100, l4 ... [cpu]")


def inspect_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", help="folder of a model or run, a weights file, or a published name")
    p.add_argument("data", help="labelled data to look with")
    p.add_argument("--rows", type=int, default=1500, help="rows to look at [1500]")
    p.add_argument("--base", default="", help="what a text model was fine-tuned from")
    p.add_argument("--output", default="", help="also write the figures here, as JSON")


def audit_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("data", help="what `fit` would be given")
    add_settings(p, AUDITED)


def generate_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", help="folder of a model or run, a .gguf file, or a hub id")
    p.add_argument("prompt", nargs="?", default="", help="the text to go on from")
    p.add_argument("--tokens", type=int, default=64, help="how many to write at most [64]")


def export_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", help="folder of a model or run, a weights file, or a published name")
    p.add_argument("--to", default="gguf", help="gguf or huggingface [gguf]")
    p.add_argument("--quantize", default="bf16", help="GGUF: f32, f16, bf16, q8_0, q4_0 [bf16]")
    p.add_argument("--output", default="", help="file or folder to write [by the model's name]")


def models_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("family", nargs="?", default="", help="one family only")


def selftest_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", help="folder of a finished run")
    p.add_argument("--rows", type=int, default=8, help="training rows to compute on [8]")
    p.add_argument("--compiled", action="store_true", help="compile the layers, too: minutes")
    p.add_argument("--no-ranks", dest="ranks", action="store_false", help="no second process")


def demo_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--output", default="", help="folder of the run")


EXPORT = "a model as other tools read it: GGUF for llama.cpp, or Hugging Face's layout"
SELFTEST = "whether accumulating, packing and the like change a run's gradients"
VERBS = {  # what each does, and its arguments
    "fit": ("train the best model that the data and the budget allow", fit_arguments),
    "predict": ("labels and probabilities for new rows", predict_arguments),
    "evaluate": (
        "score a model with its interval; two models: which is better",
        evaluate_arguments,
    ),
    "embed": ("vectors of texts or images, kept to be searched", embed_arguments),
    "search": ("the nearest texts or images of an index", search_arguments),
    "plan": ("parameters, FLOPs, memory, time and money, before paying", plan_arguments),
    "inspect": ("what each layer of a trained model learned", inspect_arguments),
    "audit": ("what is wrong with the data", audit_arguments),
    "generate": ("text continued by a language model", generate_arguments),
    "export": (EXPORT, export_arguments),
    "models": ("families, sizes and published weights", models_arguments),
    "selftest": (SELFTEST, selftest_arguments),
    "demo": ("the whole way on the bundled handwritten digits", demo_arguments),
    "doctor": ("what this machine offers, and versions for bug reports", lambda p: None),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = parser().parse_args(argv)
        if arguments.version:
            from layerwise import __version__

            print(__version__)
            return 0
        if not arguments.verb:
            parser().print_help()
            return 0
        return run(arguments)
    except LayerwiseError as e:
        return complain(e, e.exit_code, argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except MemoryError as e:
        text = (
            "out of memory. Use a smaller --device-batch-size with more --grad-accum-steps, "
            "--checkpointing, or --dtype bf16; what was checkpointed is kept"
        )
        return complain(MemoryError(f"{text} ({e})" if str(e) else text), 5, argv)
    except BrokenPipeError:
        return 0


def complain(error: BaseException, code: int, argv: list[str]) -> int:
    if "--debug" in argv:
        raise error
    if "--json" in argv:
        print(json.dumps({"error": str(error), "exit_code": code}))
    print(f"layerwise: {error}", file=sys.stderr)
    return code


def run(arguments: object) -> int:
    """Call the verb, with progress on standard error where standard output is for JSON."""
    from layerwise import commands
    from layerwise.console import Console

    values = vars(arguments)
    verb, as_json, *_ = (values.pop(name) for name in ("verb", "json", "debug", "version"))
    console = Console(sys.stderr if as_json else sys.stdout)
    result = getattr(commands, verb)(console, **values)
    if as_json:
        print(json.dumps(result, indent=1, default=str, ensure_ascii=False))
    if not isinstance(result, dict):
        return 0
    return 130 if not result.get("finished", True) else int(not result.get("same", True))


if __name__ == "__main__":
    sys.exit(main())
