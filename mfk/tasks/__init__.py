"""Floor 3: training problems, each of which binds networks, losses and data into a Task."""

from mfk.tasks import (
    ik,
    ik_compare,
    ik_export,
    ik_files,
    ik_pretrained,
    ik_report,
    ik_solve,
    irf,
    irf_data,
    irf_measure,
    irf_net,
    irf_query,
    irf_range,
    irf_report,
    motion,
    motion_data,
    motion_export,
    motion_measure,
    motion_net,
    motion_report,
)
from mfk.tasks.ik_pretrained import IK, load_ik, save_ik
from mfk.tasks.irf_emulator import emulator
from mfk.tasks.motion_animation import animate
from mfk.tasks.stick_drawing import contact_sheet, draw_stick, save_stick

__all__ = [
    "IK",
    "animate",
    "contact_sheet",
    "draw_stick",
    "emulator",
    "ik",
    "ik_compare",
    "ik_export",
    "ik_files",
    "ik_pretrained",
    "ik_report",
    "ik_solve",
    "irf",
    "irf_data",
    "irf_measure",
    "irf_net",
    "irf_query",
    "irf_range",
    "irf_report",
    "load_ik",
    "motion",
    "motion_data",
    "motion_export",
    "motion_measure",
    "motion_net",
    "motion_report",
    "save_ik",
    "save_stick",
]
