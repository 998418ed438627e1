"""Files that lack the DINOv3 encoder they were trained with: differences from it (EoMT), or a decoder alone (PMT).

The encoder is Meta's, under a licence of its own, so the authors of the two did not release it again
(docs/methods/plain-vit.md). Its file has the names of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import WeightsError
from . import hub
from . import readers as containers
from .download import Progress
from .key_mapping import refuse

ENCODER = "network.encoder.backbone."
BASES = {  # by width, of files that no preset states the encoder of
    384: "facebook/dinov3-vits16-pretrain-lvd1689m",
    768: "facebook/dinov3-vitb16-pretrain-lvd1689m",
    1024: "facebook/dinov3-vitl16-pretrain-lvd1689m",
}
_PUBLISHED = (  # names of transformers, and those of the encoder inside EoMT and PMT
    (r"^(model\.|encoder\.)+", ""),
    (r"^embeddings\.", "patch_embed."),
    (r"^layer\.", "blocks."),
)
_UNUSED = "patch_embed.mask_token"  # of the encoder's own training


def is_base(tensors: Mapping[str, Tensor]) -> bool:
    """Return True if tensors are a DINOv3 encoder alone, under the names of transformers."""
    return {"patch_embed.register_tokens", "blocks.0.attention.q_proj.weight"} <= set(map(_published, tensors))


def completed(
    tensors: Mapping[str, Tensor], path: Path, progress: Progress | None = None, repo: str | None = None
) -> dict[str, Tensor]:
    """Return the tensors of a file with the encoder that it lacks; other files as they are.

    The encoder is taken from beside the file (`base.safetensors`, or a file or folder that is called as its repository
    on the hub), or else from the hub.

    Args:
        repo: repository of the encoder. None: DINOv3 of the file's width.

    Raises:
        WeightsError: the encoder is not there, or belongs to another network.
    """
    if not (_is_difference(tensors) or _is_decoder(tensors)):
        return dict(tensors)
    name = "network.decoder.q.weight" if _is_decoder(tensors) else "network.q.weight"
    if name not in tensors or tensors[name].dim() != 2:
        raise WeightsError(f"{path} lacks its encoder, and {name}, which would tell the encoder's width, is no matrix.")
    width = tensors[name].shape[-1]
    base = read_base(_find(path, width, progress, repo or BASES.get(width)))
    if _is_decoder(tensors):
        return {**tensors, **{ENCODER + name: x for name, x in base.items()}}
    return _summed(tensors, base)


def _is_difference(tensors: Mapping[str, Tensor]) -> bool:
    # The published files are differences from zero, too, for these: in whole files they are ImageNet's, never 0.
    mean = tensors.get("network.encoder.pixel_mean")
    return mean is not None and ENCODER + "patch_embed.cls_token" in tensors and not mean.any()


def _is_decoder(tensors: Mapping[str, Tensor]) -> bool:
    return "network.decoder.q.weight" in tensors and not any(name.startswith(ENCODER) for name in tensors)


def _summed(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add differences of the encoder to its base, in fp32. All other tensors are absolute; no query has a mask."""
    own = {name.removeprefix(ENCODER): x for name, x in tensors.items() if name.startswith(ENCODER)}
    shared = own.keys() & base.keys()
    wrong = [
        f"{name} is {tuple(own[name].shape)}, in the base {tuple(base[name].shape)}"
        for name in sorted(shared)
        if own[name].shape != base[name].shape
    ]
    refuse(sorted(own.keys() - shared), sorted(base.keys() - shared), wrong)
    probs = "network.attn_mask_probs"  # whose difference is not known to be one
    return {
        **tensors,
        **{ENCODER + name: base[name].float() + x.float() for name, x in own.items()},
        **({probs: torch.zeros_like(tensors[probs])} if probs in tensors else {}),
    }


def read_base(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a DINOv3 encoder under the names that it has inside EoMT and PMT.

    Raises:
        WeightsError: the file holds no such encoder.
    """
    tensors = containers.read(path).tensors
    if not is_base(tensors):
        raise WeightsError(
            f"{path} holds no DINOv3 encoder with the names of transformers.",
            hint="Take model.safetensors of a repository such as " + BASES[1024] + ".",
        )
    return {_published(name): x for name, x in tensors.items() if _published(name) != _UNUSED}


def _published(name: str) -> str:
    for pattern, replacement in _PUBLISHED:
        name = re.sub(pattern, replacement, name)
    return name


def _find(path: Path, width: int, progress: Progress | None, repo: str | None) -> Path:
    names = ("base", *([repo.split("/")[1]] if repo else []))
    found = beside(path, names)
    if found is not None:
        return found
    if repo is None:
        raise WeightsError(
            f"{path} lacks the encoder that it was trained with, which is {width} wide; there is no such DINOv3.",
            hint="Put the encoder beside it, as base.safetensors.",
        )
    try:
        folder = hub.fetch_repo(repo, progress=progress)
    except WeightsError as error:
        raise WeightsError(
            f"{path} lacks the encoder {repo} that it was trained with. {error.message}",
            hint=f"Its DINOv3 licence is accepted on its page of the hub; then run: hf auth login. Or put its "
            f"model.safetensors beside the file, as {names[-1]}.safetensors.",
        ) from error
    return next((folder / name for name in hub.WEIGHT_FILES if (folder / name).is_file()), folder)


def beside(path: Path, names: Sequence[str]) -> Path | None:
    """Return the first file of weights beside a file, NAME.safetensors or in a folder NAME; None if there is none."""
    near = [path.with_name(f"{name}.safetensors") for name in names]
    near += [path.with_name(name) / weights for name in names for weights in hub.WEIGHT_FILES]
    return next((each for each in near if each.is_file()), None)
