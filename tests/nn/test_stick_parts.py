"""RMSNorm, SwiGLU and rotary positions against torch's own modules, closed forms and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_nets import numbers, randomised
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jvp, vmap

from mfk.nn import RMSNorm, SwiGLU, apply_rotary

PARTS: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "RMSNorm": lambda: randomised(RMSNorm(6)),
    "SwiGLU": lambda: randomised(SwiGLU(6, 5)),
    "apply_rotary": lambda: lambda x: apply_rotary(x, torch.tensor([3, 0, 7, 100])),
}
each_part = pytest.mark.parametrize("name", PARTS)


@each_part
def test_derivatives_of_first_and_second_order(name: str) -> None:
    part, x = PARTS[name](), numbers(2, 4, 6).requires_grad_()
    assert gradcheck(part, x, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(part, x, check_fwd_over_rev=True)


@each_part
def test_gradient_through_forward_mode(name: str) -> None:
    """What MeanFlow needs, against central differences."""
    part = PARTS[name]()
    x, along, back, h = numbers(4, 6), numbers(4, 6, seed=1), numbers(4, 6, seed=2), 1e-5

    def rate(x: Tensor) -> Tensor:
        return jvp(part, (x,), (along,))[1].square().sum()

    torch.testing.assert_close(
        (grad(rate)(x) * back).sum(),
        (rate(x + h * back) - rate(x - h * back)) / (2 * h),
        rtol=1e-6,
        atol=1e-7,
    )


@each_part
def test_vmap_and_narrow_types(name: str) -> None:
    part, x = PARTS[name](), numbers(3, 4, 6)
    torch.testing.assert_close(vmap(part)(x), part(x), rtol=1e-12, atol=1e-12)
    narrow = part.bfloat16() if isinstance(part, nn.Module) else part
    out = narrow(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), PARTS[name]()(x), rtol=0.05, atol=0.05)


def test_rms_norm_is_torchs() -> None:
    for eps in (1e-6, 0.1):
        own, theirs = randomised(RMSNorm(6, eps)), nn.RMSNorm(6, eps).double()
        theirs.load_state_dict(own.state_dict())
        x = 3 * numbers(2, 5, 6)
        torch.testing.assert_close(own(x), theirs(x), rtol=1e-12, atol=1e-12)
    rms = RMSNorm(512)(5 * numbers(100, 512).float() + 2).square().mean(-1).sqrt()
    assert ((rms > 0.999) & (rms < 1.001)).all()
    assert not RMSNorm(6)(torch.zeros(1, 6)).any()


def test_rms_norm_in_half_does_not_overflow() -> None:
    x = torch.full((1, 8), 1000.0, dtype=torch.float16)  # 1000² > 65504
    torch.testing.assert_close(RMSNorm(8).half()(x), torch.ones_like(x))


def test_rms_norm_keeps_the_autocast_type() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert RMSNorm(6)(numbers(2, 6).bfloat16()).dtype == torch.bfloat16


def test_swiglu_by_hand() -> None:
    part = SwiGLU(1, 2).double()
    assert sorted(dict(part.named_parameters())) == ["gate.weight", "leave.weight", "value.weight"]
    tables = {"gate": [[1.0], [-2.0]], "value": [[3.0], [4.0]], "leave": [[0.5, 7.0]]}
    given = {f"{name}.weight": torch.tensor(rows).double() for name, rows in tables.items()}
    x = 1.5

    def silu(a: float) -> float:
        return a / (1 + math.exp(-a))

    expected = 0.5 * silu(x) * 3 * x + 7 * silu(-2 * x) * 4 * x
    assert functional_call(part, given, torch.tensor([x]).double()).item() == pytest.approx(expected)
    assert SwiGLU(6).gate.out_features == 24
    assert not SwiGLU(6)(torch.zeros(2, 6)).any()


def test_swiglu_drops_by_key() -> None:
    part, x, key = SwiGLU(6, rate=0.5), numbers(2, 6).float(), torch.tensor([1, 2])
    assert torch.equal(part(x), part(x, None, 3))
    assert not torch.allclose(part(x, key), part(x))
    assert not torch.allclose(part(x, key, 1), part(x, key, 2))


def test_rotary_is_a_product_of_complex_numbers() -> None:
    x, positions = numbers(2, 3, 5, 8), torch.tensor([0, 1, 2, 50, 4])
    pairs = torch.complex(x[..., :4], x[..., 4:])
    rates = torch.tensor([100.0 ** (-2 * i / 8) for i in range(4)], dtype=torch.float64)
    turned = pairs * torch.exp(1j * positions[:, None] * rates)
    expected = torch.cat((turned.real, turned.imag), -1)
    torch.testing.assert_close(apply_rotary(x, positions, 100.0), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(apply_rotary(x), apply_rotary(x, torch.arange(5)))
    assert torch.equal(apply_rotary(x)[..., 0, :], x[..., 0, :])


def test_rotary_keeps_norms_and_knows_differences_only() -> None:
    q, k = numbers(5, 8), numbers(5, 8, seed=1)
    torch.testing.assert_close(apply_rotary(q).norm(dim=-1), q.norm(dim=-1), rtol=1e-12, atol=0)
    at, shift = torch.tensor([0.0, 4.0, 1.5, 9.0, -3.0]).double(), 77.0
    scores = apply_rotary(q, at) @ apply_rotary(k, at).mT
    moved = apply_rotary(q, at + shift) @ apply_rotary(k, at + shift).mT
    torch.testing.assert_close(scores, moved, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(scores, apply_rotary(q, at + shift) @ apply_rotary(k, at).mT)


def test_rotary_positions_of_each_row() -> None:
    x, positions = numbers(2, 3, 4, 6), torch.tensor([[0, 1, 2, 3], [-2, -1, 0, 1]])
    found = apply_rotary(x, positions[:, None])
    for row in range(2):
        assert torch.equal(found[row], apply_rotary(x[row], positions[row]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: apply_rotary(x[..., :5]), ValueError, r"^x: .* with an even d, got \(2, 4, 5\)"),
        (lambda x: apply_rotary(x[0, 0]), ValueError, r"^x: expected the shape \[..., T, d\]"),
        (lambda x: apply_rotary(x.long()), TypeError, r"^x: expected a floating-point tensor"),
        (lambda x: apply_rotary(x, torch.arange(3)), ValueError, r"^positions: expected the shape \(4,\)"),
        (lambda x: apply_rotary(x, torch.zeros(2, 1)), ValueError, r"^positions: .*got \(2, 1\)"),
        (lambda x: apply_rotary(x, torch.ones(4).bool()), TypeError, r"^positions: expected a tensor of num"),
        (lambda x: apply_rotary(x, base=1.0), ValueError, r"^base: expected a finite number > 1"),
        (lambda x: RMSNorm(0), ValueError, r"^dim: expected an int >= 1"),
        (lambda x: RMSNorm(6, 0.0), ValueError, r"^eps: expected a finite number > 0"),
        (lambda x: RMSNorm(5)(x), ValueError, r"^x: expected the shape \[..., 5\]"),
        (lambda x: RMSNorm(6)(x.long()), TypeError, r"^x: expected a floating-point tensor"),
        (lambda x: SwiGLU(0), ValueError, r"^dim: expected an int >= 1"),
        (lambda x: SwiGLU(6, 0), ValueError, r"^hidden: expected an int >= 1"),
        (lambda x: SwiGLU(6, rate=1.0), ValueError, r"^dropout rate"),
        (lambda x: SwiGLU(5)(x), ValueError, r"^x: expected the shape \[..., 5\]"),
        (lambda x: SwiGLU(6)(x.sum()), ValueError, r"^x: expected the shape \[..., 6\], got \(\)"),
        (lambda x: SwiGLU(6)(x.double()), TypeError, r"^x: expected the network's dtype, torch.float32, got"),
        (lambda x: SwiGLU(6)(x.long()), TypeError, r"^x: expected a floating-point tensor"),
        (lambda x: SwiGLU(6)(x.numpy()), TypeError, r"^x: expected a floating-point tensor"),
    ],
)
def test_errors_name_the_argument(
    call: Callable[[Tensor], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(torch.zeros(2, 4, 6))
