"""Trained networks as files: those of the package, and any other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import mfk
from mfk import kinematics as kin
from mfk.core import config
from mfk.tasks import ik
from mfk.tasks.ik_export import export_ik
from mfk.tasks.ik_pretrained import IK, save_ik


def reachable(chain: kin.Chain, rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    u = torch.rand(rows, chain.dof, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q = chain.lower + u * (chain.upper - chain.lower).clamp(max=2 * torch.pi)
    return q, kin.forward(chain, q).contiguous()


@pytest.fixture(scope="module", params=["panda", "ur10"])
def shipped(request: pytest.FixtureRequest) -> IK:
    return mfk.load_ik(request.param)


def test_a_shipped_network_is_right_where_it_was_trained(shipped: IK) -> None:
    q, target = reachable(shipped.chain, 2000)
    noise = 0.1 * torch.randn(q.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    reference = kin.clip_to_limits(shipped.chain, q + noise)
    got = shipped.propose(target, reference)
    assert got.dtype == torch.float64 and got.shape == q.shape
    errors = ik.pose_errors(shipped.chain, got, target)
    assert float(ik.within(errors, 5.0, 5.0).float().mean()) >= 0.95
    assert float((got - reference).abs().median()) < 0.2


def test_solve_from_the_network_the_table_and_a_start(shipped: IK) -> None:
    q, target = reachable(shipped.chain, 50)
    assert bool(shipped.solve(target).converged.all())
    for seeds in ("network", "random"):
        assert bool(shipped.solve(target, seeds=seeds).converged.all())
    near = shipped.solve(target, q, seeds="network")
    assert bool(near.converged.all()) and float((near.q - q).abs().max()) < 0.2
    one = shipped.solve(target[0], q[0], seeds="network", num_solutions=3)
    assert one.q.shape == (3, shipped.chain.dof)


def test_several_proposals_are_better_than_one(shipped: IK) -> None:
    _, target = reachable(shipped.chain, 300)
    one, eight = shipped.propose(target), shipped.propose(target, num=8, steps=2)
    assert eight.shape == (300, 8, shipped.chain.dof)

    def position(q: Tensor) -> Tensor:
        poses = target.reshape(300, *(1,) * (q.ndim - 2), 7).expand(*q.shape[:-1], 7)
        return ik.pose_errors(shipped.chain, q, poses).position

    assert float(position(eight).amin(-1).mean()) < 0.3 * float(position(one).mean())
    both = shipped.propose(target, eight[:, 0], num=3)
    torch.testing.assert_close(both[:, 0], shipped.propose(target, eight[:, 0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(both[:, 1], one, rtol=0, atol=1e-4)
    assert shipped.propose(target[:0]).shape == (0, shipped.chain.dof)
    assert shipped.propose(target[0].float(), num=2).dtype == torch.float32


def test_the_record_tells_how_it_was_made(shipped: IK) -> None:
    settings = shipped.record["settings"]
    assert config.from_dict(ik.NetConfig, settings["ik"]["net"]) == shipped.network
    assert "torch" in shipped.record["versions"] and shipped.record["made"].startswith("step")
    assert re.fullmatch(r"IK\((panda|ur10), \w+, [\d,]+ parameters\)", repr(shipped))
    assert shipped.to("cpu").record is shipped.record


def test_shipped_files_are_small() -> None:
    for file in (Path(mfk.__file__).parent / "tasks" / "weights").iterdir():
        assert file.suffix == ".npz" and file.stat().st_size <= 8e6


def small(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    net = ik.NetConfig(width=8, blocks=1)
    params, buffers = ik.ik_model(kin.ur10(), net).init(0)
    path = tmp_path / "new" / "ur10.npz"
    save_ik(path, params, buffers, net, {"name": "ur10", "frame": "tool0", "base": "base_link"}, {"a": 1})
    return path, dict(np.load(path))


def test_a_file_holds_what_was_saved_and_any_robot(tmp_path: Path) -> None:
    path, arrays = small(tmp_path)
    loaded = mfk.load_ik(path)
    assert loaded.record == {"a": 1} and loaded.chain == kin.ur10()
    for name, x in loaded.params.items():
        assert np.array_equal(x.numpy(), arrays[f"params/{name}"])
    assert [p.name for p in path.parent.iterdir()] == ["ur10.npz"]
    other = tmp_path / "own.npz"
    robot = {"urdf": kin.urdf_text("panda"), "frame": "panda_link5", "base": "panda_link1"}
    chain = kin.panda("panda_link5", "panda_link1")
    net = ik.NetConfig(width=8, blocks=1, base_steps=2)
    save_ik(other, *ik.ik_model(chain, net).init(1), net, robot, {})
    assert mfk.load_ik(str(other)).chain.joint_names == chain.joint_names


def test_damaged_and_foreign_files_are_refused_by_name(tmp_path: Path) -> None:
    path, arrays = small(tmp_path)
    whole = path.read_bytes()
    for damage in (whole[:100], whole[: len(whole) // 2], b""):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=r"ur10\.npz"):
            mfk.load_ik(path)
    name = "params/enter.weight"
    bad: list[tuple[dict[str, np.ndarray], str]] = [
        ({k: v for k, v in arrays.items() if k != name}, "'enter.weight' is missing"),
        ({**arrays, "params/more": arrays[name]}, "'more' is unknown"),
        ({**arrays, name: arrays[name].T}, "enter.weight.*expected finite numbers"),
        ({**arrays, name: arrays[name] * np.nan}, "enter.weight.*expected finite numbers"),
        ({**arrays, name: arrays[name].astype(np.float64)}, "torch.float32"),
        ({k: v for k, v in arrays.items() if k != "about"}, "save_ik"),
        ({**arrays, "about": np.frombuffer(json.dumps({"format": 2}).encode(), np.uint8)}, "save_ik"),
        ({**arrays, name: np.array([None])}, "refused"),
    ]
    about = json.loads(arrays["about"].tobytes())
    for change, message in (
        ({"robot": "ur10"}, "robot: expected strings"),
        ({"robot": {"name": "ur10", "base": "base_link"}}, "robot: expected strings"),
        ({"robot": {**about["robot"], "frame": 5}}, "robot: expected strings"),
        ({"robot": {**about["robot"], "name": "../../x"}}, "robot: expected panda or ur10"),
        ({"robot": {"urdf": "/etc/passwd", "frame": "a", "base": "b"}}, "expected the text of a URDF"),
        ({"robot": {**about["robot"], "frame": "hand"}}, "robot: .*hand"),
        ({"network": {**about["network"], "width": 10**6}}, "of the size of its arrays"),
        ({"network": {**about["network"], "blocks": 10**6}}, "of the size of its arrays"),
        ({"network": {**about["network"], "base_steps": 10**6}}, "of the size of its arrays"),
        ({"network": {**about["network"], "depth": 1}}, "depth"),
    ):
        text = json.dumps({**about, **change}).encode()
        bad.append(({**arrays, "about": np.frombuffer(text, np.uint8)}, rf"ur10\.npz.*{message}"))
    for content, message in bad:
        np.savez(path, **content)  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match=message):
            mfk.load_ik(path)
    with pytest.raises(FileNotFoundError, match=r"absent\.npz"):
        mfk.load_ik(tmp_path / "absent.npz")
    with pytest.raises(ValueError, match="expected panda, ur10 or the path"):
        mfk.load_ik("iiwa")


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    net = ik.NetConfig(width=8, blocks=1)
    with pytest.raises(OSError, match="file"):
        save_ik(tmp_path / "file" / "x.npz", *ik.ik_model(kin.ur10(), net).init(0), net, {}, {})


def test_proposals_refuse_what_does_not_fit(shipped: IK) -> None:
    _, target = reachable(shipped.chain, 2)
    for num in (0, 10_001, True):
        with pytest.raises(ValueError, match="num: expected a whole number from 1 to 10,000"):
            shipped.propose(target, num=num)
    with pytest.raises(TypeError, match="q_ref: expected float32 or float64"):
        shipped.propose(target, torch.zeros(shipped.chain.dof, dtype=torch.int64))
    with pytest.raises(TypeError, match="target: expected float32 or float64"):
        shipped.propose(target.half())
    far = target.clone()
    far[:, :3] = 1e30
    assert bool(torch.isfinite(shipped.propose(far)).all())
    with pytest.raises(ValueError, match="q_ref: expected a tensor"):
        shipped.propose(target, torch.zeros(3, shipped.chain.dof))
    with pytest.raises(ValueError, match="q_ref: expected finite"):
        shipped.propose(target, torch.full((shipped.chain.dof,), torch.nan))
    with pytest.raises(ValueError, match="target: expected shape"):
        shipped.propose(target[:, :6])


def test_solving_from_the_network_under_vmap(shipped: IK) -> None:
    q, target = reachable(shipped.chain, 4)
    got = torch.func.vmap(lambda pose, start: shipped.solve(pose, start, seeds="network").q)(target, q)
    torch.testing.assert_close(got, shipped.solve(target, q, seeds="network").q, rtol=0, atol=1e-5)


def test_an_exported_program_is_the_network(tmp_path: Path) -> None:
    path, _ = small(tmp_path)
    loaded = mfk.load_ik(path)
    out = tmp_path / "out" / "ur10.pt2"
    assert export_ik(loaded, out) <= 1e-5
    q, target = reachable(loaded.chain, 50)
    program = torch.export.load(out).module()
    with torch.no_grad():
        got = program(q.float(), target.float())
    torch.testing.assert_close(got, loaded.propose(target.float(), q), rtol=0, atol=1e-5)
    assert [p.name for p in out.parent.iterdir()] == ["ur10.pt2"]
    with pytest.raises(IsADirectoryError, match="path: expected a file to write"):
        export_ik(loaded, tmp_path)
    with pytest.raises(OSError):
        export_ik(loaded, path / "below.pt2")
