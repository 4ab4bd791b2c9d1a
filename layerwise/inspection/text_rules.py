"""The rules for transformers that read text: one function per fault, as in `rules.py`."""

from collections.abc import Iterable

import numpy as np

from layerwise.inspection import limits
from layerwise.inspection.case import Case
from layerwise.inspection.floors import span
from layerwise.inspection.rules import Diagnosis, at_least


def masked_labels(case: Case) -> Iterable[Diagnosis]:
    """Texts in which no token carries loss: nothing is learned from them."""
    if case.carried is None or not len(case.carried):
        return
    loss = case.carried[case.carried > 0].mean() if case.carried.any() else 0
    empty = float((case.carried == 0).mean())
    if empty > limits.EMPTY_ROWS:
        yield Diagnosis(
            "masked_labels",
            "",
            f"in {empty:.0%} of {len(case.carried)} texts no token carries loss, in the others "
            f"{loss:.0%} of the tokens do",
            "check what carries loss before training: usually the answer was cut off by "
            "max_seq_len, or the part to learn was not found in the text",
        )


def embedding_collapse(case: Case) -> Iterable[Diagnosis]:
    """All tokens, or all texts, nearly the same to the network: it cannot tell them apart."""
    if not case.slow or case.wild(4):
        return
    common = at_least(case.values("common", 0), limits.ALMOST_ALL)
    cure = "start from fresh embeddings of mean zero (normal of 0.02)"
    if common:
        share = max(common.values())
        yield Diagnosis(
            "embedding_collapse",
            span(list(common)),
            f"{share:.0%} of the size of the token embeddings is the same for every token; "
            + case.loss_sentence(),
            cure,
            {"init": "normal"},
        )
    elif case.poor and case.likeness > limits.PARALLEL and case.signal and case.signal.present:
        yield Diagnosis(
            "embedding_collapse",
            case.names[-2] if len(case.names) > 1 else "",
            f"the network's features of different texts have a mean cosine of {case.likeness:.4f}, "
            f"though their labels can be told apart: {case.signal.sentence}; "
            + case.loss_sentence(),
            cure + ", and a lower learning rate",
            {"init": "normal", "lr": case.lr / 3},
        )


def saturated_attention(case: Case) -> Iterable[Diagnosis]:
    """Heads that read one key alone: their softmax passes no gradient to queries and keys."""
    for i in range(len(case.history) if case.slow else 0):
        sharp = case.values("sharp", i)
        worst = at_least(sharp, limits.STUCK)
        if worst and not case.wild(i) and len(worst) >= len(sharp) / 2:  # else: the rate
            where, step = span(list(worst)), case.history[i]["step"]
            left = np.median([case.values("entropy", i)[n] for n in worst])
            lower = {"lr": case.lr / 3} if i > 1 else {}
            yield Diagnosis(
                "saturated_attention",
                where,
                f"in {where} {max(worst.values()):.0%} of the heads read a single token at step "
                f"{step} (entropy {left:.2f} of what it could be), so no gradient reaches their "
                f"queries and keys; {case.loss_sentence()}",
                "use norms of query and key (qk_norm), or smaller fresh weights"
                + (", with a lower learning rate" if lower else ""),
                {"qk_norm": True, "init": "normal", **lower},
            )
            return


def dead_heads(case: Case) -> Iterable[Diagnosis]:
    """Attention heads that add nothing in any of the last snapshots."""
    late = [i for i in range(len(case.history)) if case.values("idle", i)][-3:]
    worst = at_least(case.always("idle", late), 1e-9)
    if worst and len(late) == 3:
        n, share = max(worst.items(), key=lambda x: x[1])
        yield Diagnosis(
            "dead_heads",
            span(list(worst)),
            f"in {n} {share:.0%} of the heads add nothing, or next to nothing beside the strongest",
            "start again from fresh weights: where values and output of a head are both zero, no "
            "gradient reaches either",
            {"init": "normal"},
        )
