"""mfk, MeanFlow Kinematics: functional, pure-PyTorch learning of kinematics and motion.

Models are stateless functions over parameter trees (`mfk.stateless`), losses are pure functions of a
field u(z, r, t) (`mfk.losses`), and one small train step runs any problem (`mfk.train`).
"""

from mfk import core, data, kinematics, losses, nn, optim, tasks, train
from mfk.core import jit, stateless
from mfk.losses import sample
from mfk.tasks import load_ik

__version__ = "0.1.0"

__all__ = [
    "core",
    "data",
    "jit",
    "kinematics",
    "load_ik",
    "losses",
    "nn",
    "optim",
    "sample",
    "stateless",
    "tasks",
    "train",
]
