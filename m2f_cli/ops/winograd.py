"""3x3 convolutions of many channels on a CPU in a quarter of the multiplications (Winograd's F(4x4, 3x3); Lavin and
Gray 2016, section 4.3): one function, two ways that agree to rounding.

* "direct": `torch.nn.functional.conv2d`, the reference.
* "winograd": 4x4 pixels of the result at a time. Each tile of 6x6 pixels is transformed (a fixed matrix from the left
  and the right), multiplied with the transformed kernel, one matrix product per place of the tile, and transformed
  back. Measured with 256 channels at 128 x 256, two threads: 115 ms against 190 ms. Its rounding error is four times
  the direct one's (5e-5 against 1.2e-5 of a result with a spread of 1), so it stays fp32, and training never uses it.

`M2F_OPS` (or the argument `impl`) overrides the choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .cache import cached_by_shape
from .compiled import Compilable
from .cpu.chunking import PIECE
from .cpu.linear import has_fused, linear
from .dispatch import OPERATORS, is_tracing

IMPLEMENTATIONS = OPERATORS["conv3x3"]
MIN_CHANNELS = 128  # the transforms' work grows with the channels, what they save with their square
MIN_TILES = 256

# Interpolation at 0, 1, -1, 2, -2 and infinity.
_TILE_TO_PLACES = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_KERNEL_TO_PLACES = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_PLACES_TO_RESULT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def choose(x_BCHW: Tensor, out_channels: int) -> str:
    """The implementation that `conv3x3` uses for an input when nobody says otherwise.

    Raises:
        ConfigError: the environment asks for none of the implementations.
    """
    override = IMPLEMENTATIONS.override()
    if override is not None:
        return override
    if is_tracing() or torch.is_grad_enabled() or x_BCHW.device.type != "cpu":
        return "direct"
    B, C, H, W = x_BCHW.shape
    is_fp32 = x_BCHW.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    is_large = min(C, out_channels) >= MIN_CHANNELS and B * H * W >= 16 * MIN_TILES
    suits = is_fp32 and is_large and x_BCHW.is_contiguous(memory_format=torch.channels_last)
    return "winograd" if suits else "direct"


def transformed(weight_OCHW: Tensor) -> Tensor:
    """The kernel at the 36 places, (36, C, O)."""
    G = torch.tensor(_KERNEL_TO_PLACES, dtype=torch.float64, device=weight_OCHW.device)
    return torch.einsum("ih,ochw,jw->ijco", G, weight_OCHW.double(), G).flatten(0, 1).float()


def conv3x3(
    x_BCHW: Tensor,
    weight_OCHW: Tensor,
    bias_O: Tensor | None = None,
    *,
    kernel_PCO: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """`conv2d` with a kernel of 3x3, stride 1 and padding 1.

    Args:
        kernel_PCO: what `transformed` makes of the weights, where it is at hand.
        impl: "direct" or "winograd"; None for the better one.

    Returns:
        (B, O, H, W); of "winograd" with channels innermost.
    """
    if IMPLEMENTATIONS.checked(impl or choose(x_BCHW, len(weight_OCHW))) == "direct":
        return F.conv2d(x_BCHW, weight_OCHW, bias_O, padding=1)
    with torch.autocast(x_BCHW.device.type, enabled=False):  # fp32: the transforms magnify rounding
        kernel_PCO = transformed(weight_OCHW) if kernel_PCO is None else kernel_PCO
        bias_O = kernel_PCO.new_zeros(len(weight_OCHW)) if bias_O is None else bias_O.float()
        return _convolved(x_BCHW.float(), kernel_PCO, bias_O).to(x_BCHW.dtype)


def _convolved(x_BCHW: Tensor, kernel_PCO: Tensor, bias_O: Tensor) -> Tensor:
    B, _, H, W = x_BCHW.shape
    down, across = -(-H // 4), -(-W // 4)  # tiles
    y_BHWO = x_BCHW.new_empty((B, 4 * down, 4 * across, len(bias_O)))
    tiles = y_BHWO.unflatten(1, (down, 4)).unflatten(3, (across, 4))
    for b in range(B):
        _winograd(x_BCHW[b].permute(1, 2, 0), kernel_PCO, bias_O, tiles[b])
    return y_BHWO[:, :H, :W].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _winograd(x_HWC: Tensor, kernel_PCO: Tensor, bias_O: Tensor, result: Tensor) -> None:
    """Writes into `result` (down, 4, across, 4, O), which is whole tiles; a few rows of them at a time."""
    H, W, C = x_HWC.shape
    down, _, across, _, out_channels = result.shape
    step = max(1, PIECE // (36 * across * max(C, out_channels)))
    for start in range(0, down, step):
        count = min(step, down - start)
        first, end = 4 * start - 1, 4 * (start + count) + 1  # rows of the picture, with the border of one pixel
        above, below = max(-first, 0), max(end - H, 0)
        band = F.pad(x_HWC[first + above : end - below], (0, 0, 1, 4 * across - W + 1, above, below))
        places_PTC = to_places(band).view(36, -1, C)
        pixels = to_pixels(torch.bmm(places_PTC, kernel_PCO).view(36, -1)).view(4, 4, count, across, out_channels)
        result[start : start + count] = pixels.add_(bias_O).permute(2, 0, 3, 1, 4)


# --- the transforms, as one matrix product each or as sums to be compiled ---------------------------------------------


@cached_by_shape
def _transforms(device: torch.device) -> tuple[Tensor, Tensor]:
    """From a tile's 36 pixels to 36 places, and from those to 16 pixels: both axes at once (Kronecker products)."""
    there, back = (torch.tensor(m, dtype=torch.float32, device=device) for m in (_TILE_TO_PLACES, _PLACES_TO_RESULT))
    return torch.kron(there, there), torch.kron(back, back)


def places_by_product(band_HWC: Tensor) -> Tensor:
    """(36, T·C): the tiles of a few rows of tiles, with the border of one pixel, at the places."""
    H, W, C = band_HWC.shape
    y, x, c = band_HWC.stride()
    shape, stride = (6, 6, (H - 2) // 4, (W - 2) // 4, C), (y, x, 4 * y, 4 * x, c)
    tiles = band_HWC.as_strided(shape, stride, band_HWC.storage_offset())
    return _product(_transforms(band_HWC.device)[0], tiles.reshape(36, -1))


def pixels_by_product(places_PN: Tensor) -> Tensor:
    """(16, N): 4x4 pixels from the 36 places."""
    return _product(_transforms(places_PN.device)[1], places_PN)


def _product(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    return linear(a_MK, b_KN.T, impl="fused" if a_MK.device.type == "cpu" and has_fused() else "blas")


def places_by_sums(band_HWC: Tensor) -> Tensor:
    tiles = band_HWC.unfold(0, 6, 4).unfold(1, 6, 4)  # (down, across, C, 6, 6)
    rows = _summed(_TILE_TO_PLACES, [tiles[..., i, :] for i in range(6)])
    places = [_summed(_TILE_TO_PLACES, [row[..., i] for i in range(6)]) for row in rows]
    return torch.stack([place for row in places for place in row]).flatten(1)


def pixels_by_sums(places_PN: Tensor) -> Tensor:
    rows = _summed(_PLACES_TO_RESULT, places_PN.unflatten(0, (6, 6)).unbind(0))
    return torch.stack([pixel for row in rows for pixel in _summed(_PLACES_TO_RESULT, row.unbind(0))])


def _summed(matrix: Sequence[Sequence[float]], parts: Sequence[Tensor]) -> list[Tensor]:
    """The product of a small matrix with a stack of tensors, without its zeros."""
    return [sum(factor * part for factor, part in zip(row, parts, strict=True) if factor) for row in matrix]


# Measured with 256 channels, 408 tiles: compiled 1.5 ms, plain 8.5 ms for both, beside 20 ms of matrix products.
to_places = Compilable(places_by_product, places_by_sums)
to_pixels = Compilable(pixels_by_product, pixels_by_sums)
