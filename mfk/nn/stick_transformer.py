"""A causal transformer that reads stick figures and says what their next frame is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

import torch
from torch import Tensor, nn

from mfk.core.types import describe
from mfk.nn.checks import check_choice, check_exact, check_frames, check_input, check_key, check_sizes
from mfk.nn.keyed_dropout import check_rate
from mfk.nn.stick_layers import Embed, Head, Past, StickLayer, fill, seen, start_xavier

CONDITIONS = ("actions", "camera", "partner")
ENVIRONMENTS, PHYSICS = 32, 6


class StickSizes(NamedTuple):
    """Sizes of a StickTransformer; heads divide the width."""

    width: int
    layers: int
    heads: int


STICK_PRESETS = {
    "small": StickSizes(256, 6, 8),
    "medium": StickSizes(384, 8, 12),
    "large": StickSizes(512, 10, 16),
}
"""The documented three: `StickTransformer(**STICK_PRESETS["small"]._asdict())`."""


class StickOutput(NamedTuple):
    """What is said at each frame about the next one."""

    pose: Tensor  # [B, T, outputs], figure units
    actions: Tensor  # [B, T, actions], logits
    physics: Tensor  # [B, T, 6]: velocity, acceleration, momentum, each x and y
    environment: Tensor  # [B, T, 32], logits
    position: Tensor  # [B, T, 2]
    velocity: Tensor  # [B, T, 2]


class StickCache(NamedTuple):
    """What the frames so far left in each layer; a call leaves it as it is and returns another."""

    layers: tuple[Past, ...]  # keys and values, each [B, heads, 1 + frames, width / heads]
    length: int  # places taken: the text's, and one for each frame


class StickTransformer(nn.Module):
    """Text and frames to frames: a token of the text, then the frames, through pre-norm rotary layers.

    The output at frame t is about frame t + 1, and a function of the text and of frames, actions, cameras and
    partners 0 ... t: what comes later changes it by exactly 0, as long as it is finite. (The original has no
    causal mask, so that its target is among its inputs.) Actions, camera and partner are added to the frames
    that they belong to. There is no norm behind the last layer.

    Parameters of the presets, all three conditions included, as documented: inputs = outputs = 20 and 60
    actions 7,248,122, 20,594,618 and 44,618,362. Without the partner's projection, which nothing but a second
    figure uses, `small` has 7,211,898.

    Args:
        inputs: width of a frame, 20 or 48 of the documented figures.
        outputs: width of a predicted frame; None: `inputs`.
        actions: how many there are.
        text: width of a text's embedding.
        width: of the residual stream; a multiple of 4 and of `heads`, with an even width of each head.
        layers: how many.
        heads: of the attention.
        dropout: rate, in [0, 1); where a call has no key nothing is dropped.
        conditions: which of "actions", "camera" and "partner" may be given.

    Raises:
        ValueError: sizes that are not positive or do not divide, a rate outside [0, 1), other conditions.

    Source: gestura-ai/stick-gen, src/model/transformer.py, for the architecture and its sizes.
    """

    def __init__(
        self,
        inputs: int = 20,
        outputs: int | None = None,
        actions: int = 60,
        text: int = 1024,
        *,
        width: int = 384,
        layers: int = 8,
        heads: int = 12,
        dropout: float = 0.1,
        conditions: Sequence[str] = CONDITIONS,
    ) -> None:
        """See the class."""
        super().__init__()
        outputs = inputs if outputs is None else outputs
        check_sizes(inputs=inputs, outputs=outputs, actions=actions, text=text)
        check_sizes(width=width, layers=layers, heads=heads)
        check_rate(dropout)
        _check_width(width, heads)
        for condition in conditions:
            check_choice("conditions", condition, CONDITIONS)
        self.inputs, self.actions, self.text = inputs, actions, text
        self.width, self.heads = width, heads

        def embed(name: str, before: int, between: int | None, site: int) -> Embed | None:
            return Embed(before, between, width, dropout, site) if name in conditions else None

        self.text_token = Embed(text, 2 * width, width, dropout, site=0)
        self.motion = Embed(inputs, width // 2, width, dropout, site=1)
        self.action_table = nn.Embedding(actions, 64) if "actions" in conditions else None
        self.action = embed("actions", 64, None, 2)
        self.camera = embed("camera", 3, width // 4, 3)
        self.partner = embed("partner", inputs, width // 2, 4)
        heads_of = (
            ("pose", width // 2, outputs),
            ("actions", width // 2, actions),
            ("physics", width // 2, PHYSICS),
            ("environment", width // 2, ENVIRONMENTS),
            ("position", width // 4, 2),
            ("velocity", width // 4, 2),
        )
        self.leave = nn.ModuleDict(
            {name: Head(width, b, n, dropout, site=5 + i) for i, (name, b, n) in enumerate(heads_of)}
        )
        self.layers = nn.ModuleList(StickLayer(width, heads, dropout, site=11 + 2 * i) for i in range(layers))
        start_xavier(self)

    @overload
    def forward(
        self,
        x: Tensor,
        text: Tensor | None = None,
        actions: Tensor | None = None,
        camera: Tensor | None = None,
        valid: Tensor | None = None,
        key: Tensor | None = None,
        *,
        partner: Tensor | None = None,
        cache: None = None,
    ) -> StickOutput: ...

    @overload
    def forward(
        self,
        x: Tensor,
        text: Tensor | None = None,
        actions: Tensor | None = None,
        camera: Tensor | None = None,
        valid: None = None,
        key: None = None,
        *,
        partner: Tensor | None = None,
        cache: int | StickCache,
    ) -> tuple[StickOutput, StickCache]: ...

    def forward(
        self,
        x: Tensor,
        text: Tensor | None = None,
        actions: Tensor | None = None,
        camera: Tensor | None = None,
        valid: Tensor | None = None,
        key: Tensor | None = None,
        *,
        partner: Tensor | None = None,
        cache: int | StickCache | None = None,
    ) -> StickOutput | tuple[StickOutput, StickCache]:
        """Frames [B, T, inputs] -> what is said of the frame after each, and with a cache the next cache.

        In generation the first call has `cache=` the most frames that there will be, the text, and the first
        frames; each further one has the cache that the call before returned and the frames that are new,
        one or several. The outputs are those of one call with all frames, up to rounding.

        Args:
            x: frames, [B, T, inputs].
            text: its embedding, [B, text]; None is the same as zeros. With a StickCache None: it is in there.
            actions: of each frame, int64 [B, T], below the number of actions; -1: none, which adds nothing.
            camera: x, y and zoom of each frame, [B, T, 3]; None adds nothing.
            valid: bool [B, T], False where a frame is padding, before or behind the others. Padding may hold
                anything, NaN included, and changes nothing at the frames that are valid: nobody attends to
                it, and the first valid frame has position 1. Outputs at padding are finite and mean nothing.
            key: of `mfk.nn.dropout`, int64 [B]; None drops nothing.
            partner: frames of a second figure, [B, T, inputs]; None adds nothing.
            cache: None; an int; or a StickCache.

        Raises:
            ValueError: shapes other than these, a condition the network was built without, more frames than
                the cache has places for, a mask or key or second text together with a cache.
            TypeError: dtypes other than the parameters'; not int64 or bool where those are expected.
            IndexError: on the CPU, an action that there is not.
        """
        self._check(x, text, actions, camera, valid, key, partner)
        past = self._cache(cache, x, text, valid, key)
        if valid is not None:
            x, camera, partner = fill(x, valid), fill(camera, valid), fill(partner, valid)
            actions = None if actions is None else torch.where(valid, actions, -1)
        h = self.motion(x, key)
        if actions is not None and self.action_table is not None and self.action is not None:
            there = actions != -1
            h = h + self.action(self.action_table(torch.where(there, actions, 0)), key) * there.unsqueeze(-1)
        if camera is not None and self.camera is not None:
            h = h + self.camera(camera, key)
        if partner is not None and self.partner is not None:
            h = h + self.partner(partner, key)
        length = past.length if past is not None else 0
        if length == 0:
            given = x.new_zeros(x.shape[0], self.text) if text is None else text
            h = torch.cat((self.text_token(given, key).unsqueeze(1), h), 1)
        places = torch.arange(length, length + h.shape[1], device=x.device)
        mask = None
        if past is not None:
            mask = torch.arange(length + h.shape[1], device=x.device) <= places.unsqueeze(1)
        if valid is not None:
            mask, places = seen(valid, places)
        layers: list[Past] = []
        for i, layer in enumerate(self.layers):
            h, left = layer(h, places, mask, key, None if past is None else past.layers[i], length)
            layers.append(left)
        h = h[:, -x.shape[1] :]
        output = StickOutput(*(self.leave[name](h, key) for name in StickOutput._fields))
        if past is None:
            return output
        return output, StickCache(tuple(layers), length + len(places))

    def _check(
        self,
        x: Tensor,
        text: Tensor | None,
        actions: Tensor | None,
        camera: Tensor | None,
        valid: Tensor | None,
        key: Tensor | None,
        partner: Tensor | None,
    ) -> None:
        check_frames(x, self.inputs, self.motion.leave.weight.dtype)
        batch, frames = x.shape[:2]
        for name, there, given in (
            ("actions", self.action, actions),
            ("camera", self.camera, camera),
            ("partner", self.partner, partner),
        ):
            if there is None and given is not None:
                raise ValueError(f"{name}: expected None, as the network was built without this condition")
        if text is not None:
            check_input("text", text, (batch, self.text), x.dtype, "x's")
        if actions is not None:
            check_exact("actions", actions, (batch, frames), torch.int64)
        if camera is not None:
            check_input("camera", camera, (batch, frames, 3), x.dtype, "x's")
        if partner is not None:
            check_input("partner", partner, (batch, frames, self.inputs), x.dtype, "x's")
        if valid is not None:
            check_exact("valid", valid, (batch, frames), torch.bool)
        check_key(key, (batch,))

    def _cache(
        self,
        cache: int | StickCache | None,
        x: Tensor,
        text: Tensor | None,
        valid: Tensor | None,
        key: Tensor | None,
    ) -> StickCache | None:
        """The cache this call writes to, a new one for an int, checked."""
        if cache is None:
            return None
        for name, given in (("valid", valid), ("key", key)):
            if given is not None:
                raise ValueError(f"{name}: expected None where there is a cache, got {describe(given)}")
        batch, frames = x.shape[:2]
        if not isinstance(cache, StickCache):
            check_sizes(cache=cache)
            memory = x.new_zeros(batch, self.heads, 1 + cache, self.width // self.heads)
            cache = StickCache(tuple((memory, memory) for _ in self.layers), 0)
        elif text is not None:
            raise ValueError("text: expected None, as the cache holds the text that the first call had")
        taken = max(1, cache.length)
        shape = (batch, self.heads, taken + frames, self.width // self.heads)
        if len(cache.layers) != len(self.layers):
            raise ValueError(f"cache: expected {len(self.layers)} layers, got {len(cache.layers)}")
        given = tuple(cache.layers[0][0].shape)
        if given[:2] + given[3:] != shape[:2] + shape[3:]:
            raise ValueError(f"cache: expected keys {(*shape[:2], 'S', shape[3])}, got {given}")
        if given[2] < shape[2]:
            raise ValueError(
                f"cache: expected places for {taken - 1 + frames} frames, got {given[2] - 1}; the first call "
                "says how many there will be"
            )
        return cache


def _check_width(width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"width: expected a multiple of heads, {heads}, got {width}")
    if width // heads % 2:
        raise ValueError(f"heads: expected an even width of each, for rotations, got {width} / {heads}")
    if width % 4:
        raise ValueError(f"width: expected a multiple of 4, for the heads' hidden widths, got {width}")
