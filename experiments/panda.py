"""Train, resume, evaluate, use and watch a one-step inverse-kinematics network for the Franka Panda.

python experiments/panda.py                      # the default preset: minutes on two cores
python experiments/panda.py quick --lr 5e-4
python experiments/panda.py --data data/panda.pt # rows of a file, see experiments/generate.py
python experiments/panda.py --resume             # go on with the newest run
python experiments/panda.py evaluate --checkpoint outputs/panda/latest
python experiments/panda.py solve --checkpoint outputs/panda/latest --pose 0.4 0.1 0.5 0 1 0 0
python experiments/panda.py view --checkpoint outputs/panda/latest      # in a browser
"""

from __future__ import annotations

from inverse_kinematics import IKRun, main, presets

from mfk.kinematics import RobotConfig

PRESETS = presets(IKRun(robot=RobotConfig("panda")))

if __name__ == "__main__":
    main("panda", PRESETS, "One-step inverse kinematics for the Franka Panda, trained with MeanFlow.")
