"""Networks that emulate impulse responses: of one world, and of many at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mfk.core.types import describe
from mfk.nn.checks import check_exact, check_sizes
from mfk.nn.irf_baselines import VARIABLES, check_economies, response_shape


class ResponseNet(nn.Module):
    """A residual perceptron of one world: enter, blocks h + Linear(SiLU(Linear(h))), leave.

    SiLU, as an economy's solution is smooth in its parameters. Blocks start as the identity.

    Args:
        inputs: P, width of what describes the economy.
        shocks: S, responses that come out, or K coefficients of each period (with variables=1).
        horizon: H, the last period.
        variables: V, numbers of a period.
        width: of the residual stream.
        blocks: how many.

    Raises:
        ValueError: sizes that are not positive.
    """

    def __init__(
        self,
        inputs: int,
        shocks: int,
        horizon: int = 40,
        variables: int = VARIABLES,
        *,
        width: int = 256,
        blocks: int = 3,
    ) -> None:
        """See the class."""
        super().__init__()
        self.shape = response_shape(shocks, horizon, variables)
        check_sizes(inputs=inputs, width=width, blocks=blocks)
        self.inputs = inputs
        self.enter = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))
        self.leave = nn.Linear(width, shocks * (horizon + 1) * variables)

    def forward(self, x: Tensor) -> Tensor:
        """[B, P] -> [B, S, H + 1, V].

        Raises:
            ValueError: another shape. TypeError: another dtype than the parameters'.
        """
        check_economies(x, self.inputs, self.leave.weight.dtype)
        h = nn.functional.silu(self.enter(x))
        for block in self.blocks:
            h = block(h)
        return self.leave(h).unflatten(-1, self.shape)


class UniversalResponseNet(nn.Module):
    """One network for several worlds, which knows each parameter by name.

    Every parameter p of every world has a learnt vector a_p, its identity, every world w a token, and every
    response k of every world a token s_k (the documents' shock token)::

        c = SiLU(Linear(token_w) + Σ_p x_p a_p)
        h = SiLU(Linear(c)), then for each block b
        h = h + Linear(SiLU((1 + scale_b(token_w)) Linear(h) + shift_b(token_w)))
        y_k = Linear(SiLU((1 + scale(s_k)) Linear(h) + shift(s_k)))       [H + 1, V]

    Exchanging two parameters' values changes the result, as their identities differ; exchanging their places
    does not. (The documents' encoder averages one function of all values, and cannot tell them apart.) All
    responses come out at once.

    Values are brought to the places of their identities, always as many as the network has, and each token
    is treated alone: what pads a batch (other worlds' parameters, other worlds' responses) changes neither
    a row's output nor a gradient, to the last bit.

    Args:
        parameters: number of parameters of each world, in the worlds' order.
        responses: number of responses, or coefficients, of each world.
        horizon: H, the last period.
        variables: V, numbers of a period.
        world_dim: width of a world's token.
        theta_dim: width of a parameter's identity.
        shock_dim: width of a response's token.
        width: of the trunk.
        blocks: residual blocks of the trunk.
        head: width of the head's hidden layer.

    Raises:
        ValueError: sizes that are not positive, or lists of different lengths.

    Source: RichardNerland/macro_simulator, emulator/models/universal.py, for world, parameter and shock
    tokens and their widths.
    """

    def __init__(
        self,
        parameters: Sequence[int],
        responses: Sequence[int],
        horizon: int = 40,
        variables: int = VARIABLES,
        *,
        world_dim: int = 32,
        theta_dim: int = 64,
        shock_dim: int = 16,
        width: int = 256,
        blocks: int = 4,
        head: int = 128,
    ) -> None:
        """See the class."""
        super().__init__()
        if not parameters or len(parameters) != len(responses):
            raise ValueError(
                f"parameters: expected a number for each of the worlds in responses, {list(responses)}, "
                f"got {list(parameters)}"
            )
        check_sizes(**{f"parameters[{i}]": size for i, size in enumerate(parameters)})
        check_sizes(**{f"responses[{i}]": size for i, size in enumerate(responses)})
        check_sizes(horizon=horizon, variables=variables, world_dim=world_dim, theta_dim=theta_dim)
        check_sizes(shock_dim=shock_dim, width=width, blocks=blocks, head=head)
        self.inputs, self.responses = max(parameters), max(responses)
        self.period = (horizon + 1, variables)
        self.worlds = nn.Embedding(len(parameters), world_dim)
        self.enter_world = nn.Linear(world_dim, theta_dim)
        # Of a size that lets a world of few parameters move c as far as one of many.
        count = torch.tensor([float(n) for n in parameters for _ in range(n)])
        self.identities = nn.Parameter(torch.randn(sum(parameters), theta_dim) / count.sqrt()[:, None])
        self.tokens = nn.Embedding(sum(responses), shock_dim)
        self.enter = nn.Linear(theta_dim, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))
        self.steer = nn.Linear(world_dim, 2 * width * blocks)
        self.tell = nn.Linear(shock_dim, 2 * head)
        self.head = nn.Linear(width, head)
        self.leave = nn.Linear(head, (horizon + 1) * variables)
        self.register_buffer("first_parameter", _starts(parameters), persistent=False)
        self.register_buffer("first_response", _starts(responses), persistent=False)
        self.register_buffer("response_count", torch.tensor(list(responses)), persistent=False)
        self.first_parameter: Tensor
        self.first_response: Tensor
        self.response_count: Tensor

    def forward(self, x: Tensor, world: Tensor, mask: Tensor, responses: int | None = None) -> Tensor:
        """Economies of any of the worlds -> [B, responses, H + 1, V]; rows that have fewer are filled with 0.

        Args:
            x: [B, P'], P' at most the most that a world has; an entry is of parameter number p of the row's
                world; what the mask leaves out may be anything.
            world: number of each row's world, int64 [B].
            mask: which entries are the row's own, bool [B, P'].
            responses: at least the most of a world in the batch; None: of any world.

        Raises:
            ValueError: another shape. TypeError: another dtype.
        """
        check_economies(x, self.inputs, self.leave.weight.dtype, padded=True)
        check_exact("world", world, (len(x),), torch.int64)
        check_exact("mask", mask, tuple(x.shape), torch.bool)
        count = self.responses if responses is None else responses
        if not 1 <= count <= self.responses:
            raise ValueError(f"responses: expected None or 1 to {self.responses}, got {describe(responses)}")
        # Padding goes to a place of its own, behind the others, which is cut off.
        places = self.first_parameter[world, None] + torch.arange(x.shape[1], device=x.device)
        places = torch.where(mask, places, len(self.identities))
        full = x.new_zeros(len(x), len(self.identities) + 1)
        full = full.scatter(1, places, torch.where(mask, x, 0.0))[:, :-1]
        token = self.worlds(world)
        h = nn.functional.silu(self.enter_world(token) + full @ self.identities)
        h = nn.functional.silu(self.enter(h))
        steers = self.steer(token).chunk(2 * len(self.blocks), -1)
        for i, block in enumerate(self.blocks):
            h = block(h, steers[2 * i], steers[2 * i + 1])
        h = self.head(h)
        # One response after the other: a matrix product over all of them could round by their number.
        return torch.stack([self._respond(h, world, k) for k in range(count)], 1)

    def _respond(self, h: Tensor, world: Tensor, k: int) -> Tensor:
        """Response number k of each row's world, [B, H + 1, V]; 0 where it has none."""
        own = k < self.response_count[world]
        token = torch.where(own, self.first_response[world] + k, 0)
        scale, shift = self.tell(self.tokens(token)).chunk(2, -1)
        y = self.leave(nn.functional.silu((1 + scale) * h + shift))
        return torch.where(own[:, None], y, 0.0).unflatten(-1, self.period)


class _Block(nn.Module):
    """h + Linear(SiLU((1 + scale) Linear(h) + shift)), the identity at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, h: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        inner = self.enter(h)
        if scale is not None and shift is not None:
            inner = (1 + scale) * inner + shift
        return h + self.leave(nn.functional.silu(inner))


def _starts(sizes: Sequence[int]) -> Tensor:
    """Where each one's numbers begin if they stand one behind the other."""
    return torch.tensor([sum(sizes[:i]) for i in range(len(sizes))])
