"""Floor 2: generators and readers of training data."""

from mfk.data.ik import IKDataConfig, IKSamples, draw_ik, sampling_range

__all__ = ["IKDataConfig", "IKSamples", "draw_ik", "sampling_range"]
