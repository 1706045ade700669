"""Clips of control tasks as text: a cart with its pole, a pendulum, or bars for anything else."""

import math
from collections.abc import Sequence

WIDTH, HEIGHT = 33, 9
"""Of a frame, in characters."""


def draw(env: str, obs: Sequence[float], action: Sequence[float] | int | None = None) -> list[str]:
    """One frame of HEIGHT + 1 lines, the last of which tells the action.

    env: a Gymnasium id. obs: the observation in the environment's own units. action: as the policy gave it.
    """
    if env.startswith("CartPole"):
        picture = _cart(obs[0], obs[2])
        said = {0: "<-- push", 1: "    push -->"}.get(action, "")
    elif env.startswith("Pendulum"):
        picture = _pendulum(obs[0], obs[1])
        said = f"turning {obs[2]:+.1f} rad/s" + ("" if action is None else f", torque {_cut(action[0]) * 2:+.1f}")
    else:
        picture = _bars(obs)
        said = "" if action is None else f"action {action}"
    return [*picture, said[:WIDTH].ljust(WIDTH)]


def beside(left: list[str], right: list[str], titles: tuple[str, str]) -> str:
    """Two frames side by side."""
    rows = [f"{titles[0]:^{WIDTH}}   {titles[1]:^{WIDTH}}"]
    return "\n".join(rows + [f"{a} | {b}" for a, b in zip(left, right, strict=True)])


def _cart(x: float, angle: float) -> list[str]:
    grid = _blank()
    column = round((x / 2.4 + 1) / 2 * (WIDTH - 1))
    for step in range(2 * HEIGHT):
        length = step / 2
        _put(grid, HEIGHT - 2 - length * math.cos(angle), column + 2 * length * math.sin(angle), "o")
    for offset in range(-2, 3):
        _put(grid, HEIGHT - 1, column + offset, "#")
    for at in range(WIDTH):
        if grid[HEIGHT - 1][at] == " ":
            grid[HEIGHT - 1][at] = "_"
    return ["".join(row) for row in grid]


def _pendulum(cos: float, sin: float) -> list[str]:
    grid = _blank()
    middle, reach = (HEIGHT // 2, WIDTH // 2), HEIGHT // 2
    for step in range(2 * reach + 1):
        length = step / 2
        _put(grid, middle[0] - length * cos, middle[1] + 2 * length * -sin, "o")
    grid[middle[0]][middle[1]] = "+"
    return ["".join(row) for row in grid]


def _bars(obs: Sequence[float]) -> list[str]:
    lines = []
    for i, x in enumerate(obs[:HEIGHT]):
        bar = "=" * round(min(abs(x), 1.0) * 10)
        lines.append(f"{i:>2} {bar if x < 0 else '':>10}|{bar if x >= 0 else '':<10} {x:+.2f}"[:WIDTH].ljust(WIDTH))
    return lines + [" " * WIDTH] * (HEIGHT - len(lines))


def _blank() -> list[list[str]]:
    return [[" "] * WIDTH for _ in range(HEIGHT)]


def _put(grid: list[list[str]], row: float, column: float, mark: str) -> None:
    r, c = round(row), round(column)
    if 0 <= r < HEIGHT and 0 <= c < WIDTH:
        grid[r][c] = mark


def _cut(x: float) -> float:
    return max(-1.0, min(1.0, x))
