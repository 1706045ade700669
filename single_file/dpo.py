"""DPO in one file: learn from pairs of answers which one people prefer, without a reward model and without sampling.

Rafailov et al. 2023 (arXiv 2305.18290):

    the reference is the policy as it is now, frozen
    for every pair, once: ref_logp of the chosen and of the rejected answer                          answer_logprobs
    for every step
        take B pairs, one optimizer step down                                                        update
            h = [log π(chosen) - log π_ref(chosen)] - [log π(rejected) - log π_ref(rejected)]
            L = mean over pairs of -log σ(β h)                                                       dpo_loss, eq. 7

log π of an answer is the sum over its tokens, its end included. Since the reference never changes, its numbers are made
once and it needs no memory while training. The first loss is log 2 = 0.693 whatever the data; if it is not, the
reference is not the policy that training starts from.

The toy: demonstrators put letters in order, half of them upwards, half downwards, and the policy has learned to
imitate both. A rater compares two of its answers and prefers upwards. Watch both log-ratios: the loss sees only their
difference. Try β = 0.1, usual for long answers: the rejected ones then fall much further, and a part of what they lose
goes to answers in neither direction (likelihood displacement).

    python single_file/dpo.py [--steps N] [--seed S]        about 10 seconds on one core

`model` is anything that maps ids [N, T] to logits [N, T, V] without looking ahead, such as
`lambda ids: hf_model(ids).logits`; nothing else of it is used. Every per-token array is [N, T] and entry t is about
token t; mask is true on the answer.
"""

import argparse
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


def descend(loss: Tensor, optimizer) -> float:
    """One optimizer step down, the gradient scaled to a norm of at most 1. Returns the norm before that."""
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    return norm.item()


def answer_logprobs(model, ids: Tensor, mask: Tensor) -> Tensor:
    """log π(answer | prompt), [N]: the sum over the tokens of the answer."""
    return (token_logprobs(model, ids) * mask).sum(1)


def dpo_loss(logp: Tensor, ref_logp: Tensor, *, beta=0.5) -> tuple[Tensor, dict[str, float]]:
    """Equation 7 and what to watch. logp, ref_logp: [B, 2], of the chosen answer and of the rejected one."""
    log_ratio = logp - ref_logp
    margin = beta * (log_ratio[:, 0] - log_ratio[:, 1])
    chosen, rejected = log_ratio.mean(0).tolist()
    watch = {"accuracy": (margin > 0).float().mean().item(), "chosen": chosen, "rejected": rejected}
    return -F.logsigmoid(margin).mean(), watch


def update(model, optimizer, ids: Tensor, mask: Tensor, ref_logp: Tensor) -> dict[str, float]:
    """One optimizer step on B pairs. ids, mask: [B, 2, T], chosen first. ref_logp: [B, 2]."""
    logp = answer_logprobs(model, ids.flatten(0, 1), mask.flatten(0, 1)).view(-1, 2)  # one pass for both
    loss, watch = dpo_loss(logp, ref_logp)
    norm = descend(loss, optimizer)
    return {"loss": loss.item(), "grad_norm": norm, **watch}


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


# --- the task: "dbca=" is to be answered "abcd.", not "dcba." --------------------------------------------------------

VOCAB = " .=abcdefgh"
PAD, END, MAX_NEW = 0, 1, 6


def encode(text: str) -> list[int]:
    return [VOCAB.index(c) for c in text]


def decode(ids: Tensor, mask: Tensor) -> list[str]:
    """What the policy wrote in each row."""
    return ["".join(VOCAB[i] for i in row[chosen]) for row, chosen in zip(ids, mask, strict=True)]


def demonstrate(prompt: str) -> str:
    """In order, and as likely downwards as upwards."""
    return "".join(sorted(prompt[:-1], reverse=random.random() < 0.5)) + "."


def rate(answer: str) -> int:
    """The rater's taste: in how many places the letters rise, less those where they do not."""
    return sum(1 if a < b else -1 for a, b in itertools.pairwise(answer.rstrip(".")))


def make_pairs(model, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Two samples to every prompt, the better one first; ties are dropped. ids and mask, [K, 2, T]."""
    ids, mask, _ = sample(model, [encode(p) for p in prompts for _ in range(2)], MAX_NEW)
    score = torch.tensor([rate(a) for a in decode(ids, mask)]).view(-1, 2)
    better = score.argsort(1, descending=True)
    rows = (2 * torch.arange(len(prompts))[:, None] + better)[score[:, 0] != score[:, 1]]
    return ids[rows], mask[rows]


def directions(model, prompts: list[str]) -> tuple[float, float]:
    """Shares of sampled answers that are all letters in order: upwards, downwards."""
    ids, mask, _ = sample(model, [encode(p) for p in prompts], MAX_NEW)
    pairs = [(answer, "".join(sorted(p[:-1]))) for answer, p in zip(decode(ids, mask), prompts, strict=True)]
    up, down = sum(a == r + "." for a, r in pairs), sum(a == r[::-1] + "." for a, r in pairs)
    return up / len(pairs), down / len(pairs)


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


def train(steps: int, seed: int, *, batch: int = 32) -> tuple[float, float]:
    """Share of answers upwards to unseen prompts, before and after."""
    random.seed(seed)
    torch.manual_seed(seed)
    prompts = ["".join(p) + "=" for n in (3, 4, 5) for p in itertools.permutations("abcdefgh", n)]
    random.shuffle(prompts)
    seen, unseen = prompts[:-500], prompts[-500:]
    model = GPT(len(VOCAB), len(VOCAB))
    imitate(model, seen, steps=180)
    ids, mask = make_pairs(model, seen[:3000])
    with torch.no_grad():
        ref_logp = answer_logprobs(model, ids.flatten(0, 1), mask.flatten(0, 1)).view(-1, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    before, against = directions(model, unseen)
    print(f"{len(ids)} pairs                          log π/π_ref                 unseen prompts")
    print(f"{'step':>5} {'loss':>7} {'accuracy':>9} {'chosen':>9} {'rejected':>9} {'upwards':>9} {'downwards':>10}")
    for step in range(steps):
        rows = torch.randint(len(ids), (batch,))
        watch = update(model, optimizer, ids[rows], mask[rows], ref_logp[rows])
        if step % 20 == 0 or step == steps - 1:
            up, down = directions(model, unseen)
            print(f"{step:5} {watch['loss']:7.3f} {watch['accuracy']:9.1%} {watch['chosen']:9.2f} "
                  f"{watch['rejected']:9.2f} {up:9.1%} {down:10.1%}")  # fmt: skip
    after, down = directions(model, unseen)
    print(f"\n{len(unseen)} unseen prompts, one sampled answer each: {before:.1%} upwards and {against:.1%} downwards "
          f"before, {after:.1%} and {down:.1%} after")  # fmt: skip
    return before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="DPO on a toy: letters in order, in the direction a rater prefers.")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    torch.set_num_threads(1)  # the matrices are tiny: a second thread would only wait for the first
    train(**vars(parser.parse_args()))
