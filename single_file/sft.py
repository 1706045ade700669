"""Supervised fine-tuning in one file: raise the likelihood of what the assistant said, and of nothing else.

Ouyang et al. 2022 (arXiv 2203.02155), step 1, as everyone does it today:

    for every step
        take B conversations; ids are their tokens, mask is true on what the assistant wrote         encode_chat
        total = tokens under the mask in all B conversations                                         update
        for every micro-batch of a few conversations
            add the gradient of  -Σ mask · log π(token | the tokens before it) / total
        one optimizer step down

Two things go wrong in practice. The mask: it begins after the assistant's header and includes the token that ends the
turn, or the model never learns to stop. And the average: `total` is counted once, over the whole step. A micro-batch
of 2 tokens with loss 1 and one of 8 with loss 3 have 2.6 per token; the mean of their means is 2, another objective,
which changes with the way the batch was cut.

The toy: a user asks to copy, reverse or sort letters, sometimes twice in one conversation.

    python single_file/sft.py [--steps N] [--seed S]        about 15 seconds on one core

`model` is anything that maps ids [N, T] to logits [N, T, V] without looking ahead, such as
`lambda ids: hf_model(ids).logits`; nothing else of it is used. Every per-token array is [N, T] and entry t is about
token t.
"""

import argparse
import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# --- the algorithm ---------------------------------------------------------------------------------------------------


def token_logprobs(model, ids: Tensor) -> Tensor:
    """log π(token t | the tokens before it), [N, T]: logits at t-1 predict token t, and nothing predicts token 0."""
    logp = model(ids)[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    return F.pad(logp, (1, 0))


def update(model, optimizer, ids: Tensor, mask: Tensor, micro: int) -> dict[str, float]:
    """One optimizer step on N conversations, `micro` at a time: that bounds memory and changes nothing else."""
    total = mask.sum()
    loss = 0.0
    optimizer.zero_grad()
    for rows in torch.arange(len(ids)).split(micro):
        logp = token_logprobs(model, ids[rows])
        share = -(logp * mask[rows]).sum() / total
        share.backward()  # gradients add up
        loss += share.item()
    norm = nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    return {"loss": loss, "grad_norm": norm.item(), "tokens": total.item()}


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


# --- the task: conversations -----------------------------------------------------------------------------------------

VOCAB = "<pad> <end> <user> <assistant> copy reverse sort a b c d e f g h".split()
PAD, END, MAX_NEW = 0, 1, 6


def encode(text: str) -> list[int]:
    return [VOCAB.index(word) for word in text.split()]


def decode(ids: Tensor) -> str:
    return " ".join(VOCAB[i] for i in ids)


def ask(question: str) -> str:
    """The prompt: the user's turn, and the header after which the assistant writes."""
    return f"<user> {question} <end> <assistant>"


def answer(question: str) -> str:
    """The demonstration: what the assistant says, with the token that ends its turn."""
    task, *letters = question.split()
    if task == "reverse":
        letters = letters[::-1]
    elif task == "sort":
        letters = sorted(letters)
    return " ".join([*letters, "<end>"])


def encode_chat(questions: list[str]) -> tuple[list[int], list[bool]]:
    """A conversation as one row of ids, and the mask: true on all that the assistant wrote, in every turn."""
    ids, mask = [], []
    for question in questions:
        for text, learned in (ask(question), False), (answer(question), True):
            ids += encode(text)
            mask += [learned] * len(encode(text))
    return ids, mask


def collate(rows: list[tuple[list[int], list[bool]]]) -> tuple[Tensor, Tensor]:
    """ids and mask, [N, T], padded on the right."""
    ids, mask = zip(*((torch.tensor(i), torch.tensor(m)) for i, m in rows), strict=True)
    pad = nn.utils.rnn.pad_sequence
    return pad(ids, batch_first=True, padding_value=PAD), pad(mask, batch_first=True)


def make_questions() -> tuple[list[str], list[str]]:
    """3,000 questions to learn from, and 300 others, of two to five letters."""
    found: dict[str, None] = {}  # a set that keeps its order
    while len(found) < 3300:
        task = random.choice(["copy", "reverse", "sort"])
        found[" ".join([task, *random.sample("abcdefgh", random.randint(2, 5))])] = None
    return list(found)[:3000], list(found)[3000:]


def evaluate(model, questions: list[str]) -> tuple[float, float]:
    """Share of sampled answers that are exactly right, and share that stop by themselves."""
    ids, mask, _ = sample(model, [encode(ask(q)) for q in questions], MAX_NEW)
    said = [decode(row[m]) for row, m in zip(ids, mask, strict=True)]
    right = sum(s == answer(q) for s, q in zip(said, questions, strict=True))
    return right / len(said), sum(s.endswith("<end>") for s in said) / len(said)


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


def train(steps: int, seed: int, *, batch: int = 32, micro: int = 16) -> tuple[float, float]:
    """Share of right answers to unseen questions, before and after."""
    random.seed(seed)
    torch.manual_seed(seed)
    seen, unseen = make_questions()
    model = GPT(len(VOCAB), len(VOCAB))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    before, _ = evaluate(model, unseen)
    print(f"{'step':>5} {'loss':>7} {'tokens':>7} {'grad norm':>10} {'unseen right':>13} {'stopped':>8}")
    for step in range(steps):
        chats = [random.sample(seen, random.choice([1, 2])) for _ in range(batch)]
        watch = update(model, optimizer, *collate([encode_chat(c) for c in chats]), micro)
        if step % 50 == 0 or step == steps - 1:
            right, stopped = evaluate(model, unseen)
            print(f"{step:5} {watch['loss']:7.3f} {watch['tokens']:7} {watch['grad_norm']:10.3f} "
                  f"{right:13.1%} {stopped:8.1%}")  # fmt: skip
    after, _ = evaluate(model, unseen)
    ids, mask = encode_chat(random.sample(unseen, 2))
    marks = (("^" if m else " ") * len(VOCAB[i]) for i, m in zip(ids, mask, strict=True))
    print("\nwhat is learned, in a conversation of two turns:", decode(ids), " ".join(marks), sep="\n")
    print(f"\n{len(unseen)} unseen questions, one sampled answer each: {before:.1%} right before, {after:.1%} after")
    return before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Supervised fine-tuning on a toy: copy, reverse or sort letters.")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    torch.set_num_threads(1)  # the matrices are tiny: a second thread would only wait for the first
    train(**vars(parser.parse_args()))
