"""Memory that does not suffice: it is foreseen, or told in our words with what to set; a probe leaves no trace."""

import json
import platform
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from algorithms import broad, test_ppo, test_sft, toy
from posttrain.algorithms import ppo, sft
from posttrain.errors import OutOfMemory
from posttrain.train import demand, machine
from posttrain.train.machine import Machine, amount, is_out_of_memory, told

ROOT = Path(__file__).parents[2]


def test_what_torch_and_python_say_is_known():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**55, dtype=torch.uint8)
    assert is_out_of_memory(refused.value) and is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not is_out_of_memory(RuntimeError("shapes disagree")) and not is_out_of_memory(ValueError("out of memory"))


def test_the_words_are_made_only_when_needed_and_once():
    made = []
    with told(lambda: made.append(1) or "never"):
        pass
    with pytest.raises(ValueError, match="other"), told(lambda: made.append(1) or "never"):
        raise ValueError("other")
    assert not made
    with (
        pytest.raises(OutOfMemory, match="^not enough memory. Inner. What was") as error,
        told(lambda: "Outer."),
        told(lambda: "Inner."),
    ):
        raise MemoryError
    assert isinstance(error.value.__cause__, MemoryError) and "(The system said: MemoryError)" in str(error.value)


def test_a_container_has_what_its_limit_leaves(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 50000\nactive_file 20000\n")
    assert machine._limit_of(tmp_path) == (1000000, 370000)
    (tmp_path / "memory.max").write_text("max\n")
    assert machine._limit_of(tmp_path) is None and machine._limit_of(tmp_path / "absent") is None
    here = machine.machine("cpu")
    assert here.name == "RAM" and here.free > 2**20 and here.total > 2**26
    monkeypatch.setattr(machine, "_cgroup_limit", lambda: (here.total // 2, here.total // 4))
    assert machine.machine("cpu").total == here.total // 2 and machine.machine("cpu").free <= here.total // 4


KEEPING = """
import resource, torch
from posttrain.heap import keep_freed
from posttrain.train.machine import machine

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def step():
    rows = [torch.ones(2 * 2**20) for _ in range(16)]  # 128 MiB

torch.ones(2 * 2**20)
keep_freed()
before = resident()
step()
kept = resident() - before
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults, end=" ")
machine("cpu")
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep what was freed")
def test_freed_memory_is_kept_for_the_next_step_and_counts_as_free():
    done = subprocess.run([sys.executable, "-c", KEEPING], capture_output=True, text=True, check=True)
    kept, faults, left = map(int, done.stdout.split())
    pages = 128 * 2**20 // resource.getpagesize()
    assert kept > 120 * 2**20 and faults < pages // 2 and left < 20 * 2**20  # blocks may fall apart and move


def test_bytes_for_people():
    assert [amount(x) for x in (12, 3 * 2**10, 345.4 * 2**20, 2.314 * 2**30, 1001 * 2**30)] == [
        "12 B", "3 KiB", "345 MiB", "2.31 GiB", "1,001 GiB",
    ]  # fmt: skip


# --- before the first step --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", broad.METHODS)
def test_a_run_that_cannot_fit_does_not_begin(method, tmp_path, monkeypatch):
    monkeypatch.setattr(demand, "machine", lambda device: Machine("RAM", 2**25, 2**21))
    cfg = broad.config(method, tmp_path, steps=2)
    with pytest.raises(OutOfMemory) as error:
        broad.run(method, cfg, tmp_path / "run")
    text = str(error.value)
    assert "beside the weights, and of 32 MiB RAM only 2 MiB are free" in text and 'run.probe = "off"' in text
    assert "Set optim.micro_tokens = " in text and ("Set critic_optim.micro_tokens = " in text) == (
        method in ("ppo", "vapo")
    )
    assert json.loads((tmp_path / "run/failed.json").read_text())["error"] == "OutOfMemory"
    broad.run(method, replace(cfg, run=replace(cfg.run, probe="off")), tmp_path / "run")
    assert (tmp_path / "run/result.json").exists()


def test_one_row_cannot_be_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(demand, "machine", lambda device: Machine("RAM", 2**25, 2**10))
    cfg = broad.config("sft", tmp_path, batch_size=1)
    with pytest.raises(OutOfMemory, match="has 1 rows of up to .* tokens, .* in all, and cannot be cut. Shorten rows"):
        broad.run("sft", cfg, tmp_path / "run")


@pytest.mark.parametrize(("module", "cases"), [(sft, test_sft), (ppo, test_ppo)])
def test_a_probe_changes_no_bit(module, cases, tmp_path):
    """Of the weights, and of what the next steps depend on."""
    found = []
    for probe in ("off", "sizes", "step"):
        (tmp_path / probe).mkdir()
        cfg = cases.config(tmp_path / probe, steps=2, run=toy.quiet(probe=probe))
        result, metrics = toy.run(module, cfg, tmp_path / probe / "run")
        files = sorted(path for path in result.checkpoint.rglob("*.safetensors"))
        found.append((metrics, [path.read_bytes() for path in files]))
    assert found[0] == found[1] == found[2]


def test_a_probe_takes_the_largest_micro_batch_and_leaves_nothing(tmp_path, monkeypatch):
    seen = []
    real = sft.Learner.probe

    def probe(self, batch, needs, together):
        state = torch.get_rng_state()
        real(self, batch, needs, together)
        seen.append((batch, needs, torch.equal(state, torch.get_rng_state())))
        assert all(p.grad is None for p in self.parameters) and not self.optimizer.state

    monkeypatch.setattr(sft.Learner, "probe", probe)
    broad.run("sft", broad.config("sft", tmp_path, steps=1, run=toy.quiet(probe="step")), tmp_path / "run")
    ((batch, needs, kept),) = seen
    assert kept and needs == ("logp",) and len(batch) == 40 and int(batch.lengths.max()) == 50


# --- in the middle of a run -------------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, "tests")
from algorithms import broad
from posttrain.cli.main import _told
from posttrain.errors import PosttrainError
from posttrain.train.learner import Learner

folder = Path(sys.argv[1])
cfg = broad.config("sft", folder, steps=4, run=broad.toy.quiet(save_every=1))
real = Learner.step

def step(self, *parts):
    if self.version == 2:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**23, resource.RLIM_INFINITY))
    return real(self, *parts)

Learner.step = step
try:
    broad.run("sft", cfg, folder / "run")
except PosttrainError as error:
    sys.exit(_told(error))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit is set from /proc")
def test_a_step_without_memory_says_so_and_the_run_goes_on_with_smaller_micro_batches(tmp_path):
    """The system itself refuses memory, in the third step of a run in a process of its own."""

    env = {"PATH": "", "OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    said = " ".join(done.stderr.split())
    assert "not enough memory. The largest micro-batch has 40 rows of up to 50 tokens, 2,000 in all" in said
    assert "Set optim.micro_tokens = 1000" in said and "What was checkpointed is intact" in said
    assert json.loads((tmp_path / "run/failed.json").read_text())["step"] == 2
    assert [p.name for p in sorted((tmp_path / "run/checkpoints").iterdir())][-1] == "step-000002"
    cfg = broad.config("sft", tmp_path, steps=4, run=toy.quiet(save_every=1))
    broad.run("sft", replace(cfg, optim=replace(cfg.optim, micro_tokens=1000)), tmp_path / "run")
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 4
    assert "optim.micro_tokens: 16384 → 1000" in (tmp_path / "run/log.txt").read_text()


def test_outside_of_the_learner_the_run_says_it(tmp_path, monkeypatch):
    def evaluate(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(sft, "evaluate", evaluate)
    cfg = test_sft.config(tmp_path, steps=2, eval_every=1)
    cfg = replace(cfg, data=replace(cfg.data, eval_rows=2))
    with pytest.raises(OutOfMemory, match=r"`posttrain plan .*run` shows what needs how much.*\(The system said: no"):
        toy.run(sft, cfg, tmp_path / "run")
    assert json.loads((tmp_path / "run/failed.json").read_text())["error"] == "OutOfMemory"
