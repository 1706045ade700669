"""Every method trains with low-rank adapters: it learns, its reference is the base, and its result is read again."""

import json
import math
import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from algorithms import test_group, test_ppo, test_preference, test_reward_model, test_sft, toy
from algorithms.test_resume import STEPS, WRITING, assert_equal_runs, child  # noqa: F401 - a fixture
from posttrain.algorithms import group, onpolicy, policy_step, ppo, preference, reference, reward_model, sft
from posttrain.cli.export import lineage
from posttrain.cli.main import main
from posttrain.errors import ConfigError, ModelError
from posttrain.evals.run import answer
from posttrain.models import load as loading
from posttrain.models.heads import ScalarModel
from posttrain.models.hf_format import hf_name, load_folder, read_weights, save_folder
from posttrain.models.load import load
from posttrain.models.lora import Lora, adapted, add_adapters
from posttrain.models.tokenizers import Tokenizer
from posttrain.objectives.preference import PreferenceLoss
from posttrain.records import Message, Stop, Task
from posttrain.sample.torch import TorchSampler
from posttrain.train.learner import Learner, Optim, outputs
from posttrain.train.run import Run

LORA = Lora(rank=4, alpha=8)


def base(folder: Path, seed: int = 0, sharp: float = 2.0, *, newborn: bool = False) -> str:
    """A random model; the larger its last norm, which stays as it is, the surer of itself it can become.

    newborn: it cannot tell the marks of templates apart.
    """
    model = load_folder(Path(toy.model(folder / "model", seed)))
    with torch.no_grad():
        model.norm.weight *= sharp
        if newborn:
            model.embed_tokens.weight[1 : len(toy.MARKS)] = model.embed_tokens.weight[1]
    save_folder(model, folder / "base", tokenizer=toy.tokenizer())
    return str(folder / "base")


def config(method, folder: Path, seed: int = 0, **changes):
    """A small run of a method with adapters."""
    make = {sft: test_sft, reward_model: test_reward_model, preference: test_preference,
            group: test_group, ppo: test_ppo}[method].config  # fmt: skip
    start = base(folder, seed, sharp=6.0, newborn=True) if method is sft else base(folder, seed)
    return replace(make(folder, seed), **{"model": start, "lora": LORA} | changes)


def checks(folder: Path) -> dict[str, dict]:
    """The last entry of each check of a run."""
    return {line["check"]: line for line in toy.lines(folder / "invariants.jsonl")}


# --- learning ------------------------------------------------------------------------------------------------------


def likelihood(seed: int, folder: Path) -> float:
    """-nll per token of the last step."""
    return -toy.run(sft, config(sft, folder, seed, optim=Optim(lr=2e-2)), folder / "run")[1][-1]["nll"]


# Ten seeds of `cd tests && python -m algorithms.test_adapters`: mean -0.0071, std 0.0120, mean - 3 std = -0.0431.
THRESHOLD = -0.0431


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_eight_examples_are_learned_by_heart_by_adapters_alone(tmp_path, seed):
    cfg = config(sft, tmp_path, seed, optim=Optim(lr=2e-2))
    result, metrics = toy.run(sft, cfg, tmp_path / "run")
    assert metrics[0]["nll"] > 2.5 and -metrics[-1]["nll"] > THRESHOLD
    loaded = load(tmp_path / "run")
    assert loaded.folder == result.model and loaded.stop_ids
    tasks = [Task(str(i), (Message("user", row["prompt"]),)) for i, row in enumerate(test_sft.eight(seed))]
    said = [g.members[0] for g in answer(TorchSampler(loaded.model), tasks, loaded, max_tokens=8)]
    assert [m.completion.strip() for m in said] == [row["completion"] for row in test_sft.eight(seed)]
    assert all(m.stop is Stop.END for m in said)
    found = checks(tmp_path / "run")
    assert found["weights_changed"]["value"].startswith("3 of 4 blocks changed")  # not the last norm
    assert found["blocks_moved"]["ok"] and found["blocks_moved"]["value"].count("%") == 3
    now = {hf_name(n): p for n, p in loaded.model.named_parameters()}
    for name, then in read_weights(Path(cfg.model)).items():
        same = (now[name] == then).all(-1)
        assert same.all() == ("_proj" not in name and "embed" not in name), name
        if "embed" in name:
            assert same.tolist() == [not 0 < i < len(toy.MARKS) for i in range(len(same))]


def test_a_mark_like_others_is_never_learned_unless_its_row_is_trained(tmp_path):
    """Six tokens share what the stop token gets, so its probability stays below a sixth."""
    cfg = config(sft, tmp_path, optim=Optim(lr=2e-2), lora=replace(LORA, tokens="none"))
    result, metrics = toy.run(sft, cfg, tmp_path / "run")
    assert metrics[-1]["nll"] > math.log(6) / 5  # one of five tokens
    assert list(load_file(result.checkpoint / "adapter_model.safetensors"))[0].startswith(
        "base_model.model.model.layers"
    )


def test_what_is_kept_is_small(tmp_path):
    cfg = config(sft, tmp_path, steps=2, lora=Lora(rank=2, targets=("q_proj", "v_proj")))
    result, _ = toy.run(sft, cfg, tmp_path / "run")
    trained = 2 * 2 * ((32 + 32) + (32 + 16)) + 6 * 32  # two layers of rank 2: q 32 -> 32, v 32 -> 16; six rows
    state = torch.load(result.checkpoint / "optimizer.pt")["optimizer"]["state"]
    assert sum(s["exp_avg"].numel() for s in state.values()) == trained
    assert (result.checkpoint / "adapter_model.safetensors").stat().st_size < 4 * trained + 2048
    names = {p.name for p in result.checkpoint.iterdir()}
    assert {"adapter_config.json", "tokenizer.json", "chat_template.jinja"} < names
    assert not names & {"model.safetensors", "config.json"}


def test_a_misspelt_target_stops_before_the_first_step(tmp_path):
    with pytest.raises(ConfigError, match='lora.targets: "q_prj" names no linear layer .* Did you mean "q_proj"'):
        toy.run(sft, config(sft, tmp_path, lora=Lora(rank=2, targets=("q_prj",))), tmp_path / "run")


def test_preference_starts_at_the_reference_and_learns(tmp_path):
    cfg = config(preference, tmp_path, eval_every=20, optim=Optim(lr=1e-2))
    _, metrics = toy.run(preference, cfg, tmp_path / "run")
    assert metrics[0]["margin"] == 0
    assert metrics[-1]["eval_accuracy"] > test_preference.LOWEST


def test_the_logps_of_pairs_under_the_reference_are_the_bases(tmp_path, monkeypatch):
    seen = {}
    real = reference.reference_logps

    def watched(model, rows, micro):
        seen["ours"] = real(model, rows, micro)
        seen["bare"] = real(load_folder(Path(cfg.model)), rows, micro)
        return seen["ours"]

    monkeypatch.setattr(reference, "reference_logps", watched)
    cfg = config(preference, tmp_path, steps=4, run=toy.quiet(save_every=2), loss=PreferenceLoss())
    toy.run(preference, cfg, tmp_path / "run")
    for index, sides in seen["ours"].items():
        assert all(torch.equal(x, y) for x, y in zip(sides, seen["bare"][index], strict=True))


@pytest.mark.parametrize(("method", "lr"), [(group, 2e-2), (ppo, 5e-3)], ids=["group", "ppo"])
def test_the_policys_reference_is_the_base_without_a_second_copy(tmp_path, monkeypatch, method, lr):
    """While the reward rises, the KL to the base is measured; the reference says what the base says, bit for bit."""
    references, batches = [], []
    real_start, real_logps = loading.frozen_start, policy_step.with_logps

    def start(model):
        references.append((model, real_start(model)))
        return references[-1][1]

    def logps(batch, policy, reference, *, old):
        found = real_logps(batch, policy, reference, old=old)
        batches.append((batch, found.ref_logp))
        return found

    monkeypatch.setattr(onpolicy, "frozen_start", start)
    monkeypatch.setattr(policy_step if method is group else ppo, "with_logps", logps)
    monkeypatch.setattr(loading, "frozen_copy", lambda model: pytest.fail("a second copy was made"))
    cfg = config(method, tmp_path, seed=1, steps=10, optim=Optim(lr=lr))
    if method is group:
        objective = replace(cfg.objective, kl=replace(cfg.objective.kl, where="loss", estimator="k3", beta=0.01))
        cfg = replace(cfg, objective=objective)
    _, metrics = toy.run(method, cfg, tmp_path / "run")
    assert metrics[-1]["reward_mean"] > metrics[0]["reward_mean"] + 0.1
    ((model, reference),) = references
    own = {p.data_ptr() for n, p in reference.named_parameters()}
    assert own < {p.data_ptr() for p in model.parameters()}
    bare = load_folder(Path(cfg.model))
    for batch, said in batches:
        assert torch.equal(said, outputs(bare, batch, ("logp",), cfg.optim.micro_tokens).logp)
    found = checks(tmp_path / "run")
    assert found["sampler_agrees_with_learner"]["ok"] and found["blocks_moved"]["ok"]


def test_a_reward_model_keeps_its_head_beside_the_adapters(tmp_path):
    cfg = config(reward_model, tmp_path, optim=Optim(lr=1e-2))
    result, metrics = toy.run(reward_model, cfg, tmp_path / "run")
    assert metrics[-1]["eval_accuracy"] > 0.6
    again = load(result.model).model
    assert isinstance(again, ScalarModel) and again.score.weight.any()
    assert checks(tmp_path / "run")["blocks_moved"]["value"].count("%") == 2  # the head has no former weights
    next_, _ = toy.run(reward_model, replace(cfg, model=str(tmp_path / "run"), steps=1, eval_every=0), tmp_path / "on")
    assert "score" in checks(tmp_path / "on")["blocks_moved"]["value"]
    again = load(next_.model).model
    critic = ppo.make_critic(test_ppo.config(tmp_path, critic=str(tmp_path / "on")))
    assert isinstance(critic, ScalarModel) and torch.equal(critic.score.weight, again.score.weight)


# --- resuming ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sft", "group"])
def test_killed_and_resumed_is_as_never_killed(tmp_path, child, name):  # noqa: F811
    """Once while a checkpoint is written, and once at any moment at all."""
    method = {"sft": sft, "group": group}[name]
    cfg = config(method, tmp_path, steps=STEPS, optim=Optim(lr=1e-2, weight_decay=0.1))
    cfg = replace(cfg, run=replace(toy.quiet(3), save_every=3, samples=3))
    if name == "sft":
        cfg = replace(cfg, batch_size=4)
    assert child(name, cfg, tmp_path / "whole", None) == 0
    moments = json.loads((tmp_path / "whole.moments").read_text())
    luck = random.Random(name)
    first = luck.choice([i for i, what in enumerate(moments, 1) if what in WRITING])
    assert child(name, cfg, tmp_path / "broken", first) == -signal.SIGKILL
    assert child(name, cfg, tmp_path / "broken", luck.randint(1, len(moments) // 3)) in (-signal.SIGKILL, 0)
    assert child(name, cfg, tmp_path / "broken", None) == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "broken")


def test_another_rank_is_another_run(tmp_path):
    cfg = config(sft, tmp_path, steps=1)
    toy.run(sft, cfg, tmp_path / "run")
    with pytest.raises(ConfigError, match="lora.rank: 4 → 8"):
        Run.open(tmp_path / "run", replace(cfg, lora=Lora(rank=8, alpha=8)))


@pytest.mark.parametrize("micro", [None, 20])
def test_any_split_gives_the_same_gradient(tmp_path, micro):
    """In float64, to rounding: the whole step at once against micro-batches."""
    from train.test_learner import batch, policy

    from posttrain.train.learner import Part

    def gradient(micro_tokens):
        torch.manual_seed(0)
        model = load_folder(Path(base(tmp_path))).double()
        model = add_adapters(model, LORA, base="", seed=0)
        for _, layer in adapted(model):
            torch.nn.init.normal_(layer.lora_B)
        learner = Learner(model, Optim(lr=1e-3, micro_tokens=micro_tokens, max_grad_norm=0), 1)
        b = batch()
        learner.step(Part(b.with_(tokens=b.tokens % 24), policy))
        return torch.cat([p.grad.flatten() for p in learner.parameters])

    whole = gradient(None)
    assert (gradient(micro) - whole).norm() < 1e-10 * whole.norm()


# --- what comes after ----------------------------------------------------------------------------------------------


def test_a_run_on_the_result_of_a_run(tmp_path):
    """SFT with adapters, then DPO with new ones that begin at zero, then SFT of all weights: each from the last."""
    toy.run(sft, config(sft, tmp_path, steps=3), tmp_path / "one")
    cfg = config(preference, tmp_path, steps=2, eval_every=0)
    second, metrics = toy.run(preference, replace(cfg, model=str(tmp_path / "one")), tmp_path / "two")
    assert metrics[0]["margin"] == 0
    named = json.loads((second.model / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(load(tmp_path / "one").folder.resolve())
    full = replace(test_sft.config(tmp_path, steps=2), model=str(tmp_path / "two"), template="auto")
    third, _ = toy.run(sft, full, tmp_path / "three")
    assert (third.model / "model.safetensors").is_file()
    assert checks(tmp_path / "three")["blocks_moved"]["ok"]
    stages, start = lineage("three", third.model)
    assert [s.method for s in stages] == ["sft", "preference", "sft"] and start == cfg.model


def test_export_merges_and_the_other_verbs_take_an_adapter_run(tmp_path, capsys):
    result, _ = toy.run(sft, config(sft, tmp_path, steps=3), tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "merged")]) == 0
    merged, ours = load_folder(tmp_path / "merged"), load(tmp_path / "run")
    assert all(torch.equal(p, q) for p, q in zip(merged.parameters(), ours.model.parameters(), strict=True))
    assert load(tmp_path / "merged").stop_ids == ours.stop_ids
    assert main(["sample", str(tmp_path / "run"), "--prompt", "a", "--max-tokens", "4"]) == 0
    tasks = toy.rows(tmp_path / "tasks.jsonl", [{"prompt": "a", "answer": "b"}])
    assert main(["eval", str(tmp_path / "run"), "--data", tasks, "--reward", "exact_match"]) == 0
    assert main(["export", str(result.model), str(tmp_path / "again")]) == 0


def test_adapters_from_elsewhere_without_a_tokenizer_use_their_bases(tmp_path):
    result, _ = toy.run(sft, config(sft, tmp_path, steps=1), tmp_path / "run")
    (tmp_path / "base" / "generation_config.json").write_text('{"eos_token_id": [5, 0]}')
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (bare / name).write_bytes((result.model / name).read_bytes())
    loaded = load(bare, template="posttrain")
    assert loaded.tokenizer.chat_template is None and loaded.tokenizer.stop_ids == (5, 0)
    Tokenizer.load(result.model).save(bare)  # as PEFT's users do: a tokenizer, but no generation_config.json
    assert load(bare).chosen is not None and load(bare).tokenizer.stop_ids == (5, 0)
    assert lineage(str(bare), bare) == ([], str(tmp_path / "base"))


def test_a_base_that_is_gone_is_named(tmp_path):
    cfg = config(sft, tmp_path, steps=1)
    toy.run(sft, cfg, tmp_path / "run")
    Path(cfg.model).rename(tmp_path / "moved")
    with pytest.raises(ModelError, match=r'holds adapters of ".*base", which cannot be found.*base_model_name_or_path'):
        load(tmp_path / "run")


def test_options_on_the_command_line(capsys, tmp_path):
    assert main(["train", "sft", "--help"]) == 0
    said = capsys.readouterr().out
    for flag in ("--lora.rank  ", "--lora.alpha  ", "--lora.targets  ", "--lora.rslora  "):
        assert flag in said
    assert main(["train", "ppo", "--dry-run", "--lora.rank", "16", "--lora.targets", "q_proj,v_proj"]) == 0
    said = capsys.readouterr().out
    assert "rank = 16" in said and 'targets = ["q_proj", "v_proj"]' in said
    assert main(["train", "sft", "--lora.rank", "-1"]) == 2
    assert "lora.rank = -1 cannot be negative" in capsys.readouterr().err


if __name__ == "__main__":
    toy.record(likelihood=likelihood)
