"""Initial weights of a backbone from timm: its releases, and files that timm's models read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config.schema import Component
from ..errors import WeightsError
from ..runtime.timm_models import create_filled, imported
from . import hub
from . import readers as containers
from .base_encoder import ENCODER, is_base, read_base
from .download import Progress, download
from .infer_vit import PATCH
from .key_mapping import Shape, refuse, to_m2f
from .vit_tables import EOMT_DINOV3

OF_TIMM = ("timm", "vit", "vit_tokens")  # backbones that are timm's models
_REPO = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_PREFIX = re.compile(r"^(backbone\.net|decoder\.vit)\.(model\.)?")
PARTS = ("backbone.net.", "decoder.vit.")  # where tensors of a timm model are
# Options of backbones that are not options of timm's whole models.
_OWN = ("out_indices", "feature_cls", "out_map", "levels", "norm", "frozen", "dim", "drop_path")

# What timm raises where options or tensors make no sense.
_MISFITS = (
    RuntimeError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
)


def load_timm(backbone: Component, shapes: Mapping[str, Shape], progress: Progress | None) -> dict[str, Tensor]:
    """Return the weights of a timm model that `backbone` names as its `pretrained`, under m2f's names.

    The file is loaded into timm's whole model with timm's own loader, which is strict for a whole model. It resamples
    the kernel of other patches and positions of another size.

    Args:
        backbone: its `pretrained` is "timm" (timm's release for the model), a file of that timm model, or for DINOv3
            also a file or repository "organisation/name" with the names of transformers.
        shapes: shapes of the network's tensors, of which those of the timm model are returned.

    Raises:
        WeightsError: the file does not exist, or does not fit.
        ConfigError: timm does not know the model, or an option is not one of a network.
        MissingDependency: timm is not installed.
    """
    shapes = {name: shape for name, shape in shapes.items() if name.startswith(PARTS)}
    options = {key: value for key, value in backbone.options.items() if key not in _OWN}
    model, pretrained = str(options.pop("model", None)), str(options.pop("pretrained"))
    timm = imported(model)
    path = _timm_release(timm.get_pretrained_cfg(model), model, progress) if pretrained == "timm" else Path(pretrained)
    if not containers.path_of(path).exists() and "dinov3" in model and _REPO.fullmatch(pretrained):
        path = _weights_in(hub.fetch_repo(pretrained, progress=progress))
    if not path.is_file():
        raise WeightsError(
            f"There is no file {str(path)!r} for the timm model {model!r}.",
            hint="Set model.backbone.pretrained=timm for what timm has released, or give the path of a file.",
        )
    tensors = containers.read(path).tensors  # timm's own reader would run the code of a pickle
    if is_base(tensors):
        return _of_transformers(path, shapes)
    if backbone.name != "timm":
        options = {"patch_size": PATCH, **options}
    try:
        whole = create_filled(model, tensors, **options)
    except _MISFITS as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"{path} does not fit the timm model {model!r}: {reason}") from error
    return from_whole_timm(whole.state_dict(), shapes)


def _of_transformers(path: Path, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """Return what a network needs of transformers' DINOv3."""
    tensors = {ENCODER + name: tensor for name, tensor in read_base(path).items()}
    needed = {name for ours in shapes for name in EOMT_DINOV3.find(ours)[0]}
    blocks = {name.split("attention.")[0] for name in needed if "attention." in name}
    lost = [name for name in tensors.keys() - needed if name.split("attention.")[0] in blocks and tensors[name].any()]
    if lost:
        raise WeightsError(
            f"{path} has {len(lost)} biases of attention that the network lacks, such as {min(lost)}.",
            hint="Take the timm model with _qkvb in its name, such as vit_large_patch16_dinov3_qkvb.",
        )
    return to_m2f(EOMT_DINOV3, {name: tensor for name, tensor in tensors.items() if name in needed}, shapes)


def _weights_in(folder: Path) -> Path:
    return next((folder / name for name in hub.WEIGHT_FILES if (folder / name).is_file()), folder)


def _timm_release(release: Any, model: str, progress: Progress | None) -> Path:
    """Return the file that timm has released for a model, from the Hugging Face hub or else from its address."""
    if release is not None and release.hf_hub_id and not release.hf_hub_filename:
        return _weights_in(hub.fetch_repo(release.hf_hub_id, progress=progress))
    if release is not None and release.url:
        return download(release.url, progress=progress)
    raise WeightsError(
        f"timm has released no weights of {model!r} that can be fetched.",
        hint="Choose another (timm.list_pretrained() names them), or set model.backbone.pretrained=null.",
    )


def from_whole_timm(state: Mapping[str, Tensor], shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """Return the backbone's tensors of a whole timm model.

    timm's feature networks rename "layers.0" to "layers_0", or put the whole model under "model.".

    Raises:
        WeightsError: tensors are missing or misshapen.
    """
    source_state = {name.replace("_", "."): tensor for name, tensor in state.items()}
    sources = {ours: _PREFIX.sub("", ours).replace("_", ".") for ours in shapes}
    missing = [ours for ours, name in sources.items() if name not in source_state]
    misshapen = [
        f"{ours} is {tuple(source_state[name].shape)} and should be {tuple(shapes[ours])}"
        for ours, name in sources.items()
        if name in source_state and tuple(source_state[name].shape) != tuple(shapes[ours])
    ]
    refuse(missing, [], misshapen)
    return {ours: source_state[name] for ours, name in sources.items()}
