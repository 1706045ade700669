"""How much memory the output head takes, from hidden states to gradients: all logits at once, or chunk by chunk.

    python benchmarks/head_memory.py --tokens 8192 --vocab 32768 --dims 256

Every line is measured in a process of its own: forward, backward, and how far the peak rose above what was there when
inputs and gradients had their memory. On a GPU the allocator's peak counts, else the process's resident memory (as much
RAM as the whole logits three times over must be free, sixteen times for plain_jsd). Prints MiB and seconds.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402 - after the path
from torch import Tensor  # noqa: E402

from posttrain.objectives import generalized_jsd, jsd_from_hidden, logprobs_from_hidden  # noqa: E402

MIB = 2**20


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, _chunk: int) -> Tensor:
    """Log-softmax of all logits, and a gather."""
    return torch.log_softmax((hidden @ weight.T).float(), -1).gather(1, targets[:, None]).sum()


def chunked(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """The library's path in training."""
    return logprobs_from_hidden(hidden, weight, targets, chunk=chunk).logp.sum()


def chunked_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """The same with the entropy and its gradient."""
    stats = logprobs_from_hidden(hidden, weight, targets, chunk=chunk, needs=("entropy",))
    return (stats.logp + stats.entropy).sum()


def plain_jsd(hidden: Tensor, weight: Tensor, _targets: Tensor, _chunk: int) -> Tensor:
    """A divergence from a teacher, all logits at once."""
    teacher = (hidden.detach().flip(1) @ weight.detach().T)[None]
    mask = torch.ones(teacher.shape[:2], dtype=torch.bool, device=teacher.device)
    return generalized_jsd((hidden @ weight.T)[None], teacher, mask, beta=0.5).sum()


def chunked_jsd(hidden: Tensor, weight: Tensor, _targets: Tensor, _chunk: int) -> Tensor:
    """The same from hidden states, with that function's own chunk."""
    return jsd_from_hidden(hidden, weight, hidden.detach().flip(1), weight.detach(), beta=0.5).sum()


PATHS = {f.__name__: f for f in (plain, chunked, chunked_entropy, plain_jsd, chunked_jsd)}


def peak(device: str) -> int:
    """Bytes at the highest point so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(path: Callable[..., Tensor], shape: tuple[int, int, int, int], device: str, answer) -> None:
    """Send (bytes, seconds) of one forward and backward; nothing is shared with the process that asked."""
    tokens, vocab, dims, chunk = shape
    torch.manual_seed(0)
    hidden = torch.randn(tokens, dims, device=device).requires_grad_()
    weight = (torch.randn(vocab, dims, device=device) * 0.02).requires_grad_()
    targets = torch.randint(vocab, (tokens,), device=device)
    path(hidden[:2], weight, targets[:2], chunk).backward()  # libraries load, gradients get their memory
    before, began = peak(device), time.perf_counter()
    path(hidden, weight, targets, chunk).backward()
    if device == "cuda":
        torch.cuda.synchronize()
    answer.put((peak(device) - before, time.perf_counter() - began))


def main() -> None:
    """Measure every path at the shape that was asked for, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("tokens", 8192), ("vocab", 32768), ("dims", 256), ("chunk", 1024)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=list(PATHS))
    args = parser.parse_args()
    shape = (args.tokens, args.vocab, args.dims, args.chunk)
    whole = args.tokens * args.vocab * 4 / MIB
    print(f"{args.tokens} tokens, {args.vocab} words, {args.dims} dims, {args.device}: all logits are {whole:.0f} MiB")
    print(f"{'path':<18}{'peak MiB':>10}{'seconds':>9}")
    context = multiprocessing.get_context("spawn")
    for path in (PATHS[name] for name in args.paths):
        answer = context.Queue()
        process = context.Process(target=measure, args=(path, shape, args.device, answer))
        process.start()
        used, seconds = answer.get()
        process.join()
        print(f"{path.__name__:<18}{used / MIB:>10.0f}{seconds:>9.2f}")


if __name__ == "__main__":
    main()
