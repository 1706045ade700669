"""Is a plan's memory what a run takes? Two true steps of every method, in a process each, beside `posttrain plan`.

A plan is about the largest micro-batch that the data can make, so each run probes it first (`run.probe = "step"`).

    python benchmarks/memory.py --size tiny --methods sft group --recompute

counted: bytes of all live tensors, storage by storage, over the plan's sum of tensors. resident: how far the process
rose above what it was after its imports, over the plan's whole; to that belong what operations allocate inside
themselves, the C library's unused pages, and Python's objects. Both peaks are over the whole run, from loading to the
last checkpoint. Prints MiB.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import inputs  # noqa: E402 - after the path
import ours  # noqa: E402
import torch  # noqa: E402
from algorithms.counting import LiveBytes  # noqa: E402

from posttrain.algorithms.plan import demand, rows_of  # noqa: E402
from posttrain.models.lora import Lora  # noqa: E402
from posttrain.train.demand import moments  # noqa: E402
from posttrain.train.run import Run  # noqa: E402

JOBS = {"sft": "sft", "reward_model": "rm", "preference": "dpo", "group": "grpo", "ppo": "ppo"}
MIB = 2**20


def resident(which: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most. (ru_maxrss would begin at what the parent had.)"""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[which].split()[0]) * 1024


def config(method: str, args: argparse.Namespace):
    """Two steps of a method, as `compare.py` measures it."""
    job = JOBS[method]
    path, _ = inputs.data_files(args.size, job, 2, 0)
    cfg = ours.config(job, args.size, path, steps=2, seed=0, threads=1, precision=args.precision)
    optim = replace(cfg.optim, micro_tokens=args.micro_tokens, recompute=args.recompute)
    changes = {"optim": optim, "lora": Lora(rank=args.lora), "run": replace(cfg.run, probe="step")}
    if method == "ppo":
        changes |= {"critic_optim": optim, "epochs": 1}
    return replace(cfg, **changes)


def measure(method: str, args: argparse.Namespace, counted: bool, answer) -> None:
    """Send the peak of a run in bytes: of live tensors, or of this process above what it was after its imports."""
    torch.set_num_threads(1)
    torch.mm(torch.ones(64, 64), torch.ones(64, 64)).sum()  # thread pools and kernels have their memory
    cfg, before = config(method, args), resident("VmRSS")
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=inputs.SCRATCH))
    live = LiveBytes()
    try:
        with (
            contextlib.redirect_stderr(io.StringIO()),
            live if counted else contextlib.nullcontext(),
            Run.open(folder, cfg) as run,
        ):
            ours.MODULES[JOBS[method]].train(cfg, run)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    answer.put(live.peak if counted else resident("VmHWM") - before)


def main() -> None:
    """Measure the methods that were asked for, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=inputs.SIZES, default="tiny")
    parser.add_argument("--methods", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--micro-tokens", type=int, default=16384)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not args.json:
        print(f"{'method':<14}{'tensors':>8}{'counted':>9}{'':>7}{'whole':>8}{'resident':>10}{'':>7}  highest moment")
    context = multiprocessing.get_context("spawn")
    for method in args.methods:
        cfg = config(method, args)
        planned = max(moments(demand(cfg, rows_of(cfg))), key=lambda m: m.total)
        found = []
        for counted in (True, False):
            answer = context.Queue()
            process = context.Process(target=measure, args=(method, args, counted, answer))
            process.start()
            found.append(answer.get())
            process.join()
        if args.json:
            values = {
                "tensors": planned.tensors,
                "whole": planned.total,
                "counted": found[0],
                "resident": found[1],
                "parts": planned.parts,
            }
            print(json.dumps({"method": method, "size": args.size, "moment": planned.name, **values}))
            continue
        cells = [
            f"{plan / MIB:>8.0f}{x / MIB:>{w}.0f}{x / plan:>7.2f}"
            for plan, x, w in zip((planned.tensors, planned.total), found, (9, 10), strict=True)
        ]
        print(f"{method:<14}{''.join(cells)}  {planned.name}")


if __name__ == "__main__":
    main()
