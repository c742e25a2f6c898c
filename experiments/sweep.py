"""Run an experiment with each combination of settings, and compare the runs in one table and one plot.

python experiments/sweep.py panda --lr 1e-4 3e-4 --seed 0 1 2              # six runs, one after the other
python experiments/sweep.py panda quick --precision fp32 bf16 --jobs 2     # a preset; two runs at a time
python experiments/sweep.py panda --resume                                 # go on with the newest sweep
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

from mfk.core import cli, ranks
from mfk.train.sweep import sweep
from mfk.train.sweep_grid import Experiment

HERE = Path(__file__).parent

HELP = """\
usage: python experiments/sweep.py EXPERIMENT [PRESET] --FLAG VALUE [VALUE ...] ... [--jobs N]
                                   [--out DIR] [--resume [DIR]] [--dry-run]

Runs the experiment once with each combination of the values, and compares the runs in one table and one plot.
The flags are the experiment's own, see "python experiments/EXPERIMENT.py --help"; one with a single value has
it in all runs. "--betas 0.9 0.99 0.8 0.95" are two values of two numbers, "--x --no-x" both values of a
switch; a flag that takes any number of words is the same in all runs.

    python experiments/sweep.py panda --lr 1e-4 3e-4 --seed 0 1 2

makes six runs: 1e-4 with each seed, then 3e-4. Where seeds are among the values, a second table has
mean and standard deviation over them. Every combination is checked before the first run starts.

  --jobs N        runs at a time (1). Each then has its share of the cores as --threads, unless that is given.
  --out DIR       folder of the sweep; without it a fresh number, outputs/sweeps/EXPERIMENT/001
  --resume [DIR]  go on with a sweep, the newest if no folder is named; flags may be left out. Finished runs
                  are kept, stopped ones go on, failed ones are tried again. The same command again does
                  the same if it names the folder, --out DIR.
  --dry-run       check the combinations, list them, and stop

DIR holds sweep.json, table.md, table.json, plot.png and runs/<combination>/, each with its console.log.
Ctrl-C stops: the runs save first. Exit code: 0 all finished, 1 some failed, 2 a mistake in the command.

experiments: """


def experiments() -> list[str]:
    """The scripts beside this one that can be swept: those with presets."""
    scripts = sorted(HERE.glob("*.py"))
    return [s.stem for s in scripts if re.search(r"^PRESETS\b", s.read_text(encoding="utf-8"), re.MULTILINE)]


def main() -> None:
    """Sweep as the command line says; a user's mistake ends with code 2."""
    if not ranks.alone():
        return
    words = sys.argv[1:]
    if {"-h", "--help"} & {*words}:
        print(HELP + ", ".join(experiments()))
        return
    if not words or words[0] not in experiments():
        came = f"got {words[0]}" if words else "got none; see --help"
        raise ValueError(f"EXPERIMENT: expected one of {', '.join(experiments())} as the first word, {came}")
    name = words[0]
    module = importlib.import_module(name)
    raise SystemExit(sweep(Experiment(name, HERE / f"{name}.py", module.PRESETS), words[1:]))


if __name__ == "__main__":
    cli.main(main)
