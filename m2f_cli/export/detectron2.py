"""Export of weights under detectron2's names, which the papers' own code loads strictly.

`.pth` is the container of detectron2's trainings, and `.pkl` that of its model zoo
(docs/methods/published-behaviour.md#7-1). Here `.pkl` has tensors instead of NumPy arrays, because the papers' code
uses an old NumPy, which does not open arrays that NumPy 2 pickled. Both have the version numbers that the papers' heads
check. Without them, loading would insert the level `pixel_decoder.` a second time
(docs/methods/published-behaviour.md#7-3; Mask2Former issues 95, 110, 129).
"""

from __future__ import annotations

import copy
import math
import pickle
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ExportError, WeightsError
from ..inference.segmenter import Segmenter
from ..model.backbones.swin_windows import relative_index
from ..weights import readers as containers
from ..weights.key_mapping import from_m2f, to_m2f
from ..weights.key_tables import DETECTRON2
from ..weights.torch_save import torch_file
from .base import ExportOptions, refuse_options
from .safetensors import NOT_FOR_WEIGHTS, refuse_precision

NO_OBJECT_WEIGHT = 0.1  # of every published recipe (docs/methods/published-behaviour.md#4-2)
_VERSIONS = {"sem_seg_head": {"version": 2}, "sem_seg_head.predictor": {"version": 2}}
_BIAS_TABLE, _INDEX = "relative_position_bias_table", "relative_position_index"


class Detectron2:
    """Exporter of `.pth` files, as detectron2 writes them."""

    suffix = ".pth"
    packages = ()

    def check(self, model: Segmenter, options: ExportOptions) -> None:
        refuse_options("detectron2", options, *NOT_FOR_WEIGHTS)
        refuse_precision("detectron2", options, "fp32")
        to_tensors(model)

    def write(self, model: Segmenter, path: Path, options: ExportOptions) -> None:
        with torch_file(path) as file:
            torch.save({"model": to_tensors(model)}, file)

    def open(self, path: Path, model: Segmenter, options: ExportOptions) -> Segmenter:
        """Open the weights of the file in a network of m2f, by the same code that reads other files."""
        shapes = {name: tuple(tensor.shape) for name, tensor in model.model.state_dict().items()}
        state = to_m2f(DETECTRON2, containers.read(path).tensors, shapes)
        network = copy.deepcopy(model.model)
        network.load_state_dict(state, strict=True)
        return Segmenter(network, model.config, model.categories, task=model.default_task)


class Detectron2Pickle(Detectron2):
    """Exporter of `.pkl` files, as in the model zoo."""

    suffix = ".pkl"

    def write(self, model: Segmenter, path: Path, options: ExportOptions) -> None:
        tree = {"model": to_tensors(model), "__author__": f"m2f, from {model.source}"}
        with path.open("wb") as file:
            pickle.dump(tree, file, protocol=4)  # earlier protocols store bytes as text, in larger files


def to_tensors(model: Segmenter) -> OrderedDict[str, Tensor]:
    """Return the weights under detectron2's names, and the versions of its heads as metadata.

    The buffers of its modules are added: the index of relative positions and the class weights of the loss.

    Raises:
        ExportError: the papers' code has no such network, for example with a backbone of timm.
    """
    try:
        tensors = from_m2f(DETECTRON2, model.model.state_dict())
    except WeightsError as error:
        raise ExportError(error.message, hint=error.hint) from error
    for name in [name for name in tensors if name.endswith(_BIAS_TABLE)]:
        window = (math.isqrt(len(tensors[name])) + 1) // 2
        tensors[name.replace(_BIAS_TABLE, _INDEX)] = relative_index(window, torch.device("cpu")).view(window**2, -1)
    if not model.config.model.decoder.name.startswith("per_pixel"):
        tensors["criterion.empty_weight"] = _class_weights(model)
    state = OrderedDict((name, tensor.detach().cpu().contiguous().clone()) for name, tensor in tensors.items())
    state._metadata = OrderedDict(_VERSIONS)
    return state


def _class_weights(model: Segmenter) -> Tensor:
    train = model.config.train
    known = train is not None and train.class_weights
    weights = list(train.class_weights) if known else [1.0] * len(model.categories)
    return torch.tensor([*weights, NO_OBJECT_WEIGHT if train is None else train.loss.no_object_weight])
