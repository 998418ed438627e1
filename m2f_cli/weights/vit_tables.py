"""Name tables of plain ViTs under a mask head: EoMT and PMT, as published and in transformers.

Source: docs/methods/plain-vit.md. The first blocks of EoMT's ViT are m2f's backbone and the last its decoder; both keep
the numbers of the whole ViT, so one rule covers a tensor in either.
"""

from __future__ import annotations

from .key_mapping import Packed, Rule, Same, Table
from .positions import PositionRows, Positions

_SAME, _QKV = Same(), Packed(3)
_PARTS = ("backbone.net.", "decoder.vit.")  # of a ViT, in m2f
_CRITERION = (r"criterion\..*", "class weights of the loss")
_PIXELS = (r"network\.encoder\.pixel_(mean|std)", "normalisation, which the configuration holds")

Names = tuple[str, tuple[str, ...], Same]  # m2f's name within the ViT, the foreign ones, the layout


def _rules(parts: tuple[str, ...], names: list[Names]) -> list[Rule]:
    return [Rule(part + ours, *theirs, layout=layout) for part in parts for ours, theirs, layout in names]


def _dinov3_block(block: str, ours: str = "blocks.{i}.") -> list[Names]:
    """Return the names of a block of timm's DINOv3 and of transformers', below `block`."""
    attention = block + "attention."
    return [
        (ours + "norm{k}.{p}", (block + "norm{k}.{p}",), _SAME),
        (ours + "attn.qkv.weight", tuple(f"{attention}{part}_proj.weight" for part in "qkv"), _QKV),
        (ours + "attn.{part}_bias", (attention + "{part}_proj.bias",), _SAME),
        (ours + "attn.proj.{p}", (attention + "o_proj.{p}",), _SAME),
        (ours + "gamma_{k}", (block + "layer_scale{k}.lambda1",), _SAME),
        (ours + "mlp.fc1.{p}", (block + "mlp.up_proj.{p}",), _SAME),
        (ours + "mlp.fc2.{p}", (block + "mlp.down_proj.{p}",), _SAME),
    ]


def _dinov3(embeddings: str, block: str, norm: str) -> list[Names]:
    return [
        ("cls_token", (embeddings + "cls_token",), _SAME),
        ("reg_token", (embeddings + "register_tokens",), _SAME),
        ("patch_embed.proj.{p}", (embeddings + "patch_embeddings.{p}",), _SAME),
        *_dinov3_block(block),
        ("norm.{p}", (norm + "{p}",), _SAME),
    ]


def _dinov2(*mlp: Names) -> list[Names]:
    """Return the names of timm's DINOv2 and of transformers' EoMT, with those of its feed-forward networks."""
    block = "layers.{i}."
    return [
        ("cls_token", ("embeddings.cls_token",), _SAME),
        ("reg_token", ("embeddings.register_tokens",), _SAME),
        ("pos_embed", ("embeddings.position_embeddings.weight",), PositionRows()),
        ("patch_embed.proj.{p}", ("embeddings.patch_embeddings.projection.{p}",), _SAME),
        ("blocks.{i}.norm{k}.{p}", (block + "norm{k}.{p}",), _SAME),
        ("blocks.{i}.attn.qkv.{p}", tuple(f"{block}attention.{part}_proj.{{p}}" for part in "qkv"), _QKV),
        ("blocks.{i}.attn.proj.{p}", (block + "attention.out_proj.{p}",), _SAME),
        ("blocks.{i}.ls{k}.gamma", (block + "layer_scale{k}.lambda1",), _SAME),
        *mlp,
        ("norm.{p}", ("layernorm.{p}",), _SAME),
    ]


def _heads(network: str) -> list[Rule]:
    """Return the rules of queries and heads, which EoMT and PMT share."""
    return [
        Rule("decoder.query_feat.weight", network + "q.weight"),
        Rule("decoder.class_embed.{p}", network + "class_head.{p}"),
        Rule("decoder.mask_embed.layers.{i}.{p}", network + "mask_head.{2i}.{p}"),
        Rule("decoder.upscale.{rest}", network + "upscale.{rest}"),
        Rule("decoder.attn_mask_probs", network + "attn_mask_probs"),
    ]


_HF_HEADS = [
    Rule("decoder.query_feat.weight", "query.weight"),
    Rule("decoder.class_embed.{p}", "class_predictor.{p}"),
    Rule("decoder.mask_embed.layers.{i}.{p}", "mask_head.fc{i+1}.{p}"),
    Rule("decoder.upscale.{i}.norm.{p}", "upscale_block.block.{i}.layernorm2d.{p}"),
    Rule("decoder.upscale.{i}.{rest}", "upscale_block.block.{i}.{rest}"),
    Rule("decoder.attn_mask_probs", "attn_mask_probs"),
]

# --- as published -----------------------------------------------------------------------------------------------------

_ENCODER = "network.encoder.backbone."
_AS_TIMM: list[Names] = [
    ("pos_embed", (_ENCODER + "pos_embed",), Positions()),
    ("{rest}", (_ENCODER + "{rest}",), _SAME),
]
_AS_DINOV3 = _dinov3(_ENCODER + "patch_embed.", _ENCODER + "blocks.{i}.", _ENCODER + "norm.")
_HARMLESS = (_CRITERION, _PIXELS)

EOMT = Table(
    format="eomt",
    marks=("network.encoder.", "network.q."),
    also=(_ENCODER + "cls_token",),
    rules=(*_rules(_PARTS, _AS_TIMM), *_heads("network.")),
    harmless=_HARMLESS,
)
EOMT_DINOV3 = Table(
    format="eomt-dinov3",
    marks=("network.encoder.", "network.q."),
    also=(_ENCODER + "patch_embed.cls_token", "network.q."),
    rules=(*_rules(_PARTS, _AS_DINOV3), *_heads("network.")),
    harmless=_HARMLESS,
)
PMT = Table(
    format="pmt",
    marks=("network.decoder.q.",),
    rules=(
        *_rules(("backbone.net.",), _AS_DINOV3),
        Rule("pixel_decoder.norms.{i}.{p}", "network.bn.{i}.{p}"),
        Rule("pixel_decoder.mlps.{i}.layers.{j}.{p}", "network.decoder.lateral_projections.{i}.{2j}.{p}"),
        Rule("pixel_decoder.scales.{i}", "network.decoder.scalers.{i}"),
        *_rules(("decoder.",), _dinov3_block("network.decoder.blocks.{i}.", "layers.{i}.")),
        Rule("decoder.output_norm.{p}", "network.decoder.decoder_norm.{p}"),
        *_heads("network.decoder."),
    ),
    harmless=(
        *_HARMLESS,
        (r"network\.(_attn_mask_probs_fallback|decoder\.pe\..*|bn_(prefix|patch)\..*)", "left over from a former code"),
    ),
)

# --- transformers -----------------------------------------------------------------------------------------------------

_FC = [("blocks.{i}.mlp.fc{k}.{p}", ("layers.{i}.mlp.fc{k}.{p}",), _SAME)]
# A gated network is one tensor in released files, and two in the running model of transformers 5.
_GATED_FILE: list[Names] = [
    ("blocks.{i}.mlp.fc1.{p}", ("layers.{i}.mlp.weights_in.{p}",), _SAME),
    ("blocks.{i}.mlp.fc2.{p}", ("layers.{i}.mlp.weights_out.{p}",), _SAME),
]
_GATED: list[Names] = [
    ("blocks.{i}.mlp.fc1.{p}", ("layers.{i}.mlp.gate_proj.{p}", "layers.{i}.mlp.up_proj.{p}"), Packed(2)),
    ("blocks.{i}.mlp.fc2.{p}", ("layers.{i}.mlp.down_proj.{p}",), _SAME),
]


def _huggingface(name: str, also: tuple[str, ...], names: list[Names]) -> Table:
    rules = (*_rules(_PARTS, names), *_HF_HEADS)
    return Table(format=name, marks=("upscale_block.",), also=also, rules=rules, harmless=(_CRITERION,))


HF_EOMT_GATED = _huggingface("huggingface-eomt-gated", ("layers.0.mlp.gate_proj.",), _dinov2(*_GATED))
HF_EOMT_GATED_FILE = _huggingface("huggingface-eomt-gated-file", ("layers.0.mlp.weights_in.",), _dinov2(*_GATED_FILE))
HF_EOMT = _huggingface("huggingface-eomt", ("embeddings.position_embeddings.",), _dinov2(*_FC))
HF_EOMT_DINOV3 = _huggingface(
    "huggingface-eomt-dinov3", ("embeddings.",), _dinov3("embeddings.", "layers.{i}.", "layernorm.")
)

VIT_TABLES = (EOMT, PMT, EOMT_DINOV3, HF_EOMT_GATED, HF_EOMT_GATED_FILE, HF_EOMT, HF_EOMT_DINOV3)
