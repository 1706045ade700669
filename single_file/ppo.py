"""PPO in one file, as RLHF uses it: a critic foresees the score of an answer, token by token.

Schulman et al. 2017 (arXiv 1707.06347) with the rewards of Ziegler et al. 2019 (arXiv 1909.08593):

    for every step
        sample an answer to each of N prompts; score it                                              sample, score
        old_logp, ref_logp, old_value = what policy, frozen reference and critic say of every token
        r_t = -β (old_logp - ref_logp) at every token, + score at the last one                       token_rewards
        A_t = Σ_k (γλ)^k δ_{t+k},   δ_t = r_t + γ V_{t+1} - V_t;   target_t = A_t + V_t              gae
        whiten A over all tokens of the step                                                         whiten
        for every epoch, for every minibatch: one optimizer step down of each network                update
            policy: mean over tokens of -min(ρ A, clip(ρ, 1-ε, 1+ε) A),   ρ = π/π_old                policy_loss
            critic: mean over tokens of ½ max((V - target)², (V clipped around old_value - target)²) value_loss

The toy: put letters in order. The policy has seen few demonstrations; the score counts letters in their right places.

    python single_file/ppo.py [--steps N] [--seed S]        about 15 seconds on one core

`model` is anything that maps ids [N, T] to logits [N, T, V] without looking ahead, such as
`lambda ids: hf_model(ids).logits`, and `critic` anything that maps them to [N, T, 1]; nothing else of them is used.
Every per-token array is [N, T] and entry t is about token t. Four log-probabilities must not be confused: sampled_logp
(the sampler's, when it chose the token), old_logp (the policy's when the step began), logp (the policy's now) and
ref_logp (the reference's). mask is true where the policy chose the token.
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


def token_values(critic, ids: Tensor) -> Tensor:
    """V of the state in which token t was chosen, [N, T]: a baseline must not have seen the action that it judges."""
    return F.pad(critic(ids)[:, :-1, 0], (1, 0))


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


def token_rewards(score: Tensor, kl: Tensor, mask: Tensor, *, beta=0.05) -> Tensor:
    """[N, T]: the score [N] at the last token, -β kl at every one: part of the reward, so without a gradient."""
    last = mask & ~F.pad(mask[:, 1:], (0, 1))
    return (score[:, None] * last - beta * kl) * mask


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma=1.0, lam=0.95) -> tuple[Tensor, Tensor]:
    """Advantages and value targets, [N, T]. Backwards through answers without gaps; after the last token V is 0."""
    advantage = torch.zeros_like(values)
    next_value, next_advantage = values.new_zeros(2, len(values))
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = advantage[:, t] = mask[:, t] * (delta + gamma * lam * next_advantage)
        next_value = mask[:, t] * values[:, t]
    return advantage, advantage + values


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the tokens under the mask."""
    return (x - x[mask].mean()) * (x[mask].var() + 1e-8).rsqrt() * mask


def policy_loss(logp: Tensor, old_logp: Tensor, advantage: Tensor, mask: Tensor, *, clip=0.2) -> Tensor:
    """Equation 7 of the paper, negated."""
    ratio = (logp - old_logp).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return -(gain * mask).sum() / mask.sum()


def value_loss(value: Tensor, old_value: Tensor, target: Tensor, mask: Tensor, *, clip=0.2) -> Tensor:
    """Half the squared error, of the value or of the value had it moved by at most `clip`, whichever is worse."""
    held = old_value + (value - old_value).clamp(-clip, clip)
    error = torch.maximum((value - target) ** 2, (held - target) ** 2)
    return (error * mask).sum() / mask.sum() / 2


def update(model, critic, optimizer, critic_optimizer, ids, mask, old_logp, old_value, advantage, target) -> dict:
    """One optimizer step of each network on a minibatch of N answers; all arrays are [N, T]."""
    loss = policy_loss(token_logprobs(model, ids), old_logp, advantage, mask)
    critic_loss = value_loss(token_values(critic, ids), old_value, target, mask)
    found = {"loss": loss.item(), "value_loss": critic_loss.item()}
    return found | {"grad_norm": descend(loss, optimizer), "value_grad_norm": descend(critic_loss, critic_optimizer)}


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


def score(prompt: str, answer: str) -> float:
    """Share of characters in their right places, in the place of a reward model."""
    gold = demonstrate(prompt)
    return sum(a == g for a, g in zip(answer, gold, strict=False)) / max(len(answer), len(gold))


def accuracy(model, prompts: list[str]) -> float:
    """Share of answers that are right throughout, one sampled per prompt."""
    ids, mask, _ = sample(model, [encode(p) for p in prompts], MAX_NEW)
    return sum(s == 1 for s in map(score, prompts, decode(ids, mask))) / len(prompts)


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


def train(steps: int, seed: int, *, batch: int = 64, epochs: int = 2, minibatches: int = 2) -> tuple[float, float]:
    """Share of right answers to unseen prompts, before and after."""
    random.seed(seed)
    torch.manual_seed(seed)
    prompts = ["".join(p) + "=" for n in (3, 4, 5) for p in itertools.permutations("abcdefgh", n)]
    random.shuffle(prompts)
    seen, unseen = prompts[:-500], prompts[-500:]
    model, critic = GPT(len(VOCAB), len(VOCAB)), GPT(len(VOCAB), 1)
    nn.init.zeros_(critic.head.weight)  # it begins by foreseeing the same for all
    imitate(model, seen, steps=20)
    reference = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.0)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-3, weight_decay=0.0)
    before = accuracy(model, unseen)
    print(f"{'step':>5} {'score':>7} {'kl per answer':>14} {'value loss':>11} {'foreseen':>9} {'grad norm':>10}")
    for step in range(steps):
        asked = random.sample(seen, batch)
        ids, mask, sampled_logp = sample(model, [encode(p) for p in asked], MAX_NEW)
        scores = torch.tensor(list(map(score, asked, decode(ids, mask))))
        with torch.no_grad():
            old_logp, ref_logp = token_logprobs(model, ids), token_logprobs(reference, ids)
            old_value = token_values(critic, ids) * mask
        gap = (old_logp - sampled_logp)[mask].abs().max()
        assert gap < 1e-3, f"sampler and learner disagree by {gap:.2g} nats on a token: one of them is wrong"
        kl = (old_logp - ref_logp) * mask
        advantage, target = gae(token_rewards(scores, kl, mask), old_value, mask)
        arrays = ids, mask, old_logp, old_value, whiten(advantage, mask), target
        for _ in range(epochs):
            for rows in torch.randperm(batch).chunk(minibatches):
                watch = update(model, critic, optimizer, critic_optimizer, *(x[rows] for x in arrays))
        if step % 10 == 0 or step == steps - 1:
            foreseen = 1 - (target - old_value)[mask].var() / target[mask].var()
            print(f"{step:5} {scores.mean():7.3f} {kl.sum() / batch:14.3f} {watch['value_loss']:11.4f} "
                  f"{foreseen:9.1%} {watch['grad_norm']:10.3f}")  # fmt: skip
    after = accuracy(model, unseen)
    print(f"\n{len(unseen)} unseen prompts, one sampled answer each: {before:.1%} right before, {after:.1%} after")
    return before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="PPO on a toy: put letters in order, scored by places.")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    torch.set_num_threads(1)  # the matrices are tiny: a second thread would only wait for the first
    train(**vars(parser.parse_args()))
