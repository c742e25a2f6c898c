"""A trained motion model as one program, TorchScript and torch.export, in the layout of motion files.

TorchScript is deprecated and what C++ programs of the last years load; its warning is silenced here only.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from mfk.core.files import write_atomically
from mfk.core.types import Model, Tree
from mfk.kinematics import wxyz_to_xyzw, xyzw_to_wxyz
from mfk.tasks.motion import predictor_of
from mfk.tasks.motion_features import Frames, from_features, keep_lengths
from mfk.tasks.motion_measure import standardised
from mfk.tasks.motion_net import MotionNet

TOLERANCE = 1e-5


class NextFrame(nn.Module):
    """The frame after those of a window, in a motion file's own layout: px py pz qx qy qz qw of each bone.

    ``forward(frames [B, horizon, 7 bones])``, with labels ``forward(frames, label [B, C])``, with a
    generative network ``forward(frames, [label,] noise [B, 7 bones])``; the next frame [B, 7 bones].
    """

    def __init__(self, net: MotionNet, how: Frames, params: Tree, state: Tree) -> None:
        """`params` and `state` are those of `mfk.tasks.motion.motion_task`; their tensors are copied."""
        super().__init__()
        self.backbone = net.make()
        self.backbone.load_state_dict({**params, **state["buffers"]})
        for name, x in state["scale"].items():
            self.register_buffer(name, x.detach().clone())
        self.names, self.how = list(state["scale"]), how
        # Tracers know a module by its own tensors, not one whose parameters are handed to it.
        self.net = net._replace(model=Model(net.model.init, lambda _, __, *inputs: self.backbone(*inputs)))

    def forward(self, frames: Tensor, *more: Tensor) -> Tensor:
        """See the class."""
        scale = {name: self.get_buffer(name) for name in self.names}
        label = more[0] if self.net.labels else None
        noise = more[-1][:, None] if self.net.generative else None
        bones = frames.unflatten(-1, (self.how.bones, 7))
        window = torch.cat((bones[..., :3], xyzw_to_wxyz(bones[..., 3:])), -1)
        x, anchor = standardised(self.how, scale, window)
        predictor = predictor_of(self.net, {}, {"buffers": {}, "scale": scale}, noise)
        out = predictor(x, label, 0) * scale["std"] + scale["mean"]
        frame = keep_lengths(self.how, from_features(self.how, out[:, None], anchor)[:, 0], window[:, -1])
        return torch.cat((frame[..., :3], wxyz_to_xyzw(frame[..., 3:])), -1).flatten(-2)


def check_path(path: Path) -> None:
    """Refuse a path that `export_motion` could not write to, before anything is trained for it.

    Raises:
        ValueError: another suffix than .ts or .pt, or a folder of this name.
        FileNotFoundError: there is no such folder.
        PermissionError: the folder cannot be written to.
    """
    if path.suffix not in (".ts", ".pt") or path.is_dir():
        raise ValueError(f"export_ts: expected a file's name that ends in .ts or .pt, got {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"export_ts: {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"export_ts: {path}: the folder {path.parent} cannot be written to")


def export_motion(
    net: MotionNet, how: Frames, params: Tree, state: Tree, frames: Tensor, label: Tensor | None, path: Path
) -> dict[str, float]:
    """Write `path` (TorchScript) and its twin of torch.export (.pt2), read both back and compare with eager.

    Args:
        net: the network; params, state: as of training.
        how: see `read_as`.
        params: of the network.
        state: see `motion_task`.
        frames: example windows [B, horizon, bones, 7], B >= 3, wxyz as everywhere in mfk.
        label: their labels [B, C], where the network takes any.
        path: file to write, NAME.ts or NAME.pt.

    Returns:
        file -> greatest difference from the eager model, over a batch of another size than the traced one.

    Raises:
        ValueError: another suffix, or a program that does not agree to 1e-5; nothing is then left at `path`.
        OSError: the folder cannot be written.
    """
    check_path(path)
    module = NextFrame(net, how, params, state).eval()
    flat = torch.cat((frames[..., :3], wxyz_to_xyzw(frames[..., 3:])), -1).flatten(-2)
    example = [flat]
    if net.labels:
        assert label is not None
        example.append(label)
    if net.generative:
        example.append(torch.linspace(-1, 1, len(flat) * net.features).reshape(len(flat), -1))
    few = tuple(x[:2] for x in example)
    all_rows = tuple(example)
    differences: dict[str, float] = {}
    twin = path.with_suffix(".pt2")
    with torch.no_grad():
        eager = module(*all_rows)
        parts: list[tuple[Path, Path]] = []
        try:
            for file in (path, twin):
                part = file.with_name(f".{file.stem}.{os.getpid()}{file.suffix}")
                parts.append((part, file))
                call = _script(module, few, part) if file is path else _program(module, few, part)
                difference = float((call(*all_rows) - eager).abs().max())
                if not difference <= TOLERANCE:
                    raise ValueError(
                        f"export_ts: {file} differs from the model by {difference:.1e}, more than {TOLERANCE}"
                    )
                differences[str(file)] = difference
            for part, file in parts:
                write_atomically(file, part.read_bytes())
        finally:
            for part, _ in parts:
                part.unlink(missing_ok=True)
    return differences


def _script(module: nn.Module, example: tuple[Tensor, ...], file: Path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        # Checks of shapes, which are the same for every batch.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        torch.jit.save(torch.jit.trace(module, example, check_trace=False), str(file))
        return torch.jit.load(str(file))


def _program(module: nn.Module, example: tuple[Tensor, ...], file: Path):
    rows = torch.export.Dim("rows", min=1, max=2**20)
    shapes = [{0: rows} for _ in example]
    dynamic = {"frames": shapes[0]} | ({"more": tuple(shapes[1:])} if shapes[1:] else {})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        program = torch.export.export(module, example, dynamic_shapes=dynamic)
        torch.export.save(program, str(file))
        return torch.export.load(str(file)).module()
