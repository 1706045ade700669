"""posttrain beside TRL and beside the floor, on the same models, data, batch and machine: `make bench`.

    python benchmarks/compare.py --jobs sft grpo --sizes tiny --threads 1 --pairs 7
    python benchmarks/compare.py --report                                   # the table of what was measured

For each job, size and number of threads one process per side is started: ours, TRL at its default, TRL at the fastest
of its settings (found first), and the products of the floor. They take turns, of one step or, where steps are short, of
four, and every round is written to results.json, so a call that was stopped goes on where it was. Before anything is
timed, both sides take three steps from the same weights, and must agree on tokens, losses and updates. Nothing else
should run on the machine.
"""

import argparse
import hashlib
import json
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import inputs
import peers
import report
import torch
from workers import Failed, Worker, command

from posttrain import products

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
LOSS_ALIKE = {"sft", "rm", "dpo"}  # the same loss on the same rows; the others draw their own answers


class Results:
    """results.json: rounds, the probes and best settings before them, and the machine."""

    def __init__(self, path: Path, *, fresh: bool):
        self.path = path
        empty = {"machine": machine(), "rounds": [], "probes": [], "best": []}
        self.data = empty if fresh or not path.exists() else json.loads(path.read_text())
        self.data["machine"] = empty["machine"]

    def add(self, part: str, key: dict, **record) -> None:
        """Keep a record and write the file anew."""
        self.data[part].append({"key": key, **record})
        partial = self.path.with_suffix(".tmp")
        partial.write_text(json.dumps(self.data, indent=1))
        partial.replace(self.path)

    def find(self, part: str, key: dict) -> list[dict]:
        """The records whose key holds at least what `key` says."""
        return [r for r in self.data[part] if key.items() <= r["key"].items()]


def machine() -> dict:
    """What the figures hang on."""
    model = platform.processor() or platform.machine()
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        lines = [x.split(":", 1)[1].strip() for x in cpu.read_text().splitlines() if x.startswith("model name")]
        model = f"{lines[0]}, {len(lines)} cores" if lines else model
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": model, "gpu": gpu, "system": platform.platform(), "torch": torch.__version__,
            "products": products.library(), "python": platform.python_version(),
            "trl": list(peers.ENVIRONMENTS.values())}  # fmt: skip


def code() -> str:
    """A short name of what is measured: our package and the workers."""
    digest = hashlib.sha256()
    shown = ("compare.py", "curves.py", "report.py", "check.py", "head_memory.py")  # change no figure
    files = [*(HERE.parent / "posttrain").rglob("*.py"), *(p for p in HERE.glob("*.py") if p.name not in shown)]
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def probe(key: dict, results: Results) -> None:
    """Both sides take a few steps from the same weights; Failed where one does less, or something else."""
    if results.find("probes", key):
        return
    near = 1e-4 if key["precision"] == "float32" else 1e-2
    lines, steps = {}, 3 if key["job"] in LOSS_ALIKE else 1
    for side, setting in (("ours", "default"), ("theirs", "default")):
        with Worker(command(side, key, setting, steps=steps, warmup=0, seed=0, probe=True)) as worker:
            lines[side] = [worker.step() for _ in range(steps)]
    ours, theirs = lines["ours"], lines["theirs"]
    wrong = []
    for a, b in zip(ours, theirs, strict=True):
        if key["job"] in LOSS_ALIKE:
            if a["tokens"] != b["tokens"]:
                wrong.append(f"step {a['step']} has {a['tokens']} tokens here and {b['tokens']} there")
            if abs(a["loss"] - b["loss"]) > near * abs(b["loss"]):
                wrong.append(f"step {a['step']} has loss {a['loss']:.7g} here and {b['loss']:.7g} there")
        elif abs(a["tokens"] - b["tokens"]) > 0.05 * b["tokens"]:
            wrong.append(f"step {a['step']} has {a['tokens']} generated tokens here and {b['tokens']} there")
        if key["job"].startswith("sample-"):
            continue
        if a["updates"] != b["updates"]:
            wrong.append(f"{a['updates']} optimizer steps here and {b['updates']} there after step {a['step']}")
        if not 0.5 < a["moved"] / b["moved"] < 2:
            wrong.append(f"the weights moved by {a['moved']:.4g} here and {b['moved']:.4g} there")
    if wrong:
        raise Failed("the two sides do not do the same:\n  " + "\n  ".join(wrong))
    results.add("probes", key, ours=ours, theirs=theirs)


def fastest(key: dict, results: Results) -> str:
    """The setting of theirs that has the highest rate, from a step or two of each."""
    where = {k: v for k, v in key.items() if k != "code"}
    if found := results.find("best", where):
        return found[-1]["name"]
    rates, steps = {}, 1 if inputs.JOBS[key["job"]].answer else 2
    for name in peers.of(key["job"]):
        try:
            with Worker(command("theirs", key, name, steps=steps + 1, warmup=1, seed=0)) as worker:
                took = [worker.step() for _ in range(steps)]
            rates[name] = max(x["tokens"] / x["seconds"] for x in took)
        except Failed as error:
            print(f"    their setting {name!r} does not run here: {str(error).splitlines()[-1]}")
    if not rates:
        raise Failed("no setting of theirs runs here")
    best = max(rates, key=rates.get)
    results.add("best", where, name=best, rates=rates)
    print("    theirs, tokens/s: " + ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()))
    return best


def sides(key: dict, best: str, results: Results) -> dict[str, tuple[str, dict, str]]:
    """Name in the results -> (worker, key, setting)."""
    found = {"ours": ("ours", key, "default"), "default": ("theirs", key, "default")}
    if best != "default":
        found["best"] = ("theirs", key, best)
    if key["precision"] != "float32":
        plain = key | {"precision": "float32"}
        found["float32"] = ("theirs", plain, fastest(plain, results))
    if on_two_cores(key):
        found["processes"] = ("processes", key, "default")
    found["floor"] = ("floor", key, "default")
    if key["precision"] == "float32" and key["device"] == "cpu" and products.library() == "oneDNN":
        found["plain floor"] = ("floor", key, "plain")
    return found


def on_two_cores(key: dict) -> bool:
    """Whether two threads and two processes are held against two copies on a core each."""
    return key["threads"] == 2 and key["job"] in ("sft", "grpo") and key["device"] == "cpu"


def rounds(key: dict, pairs: int, results: Results, deadline: float, best: str | None) -> None:
    """Rounds of one turn each, until there are `pairs` of them or the time is over.

    best: their setting that is taken for the fastest; None: search for it.
    """
    done = len(results.find("rounds", key))
    if done >= pairs:
        return
    best = best or fastest(key, results)
    warmup = 1 if inputs.JOBS[key["job"]].answer else 2  # a step with rollouts is long, and warms up everything
    turn, names = inputs.turn(key["job"], key["size"]), sides(key, best, results)
    steps = turn * (pairs - done) + warmup
    workers: dict[str, Worker] = {}
    copies: list[Worker] = []
    try:
        for name, (side, its, setting) in names.items():
            workers[name] = Worker(command(side, its, setting, steps=steps, warmup=warmup, seed=done))
            workers[name].hello()  # before the next is started: what is computed once is timed too
        if on_two_cores(key):
            one = command("ours", key | {"threads": 1}, "default", steps=steps, warmup=warmup, seed=done)
            copies = [Worker(one, core=core) for core in (0, 1)]
            for worker in copies:
                worker.hello()
        for i in range(done, pairs):
            if time.monotonic() > deadline:
                print(f"    the time is over after {i} of {pairs} rounds; call again to go on")
                return
            order = list(workers)[i % len(workers) :] + list(workers)[: i % len(workers)]
            took = {name: workers[name].turn(turn) for name in order}
            for name, worker in workers.items():
                took[name] |= {k: worker.facts[k] for k in ("imported", "parameters") if k in worker.facts}
                if "once" in worker.facts:
                    took[name]["once"] = turn * worker.facts["once"]
            if copies:
                took["copies"] = together(copies, turn)
            results.add("rounds", key, round=i, best=best, took=took)
            rates = {name: x["tokens"] / x["seconds"] for name, x in took.items()}
            print("    " + "  ".join(f"{name} {rate:.0f}" for name, rate in rates.items()) + "  tokens/s", flush=True)
    finally:
        for worker in (*workers.values(), *copies):
            worker.close()


def together(copies: list[Worker], turn: int) -> dict:
    """One turn of every copy at the same time."""
    with ThreadPoolExecutor() as pool:
        took = list(pool.map(lambda worker: worker.turn(turn), copies))
    return {"tokens": sum(x["tokens"] for x in took), "seconds": max(x["seconds"] for x in took)}


def missing(device: str) -> str | None:
    """What stands against measuring on a device, in words."""
    if device == "cpu":
        return None
    found = []
    if not torch.cuda.is_available():
        found.append(f"torch {torch.__version__} sees no CUDA GPU on this machine")
    return "\n".join(f"  - {x}" for x in found) if found else None


def main() -> int:
    """Measure what is asked for and not yet there, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", choices=inputs.JOBS, default=list(inputs.JOBS))
    parser.add_argument("--sizes", nargs="+", choices=inputs.SIZES, default=list(inputs.SIZES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--pairs", type=int, default=7, help="rounds, in each of which every side has a turn")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--best", metavar="SETTING", help="take this setting of theirs, instead of trying all")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further round after so many")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    args = parser.parse_args()
    results = Results(RESULTS, fresh=args.fresh)
    if args.report:
        print(report.table(results.data))
        return 0
    if why := missing(args.device):
        print(f"nothing can be measured with --device {args.device}:\n{why}", file=sys.stderr)
        return 2
    subprocess.run([sys.executable, str(HERE / "peers.py")], check=True)
    deadline, failed = time.monotonic() + 60 * args.minutes, 0
    about = {"device": args.device, "precision": args.precision, "code": code()}
    for size in args.sizes:
        for threads in args.threads:
            for job in args.jobs:
                if time.monotonic() > deadline:
                    break
                key = {"job": job, "size": size, "threads": threads} | about
                print(f"{job}, {size}, {threads} thread{'s' * (threads > 1)}", flush=True)
                try:
                    probe(key | {"threads": 1}, results)
                    rounds(key, args.pairs, results, deadline, args.best)
                except Failed as error:
                    print(f"    not measured: {error}", flush=True)
                    failed += 1
    print(report.table(results.data))
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
