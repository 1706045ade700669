"""What processes do together: shares, padding, one error said once, one run folder, stopping, dying, resuming."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from algorithms import test_group, test_sft, toy
from safetensors.torch import load_file

from posttrain import config as configs
from posttrain import dist
from posttrain.algorithms import sft
from posttrain.batch import TokenBatch, collate, weigh
from posttrain.cli.main import main
from posttrain.errors import DataError, InvariantError, NonFiniteError
from posttrain.models.decoder import Decoder, ModelConfig
from posttrain.models.load import frozen_copy, load
from posttrain.objectives.average import Average
from posttrain.records import Segment
from posttrain.sample.torch import TorchSampler
from posttrain.scale import shared
from posttrain.train.learner import Learner, Optim, Part, Term, outputs
from posttrain.train.run import RunConfig
from scale import processes

CFG = ModelConfig(
    vocab_size=13, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=4, initializer_range=0.3,
)  # fmt: skip
LIMIT = 30
"""Seconds to wait for a process to get somewhere."""


def rows(lengths, silent=()) -> TokenBatch:
    """Rows of these lengths; nothing is learned of the silent ones."""
    draw = torch.Generator().manual_seed(0)
    segments = [
        Segment(
            tuple(torch.randint(CFG.vocab_size, (n,), generator=draw).tolist()), (False, *[i not in silent] * (n - 1))
        )
        for i, n in enumerate(lengths)
    ]
    return weigh(collate(segments), Average("token"))


# --- shares --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 3, 8])
@pytest.mark.parametrize("micro", [None, 1, 20])
@pytest.mark.parametrize("together", ["row", "group"])
def test_every_row_counts_in_one_process(monkeypatch, world, micro, together):
    batch = rows([3, 9, 4, 4, 12, 2, 7, 5]).with_(group=torch.tensor([0, 0, 1, 2, 2, 2, 3, 4]))
    cut = []
    for rank in range(world):
        monkeypatch.setattr(dist, "_place", (rank, world))
        cut.append(batch.pieces(micro, together))
    assert len(set(map(len, cut))) == 1  # as many backward passes in each
    counted = [r for pieces in cut for piece, counts in pieces if counts for r in piece.tolist()]
    assert sorted(counted) == list(range(8))
    assert all(len(piece) for pieces in cut for piece, _ in pieces)
    if together == "group":
        for g in range(5):
            homes = {i for i, pieces in enumerate(cut) for p, c in pieces if c and (batch.group[p] == g).any()}
            assert len(homes) == 1


def test_shares_are_about_equal_and_keep_groups_where_there_are_enough():
    draw = torch.Generator().manual_seed(0)
    batch = rows(torch.randint(4, 40, (96,), generator=draw).tolist())
    load = [int(batch.lengths[share].sum()) for share in batch.shares(4)]
    assert max(load) - min(load) <= 8
    grouped = batch.with_(group=torch.arange(96) // 8)
    homes = [set(grouped.group[share].tolist()) for share in grouped.shares(4)]
    assert sum(map(len, homes)) == 12
    one = batch.with_(group=torch.zeros(96, dtype=torch.long))
    assert all(len(share) for share in one.shares(4))


# --- in two processes ----------------------------------------------------------------------------------------------


def learn(out, b):
    return [Term("nll", -out.logp * b.mask, b.weights["token"])], {"tokens": (b.mask.sum(), 1)}


def sort(out, b):
    """Couples all rows of a step."""
    sums = (out.logp * b.mask).sum(1)
    target = torch.linspace(-9, -1, len(sums), dtype=sums.dtype)
    return [Term("sorted", (sums.sort().values - target) ** 2, torch.full_like(sums, 1 / len(sums)))], {}


def slopes(model: torch.nn.Module, batch: TokenBatch, loss=learn) -> tuple[torch.Tensor, dict]:
    learner = Learner(model, Optim(max_grad_norm=0, micro_tokens=12), total=1)
    found = learner.step(Part(batch, loss, coupled=loss is sort))
    return torch.cat([dist.whole(p.grad).flatten() for p in learner.model.parameters()]), found


def in_each() -> None:
    """Everything that needs two processes and no run; the oracle is the same learner, apart."""
    with dist.joined():
        mine = dist.rank()
        assert dist.world() == 2 and dist.gather(mine) == [0, 1] and dist.all_max(mine) == 1
        assert torch.equal(dist.all_sum(torch.tensor([1.0, mine])), torch.tensor([2.0, 1.0]))
        _spread(mine)
        with pytest.raises(InvariantError, match="2 processes hold different rows"):
            slopes(Decoder(CFG).initialise(0), rows([4 + mine, 5, 6]))
        for batch in (rows([7]), rows([5, 6, 9], silent=[2]), rows([9, 3, 3, 2, 8], silent=[0, 4])):
            _same_as_apart(batch)
        _broken_in_one()
        _copies()
        _messages()
        _norms()
        if sys.platform == "linux":
            _without_shared_memory()


def _spread(mine: int) -> None:
    worlds = []

    def work(share):
        worlds.append(dist.world())
        return [(x * x, mine) for x in share]

    assert dist.spread(range(5), work) == [(0, 0), (1, 1), (4, 0), (9, 1), (16, 0)]
    assert dist.spread([7], work) == [(49, 0)] and dist.spread([], work) == [] and set(worlds) == {1}

    def fails(share):
        raise DataError(f"not in process {mine}") if mine else ZeroDivisionError

    with pytest.raises(DataError, match="not in process 1"):
        dist.spread(range(4), lambda share: fails(share) if mine else share)
    with pytest.raises(DataError, match="only the first"):
        dist.first(lambda: (_ for _ in ()).throw(DataError("only the first")))
    assert dist.first(lambda: mine) == 0


def _same_as_apart(batch: TokenBatch) -> None:
    """One row for two processes; rows in which nothing is learned; more micro-batches in one than in the other."""
    for loss in (learn, sort):
        with dist.apart():
            want, said = slopes(Decoder(CFG).initialise(0).double(), batch, loss)
        got, found = slopes(Decoder(CFG).initialise(0).double(), batch, loss)
        assert (got - want).norm() <= 1e-10 * want.norm() > 0
        assert found["loss"][0] == pytest.approx(said["loss"][0])
        assert loss is sort or found["tokens"][0] == batch.mask.sum()
    with dist.apart():
        logp = outputs(Decoder(CFG).initialise(0).double(), batch, ("logp",), 12).logp
    learner = Learner(Decoder(CFG).initialise(0).double(), Optim(micro_tokens=12), total=1)
    assert torch.allclose(learner.outputs(batch).logp, logp, atol=1e-12)
    assert all(hasattr(p, "full_tensor") for p in learner.model.parameters())  # nothing is left gathered


def _broken_in_one() -> None:
    """A loss that is not finite in the rows of one process stops both before the weights are touched."""

    def loss(out, b):
        value = torch.where((b.lengths == 9)[:, None], torch.nan, -out.logp)
        return [Term("nll", value, b.weights["token"])], {}

    model = Decoder(CFG).initialise(0)
    with pytest.raises(NonFiniteError, match='"nll" is nan at row 2'):
        slopes(model, rows([5, 6, 9, 4]), loss)
    start = Decoder(CFG).initialise(0).parameters()
    assert all(torch.equal(dist.whole(p), q) for p, q in zip(model.parameters(), start, strict=True))


def _copies() -> None:
    """References and samplers hold all weights; a sampler's copy moves with the learner, a reference does not."""
    model = Decoder(CFG).initialise(0)
    learner = Learner(model, Optim(lr=1e-2, precision="bfloat16"), total=1)
    reference, sampler = frozen_copy(model), TorchSampler(model)
    assert reference.products is sampler.model.products is model.products is torch.bfloat16
    learner.step(Part(rows([5, 6, 9, 4]), learn))
    sampler.update(learner)
    start = list(Decoder(CFG).initialise(0).parameters())
    assert all(torch.equal(p, q) for p, q in zip(reference.parameters(), start, strict=True))
    for p, q in zip(sampler.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(p, dist.whole(q))
    assert not all(torch.equal(p, q) for p, q in zip(sampler.model.parameters(), start, strict=True))
    with pytest.raises(InvariantError, match="another module"):
        sampler.update(Learner(Decoder(CFG), Optim(), total=1))


def _messages() -> None:
    """What FSDP2 sends through shared memory arrives as gloo would bring it, in growing sizes and one after another."""
    memory = shared.shared()
    if memory is None:
        assert sys.platform != "linux"
        return
    mine, group = dist.rank(), torch.distributed.group.WORLD
    gather, scatter = shared.AllGather(memory), shared.ReduceScatter(memory)
    for n in (3, 5, 4000, 7):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            x = torch.randn(2 * n, generator=torch.Generator().manual_seed(mine)).to(dtype)
            found = gather.allocate((2 * n,), dtype=dtype, device=x.device)
            share = found[mine * n : (mine + 1) * n].copy_(x[:n])
            gather(found, share, group)
            want = torch.empty_like(x)
            torch.distributed.all_gather_into_tensor(want, x[:n].contiguous())
            assert torch.equal(found, want)
            total = scatter.allocate((n,), dtype=dtype, device=x.device)
            scatter(total, x, group, torch.distributed.ReduceOp.SUM)
            assert torch.equal(total, dist.all_sum(x.clone())[mine * n : (mine + 1) * n])


def _norms() -> None:
    """The gradient's norm, and gradients clipped to a smaller one, as apart; with weights that fill one shard only."""
    clipped = []
    for alone in (True, False):
        with dist.apart() if alone else contextlib.nullcontext():
            model = Decoder(replace(CFG, num_hidden_layers=1)).initialise(0).double()
            model.register_parameter("one", torch.nn.Parameter(torch.ones(1).double()))
            learner = Learner(model, Optim(max_grad_norm=0.01), total=1)
            norm = learner.step(Part(rows([5, 6, 9, 4]), learn))["grad_norm"][0]
            gradients = [dist.whole(p.grad).flatten() for p in learner.parameters if p.grad is not None]
            clipped.append((norm, float(torch.cat(gradients).norm())))
    assert clipped[0] == pytest.approx(clipped[1]) and clipped[0][1] == pytest.approx(0.01, rel=1e-3)


def _without_shared_memory() -> None:
    """Where a system does not let one process see another's memory, gloo carries the messages: the same step."""
    with pytest.MonkeyPatch.context() as patch:
        if dist.rank() == 1:
            patch.setattr(os, "readlink", lambda path: "another file")
        assert shared.shared() is None
        _same_as_apart(rows([5, 6, 9]))
    assert shared.shared()


def test_what_two_processes_do_together(tmp_path):
    codes = processes.run(2, in_each, log=tmp_path / "log")
    assert codes == [0, 0], processes.written(tmp_path / "log", codes.index(1) if 1 in codes else 0)


# --- runs ----------------------------------------------------------------------------------------------------------


def command(folder: Path, cfg, *more: str) -> list[str]:
    """The words of `posttrain train` for this config."""
    (folder / "asked.toml").write_text(configs.to_toml(cfg))
    method = type(cfg).__module__.rpartition(".")[2]
    return ["train", method, "--config", str(folder / "asked.toml"), "--out", str(folder / "run"), *more]


def cli(words: list[str]) -> None:
    sys.exit(main(words))


def waiting(folder: Path, started: list) -> None:
    """Until some steps are logged."""
    end = time.monotonic() + LIMIT
    while not (folder / "metrics.jsonl").exists() or len(toy.lines(folder / "metrics.jsonl")) < 3:
        assert time.monotonic() < end and all(p.is_alive() for p in started)
        time.sleep(0.02)


@pytest.fixture
def endless(tmp_path) -> list[str]:
    cfg = test_sft.config(tmp_path, steps=100_000, run=RunConfig(threads=1, save_every=100_000))
    return command(tmp_path, cfg)


def test_a_signal_to_one_stops_all_after_a_checkpoint(tmp_path, endless):
    started = processes.start(2, cli, endless, log=tmp_path / "log")
    waiting(tmp_path / "run", started)
    os.kill(started[1].pid, signal.SIGTERM)
    assert processes.codes(started) == [130, 130]
    assert "stopped with another process after step" in processes.written(tmp_path / "log", 0)
    assert len(list((tmp_path / "run/checkpoints").glob("step-??????"))) == 1
    assert not (tmp_path / "run/failed.json").exists()


def test_a_death_ends_the_others_with_a_reason(tmp_path, endless):
    started = processes.start(2, cli, endless, log=tmp_path / "log")
    waiting(tmp_path / "run", started)
    os.kill(started[1].pid, signal.SIGKILL)
    assert processes.codes(started) == [1, -signal.SIGKILL]
    said = processes.written(tmp_path / "log", 0)
    assert "another process of this run has ended" in said and "same command continues" in said
    assert "Traceback" not in said
    assert json.loads((tmp_path / "run/failed.json").read_text())["error"] == "RunError"


def test_an_error_is_said_once(tmp_path):
    cfg = test_group.config(tmp_path, reward="nothing")
    assert processes.run(2, cli, command(tmp_path, cfg), log=tmp_path / "log") == [1, 1]
    assert "answers could not be scored" in processes.written(tmp_path / "log", 0)
    assert processes.written(tmp_path / "log", 1) == ""


def test_a_run_of_two_is_an_ordinary_folder_and_goes_on_with_one_or_two(tmp_path):
    run = RunConfig(threads=1, save_every=2, keep=9)
    cfg = test_sft.config(tmp_path, steps=6, batch_size=5, run=run, optim=Optim(lr=3e-3, weight_decay=0.1))
    assert processes.run(2, cli, command(tmp_path, cfg), log=tmp_path / "log") == [0, 0]
    whole = tmp_path / "run"
    assert "process" not in processes.written(tmp_path / "log", 0) and processes.written(tmp_path / "log", 1) == ""
    assert json.loads((whole / "meta.json").read_text())["sessions"][0]["processes"] == 2
    _opens_elsewhere(whole / "checkpoints/step-000006")

    for n in (1, 2):
        back = tmp_path / f"on-{n}"
        shutil.copytree(whole, back / "run")
        shutil.rmtree(back / "run/checkpoints/step-000006")
        (back / "run/result.json").unlink()
        assert processes.run(n, cli, command(back, cfg), log=back / "log") == [0] * n
        assert "resumed from step-000004" in processes.written(back / "log", 0)
        a, b = (load_file(f / "checkpoints/step-000006/model.safetensors") for f in (whole, back / "run"))
        if n == 2:
            assert all(torch.equal(a[name], b[name]) for name in a)
            assert (whole / "metrics.jsonl").read_bytes() == (back / "run/metrics.jsonl").read_bytes()
            moments = [torch.load(f / "checkpoints/step-000006/optimizer.pt") for f in (whole, back / "run")]
            torch.testing.assert_close(*moments, rtol=0, atol=0)
        else:
            # a forgotten moment would show as a change of the size of a step, 3e-3
            assert max((a[name] - b[name]).abs().max() for name in a) < 1e-4


def _opens_elsewhere(folder: Path) -> None:
    """In one process here, and in transformers."""
    transformers = pytest.importorskip("transformers")
    mine, theirs = load(folder).model, transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.arange(8, 20)[None]
    assert torch.allclose(mine.logits(mine(tokens)), theirs(tokens).logits, atol=1e-5)


@pytest.mark.slow
def test_torchrun_trains(tmp_path):
    cfg = test_sft.config(tmp_path, steps=3)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*torchrun, "-m", "posttrain", *command(tmp_path, cfg)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=processes.PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 steps") == 1
    alone = toy.run(sft, replace(cfg), tmp_path / "alone")[1]
    for a, b in zip(alone, toy.lines(tmp_path / "run/metrics.jsonl"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
