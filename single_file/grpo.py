"""GRPO in one file: sample a group of answers to each prompt, grade them, reinforce those that beat their group.

Shao et al. 2024 (arXiv 2402.03300), Algorithm 1, with one round and a fixed reference:

    for every step
        take P prompts and sample G answers to each from the policy                                  sample
        reward = 1 where the answer is right, else 0                                                 verify
        A = (reward - mean of its group) / (standard deviation of its group)                         group_advantage
        old_logp, ref_logp = what the policy, as it is now, and the reference say of every token     token_logprobs
        for every minibatch of groups, one optimizer step down                                       update
            L = mean over answers of the mean over their tokens of                                   grpo_loss
                -min(ρ A, clip(ρ, 1-ε, 1+ε) A) + β (e^u - u - 1),   ρ = π/π_old,   u = log π_ref/π

There is no critic: the other answers to the same prompt are the baseline. The toy: put letters in order. The policy has
seen so few demonstrations that it is mostly wrong; from there it learns from "right" and "wrong" alone.

    python single_file/grpo.py [--steps N] [--seed S]        about 15 seconds on one core

`model` is anything that maps ids [N, T] to logits [N, T, V] without looking ahead, such as
`lambda ids: hf_model(ids).logits`; nothing else of it is used. Every per-token array is [N, T] and entry t is about
token t. Four log-probabilities must not be confused: sampled_logp (the sampler's, when it chose the token), old_logp
(the policy's when the step began), logp (the policy's now) and ref_logp (the frozen reference's). mask is true where
the policy chose the token.
"""

import argparse
import copy
import itertools
import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# --- the algorithm ---------------------------------------------------------------------------------------------------


def token_logprobs(model, ids: Tensor) -> Tensor:
    """log π(token t | the tokens before it), [N, T]: logits at t-1 predict token t, and nothing predicts token 0."""
    logp = model(ids)[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    return F.pad(logp, (1, 0))


@torch.no_grad()
def sample(model, prompts: list[list[int]], max_new: int) -> tuple[Tensor, Tensor, Tensor]:
    """Continue each prompt until END or max_new tokens. Returns ids, mask and sampled_logp, all [N, T].

    Each row grows at its own end; padding stays on the right, where a causal model does not see it. A whole forward
    pass per token is slow and plain: a cache of keys and values gives the same numbers sooner.
    """
    length = torch.tensor([len(p) for p in prompts])
    ids = nn.utils.rnn.pad_sequence([torch.tensor(p) for p in prompts], batch_first=True, padding_value=PAD)
    ids = F.pad(ids, (0, max_new), value=PAD)
    mask, sampled_logp = torch.zeros(ids.shape, dtype=torch.bool), torch.zeros(ids.shape)
    live = torch.arange(len(prompts))
    for _ in range(max_new):
        logits = model(ids[live, : length[live].max()])
        logp = logits[torch.arange(len(live)), length[live] - 1].log_softmax(-1)
        token = torch.multinomial(logp.exp(), 1)
        end = live, length[live]
        ids[end], mask[end], sampled_logp[end] = token[:, 0], True, logp.gather(1, token)[:, 0]
        length[live] += 1
        live = live[token[:, 0] != END]
        if len(live) == 0:
            break
    return ids, mask, sampled_logp


def descend(loss: Tensor, optimizer) -> float:
    """One optimizer step down, the gradient scaled to a norm of at most 1. Returns the norm before that."""
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    return norm.item()


def group_advantage(reward: Tensor) -> Tensor:
    """[P, G] -> [P, G]. A group whose rewards are all equal gets zeros: it says nothing."""
    return (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)


def grpo_loss(
    logp: Tensor, old_logp: Tensor, ref_logp: Tensor, advantage: Tensor, mask: Tensor, *, clip=0.2, beta=0.04
) -> tuple[Tensor, dict[str, float]]:
    """Equation 3 of the paper, negated, and what to watch. advantage: [N], of an answer and so of all its tokens."""
    ratio, advantage = (logp - old_logp).exp(), advantage[:, None]
    held = ratio.clamp(1 - clip, 1 + clip) * advantage
    gain = torch.minimum(ratio * advantage, held)
    u = ref_logp - logp
    kl = u.exp() - u - 1  # "k3": estimates kl(policy ‖ reference), and is never negative
    loss = (-gain + beta * kl) * mask
    watch = {"kl": kl[mask].mean().item(), "clipped": (held < ratio * advantage)[mask].float().mean().item()}
    return (loss.sum(1) / mask.sum(1)).mean(), watch


def update(
    model, optimizer, ids: Tensor, mask: Tensor, old_logp: Tensor, ref_logp: Tensor, advantage: Tensor
) -> dict[str, float]:
    """One optimizer step on a minibatch of N answers. advantage: [N]; the others [N, T]."""
    loss, watch = grpo_loss(token_logprobs(model, ids), old_logp, ref_logp, advantage, mask)
    norm = descend(loss, optimizer)
    return {"loss": loss.item(), "grad_norm": norm, **watch}


# --- the task: "dbca=" is to be answered "abcd." ---------------------------------------------------------------------

VOCAB = " .=abcdefgh"
PAD, END, MAX_NEW = 0, 1, 6


def encode(text: str) -> list[int]:
    return [VOCAB.index(c) for c in text]


def decode(ids: Tensor, mask: Tensor) -> list[str]:
    """What the policy wrote in each row."""
    return ["".join(VOCAB[i] for i in row[chosen]) for row, chosen in zip(ids, mask, strict=True)]


def demonstrate(prompt: str) -> str:
    return "".join(sorted(prompt[:-1])) + "."


def verify(prompt: str, answer: str) -> float:
    """The reward: a program that tells right from wrong, and nothing in between."""
    return float(answer == demonstrate(prompt))


def accuracy(model, prompts: list[str]) -> float:
    """Share of right answers, one sampled per prompt."""
    ids, mask, _ = sample(model, [encode(p) for p in prompts], MAX_NEW)
    return sum(map(verify, prompts, decode(ids, mask))) / len(prompts)


def imitate(model, prompts: list[str], steps: int) -> None:
    """A little supervised learning (see sft.py), so that there is a policy to improve."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(steps):
        asked = random.sample(prompts, 64)
        rows = [torch.tensor(encode(p + demonstrate(p))) for p in asked]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
        mask = (ids != PAD) & (torch.arange(ids.shape[1]) >= torch.tensor([[len(p)] for p in asked]))
        descend(-(token_logprobs(model, ids) * mask).sum() / mask.sum(), optimizer)


# --- a model of its own ----------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(self.norm1(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """ids [N, T] -> [N, T, out]: a decoder as small as it gets, with learned positions."""

    def __init__(self, vocab: int, out: int, d: int = 64, layers: int = 2, heads: int = 4, context: int = 32):
        super().__init__()
        self.embed, self.position = nn.Embedding(vocab, d), nn.Embedding(context, d)
        self.blocks = nn.Sequential(*(Block(d, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, out)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.position.weight[: ids.shape[1]]
        return self.head(self.norm(self.blocks(x)))


# --- the loop --------------------------------------------------------------------------------------------------------


def train(steps: int, seed: int, *, per_step: int = 16, group: int = 8, minibatches: int = 2) -> tuple[float, float]:
    """Share of right answers to unseen prompts, before and after."""
    random.seed(seed)
    torch.manual_seed(seed)
    prompts = ["".join(p) + "=" for n in (3, 4, 5) for p in itertools.permutations("abcdefgh", n)]
    random.shuffle(prompts)
    seen, unseen = prompts[:-500], prompts[-500:]
    model = GPT(len(VOCAB), len(VOCAB))
    imitate(model, seen, steps=20)
    reference = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.0)
    before = accuracy(model, unseen)
    print(f"{'step':>5} {'right':>7} {'silent groups':>14} {'kl to reference':>16} {'clipped':>8} {'grad norm':>10}")
    for step in range(steps):
        asked = [p for p in random.sample(seen, per_step) for _ in range(group)]
        ids, mask, sampled_logp = sample(model, [encode(p) for p in asked], MAX_NEW)
        reward = torch.tensor(list(map(verify, asked, decode(ids, mask)))).view(per_step, group)
        advantage = group_advantage(reward).flatten()
        with torch.no_grad():
            old_logp, ref_logp = token_logprobs(model, ids), token_logprobs(reference, ids)
        gap = (old_logp - sampled_logp)[mask].abs().max()
        assert gap < 1e-3, f"sampler and learner disagree by {gap:.2g} nats on a token: one of them is wrong"
        for part in torch.randperm(per_step).chunk(minibatches):  # groups stay whole
            rows = (part[:, None] * group + torch.arange(group)).flatten()
            watch = update(model, optimizer, ids[rows], mask[rows], old_logp[rows], ref_logp[rows], advantage[rows])
        if step % 20 == 0 or step == steps - 1:
            silent = (reward.std(1) == 0).float().mean()
            print(f"{step:5} {reward.mean():7.1%} {silent:14.1%} {watch['kl']:16.3f} "
                  f"{watch['clipped']:8.1%} {watch['grad_norm']:10.3f}")  # fmt: skip
    after = accuracy(model, unseen)
    print(f"\n{len(unseen)} unseen prompts, one sampled answer each: {before:.1%} right before, {after:.1%} after")
    return before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="GRPO on a toy: put letters in order, graded right or wrong.")
    parser.add_argument("--steps", type=int, default=140)
    parser.add_argument("--seed", type=int, default=0)
    torch.set_num_threads(1)  # the matrices are tiny: a second thread would only wait for the first
    train(**vars(parser.parse_args()))
