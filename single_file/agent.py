"""Reinforcement learning of an agent in one file: several turns, a tool, and credit for what the policy wrote alone.

Policy gradients on whole episodes, with the other episodes of the same task as the baseline. The mask is that of
Search-R1 (Jin et al. 2025, arXiv 2503.09516), the advantage that of Dr. GRPO (Liu et al. 2025, arXiv 2503.20783):

    for every step
        take P tasks, and play each G times from the same start                                      rollout
            until done: the policy writes a turn, the world answers; both are appended to one        Episode
            stream of tokens, and mask is true where the policy wrote
        A = reward of the episode - mean reward of its task                                          group_advantage
        one optimizer step down                                                                      update
            L = mean over the policy's tokens of -A log π(token | everything before it)

What the world says does not depend on the weights and drops out of the gradient, so its tokens are masked out of the
sum and of the count. What the policy wrote stays as the ids that were sampled: text that is decoded and encoded again
may come back as others. Every episode is used once, so no ratio and no clip are needed.

The toy: "c:" asks for the entry of the entry of c in a table that the policy cannot see and that differs by task. It
may look up one letter per turn, "?c;", and hears "[f]"; its answer is "=b;". Anything else is answered by "[!]", and
nothing that it writes is run. The demonstrations are careless: most guess, or stop one call short.

    python single_file/agent.py [--steps N] [--seed S]        about 15 seconds on one core

`model` is anything that maps ids [N, T] to logits [N, T, V] without looking ahead, such as
`lambda ids: hf_model(ids).logits`; nothing else of it is used. Every per-token array is [N, T] and entry t is about
token t. sampled_logp is what the sampler said when it chose the token, logp what the policy says now.
"""

import argparse
import random
import re

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


def rollout(model, episodes: list["Episode"]) -> None:
    """Play all episodes to their ends, one turn of all that are still going at a time."""
    while live := [e for e in episodes if not e.done]:
        ids, mask, sampled_logp = sample(model, [e.ids for e in live], MAX_NEW)
        for e, row, wrote, logp in zip(live, ids, mask, sampled_logp, strict=True):
            e.turn(row[wrote].tolist(), logp[wrote].tolist())


def collate(episodes: list["Episode"]) -> list[Tensor]:
    """ids, mask and sampled_logp, [N, T], padded on the right with PAD, False and 0, which are all 0."""
    columns = zip(*((e.ids, e.mask, e.sampled_logp) for e in episodes), strict=True)
    return [nn.utils.rnn.pad_sequence(list(map(torch.tensor, column)), batch_first=True) for column in columns]


def group_advantage(reward: Tensor) -> Tensor:
    """[P, G] -> [P, G]. A task that was always or never solved says nothing."""
    return reward - reward.mean(1, keepdim=True)


def update(model, optimizer, ids: Tensor, mask: Tensor, sampled_logp: Tensor, advantage: Tensor) -> dict[str, float]:
    """One optimizer step on N fresh episodes. advantage: [N], the same for all tokens that the policy wrote in one."""
    logp = token_logprobs(model, ids)
    gap = (logp - sampled_logp).detach()[mask].abs().max()
    assert gap < 1e-3, f"sampler and learner disagree by {gap:.2g} nats on a token: one of them is wrong"
    loss = -(advantage[:, None] * logp * mask).sum() / mask.sum()  # its value means little, its gradient is the point
    return {"loss": loss.item(), "grad_norm": descend(loss, optimizer)}


# --- the task: two look-ups in a row ---------------------------------------------------------------------------------

VOCAB = " ;:?=[]!abcdefgh"
KEYS = "abcdefgh"
PAD, END, MAX_NEW, MAX_TURNS = 0, 1, 4, 4


def encode(text: str) -> list[int]:
    return [VOCAB.index(c) for c in text]


def decode(ids: list[int]) -> str:
    return "".join(VOCAB[i] for i in ids)


class Episode:
    """A conversation between the policy and its world, as one stream of tokens that only grows."""

    def __init__(self, start: str, table: dict[str, str]):
        self.start, self.table = start, table
        self.ids, self.mask, self.sampled_logp = [], [], []
        self.reward, self.turns, self.calls, self.done = 0.0, 0, 0, False
        self.append(encode(start + ":"), wrote=False)

    def append(self, ids: list[int], wrote: bool, logp: list[float] | None = None) -> None:
        self.ids += ids
        self.mask += [wrote] * len(ids)
        self.sampled_logp += logp or [0.0] * len(ids)

    def turn(self, ids: list[int], logp: list[float] | None = None) -> None:
        """The policy has written these tokens; the world answers."""
        self.append(ids, wrote=True, logp=logp)
        self.turns += 1
        text = decode(ids)
        if answer := re.fullmatch(r"=([a-h]);", text):
            self.reward = float(answer[1] == self.table[self.table[self.start]])
        self.done = bool(answer) or self.turns == MAX_TURNS
        if not self.done:
            call = re.fullmatch(r"\?([a-h]);", text)
            self.calls += bool(call)
            self.append(encode(f"[{self.table[call[1]]}]" if call else "[!]"), wrote=False)


def make_task() -> tuple[str, dict[str, str]]:
    return random.choice(KEYS), {key: random.choice(KEYS) for key in KEYS}


def demonstrate() -> Episode:
    """Careless people: some mistype, most guess at once, three in ten stop after one call, one in ten does it right."""
    e = Episode(*make_task())
    if random.random() < 0.2:
        e.turn(encode("?;"))
    calls, key = random.choices([0, 1, 2], [6, 3, 1])[0], e.start
    for _ in range(calls):
        e.turn(encode(f"?{key};"))
        key = e.table[key]
    e.turn(encode(f"={key if calls else random.choice(KEYS)};"))
    return e


def imitate(model, steps: int) -> None:
    """A little supervised learning (see sft.py), so that there is a policy to improve."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(steps):
        ids, mask, _ = collate([demonstrate() for _ in range(64)])
        descend(-(token_logprobs(model, ids) * mask).sum() / mask.sum(), optimizer)


def solved(model) -> float:
    """Share of 500 new tasks, one episode each."""
    episodes = [Episode(*make_task()) for _ in range(500)]
    rollout(model, episodes)
    return sum(e.reward for e in episodes) / len(episodes)


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


def train(steps: int, seed: int, *, tasks: int = 16, group: int = 8) -> tuple[float, float]:
    """Share of new tasks solved, before and after."""
    random.seed(seed)
    torch.manual_seed(seed)
    model = GPT(len(VOCAB), len(VOCAB))
    imitate(model, steps=100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.0)

    before = solved(model)
    print(f"{'step':>5} {'solved':>7} {'calls':>6} {'grad norm':>10}")
    for step in range(steps):
        episodes = [Episode(*task) for task in [make_task() for _ in range(tasks)] for _ in range(group)]
        rollout(model, episodes)
        reward = torch.tensor([e.reward for e in episodes])
        advantage = group_advantage(reward.view(tasks, group)).flatten()
        watch = update(model, optimizer, *collate(episodes), advantage)
        if step % 10 == 0 or step == steps - 1:
            calls = torch.tensor([float(e.calls) for e in episodes])
            print(f"{step:5} {reward.mean():7.1%} {calls.mean():6.2f} {watch['grad_norm']:10.3f}")
    after = solved(model)
    rollout(model, [e := Episode(*make_task())])
    print("\nan episode, and what the policy wrote of it:", decode(e.ids), "".join(" ^"[m] for m in e.mask), sep="\n")
    print(f"\n500 new tasks, one episode each: {before:.1%} solved before, {after:.1%} after")
    return before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Agentic RL on a toy: two look-ups in a table.")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    torch.set_num_threads(1)  # the matrices are tiny: a second thread would only wait for the first
    train(**vars(parser.parse_args()))
