"""Encoders of one family of features, which see several masked copies of a row at once.

A family's encoder is asked once for each category, with the features of the others set to zero; these copies
are an axis of their own. Batch norm has statistics for each copy, since sets of features differ in them and
since with common ones a category would see, through them, what the others hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mfk.core.types import Params
from mfk.nn.checks import check_choice, check_sizes
from mfk.nn.keyed_dropout import check_rate, dropout

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.functional.relu,
    "leaky_relu": nn.functional.leaky_relu,
    "elu": nn.functional.elu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}


class CopyNorm(nn.Module):
    """Batch norm of several copies, each with its own statistics, gain and bias in common.

    In training it uses the batch's mean and variance and returns new running ones, r <- 0.9 r + 0.1 new, the
    variance unbiased, as nn.BatchNorm1d; it writes nothing.

    Args:
        copies: n.
        width: H.

    Source: Ioffe & Szegedy 2015, arXiv:1502.03167.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, copies: int, width: int) -> None:
        """See the class."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(copies, width))
        self.register_buffer("running_var", torch.ones(copies, width))

    def forward(self, x: Tensor, training: bool) -> tuple[Tensor, Params]:
        """[B, n, H] or [B, n, H, T] -> (the same, the buffers after; none in evaluation).

        Raises:
            ValueError: training on a single number, which has no variance.
        """
        axes = (0, *range(3, x.ndim))
        buffers: Params = {}
        x = x.to(self.weight.dtype)  # from autocast's
        if training:
            count = x.numel() // (x.shape[1] * x.shape[2])
            if count < 2:
                raise ValueError(
                    "x: batch norm in training needs at least two rows, to have a variance, got one"
                )
            var, mean = torch.var_mean(x, axes, correction=0)
            for name, new in (("running_mean", mean), ("running_var", var * (count / (count - 1)))):
                buffers[name] = 0.9 * getattr(self, name) + 0.1 * new.detach()
        else:
            mean, var = self.running_mean, self.running_var
        shape = (*mean.shape, *(1,) * (x.ndim - 3))
        gain = self.weight * (var + 1e-5).rsqrt()
        return (x - mean.reshape(shape)) * gain.reshape(shape) + self.bias.reshape(-1, *shape[2:]), buffers


class MLPEncoder(nn.Module):
    """Linear, batch norm, activation and dropout for each width, then Linear.

    Args:
        inputs: D, columns of the family.
        copies: n, masked copies of a row.
        hidden_dims: widths of the hidden layers.
        output_dim: width of what comes out.
        dropout: rate after each hidden layer, in [0, 1).
        activation: a name of `ACTIVATIONS`.
        batch_norm: whether there is one after each hidden Linear.

    Raises:
        ValueError: sizes that are not positive, a rate outside [0, 1), another activation.
    """

    def __init__(
        self,
        inputs: int,
        copies: int = 1,
        *,
        hidden_dims: Sequence[int] = (256, 128),
        output_dim: int = 64,
        dropout: float = 0.1,
        activation: str = "relu",
        batch_norm: bool = True,
    ) -> None:
        """See the class."""
        super().__init__()
        check_sizes(inputs=inputs, copies=copies, output_dim=output_dim)
        check_sizes(**{f"hidden_dims[{i}]": width for i, width in enumerate(hidden_dims)})
        check_rate(dropout)
        check_choice("activation", activation, tuple(ACTIVATIONS))
        self.rate, self.activation, self.output_dim = dropout, ACTIVATIONS[activation], output_dim
        self.dropouts = len(hidden_dims)
        sizes = (inputs, *hidden_dims)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(CopyNorm(copies, width) for width in hidden_dims if batch_norm)
        self.leave = nn.Linear(sizes[-1], output_dim)

    def forward(
        self, x: Tensor, key: Tensor | None = None, *, training: bool = False, site: int = 0
    ) -> tuple[Tensor, Params]:
        """[B, n, D] -> ([B, n, output_dim], the buffers that training changed, by name).

        Args:
            x: masked copies of the rows.
            key: of `mfk.nn.dropout`, int64 [B]; None drops nothing.
            training: whether batch norm takes the batch's statistics.
            site: of the first dropout; the others follow.

        Raises:
            ValueError: training with batch norm on one row.
        """
        buffers: Params = {}
        for i, layer in enumerate(self.hidden):
            x = layer(x)
            x = _normalised(self.norms, i, x, training, buffers)
            x = dropout(self.activation(x), self.rate, key, site + i)
        return self.leave(x), buffers


class TemporalCNNEncoder(nn.Module):
    """Convolution over time, batch norm, activation and dropout for each width; the mean over time; Linear.

    Args:
        inputs: D · T, columns of the family: T values of its first feature, then of its second, and so on.
        copies: n, masked copies of a row.
        frames: T.
        channels: widths of the convolutions.
        kernel: their length, odd; the ends are filled with zeros, so that T stays.
        output_dim: width of what comes out.
        dropout: rate after each convolution, in [0, 1).
        activation: a name of `ACTIVATIONS`.
        batch_norm: whether there is one after each convolution.

    Raises:
        ValueError: sizes that are not positive or do not agree, an even kernel, a rate outside [0, 1),
            another activation.
    """

    def __init__(
        self,
        inputs: int,
        copies: int = 1,
        *,
        frames: int,
        channels: Sequence[int] = (64, 128),
        kernel: int = 5,
        output_dim: int = 64,
        dropout: float = 0.1,
        activation: str = "relu",
        batch_norm: bool = True,
    ) -> None:
        """See the class."""
        super().__init__()
        check_sizes(inputs=inputs, copies=copies, frames=frames, kernel=kernel, output_dim=output_dim)
        check_sizes(**{f"channels[{i}]": width for i, width in enumerate(channels)})
        check_rate(dropout)
        check_choice("activation", activation, tuple(ACTIVATIONS))
        if inputs % frames:
            raise ValueError(f"inputs: expected a multiple of frames={frames}, got {inputs}")
        if not kernel % 2:
            raise ValueError(f"kernel: expected an odd int, got {kernel}")
        self.frames, self.rate, self.activation = frames, dropout, ACTIVATIONS[activation]
        self.output_dim, self.dropouts = output_dim, len(channels)
        sizes = (inputs // frames, *channels)
        self.hidden = nn.ModuleList(nn.Conv1d(a, b, kernel, padding=kernel // 2) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(CopyNorm(copies, width) for width in channels if batch_norm)
        self.leave = nn.Linear(sizes[-1], output_dim)

    def forward(
        self, x: Tensor, key: Tensor | None = None, *, training: bool = False, site: int = 0
    ) -> tuple[Tensor, Params]:
        """[B, n, D · T] -> ([B, n, output_dim], the buffers); see `MLPEncoder.forward`."""
        copies, buffers = x.shape[:2], {}
        x = x.unflatten(-1, (-1, self.frames))
        for i, layer in enumerate(self.hidden):
            x = layer(x.flatten(0, 1)).unflatten(0, copies)
            x = _normalised(self.norms, i, x, training, buffers)
            x = dropout(self.activation(x), self.rate, key, site + i)
        return self.leave(x.mean(-1)), buffers


def _normalised(norms: nn.ModuleList, i: int, x: Tensor, training: bool, buffers: Params) -> Tensor:
    """`x` through the i-th norm, if there are any; its new buffers are added to `buffers`."""
    if not len(norms):
        return x
    x, new = norms[i](x, training)
    buffers |= {f"norms.{i}.{name}": value for name, value in new.items()}
    return x
