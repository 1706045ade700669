"""Print how many golden cases pass: family, cases, passed, largest error by tolerance. Exit status 1 if any fails.

python tests/oracles/table.py                     # the copy in the repository
POSTTRAIN_ORACLES=folder python tests/oracles/table.py
"""

import sys
from collections import defaultdict

import torch
from adapter import answer
from golden import entries, load


def worst(entry: dict) -> tuple[float, str]:
    """The largest error of a case in units of its tolerance, and what went wrong if nothing could be compared."""
    case = load(entry)
    torch.manual_seed(0)
    try:
        found = answer(case)
        return max(case.error(name, found[name]) for name in case.outputs), ""
    except Exception as e:  # a case that raises is a failed case, and the table must still be printed
        return float("inf"), f"{type(e).__name__}: {e}"


def main() -> int:
    rows: dict[str, list[float]] = defaultdict(list)
    failures = []
    for entry in entries():
        error, why = worst(entry)
        rows[entry["family"]].append(error)
        if not error <= 1:
            failures.append(f"{entry['id']}: {why or f'{error:.3g} times the tolerance'}")
    print(f"{'family':<20}{'cases':>6}{'passed':>8}{'largest error / tolerance':>28}")
    rows["all"] = [error for errors in rows.values() for error in errors]
    for family, errors in rows.items():
        print(f"{family:<20}{len(errors):>6}{sum(e <= 1 for e in errors):>8}{max(errors):>28.3g}")
    print(*failures[:40], sep="\n")
    if len(failures) > 40:
        print(f"and {len(failures) - 40} more")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
