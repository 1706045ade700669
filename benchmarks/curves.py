"""One short training run of ours or of TRL, for learning curves side by side; see posttrain/lab/studies/beside_trl.py.

    python benchmarks/curves.py data FOLDER SETTINGS             a model, rows, and their ids, for both sides
    python benchmarks/curves.py ours FOLDER SETTINGS             trains, and writes FOLDER/ours.json
    benchmarks/.venv-trl/bin/python benchmarks/curves.py theirs FOLDER SETTINGS

Both start from the weights of the tiny random model, take the same rows in the same order, and have the same batch,
optimizer, step size and loss. DPO prefers words with an even last digit to words with an odd one; GRPO is rewarded for
the share of even words. SETTINGS is JSON: job, steps, rows, samples, answer, lr, seed.
"""

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace

OURS = {"dpo": {"loss": "loss", "margin": "margin", "accuracy": "accuracy"}, "grpo": {"reward": "reward_mean"}}
THEIRS = {
    "dpo": {"loss": "loss", "margin": "rewards/margins", "accuracy": "rewards/accuracies"},
    "grpo": {"reward": "reward"},
}
"""Curve -> the name of the metric on either side."""


def make_data(folder: Path, s: SimpleNamespace) -> None:
    """Write the model, the rows as our users have them, and the same rows in the order in which ours are taken."""
    import inputs

    from posttrain import rng

    inputs.model_folder("tiny", root=folder)
    draw, vocab = rng.python(s.seed, "curves", s.job), inputs.SIZES["tiny"].vocab - len(inputs.SPECIAL)

    def words(n: int, digits: range = range(10)) -> str:
        return " ".join(f"w{10 * draw.randrange(vocab // 10) + draw.choice(digits)}" for _ in range(n))

    rows = []
    for _ in range(s.rows * s.steps):
        row = {"prompt": words(draw.randint(4, 16))}
        if s.job == "dpo":
            row |= {"chosen": words(draw.randint(4, 24), range(0, 10, 2))}
            row |= {"rejected": words(draw.randint(4, 24), range(1, 10, 2))}
        rows.append(row)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = inputs.Job("pairs" if s.job == "dpo" else "prompts", s.rows, s.samples, s.answer)
    ids = inputs.as_ids("tiny", job, folder / "rows.jsonl", s.steps, s.seed)
    (folder / "ids.json").write_text(json.dumps(ids))


def ours(folder: Path, s: SimpleNamespace) -> dict[str, list[float]]:
    """Train with posttrain."""
    import inputs

    from posttrain.algorithms import group, preference
    from posttrain.objectives.average import Average
    from posttrain.objectives.objective import Objective
    from posttrain.recipes.stages import curve, stage
    from posttrain.sample.base import SamplingParams
    from posttrain.train.learner import Optim
    from posttrain.train.run import RunConfig

    common = {
        "model": str(folder / "models" / "tiny"),
        "data": inputs.data("pairs", folder / "rows.jsonl"),
        "steps": s.steps,
        "eval_every": 0,
        "optim": Optim(lr=s.lr, beta2=0.999),
        "run": RunConfig(seed=s.seed, threads=1, save_every=10**6, samples=0),
    }
    if s.job == "dpo":
        module, cfg = preference, preference.Config(**common, batch_size=s.rows)
    else:
        reward = f"{Path(__file__).with_name('rewards.py')}:of_trajectory"
        module, cfg = group, group.Config(
            **common, reward=reward, prompts=s.rows, group_size=s.samples, sampling=SamplingParams(max_tokens=s.answer),
            objective=Objective(average=Average("token")),
        )  # fmt: skip
    stage(folder / "run", module, cfg)
    return {name: [y for _, y in curve(folder / "run", metric)] for name, metric in OURS[s.job].items()}


def theirs(folder: Path, s: SimpleNamespace) -> dict[str, list[float]]:
    """Train with TRL, as theirs.py sets it up."""
    import theirs as trl_side
    import transformers

    class Recorded(transformers.TrainerCallback):
        """Keeps what the trainer logs; the set-ups count tokens on it."""

        tokens = 0
        logged: list[dict] = []

        def on_log(self, _args, _state, _control, logs=None, **_):
            """After every step, and once more with a summary at the end."""
            if set(THEIRS[s.job].values()) <= set(logs or {}):
                self.logged.append(logs)

    recorded = Recorded()
    setting = {"learning_rate": s.lr, "gradient_checkpointing": False}
    if s.job == "dpo":
        setting |= {"precompute_ref_log_probs": True}
    args = SimpleNamespace(
        job=s.job, model=str(folder / "models" / "tiny"), scratch=str(folder / "trl"), device="cpu", seed=s.seed,
        precision="float32", steps=s.steps, probe=True, setting=json.dumps(setting),
    )  # fmt: skip
    what = {"rows": s.rows, "samples": s.samples, "answer": s.answer}
    plan = json.loads((folder / "ids.json").read_text())
    trainer = trl_side.TRAINERS[s.job](args, what, plan, recorded)
    trainer.train()
    return {name: [float(row[metric]) for row in recorded.logged] for name, metric in THEIRS[s.job].items()}


def main() -> None:
    """Arguments as above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("data", "ours", "theirs"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("settings", help="JSON")
    args = parser.parse_args()
    settings = SimpleNamespace(**json.loads(args.settings))
    if args.what == "data":
        make_data(args.folder, settings)
        return
    found = (ours if args.what == "ours" else theirs)(args.folder, settings)
    short = {name: len(values) for name, values in found.items() if len(values) != settings.steps}
    if short:
        sys.exit(f"{settings.steps} steps were asked for, and there are so many values: {short}")
    (args.folder / f"{args.what}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
