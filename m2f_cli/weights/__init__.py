"""Weights: a single entry point, `load`, for every kind of reference and every file format.

load("coco-panoptic-swin-t")             released weights of a preset
load("runs/train/nuclei")                a run: its best checkpoint, else its last
load("facebook/mask2former-swin-…")      a repository of the Hugging Face hub
load("model_final_94dc52.pkl")           detectron2, OpenMMLab, transformers or m2f files and folders
"""

from __future__ import annotations

from .checkpoint import Checkpoint, save
from .download import Download, Progress
from .trained_only import load

__all__ = ["Checkpoint", "Download", "Progress", "load", "save"]
