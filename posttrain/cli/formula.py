"""An objective as a reader of its paper would write it down, made from its choices; and the paper itself."""

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Iterator

from posttrain.objectives.objective import Objective

ADVANTAGES = {
    "return": "A_t = return - running mean",
    "greedy": "A_t = return - r(greedy answer)",
    "center": "A = r - mean",
    "zscore": "A = (r - mean) / std",
    "leave_one_out": "A = r - mean of the others",
    "mean_ratio": "A = (r - mean) / mean",
    "length_weighted": "A = r - length-weighted mean",
    "batch_center": "A = r - mean of the batch",
    "batch_zscore": "A = (r - mean) / std, of the batch",
    "batch_whiten": "A_t = whitened return",
    "center_then_whiten": "A = r - mean, whitened over the batch",
    "center_then_scale": "A = (r - mean) / std of the batch",
    "center_live": "A = r - mean, scaled by batch / live groups",
    "decoupled": "A = Σ_k (r_k - mean_k) / std_k, whitened",
    "optimal_token": "A_t = return - best baseline at t",
    "gae": "A_t = GAE(r, V), whitened",
}
RATIOS = {
    "token": "ρ_t = π_t / {old}_t",
    "sequence": "ρ = (π(y) / {old}(y))^(1/|y|)",
    "sequence_sum": "ρ = π(y) / {old}(y)",
    "sequence_token": "ρ_t = (π(y) / {old}(y))^(1/|y|), gradient of π_t",
}
WEIGHTS = {
    "token": "w = 1 / all tokens",
    "sequence": "w = 1 / (answers · |y|)",
    "prompt": "w = 1 / (prompts · tokens of the prompt)",
    "constant": "w = 1 / (answers · {horizon})",
    "sum": "w = 1 / answers",
}


def equation(objective: Objective) -> Iterator[str]:
    """The loss, and then what its symbols stand for, a line each: ratio, advantage and weight of a token."""
    o = objective
    old = "μ" if o.old == "sampler" else "π_old"
    gain = _gain(o)
    if o.gate.kind != "none":
        gain = f"[{o.gate.kind} gate] · {gain}"
    if o.focus.kind != "all":
        gain = f"[{o.focus.kind}, {_number(o.focus.share)} of tokens] · {gain}"
    loss = f"-{gain}"
    if o.proximal.estimator != "none":
        some = "" if o.proximal.share is None else f" [{_number(o.proximal.share)} of tokens]"
        loss += f" + {_times(o.proximal.weight)}{o.proximal.estimator}(π, {old}){some}"
    if o.mismatch.kind != "off":
        loss = f"{o.mismatch.kind}(π_old/μ, {_number(o.mismatch.low)}, {_number(o.mismatch.high)}) · ({loss})"
    if o.kl.where == "loss":
        loss += f" + {_times(o.kl.beta)}{'ρ·' if o.kl.corrected else ''}{o.kl.estimator}(π, π_ref)"
    if o.entropy.weight or o.entropy.target is not None:
        loss += f" - {'c·' if o.entropy.target is not None else _times(o.entropy.weight)}H"
    yield f"L = Σ w · [ {loss} ]"
    reward = f"r - {_times(o.kl.beta)}{o.kl.estimator}(π, π_ref)" if o.kl.where == "reward" else ""
    advantage = ADVANTAGES.get(o.advantage, f"A = {o.advantage}(r)") + (f", with r ← {reward}" if reward else "")
    if "ρ" in gain:
        yield RATIOS.get(o.ratio, f"ρ = {o.ratio}").format(old=old)
    yield advantage
    yield WEIGHTS.get(o.average.kind, f"w: {o.average.kind}").format(horizon=o.average.horizon)


def _gain(o: Objective) -> str:
    low, high = map(_number, o.clip.edges)
    match o.clip.kind:
        case "min":
            held = f"min(ρA, clip(ρ, {low}, {high})·A)"
            return held if o.clip.cap is None else f"max({held}, {_number(o.clip.cap)}·A if A < 0)"
        case "weight":
            return f"sg[clip(ρ, {low}, {high})]·A·log π"
        case "soft":
            return "4/τ·σ(τ(ρ - 1))·A"
        case "geometric":
            lower = "-∞" if o.clip.low is None else _number(-o.clip.low)
            return f"exp(mean clip(log ρ, {lower}, {_number(o.clip.high)}))·A"
        case "gamma":
            return "sg[ρ^k·exp(λ(1 - ρ))]·A·log π"
        case "log":
            return "A·log π"
        case "none":
            return "A·log π" if o.ratio == "none" else "ρA"
        case other:
            return f"{other}(ρ, A)"


def _number(x: float | None) -> str:
    return "none" if x is None else f"{x:.6g}"


def _times(x: float) -> str:
    return "" if x == 1 else f"{_number(x)}·"


def papers() -> dict[str, str]:
    """Preset -> its paper, as the comment above its row in `presets.py` says; a row without one has that before it."""
    from posttrain.objectives import presets

    source = inspect.getsource(presets)
    comments = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
    found, last = {}, ""
    for node in ast.walk(ast.parse(source)):
        for key in node.keys if isinstance(node, ast.Dict) else ():
            if isinstance(key, ast.Constant) and key.value in presets.PRESETS:
                found[key.lineno] = key.value
    named = {}
    for line, name in sorted(found.items()):
        above, at = [], line - 1
        while at in comments:
            above.insert(0, comments[at])
            at -= 1
        text = _citation(" ".join(above))
        last = text or last
        named[name] = last
    return named


def _citation(text: str) -> str:
    """The first paper that a comment names: "Shao et al. 2024, arXiv 2402.03300"; empty if it names none."""
    if not (year := re.search(r"^(.{2,80}?\b(?:19|20)\d\d)\b", text)):
        return ""
    arxiv = re.match(r"\s*\(?[^().]{0,20}arXiv (\d{4}\.\d{4,5})", text[year.end() :])
    return year.group(1) + (f", arXiv {arxiv.group(1)}" if arxiv else "")
