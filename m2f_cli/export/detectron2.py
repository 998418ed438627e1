"""Files of the papers' model zoo: weights under detectron2's names, which the papers' own code loads strictly.

`.pth` is the container of detectron2's trainings, `.pkl` that of its zoo (docs/methods/published-behaviour.md#7-1),
here with tensors, which it may hold as well as numpy arrays: arrays that numpy 2 pickled do not open where numpy is
old, as it is there. Both carry the version numbers that the papers' heads look for: without them, loading there would
insert the level `pixel_decoder.` a second time (docs/methods/published-behaviour.md#7-3; Mask2Former issues 95, 110,
129).
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
from ..weights.key_mapping import to_ours, to_theirs
from ..weights.key_tables import DETECTRON2
from .base import ExportOptions, refuse_options
from .safetensors import NOT_FOR_WEIGHTS, refuse_precision

NO_OBJECT_WEIGHT = 0.1  # of every published recipe (docs/methods/published-behaviour.md#4-2)
_VERSIONS = {"sem_seg_head": {"version": 2}, "sem_seg_head.predictor": {"version": 2}}
_BIAS_TABLE, _INDEX = "relative_position_bias_table", "relative_position_index"


class Detectron2:
    """`.pth`, as detectron2 writes it."""

    suffix = ".pth"
    packages = ()

    def check(self, model: Segmenter, options: ExportOptions) -> None:
        refuse_options("detectron2", options, *NOT_FOR_WEIGHTS)
        refuse_precision("detectron2", options, "fp32")
        to_tensors(model)

    def write(self, model: Segmenter, path: Path, options: ExportOptions) -> None:
        torch.save({"model": to_tensors(model)}, path)

    def open(self, path: Path, model: Segmenter, options: ExportOptions) -> Segmenter:
        """Our network with the file's weights, read through the same door as anybody's."""
        shapes = {name: tuple(tensor.shape) for name, tensor in model.model.state_dict().items()}
        state = to_ours(DETECTRON2, containers.read(path).tensors, shapes)
        network = copy.deepcopy(model.model)
        network.load_state_dict(state, strict=True)
        return Segmenter(network, model.config, model.categories, task=model.default_task)


class Detectron2Pickle(Detectron2):
    """`.pkl`, as the model zoo has it."""

    suffix = ".pkl"

    def write(self, model: Segmenter, path: Path, options: ExportOptions) -> None:
        tree = {"model": to_tensors(model), "__author__": f"m2f, from {model.source}"}
        with path.open("wb") as file:
            pickle.dump(tree, file, protocol=4)  # before that, bytes were stored as text: half as large again


def to_tensors(model: Segmenter) -> OrderedDict[str, Tensor]:
    """The weights under detectron2's names, what its modules hold besides (the index of relative positions, the class
    weights of the loss), and the versions of its heads.

    Raises:
        ExportError: the papers' code has no such network, such as one with a backbone of timm.
    """
    try:
        tensors = to_theirs(DETECTRON2, model.model.state_dict())
    except WeightsError as error:
        raise ExportError(error.message, hint=error.hint) from error
    for name in [name for name in tensors if name.endswith(_BIAS_TABLE)]:
        window = (math.isqrt(len(tensors[name])) + 1) // 2
        tensors[name.replace(_BIAS_TABLE, _INDEX)] = relative_index(window, torch.device("cpu")).view(window**2, -1)
    if not model.config.model.decoder.name.startswith("per_pixel"):
        tensors["criterion.empty_weight"] = _class_weights(model)
    found = OrderedDict((name, tensor.detach().cpu().contiguous().clone()) for name, tensor in tensors.items())
    found._metadata = OrderedDict(_VERSIONS)
    return found


def _class_weights(model: Segmenter) -> Tensor:
    train = model.config.train
    known = train is not None and train.class_weights
    weights = list(train.class_weights) if known else [1.0] * len(model.categories)
    return torch.tensor([*weights, NO_OBJECT_WEIGHT if train is None else train.loss.no_object_weight])
