"""Build this folder from the full fixtures: `python tests/golden/make.py FOLDER [OUT]`.

FOLDER holds the full fixtures (NAME.safetensors with NAME.json, and json files alone), and a folder `golden_vit` beside
it those of plain ViTs; OUT is this folder by default.
The result depends on the fixtures only: same names, same order, no dates. Nothing is rounded or computed: a tensor is
kept bit for bit, cut along its batch, or left out. RULES says which, and why.

What every file loses: the shapes of the weights in its json (the tensors tell them). What is kept of a file is listed
under "tensors" in its json, so that a test can see whether it applies. A tensor that an earlier file has bit for bit
(08a and 08b share most of their weights) is kept once; "elsewhere" in the json of the later file names the earlier one.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Rule:
    """What is kept of a file.

    Attributes:
        why: the reason, written into the json.
        drop: regular expressions; a tensor whose name matches one from its start is left out.
        items: the items that stay of a batch, None for all. Of a full model: its images.
        batch: regular expressions of the tensors that have a batch to cut.
        left_out: weights whose names start so are left out. They come after everything that is compared.
    """

    why: str
    drop: tuple[str, ...] = ()
    items: tuple[int, ...] | None = None
    batch: tuple[str, ...] = ("in/", "out/")
    left_out: tuple[str, ...] = ()


ALL = "Everything that a test reads."
FULL = (
    "Both input images, everything else of the second only: it is padded on two sides and its results are the smaller "
    "ones. Levels and attention masks inside the model are those of other files."
)
INSIDE = "Values inside the module are for finding a fault; no test reads them."
BETWEEN = (
    "Of the mask predictions the first and the last ones; those between are thresholded to the attention masks, all of "
    "which are compared bit for bit."
)
POINTS = r"points/|match/"  # drawn numbers are under rng/ too, and what was matched decides the losses
AUX = r"out/(mp\.)?aux\."

RULES = {
    "01_swin_backbone": Rule(
        "The first two stages of one image, of a size that is no multiple of anything: a second Swin beside those of "
        "the full models, which are compared in all stages.",
        drop=(r"out/res[45]",),
        items=(1,),
        batch=("in/", "out/"),
        left_out=("layers.1.downsample.", "layers.2.", "layers.3.", "norm2.", "norm3."),
    ),
    "02_resnet50": Rule(
        "One image; the plain stem and the two stages after it. From there on it is built as 02b, which is whole.",
        drop=(r"out/res[45]",),
        items=(1,),
        left_out=("res4.", "res5."),
    ),
    "02b_resnet50_deeplab_stem": Rule("One image, all stages.", items=(1,)),
    "03_msdeformattn_op": Rule(ALL),
    "04_msdeformattn_pixel_decoder": Rule(f"One image. {INSIDE}", drop=("mid/",), items=(1,)),
    "05a_m2f_decoder": Rule(
        f"One image, the one with most rows that block everything. {BETWEEN}",
        drop=(r"mid/attn_mask_raw", r"out/aux\.[12]\.pred_masks"),
        items=(1,),
        batch=("in/", "out/", "mid/"),
    ),
    "05b_m2f_decoder_input_proj": Rule(BETWEEN, drop=(r"mid/attn_mask_raw", r"out/aux\.[1-3]\.pred_masks")),
    "06_mask2former_full_swin": Rule(
        FULL,
        drop=(r"mid/multi_scale", r"mid/attn_mask", r"post/\w+\.0\."),
        items=(1,),
        batch=("mid/", "out/"),
    ),
    "07_m2f_criterion": Rule(
        "All cases: one with all four sets of predictions, the others with the last set and (where it costs little) "
        "the first. Sets do not depend on each other.",
        drop=(r"[ACDE]_\w+/.*aux\.[12]\.", r"[ACDE]_\w+/loss/.*_[12]$", r"[CD]_\w+/.*aux\.", r"[CD]_\w+/loss/.*_0$"),
    ),
    "08a_maskformer_fpn_pixel_decoder": Rule("One image.", items=(1,)),
    "08b_maskformer_transformer_pixel_decoder": Rule("One image.", items=(1,)),
    "08c_maskformer_predictor": Rule("One image.", items=(1,)),
    "08d_maskformer_criterion": Rule(
        "All cases: one with all three sets of predictions, the others with the last set and one more at most.",
        drop=(r"[ACD]_\w+/.*aux\.1\.", r"[ACD]_\w+/loss/.*_1$", r"[CD]_\w+/.*aux\.", r"[CD]_\w+/loss/.*_0$"),
    ),
    "08e_maskformer_full_swin": Rule(
        f"{FULL} Without the backbone, a Swin as that of 06: the model starts at the given features.",
        drop=(r"post/\w+\.0\.",),
        items=(1,),
        batch=("mid/", "out/"),
        left_out=("backbone.",),
    ),
    "09a_mpformer_published_no_noise": Rule(
        "The published setting: everything, from drawn numbers to gradients. Points and matches are not read.",
        drop=(POINTS,),
    ),
    "09b_mpformer_point_noise_two_groups": Rule(
        "Masks, queries, and the answers of the last layer: what two groups do to them.",
        drop=(POINTS, AUX, "eval/", "grad/"),
    ),
    "09c_mpformer_first_three_layers_empty_image": Rule(
        "Losses and gradients as 09a; of the answers those of the last layer, which all others go into.",
        drop=(POINTS, AUX, "eval/"),
    ),
    "09d_mpformer_noise_per_head": Rule(
        "Masks, queries, and the answers of the last layer.",
        drop=(POINTS, AUX, "eval/", "grad/"),
    ),
    "09e_mpformer_no_targets": Rule(
        "Losses, gradients, masks, and the answers of the last layer.",
        drop=(POINTS, AUX, "eval/"),
    ),
    "09f_mpformer_dynamic_groups": Rule(
        "Masks and queries of sixteen groups, and the answers of the ordinary queries of the last layer.",
        drop=(POINTS, AUX, "eval/", "grad/", r"out/mp\.pred_masks"),
    ),
}
VIT = (
    "Weights, images, masks of attention and the last predictions; of those before, and of other runs, the "
    "class logits: all that comes before goes into them."
)
INNER = (
    r"(\w+/)?mid/(normalised|patch|block|mask_embeds|upscaled|lateral)|(annealed|plain)/mid/|out/mask_logits\.[012]$"
)
RULES |= {  # of the folder golden_vit
    "v01_eomt_dinov2": Rule(VIT, drop=(INNER, r"annealed/out/mask_logits")),
    "v02_eomt_dinov3": Rule(VIT, drop=(INNER, r"annealed/out/mask_logits")),
    "v02b_eomt_dinov3_delta": Rule(ALL, drop=(r"combined/network\.(?!encoder)",)),
    "v04_pre_and_postprocessing": Rule(ALL),
    "v03_pmt_dinov3": Rule(VIT, drop=(INNER, r"mid/encoder_level\.[012]", r"train/out/mask_logits")),
}
WITHOUT_LOSSES = ("09b", "09d", "09f")  # their drawn points go too: no loss is compared
LISTS = (  # json files alone: whole, packed
    "10_",
    "11_",
    "12_hf_key_lists",
    "12_hf_name_table",
    "v05_",
    "v06_",
    "v07_hf_key_lists",
    "v07_hf_name_table",
)


def kept(name: str, info: dict, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a file that its rule keeps; notes in `info` what a test must know of that."""
    rule = RULES[name]
    drop = re.compile("|".join(rule.drop) or r"(?!)")
    found = {}
    for key, tensor in sorted(tensors.items()):
        if drop.match(key) or key.startswith(tuple(f"weights/{start}" for start in rule.left_out)):
            continue
        if name.startswith(WITHOUT_LOSSES) and key.startswith("rng/") and is_point(info, key):
            continue
        if rule.items is not None and key.startswith(rule.batch) and not key.startswith("in/image."):
            tensor = tensor[list(rule.items)]
        found[key] = tensor
    info["reduced"] = rule.why
    if rule.left_out:
        info["left_out"] = list(rule.left_out)
    if rule.items is not None and "image_sizes" in info:
        info["images"] = list(rule.items)
    info.pop("weights", None)
    return found


def is_point(info: dict, key: str) -> bool:
    [use] = [entry["use"] for entry in info["rng"] if f"rng/{entry['index']:03}" == key]
    return "points" in use


def write_json(path: Path, tree: dict) -> None:
    path.write_text(json.dumps(tree, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def build(full: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    folders = (full, full.with_name("golden_vit"))  # names of the second begin with "v"
    earlier: dict[bytes, tuple[str, str]] = {}  # bytes of a tensor: file and name
    for name in RULES:
        source = folders[name.startswith("v")] / name
        info = json.loads(source.with_suffix(".json").read_text(encoding="utf-8"))
        tensors = kept(name, info, load_file(source.with_suffix(".safetensors")))
        own, elsewhere = {}, {}
        for key, tensor in tensors.items():
            tensor = np.array(tensor, order="C")
            print_of = str((tensor.dtype, tensor.shape)).encode() + tensor.tobytes()
            if tensor.nbytes > 2000 and earlier.setdefault(print_of, (name, key)) != (name, key):
                elsewhere[key] = list(earlier[print_of])
            else:
                own[key] = tensor
        info["tensors"] = {key: {"dtype": str(x.dtype), "shape": list(x.shape)} for key, x in tensors.items()}
        if elsewhere:
            info["elsewhere"] = elsewhere
        write_json(out / f"{name}.json", info)
        np.savez_compressed(out / f"{name}.npz", **own)
    for path in sorted(path for folder in folders for path in folder.glob("*.json")):
        if path.name.startswith(LISTS):
            text = json.dumps(json.loads(path.read_text(encoding="utf-8")), ensure_ascii=False, separators=(",", ":"))
            (out / f"{path.name}.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else HERE)
