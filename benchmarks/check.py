"""Measures the times and sizes that users feel, beside what is promised: `make bench-check`.

Each command runs in a process of its own, several times; the median counts. Writes benchmarks/check.json (ignored by
git) and prints a table. Exits with 1 if a promise is broken. Run it on a quiet machine.
"""

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMISES = [
    ("import posttrain", [sys.executable, "-c", "import posttrain"], 2.5, 5),
    ("import and a formula", [sys.executable, "-c", "import posttrain; posttrain.objectives.dpo"], 5.0, 5),
    ("posttrain --help", [sys.executable, "-m", "posttrain", "--help"], 1.0, 5),
    ("posttrain train sft --help", [sys.executable, "-m", "posttrain", "train", "sft", "--help"], 5.0, 3),
]
"""(what, command, seconds at most, times)."""
DEMO_SECONDS = 480.0
DEMO_MIB = 2048.0


def seconds(command: list[str]) -> float:
    """Wall time of one run of a command."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> int:
    """Measure everything, print, write the JSON."""
    rows = []
    for what, command, limit, times in PROMISES:
        seconds(command)  # the first run fills the file cache
        measured = statistics.median(seconds(command) for _ in range(times))
        rows.append({"what": what, "value": round(measured, 3), "limit": limit, "unit": "s"})
    if "--no-demo" not in sys.argv:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "demo"
            took = seconds([sys.executable, "-m", "posttrain", "demo", "--out", str(out)])
            data = json.loads((out / "demo.json").read_text())
        rows.append({"what": "posttrain demo", "value": round(took, 1), "limit": DEMO_SECONDS, "unit": "s"})
        peak = round(data["peak_memory_mb"])
        rows.append({"what": "posttrain demo, peak memory", "value": peak, "limit": DEMO_MIB, "unit": "MiB"})
    for row in rows:
        verdict = "ok" if row["value"] <= row["limit"] else "TOO MUCH"
        print(f"{row['what']:<30} {row['value']:>8} {row['unit']:<4} (at most {row['limit']:g})  {verdict}")
    machine = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
    Path(__file__).with_name("check.json").write_text(json.dumps(machine | {"rows": rows}, indent=1) + "\n")
    return any(row["value"] > row["limit"] for row in rows)


if __name__ == "__main__":
    sys.exit(main())
