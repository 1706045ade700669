"""No tensor ever holds a number for every token and every word: not in a step of any loop, and not while sampling."""

from dataclasses import replace

import pytest
import torch

from algorithms import broad
from algorithms.counting import Widest
from posttrain.models.decoder import Decoder, ModelConfig
from posttrain.models.lora import Lora
from posttrain.objectives.preference import PreferenceLoss
from posttrain.objectives.presets import PRESETS
from posttrain.objectives.tokens import token_logprobs
from posttrain.sample.base import SamplingParams
from posttrain.sample.torch import TorchSampler
from posttrain.train.memory import CHUNK

GRPO = PRESETS["grpo"]
CASES = {
    "sft": ("sft", {}),
    "sft, adapters": ("sft", {"lora": Lora(rank=4)}),
    "reward model": ("reward_model", {}),
    "dpo": ("preference", {}),
    "wpo, which takes sums of squares": ("preference", {"loss": PreferenceLoss(name="wpo")}),
    "aot, which couples pairs": ("preference", {"loss": PreferenceLoss(name="aot")}),
    "dpo and the likelihood of chosen answers": ("preference", {"loss": PreferenceLoss(nll=0.1)}),
    "grpo, leashed in the loss": ("group", {"objective": replace(GRPO, kl=replace(GRPO.kl, where="loss", beta=0.1))}),
    "a bonus for entropy": ("group", {"objective": replace(GRPO, entropy=replace(GRPO.entropy, weight=0.01))}),
    "tokens chosen over the step by entropy": ("group", {"objective": PRESETS["high_entropy"]}),
    "ppo": ("ppo", {}),
    "vapo, whose right answers are a second term": ("vapo", {"steps": 2, "right": 0.0}),
}


@pytest.mark.parametrize("case", CASES)
def test_training_never_holds_all_logits(case, tmp_path):
    """More tokens are learned in the one micro-batch than a chunk has rows."""
    method, changes = CASES[case]
    cfg = broad.config(method, tmp_path, **{"steps": 1, "eval_every": 1} | changes)
    cfg = replace(cfg, data=replace(cfg.data, eval_rows=40))
    with Widest(broad.VOCAB, broad.HIDDEN) as widest:
        broad.run(method, cfg, tmp_path / "run")
    assert widest.rows == (0 if method == "reward_model" else CHUNK)


def test_the_watch_sees_what_it_is_for():
    shape = ModelConfig(vocab_size=broad.VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                        num_attention_heads=1, num_key_value_heads=1, head_dim=16)  # fmt: skip
    model = Decoder(shape).initialise(0)
    tokens = torch.arange(3 * 400).view(3, 400) % broad.VOCAB
    with Widest(broad.VOCAB, 16) as widest:
        token_logprobs(model.logits(model(tokens)), tokens).sum().backward()
    assert widest.rows == 3 * 400 and widest.seen > 4


@pytest.mark.parametrize("params", [{}, {"top_p": 0.9, "top_k": 50}, {"temperature": 0.0}])
@pytest.mark.parametrize("prompts", [[[1, 2, 3, 4, 5]] * 30, [[i % 50 + 1] * (5 + i % 7) for i in range(30)]])
def test_sampling_holds_logits_of_one_token_per_slot(prompts, params):
    """In the pass over prompts, which may be of a group, and in decoding."""
    shape = ModelConfig(vocab_size=broad.VOCAB, hidden_size=64, intermediate_size=80, num_hidden_layers=2,
                        num_attention_heads=4, num_key_value_heads=2, head_dim=16)  # fmt: skip
    sampler = TorchSampler(Decoder(shape).initialise(0), slots=8)
    with Widest(broad.VOCAB, 64) as widest:
        sampler.generate(prompts, SamplingParams(max_tokens=12, **params), range(30))
    assert widest.rows == 8
