"""mfk.core.tree against sums written out by hand."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch

from mfk.core import tree


class Pair(NamedTuple):
    left: Any
    right: Any


def example() -> dict[str, Any]:
    return {
        "b": Pair(torch.tensor([3.0, 4.0]), [torch.tensor([[12.0]], dtype=torch.float64), None]),
        "a": (torch.tensor(7), {"z": torch.tensor([84.0], dtype=torch.bfloat16)}),
    }


def test_leaves_come_in_the_order_of_sorted_keys_without_none() -> None:
    assert [x.sum().item() for x in tree.leaves(example())] == [7, 84.0, 7.0, 12.0]
    assert [name for name, _ in tree.named_leaves(example())] == ["a/0", "a/1/z", "b/left", "b/right/0"]
    one = example()
    assert all(x is y for x, (_, y) in zip(tree.leaves(one), tree.named_leaves(one), strict=True))
    assert tree.leaves({}) == [] and tree.named_leaves(None) == []
    assert tree.named_leaves(3) == [("", 3)]


def test_unflatten_undoes_leaves() -> None:
    again = tree.unflatten(example(), [1, 2, 3, 4])
    assert again == {"b": Pair(3, [4, None]), "a": (1, {"z": 2})}
    with pytest.raises(ValueError):
        tree.unflatten(example(), [1, 2, 3])


def test_map_joins_trees_of_one_structure_only() -> None:
    assert tree.map(lambda x, y: x - y, {"a": 5, "b": Pair(2, None)}, {"b": Pair(1, None), "a": 3}) == {
        "a": 2,
        "b": Pair(1, None),
    }
    for other in ({"a": 1}, {"a": 1, "c": 2}, {"a": 1, "b": (1, 2)}, (1, 2)):
        with pytest.raises(ValueError):
            tree.map(lambda x, y: x, {"a": 1, "b": 2}, other)


def test_global_norm_is_the_norm_of_one_long_vector() -> None:
    # 3-4-5, 5-12-13, 13-84-85.
    values = [
        torch.tensor([3.0, 4.0]),
        {"x": torch.tensor([[12.0]])},
        torch.tensor(84.0, dtype=torch.bfloat16),
    ]
    norm = tree.global_norm(values)
    assert norm.shape == () and norm.dtype == torch.float32 and norm.item() == 85.0
    wide = tree.global_norm([torch.tensor([3.0], dtype=torch.float64), torch.tensor([4.0])])
    assert wide.dtype == torch.float64 and wide.item() == 5.0
    # Squares of these overflow in half precision, and the squares of 1e-4 vanish.
    assert tree.global_norm([torch.full((4,), 3e4, dtype=torch.float16)]).item() == pytest.approx(
        6e4, rel=1e-3
    )
    assert tree.global_norm([torch.full((4,), 1e-4, dtype=torch.float16)]).item() == pytest.approx(
        2e-4, rel=1e-2
    )
    assert math.isnan(tree.global_norm([torch.ones(2), torch.tensor([math.nan])]).item())
    assert tree.global_norm([torch.ones(0)]).item() == 0.0


def test_global_norm_is_differentiable() -> None:
    x = {"a": torch.tensor([3.0]), "b": torch.tensor([[0.0, 4.0]])}
    grads = torch.func.grad(tree.global_norm)(x)
    assert grads["a"].tolist() == [pytest.approx(0.6)]
    assert grads["b"].tolist() == [[0.0, pytest.approx(0.8)]]


def test_an_empty_tree_has_no_norm() -> None:
    with pytest.raises(ValueError, match="tree: expected at least one tensor"):
        tree.global_norm({"a": None})


def test_cast_changes_floating_point_tensors_only() -> None:
    out = tree.cast(
        {"f": torch.ones(2), "i": torch.tensor([1]), "b": torch.tensor(True), "n": 3}, torch.float64
    )
    assert {k: getattr(v, "dtype", v) for k, v in out.items()} == {
        "f": torch.float64,
        "i": torch.int64,
        "b": torch.bool,
        "n": 3,
    }
    moved = tree.cast({"f": torch.ones(2, dtype=torch.float16), "i": torch.tensor([1])}, device="meta")
    assert {x.device.type for x in moved.values()} == {"meta"}
    assert [moved["f"].dtype, moved["i"].dtype] == [torch.float16, torch.int64]


def test_a_clone_shares_no_memory() -> None:
    original = {"a": torch.ones(2), "n": 3}
    copy = tree.clone(original)
    copy["a"].add_(1)
    assert original["a"].tolist() == [1.0, 1.0] and copy["n"] == 3


def test_size_counts_scalars() -> None:
    assert tree.size({"a": torch.ones(2, 3), "b": (torch.tensor(1.0), torch.ones(0)), "n": 3, "x": None}) == 7


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_bad_number_is_found_wherever_it_is(bad: float, dtype: torch.dtype) -> None:
    leaves = [torch.ones(3, 2, dtype=dtype), torch.arange(3), torch.zeros(2)]
    assert tree.all_finite(leaves).item() is True
    leaves[0][2, 1] = bad
    flag = tree.all_finite({"x": leaves})
    assert flag.shape == () and flag.dtype == torch.bool and flag.item() is False


def test_a_tree_without_floating_point_tensors_is_finite() -> None:
    assert tree.all_finite({}).item() is True
    assert tree.all_finite({"step": torch.tensor(3)}).item() is True
    assert tree.all_finite({"step": 3, "x": torch.ones(1)}).item() is True


def test_stacked_trees_come_apart_again() -> None:
    members = [{"b": torch.full((2,), float(i)), "a": (torch.tensor(i), None)} for i in range(3)]
    stacked = tree.stack(members)
    assert stacked["b"].shape == (3, 2) and stacked["a"][0].tolist() == [0, 1, 2]
    assert stacked["b"].is_contiguous()
    for i, expected in enumerate(members):
        one = tree.member(stacked, i)
        assert torch.equal(one["b"], expected["b"]) and one["a"][0] == i
    tree.member(stacked, 1)["b"].zero_()
    assert stacked["b"][1].tolist() == [0, 0]  # a view


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "members: expected at least one tree"),
        ([{"a": torch.ones(2)}, {"b": torch.ones(2)}], "trees of one structure; 0 and 1 differ"),
        ([{"a": torch.ones(2)}, {"a": torch.ones(3)}], r"leaf 'a' is .*\(2,\).* and .*\(3,\).* in member 1"),
        ([{"a": torch.ones(2)}, {"a": torch.ones(2).double()}], "leaf 'a' .*float64 in member 1"),
    ],
)
def test_trees_that_cannot_be_stacked(members: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tree.stack(members)


def test_member_norms_are_the_norms_of_the_members() -> None:
    generator = torch.Generator().manual_seed(0)
    members = [
        {"w": torch.randn(3, 4, generator=generator), "b": torch.randn(4, generator=generator).double()}
        for _ in range(3)
    ]
    expected = torch.stack([tree.global_norm(m) for m in members])
    torch.testing.assert_close(tree.member_norms(tree.stack(members)), expected)
    assert tree.member_norms({"w": torch.ones(2, 3).bfloat16()}).dtype == torch.float32
    with pytest.raises(ValueError, match="tree: expected at least one tensor"):
        tree.member_norms({})


def test_along_broadcasts_over_the_members() -> None:
    like = torch.ones(2, 3, 4)
    assert (tree.along(torch.tensor([2.0, 3.0]), like) * like)[:, 0, 0].tolist() == [2, 3]
    assert tree.along(torch.tensor(2.0), like).shape == ()


def test_norms_of_whole_numbers_are_refused() -> None:
    for given in (torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.bool)):
        with pytest.raises(
            ValueError, match=r"^tree: expected floating-point tensors to take the norm of, got"
        ):
            tree.global_norm({"a": torch.ones(2), "b": given})


def test_the_norm_of_large_leaves_is_that_of_their_pieces() -> None:
    whole = {"a": torch.randn(3, 200_000, generator=torch.Generator().manual_seed(0)), "b": torch.ones(5)}
    expected = sum(float(x.double().square().sum()) for x in whole.values())
    assert float(tree.square_sum(whole)) == pytest.approx(expected, rel=1e-12)
    assert tree.global_norm(whole).dtype == torch.float32
    # A transposed leaf, and one whose squares no fp32 can hold.
    assert torch.equal(tree.global_norm({**whole, "a": whole["a"].T}), tree.global_norm(whole))
    assert float(tree.global_norm({"a": torch.full((2,), 1e30)})) == pytest.approx(2**0.5 * 1e30)
