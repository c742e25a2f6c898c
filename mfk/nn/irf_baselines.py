"""Perceptrons and a recurrent network from an economy's parameters to its impulse responses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mfk.nn.checks import check_exact, check_input, check_sizes

VARIABLES = 3
"""Of the documented responses: output, inflation, rate."""


class ResponseMLP(nn.Module):
    """Linear and ReLU for each width, then Linear: parameters to all periods of all responses at once.

    With one shock and H = 40 it has 52,475 parameters at 12 inputs, 56,315 at 27 and 58,619 at 36.

    Args:
        inputs: P, width of what describes the economy.
        shocks: S, responses that come out; None: one, whose axis is left out.
        horizon: H, the last period.
        variables: V, numbers of a period.
        widths: of the hidden layers.

    Raises:
        ValueError: sizes that are not positive.

    Source: RichardNerland/macro_simulator, emulator/models/baselines.py, for the sizes.
    """

    def __init__(
        self,
        inputs: int,
        shocks: int | None = None,
        horizon: int = 40,
        variables: int = VARIABLES,
        *,
        widths: Sequence[int] = (256, 128, 64),
    ) -> None:
        """See the class."""
        super().__init__()
        self.shape = response_shape(shocks, horizon, variables)
        check_sizes(inputs=inputs, **{f"widths[{i}]": width for i, width in enumerate(widths)})
        self.inputs = inputs
        self.layers = perceptron((inputs, *widths, _product(self.shape)))

    def forward(self, x: Tensor) -> Tensor:
        """[B, P] -> [B, S, H + 1, V], or [B, H + 1, V] where no number of shocks was given.

        Raises:
            ValueError: another shape. TypeError: another dtype than the parameters'.
        """
        check_economies(x, self.inputs, next(self.parameters()).dtype)
        return _through(self.layers, x).unflatten(-1, self.shape)


class PooledResponseMLP(nn.Module):
    """One perceptron for several worlds: a world's learnt token beside the parameters, filled up with zeros.

    With three worlds, 36 inputs, one shock and H = 40 it has 207,275 parameters. Which entry of x is which
    parameter depends on the world, and the first layer can tell only by the token.

    Args:
        worlds: how many.
        inputs: P of the world that has most.
        shocks: S of the world that has most; None: one, whose axis is left out.
        horizon: H, the last period.
        variables: V, numbers of a period.
        widths: of the hidden layers.
        token: width of a world's token.

    Raises:
        ValueError: sizes that are not positive.

    Source: RichardNerland/macro_simulator, emulator/models/baselines.py, for the sizes.
    """

    def __init__(
        self,
        worlds: int,
        inputs: int,
        shocks: int | None = None,
        horizon: int = 40,
        variables: int = VARIABLES,
        *,
        widths: Sequence[int] = (512, 256, 128),
        token: int = 16,
    ) -> None:
        """See the class."""
        super().__init__()
        self.shape = response_shape(shocks, horizon, variables)
        check_sizes(worlds=worlds, inputs=inputs, token=token)
        check_sizes(**{f"widths[{i}]": width for i, width in enumerate(widths)})
        self.inputs = inputs
        self.tokens = nn.Embedding(worlds, token)
        self.layers = perceptron((token + inputs, *widths, _product(self.shape)))

    def forward(self, x: Tensor, world: Tensor, mask: Tensor) -> Tensor:
        """Economies of any of the worlds -> [B, S, H + 1, V], or [B, H + 1, V].

        Args:
            x: [B, P'], P' <= P; what the mask leaves out, and what is not there, counts as 0.
            world: number of each row's world, int64 [B].
            mask: which entries are the row's own, bool [B, P'].

        Raises:
            ValueError: another shape. TypeError: another dtype.
        """
        check_economies(x, self.inputs, self.tokens.weight.dtype, padded=True)
        check_exact("world", world, (len(x),), torch.int64)
        check_exact("mask", mask, tuple(x.shape), torch.bool)
        filled = nn.functional.pad(torch.where(mask, x, 0.0), (0, self.inputs - x.shape[1]))
        return _through(self.layers, torch.cat((self.tokens(world), filled), -1)).unflatten(-1, self.shape)


class ResponseGRU(nn.Module):
    """Parameters set the state of a GRU that writes the responses period by period, each from the last.

        h_{-1} = Linear(ReLU(Linear(x))),    h_t = GRU(y_{t-1}, h_{t-1}),    y_t = Linear(h_t),    y_{-1} = 0

    With one shock it has 69,635 parameters at 12 inputs, 71,555 at 27 and 72,707 at 36; 213,897 in all three.

    Args:
        inputs: P, width of what describes the economy.
        shocks: S, responses that are written side by side; None: one, whose axis is left out.
        horizon: H, the last period.
        variables: V, numbers of a period.
        hidden: width of the state.

    Raises:
        ValueError: sizes that are not positive.

    Source: Cho et al. 2014, arXiv:1406.1078, in torch's form; RichardNerland/macro_simulator,
    emulator/models/baselines.py, for the sizes.
    """

    def __init__(
        self,
        inputs: int,
        shocks: int | None = None,
        horizon: int = 40,
        variables: int = VARIABLES,
        *,
        hidden: int = 128,
    ) -> None:
        """See the class."""
        super().__init__()
        self.shape = response_shape(shocks, horizon, variables)
        check_sizes(inputs=inputs, hidden=hidden)
        self.inputs, self.shocks, self.variables, self.periods = inputs, shocks, variables, horizon + 1
        written = (shocks or 1) * variables
        self.enter = perceptron((inputs, hidden, hidden))
        # nn.GRUCell's parameters and start; its fused kernels have no forward mode.
        bound = hidden**-0.5
        self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh = (
            nn.Parameter(torch.empty(3 * hidden, *size).uniform_(-bound, bound))
            for size in ((written,), (hidden,), (), ())
        )
        self.leave = nn.Linear(hidden, written)

    def forward(self, x: Tensor) -> Tensor:
        """[B, P] -> [B, S, H + 1, V], or [B, H + 1, V] where no number of shocks was given.

        Raises:
            ValueError: another shape. TypeError: another dtype than the parameters'.
        """
        check_economies(x, self.inputs, self.leave.weight.dtype)
        h = _through(self.enter, x)
        y = x.new_zeros(len(x), self.leave.out_features)
        path = []
        for _ in range(self.periods):
            h = self._step(y, h)
            y = self.leave(h)
            path.append(y)
        out = torch.stack(path, 1)
        return (
            out if self.shocks is None else out.unflatten(-1, (self.shocks, self.variables)).transpose(1, 2)
        )

    def _step(self, y: Tensor, h: Tensor) -> Tensor:
        reset_y, keep_y, new_y = nn.functional.linear(y, self.weight_ih, self.bias_ih).chunk(3, -1)
        reset_h, keep_h, new_h = nn.functional.linear(h, self.weight_hh, self.bias_hh).chunk(3, -1)
        keep = torch.sigmoid(keep_y + keep_h)
        new = torch.tanh(new_y + torch.sigmoid(reset_y + reset_h) * new_h)
        return new + keep * (h - new)


class PerWorldNet(nn.Module):
    """A network for each of several worlds, under the one interface: each row is its own world's network's.

    Every network runs on every row, and what belongs to other worlds is left out: nothing depends on which
    worlds a batch holds, and a network sees no gradient of another world's rows.

    Args:
        nets: of each world: x [B, P of the world] -> [B, S of the world, H + 1, V], or all [B, H + 1, V].
        inputs: P of each world, in the same order.

    Raises:
        ValueError: no networks, or not one number for each.
    """

    def __init__(self, nets: Sequence[nn.Module], inputs: Sequence[int]) -> None:
        """See the class."""
        super().__init__()
        if not nets or len(nets) != len(inputs):
            raise ValueError(
                f"inputs: expected a number for each of {len(nets)} networks, at least one, "
                f"got {list(inputs)}"
            )
        check_sizes(**{f"inputs[{i}]": size for i, size in enumerate(inputs)})
        self.nets, self.inputs = nn.ModuleList(nets), tuple(inputs)

    def forward(self, x: Tensor, world: Tensor, mask: Tensor) -> Tensor:
        """Economies of any of the worlds -> [B, S, H + 1, V], S that of the world that has most.

        Args:
            x: [B, P'], P' at most the most that a world has; what the mask leaves out counts as 0.
            world: number of each row's world, int64 [B].
            mask: which entries are the row's own, bool [B, P'].

        Raises:
            ValueError: another shape. TypeError: another dtype.
        """
        check_economies(x, max(self.inputs), next(self.nets.parameters()).dtype, padded=True)
        check_exact("world", world, (len(x),), torch.int64)
        check_exact("mask", mask, tuple(x.shape), torch.bool)
        filled = nn.functional.pad(torch.where(mask, x, 0.0), (0, max(self.inputs) - x.shape[1]))
        made = [net(filled[:, :size]) for net, size in zip(self.nets, self.inputs, strict=True)]
        if made[0].ndim == 4:
            most = max(y.shape[1] for y in made)
            made = [nn.functional.pad(y, (0, 0, 0, 0, 0, most - y.shape[1])) for y in made]
        out = made[0]
        for number, y in enumerate(made[1:], 1):
            out = torch.where((world == number).view(-1, *(1,) * (out.ndim - 1)), y, out)
        return out


def response_shape(shocks: int | None, horizon: int, variables: int) -> tuple[int, ...]:
    """(S, H + 1, V), or (H + 1, V) for shocks=None; ValueError for sizes that are not positive."""
    check_sizes(horizon=horizon, variables=variables, **({} if shocks is None else {"shocks": shocks}))
    return (*(() if shocks is None else (shocks,)), horizon + 1, variables)


def check_economies(x: Tensor, inputs: int, dtype: torch.dtype, *, padded: bool = False) -> None:
    """What describes economies is [B, inputs], or less wide where `padded` (ValueError), of `dtype`."""
    if padded and isinstance(x, Tensor) and x.ndim == 2 and 1 <= x.shape[1] <= inputs:
        inputs = x.shape[1]
    rows = len(x) if isinstance(x, Tensor) and x.ndim else 0
    check_input("x", x, (rows, inputs), dtype, "the network's")


def perceptron(sizes: Sequence[int]) -> nn.ModuleList:
    """A Linear for each pair of neighbouring sizes."""
    return nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))


def _through(layers: nn.ModuleList, x: Tensor) -> Tensor:
    for layer in list(layers)[:-1]:
        x = nn.functional.relu(layer(x))
    return layers[-1](x)


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
