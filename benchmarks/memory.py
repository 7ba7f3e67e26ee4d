"""Peak memory of a sweep against text and depth, beside the formula that a search prints.

Every configuration has a process of its own: the most it ever held, less what it held before the walker was made. The
formula counts the states that grow with text and depth; a micro-batch's activations and logits, and the sums of one
fit, come on top and do not grow. One process: python -m benchmarks.memory --layers 12 --windows 32
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import shapes
from benchmarks.growth import make_random_walker
from seed.console import Terminal
from seed.optimize.space import drop_layers
from seed.proxy.subset_walker import estimate_memory

SIZES = ((12, 16), (12, 32), (12, 64), (6, 32), (24, 32), (48, 32))  # layers, windows of each stream
SIZES_FULL = (*SIZES, (12, 128), (12, 256), (48, 128))


def measure(terminal: Terminal, *, full: bool) -> dict[str, Any]:
    """Run one process for each size."""
    rows = []
    with terminal.stage("memory", total=len(SIZES_FULL if full else SIZES)) as advance:
        for layers, windows in SIZES_FULL if full else SIZES:
            command = [sys.executable, "-m", "benchmarks.memory", "--layers", str(layers), "--windows", str(windows)]
            done = subprocess.run(command, cwd=Path(__file__).parents[1], check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            advance(1, "")
    return {"memory": rows}


def walk_once(num_layers: int, num_windows: int) -> dict[str, float]:
    """Bytes that a walker took at most for two candidates whose maps begin near the first layer."""
    anatomy = shapes.make_llama(num_layers)
    candidates = [drop_layers(num_layers, dropped) for dropped in ([1], [2])]
    warm = make_random_walker(anatomy, num_windows=1)  # libraries, buffers
    warm.measure(candidates[0])
    del warm
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here: proc(5)
    before = read_status("VmRSS")
    walker = make_random_walker(anatomy, num_windows=num_windows)
    for candidate in candidates:
        walker.measure(candidate)
    tokens = num_windows * shapes.WINDOW_TOKENS
    estimate = estimate_memory(
        num_layers=num_layers,
        width=shapes.WIDTH,
        mlp_width=shapes.MLP_WIDTH,
        calibration_tokens=tokens,
        validation_tokens=tokens,
        number_bytes=4,
    )
    return {
        "num_layers": num_layers,
        "tokens": 2 * tokens,
        "peak_bytes": read_status("VmHWM") - before,
        "estimated_bytes": estimate,
    }


def read_status(name: str) -> int:
    """Bytes of this process: VmRSS, which it holds, or VmHWM, the most it held."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, f"/proc/self/status has {name}"
    return int(found[1]) * 1024


def show(terminal: Terminal, fields: dict[str, Any]) -> None:
    """Print peaks beside estimates."""
    rows = [
        [
            f"{row['num_layers']} layers, {row['tokens']:,} tokens",
            f"{row['peak_bytes'] / 1e6:.0f}",
            f"{row['estimated_bytes'] / 1e6:.0f}",
            f"{(row['peak_bytes'] - row['estimated_bytes']) / 1e6:.0f}",
            f"{row['peak_bytes'] / row['estimated_bytes']:.2f}",
        ]
        for row in fields["memory"]
    ]
    title = "Peak memory of closed form, half of the tokens for calibration"
    columns = ["size", "peak, MB", "formula, MB", "beyond it, MB", "peak / formula"]
    terminal.show_table(columns, rows, title=title)


def main() -> None:
    """Measure one size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--windows", type=int, required=True, help="windows of each stream")
    args = parser.parse_args()
    print(json.dumps(walk_once(args.layers, args.windows)))


if __name__ == "__main__":
    main()
