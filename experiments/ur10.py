"""Train, resume, evaluate, use and watch a one-step inverse-kinematics network for the Universal Robots UR10.

python experiments/ur10.py                       # the default preset: minutes on two cores
python experiments/ur10.py quick --lr 5e-4
python experiments/ur10.py --data data/ur10.pt # rows of a file, see experiments/generate.py
python experiments/ur10.py --resume             # go on with the newest run
python experiments/ur10.py evaluate --checkpoint outputs/ur10/latest
python experiments/ur10.py solve --checkpoint outputs/ur10/latest --pose 0.6 0.3 0.5 0 1 0 0
python experiments/ur10.py view --checkpoint outputs/ur10/latest      # in a browser
"""

from __future__ import annotations

from inverse_kinematics import IKRun, main, presets

from mfk.kinematics import RobotConfig
from mfk.tasks.ik import IKConfig, NetConfig

# Wrist singularities ask for less damping and for more steps than the Panda's.
PRESETS = presets(
    IKRun(robot=RobotConfig("ur10"), ik=IKConfig(net=NetConfig(damping=0.06))), steps=3_000, lr=2e-3
)

if __name__ == "__main__":
    main("ur10", PRESETS, "One-step inverse kinematics for the Universal Robots UR10, trained with MeanFlow.")
