"""mfk.core.types: the rows of a whole batch, and what an error message says of a value."""

from __future__ import annotations

import torch

from mfk.core import tree
from mfk.core.types import Aux, Rows, describe


def test_all_rows() -> None:
    assert Rows.all(3) == Rows(range(3), 3)
    assert list(Rows.all(0).index) == []


def test_records_are_trees_that_torch_and_optree_see_through() -> None:
    aux = Aux(state={"count": torch.ones(2)}, metrics={"loss": torch.tensor(2.0)})
    assert len(tree.leaves(aux)) == 2
    doubled = torch.vmap(lambda x: Aux({"count": x}, {"loss": 2 * x}))(torch.arange(3.0))
    assert isinstance(doubled, Aux) and doubled.metrics["loss"].tolist() == [0.0, 2.0, 4.0]


def test_descriptions_are_short() -> None:
    assert describe(torch.zeros(2, 3)) == "a tensor of shape (2, 3), torch.float32"
    assert describe({"b": 1, "a": 2}) == "a dict with keys ['a', 'b']"
    assert describe("x") == "'x' (str)"
    assert describe(None) == "None (NoneType)"
    assert len(describe({str(i): i for i in range(1000)})) < 100


def test_a_description_is_one_short_line() -> None:
    long = ([torch.zeros(400)] * 400, "x" * 10**6, [[0.0] * 7] * 900, (torch.zeros(3), 1), {"a": [1] * 999})
    for value in long:
        text = describe(value)
        assert len(text) < 200 and "\n" not in text
    lines = type("Lines", (), {"__repr__": lambda self: "x\n" * 1000})()
    assert "\n" not in describe(lines) and "without a repr" in describe(10**5000)
    assert describe([torch.zeros(2)]) == "a list of 1, the first a tensor of shape (2,), torch.float32"
