"""The gated feed-forward network of a transformer's layer."""

from __future__ import annotations

from torch import Tensor, nn

from mfk.nn.checks import check_rows, check_sizes
from mfk.nn.keyed_dropout import check_rate, dropout


class SwiGLU(nn.Module):
    """leave(SiLU(gate(x)) · value(x)): three Linears without a bias; SwiGLU(0) = 0.

    Args:
        dim: width of what enters and leaves.
        hidden: width between them; None: 4 dim.
        rate: of the dropout before `leave`, in [0, 1); where a call has no key nothing is dropped.

    Raises:
        ValueError: sizes that are not positive, a rate outside [0, 1).

    Source: Shazeer 2020, arXiv:2002.05202, eq. 6.
    """

    def __init__(self, dim: int, hidden: int | None = None, *, rate: float = 0.0) -> None:
        """See the class."""
        super().__init__()
        check_sizes(dim=dim)
        hidden = 4 * dim if hidden is None else hidden
        check_sizes(hidden=hidden)
        check_rate(rate)
        self.dim, self.rate = dim, rate
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.value = nn.Linear(dim, hidden, bias=False)
        self.leave = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor, key: Tensor | None = None, site: int = 0) -> Tensor:
        """[..., dim] -> [..., dim]; `key` and `site` are those of `mfk.nn.dropout`.

        ValueError: another last axis. TypeError: another dtype than the network's.
        """
        check_rows(x, self.dim, self.gate.weight.dtype)
        hidden = nn.functional.silu(self.gate(x)) * self.value(x)
        return self.leave(dropout(hidden, self.rate, key, site))
