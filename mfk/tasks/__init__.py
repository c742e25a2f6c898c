"""Floor 3: training problems, each of which binds networks, losses and data into a Task."""

from mfk.tasks import ik, ik_compare, ik_files, ik_report, ik_solve

__all__ = ["ik", "ik_compare", "ik_files", "ik_report", "ik_solve"]
