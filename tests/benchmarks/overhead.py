"""`make bench PART=overhead`: what Keiryo itself costs: the command line, and an unchanged rollout.

Interleaved with the interpreter's own start and the import of the two servers' libraries, so that the share that is ours shows.
"""

import os
import subprocess
import sys
import time

from tests.benchmarks.report_file import row, write

RUNS = 7
COMMANDS = {
    ("python", "start"): [sys.executable, "-c", "pass"],
    ("keiryo", "--help"): [sys.executable, "-c", "from flows.cli import main; main()", "--help"],
    ("python", "import prefect, mlflow"): [sys.executable, "-c", "import prefect, mlflow"],
    ("keiryo", "unchanged smoke rollout"): [
        sys.executable, "-c", "from flows.cli import main; main()", "run", "configs/smoke.yaml", "--json",
    ],
}  # fmt: skip


def main() -> None:
    """Measure and write docs/bench/overhead.{json,md}."""
    last = list(COMMANDS.values())[-1]
    subprocess.run(last, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fills the store
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in COMMANDS}
    for number in range(RUNS):
        order = list(COMMANDS.items())
        for name, command in order if number % 2 == 0 else reversed(order):
            began_s = time.perf_counter()
            subprocess.run(
                command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
            )
            seconds[name].append(time.perf_counter() - began_s)
    rows = [row(name, work, "s", runs) for (name, work), runs in seconds.items()]
    print(write("overhead", rows, {}).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
