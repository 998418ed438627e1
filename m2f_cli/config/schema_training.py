"""Settings of training: optimiser, schedule, losses, length. This module imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .schema_base import LONGEST, LONGEST_TEXT, MOST_CLASSES, Component, Iteration, Node, Weight


class LayerDecayConfig(Node):
    """Learning rates that fall with the depth of a block: rate^(number of blocks above it).

    A part of the network says which of its parameters are blocks of a pretrained network (`lr_depths`).
    """

    rate: float = Field(gt=0, le=1, description="Factor from a block to the one before it.")
    last_exponent: int = Field(
        0, ge=0, le=1, description="Exponent of the last block: 0 leaves its learning rate whole, 1 is ViTDet's."
    )
    embeddings: Literal["first_block", "below"] = Field(
        "first_block",
        description="What comes before the blocks (patches, positions, prefix tokens). first_block: as the first "
        "block. below: one step below it (ViTDet).",
    )
    whole_blocks: int = Field(
        0, ge=0, le=1000, description="Number of last blocks with the whole learning rate. The exponents below stay."
    )


class OptimizerConfig(Node):
    """AdamW with a group per kind of parameter (docs/methods/published-behaviour.md#2-1)."""

    learning_rate: float = Field(gt=0, le=1000, description="Learning rate after the warm-up; see backbone_multiplier.")
    weight_decay: float = Field(ge=0, le=1000, description="Weight decay of all parameters but those below.")
    norm_weight_decay: float = Field(ge=0, le=1000, description="Weight decay of weights and biases of norm layers.")
    embedding_weight_decay: float = Field(
        ge=0, le=1000, description="Weight decay of embeddings and of tables of relative position biases."
    )
    backbone_multiplier: float = Field(gt=0, le=1000, description="Factor of learning_rate for the backbone.")
    layer_decay: LayerDecayConfig | None = Field(
        None, description="Learning rates by depth, beside backbone_multiplier. Null: one for all blocks."
    )
    clip_norm: float = Field(ge=0, le=1e9, description="Largest L2 norm of all gradients together. 0: off.")


class ScheduleConfig(Node):
    """The learning rate over the iterations."""

    name: Literal["poly", "step", "cosine", "constant"] = Field(
        description="poly: (1 - iteration / iterations)^power. step: times gamma at each of steps. cosine: half a "
        "cosine. constant: unchanged."
    )
    power: float = Field(0.9, ge=0, le=100, description="Exponent of poly: 1 is a straight line.")
    floor: float = Field(0.0, ge=0, le=1, description="Least share of the learning rate after the warm-up.")
    steps: tuple[Iteration, ...] = Field((), max_length=10_000, description="Iterations at which step falls.")
    gamma: float = Field(0.1, ge=0, le=1000, description="Factor of the learning rate at each of steps.")
    warmup_iterations: int = Field(0, ge=0, le=LONGEST, description="Iterations of a linear warm-up. 0: none.")
    warmup_factor: float = Field(
        1.0, ge=0, le=1000, description="Share of the learning rate in the first iteration of the warm-up."
    )
    warmup_first: bool = Field(
        False,
        description="True: the course begins when the warm-up ends, and has the iterations that are left. False: it "
        "begins at once, and the warm-up is a factor of it.",
    )
    backbone_warmup_iterations: int | None = Field(
        None,
        ge=0,
        le=LONGEST,
        description="Iterations of a warm-up of the pretrained parts (the backbone, and blocks of it in other parts), "
        "which begins when that of the new parts ends; until then they stay as they are. Null: all parts together.",
    )
    end: float = Field(0.0, ge=0, le=1, description="cosine: share of the learning rate that it falls to.")

    @model_validator(mode="after")
    def _stages_follow_each_other(self) -> ScheduleConfig:
        if self.backbone_warmup_iterations is not None and not self.warmup_first:
            raise ValueError("backbone_warmup_iterations needs warmup_first: true, or the course would begin before it")
        return self


class LossConfig(Node):
    """Weights of the losses, which are also those of the matching costs (docs/methods/published-behaviour.md#4)."""

    masks: Literal["points", "full", "per_pixel"] = Field(
        "points",
        description="Where masks are compared. points: at random points (Mask2Former). full: at all pixels "
        "(MaskFormer). per_pixel: nowhere; the loss is each pixel's cross entropy, weighted by class_weight.",
    )
    mask_loss: Literal["bce", "focal"] = Field("bce", description="Loss of masks that mask_weight applies to.")
    class_weight: Weight = Field(description="Weight of the class loss.")
    mask_weight: Weight = Field(description="Weight of mask_loss.")
    dice_weight: Weight = Field(description="Weight of the dice loss of masks.")
    no_object_weight: Weight = Field(description="Weight of the class 'no object' within the class loss.")
    num_points: int | None = Field(None, gt=0, le=1_000_000, description="Points per mask; masks: points only.")
    oversample_ratio: float | None = Field(
        None, ge=1, le=100, description="Candidates per point, of which the least certain are kept; masks: points only."
    )
    importance_ratio: float | None = Field(
        None, ge=0, le=1, description="Share of points that are chosen by uncertainty; masks: points only."
    )

    @model_validator(mode="after")
    def _points_have_numbers(self) -> LossConfig:
        for name in ("num_points", "oversample_ratio", "importance_ratio"):
            if (getattr(self, name) is None) == (self.masks == "points"):
                state = "missing" if self.masks == "points" else "set"
                raise ValueError(f"{name} is {state}; it belongs to masks: points, and this is masks: {self.masks}")
        return self


class TrainConfig(Node):
    """Training as published, for the published batch. Fewer GPUs accumulate gradients to reach it."""

    iterations: int = Field(gt=0, le=LONGEST, description="Optimiser steps. The later of iterations and epochs holds.")
    epochs: float | None = Field(
        None,
        gt=0,
        le=LONGEST,
        description="Passes over the training images, in place of iterations. When a run begins, it computes the "
        "iterations and scales schedule.steps alike; its config.yaml has the iterations.",
    )
    batch: int = Field(gt=0, le=100_000, description="Images per optimiser step over all processes.")
    augment: tuple[Component, ...] = Field(
        max_length=100, description="Steps of augmentation in order: names of the group transforms, and their options."
    )
    augment_tries: int = Field(
        1,
        ge=1,
        le=1000,
        description="Most augmentations of an image until something to train on is left in it. 1: as it comes. Put "
        "drop_vanished last, so that objects without pixels do not count.",
    )
    optimizer: OptimizerConfig = Field(description="Learning rate, weight decay and clipping.")
    schedule: ScheduleConfig = Field(description="Learning rate over the iterations.")
    loss: LossConfig = Field(description="Losses and their weights.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        description="Number format of the forward pass. Sampling points and weights of the pixel decoder, costs and "
        "losses are fp32 in any case; with fp16 the whole pixel decoder is."
    )
    hardware: str = Field("", description="Machine of the published training, such as 8 V100. It is for tables only.")
    drop_empty: bool = Field(description="Leave out images without an annotated object that is no crowd.")
    group_by_aspect: bool = Field(description="Put images of like aspect (wide or tall) into one batch.")
    eval_every: int = Field(ge=0, le=LONGEST, description="Iterations between evaluations. 0: only at the end.")
    best_metric: str | None = Field(
        None,
        max_length=LONGEST_TEXT,
        description="Figure that says which checkpoint is best, such as rq or ap50. Null: pq, ap or miou, by the task.",
    )
    patience: int | None = Field(
        None,
        gt=0,
        le=LONGEST,
        description="Evaluations in a row without a better best_metric after which training stops early. Null: never.",
    )
    checkpoint_every: int = Field(gt=0, le=LONGEST, description="Iterations between checkpoints.")
    seed: int = Field(0, ge=-(2**63), lt=2**63, description="Seed for all random number generators.")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="Decay of the moving average of weights. 0: no average.")
    repeat_factor_threshold: float = Field(
        0.0, ge=0, le=1000, description="Threshold of repeat-factor sampling (LVIS). 0: off."
    )
    class_weights: tuple[Weight, ...] = Field(
        (), max_length=MOST_CLASSES, description="Weights within the class loss, one per class. (): all are 1."
    )

    @model_validator(mode="after")
    def _augmentation_has_no_lora(self) -> TrainConfig:
        if any(step.lora is not None for step in self.augment):
            raise ValueError("a step of augment has lora, which is for backbones: set model.backbone.lora")
        return self

    @model_validator(mode="after")
    def _patience_has_evaluations(self) -> TrainConfig:
        if self.patience is not None and not self.eval_every:
            raise ValueError("patience counts evaluations, and eval_every is 0 (only at the end): set eval_every, too")
        return self
