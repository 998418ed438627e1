"""Name tables: m2f's names, and those of detectron2, Hugging Face and OpenMMLab for the same tensors.

Sources: docs/methods/published-behaviour.md#7-2 to #7-5. A rule covers one of m2f's names in every model that has it.
Mask2Former's `decoder.layers` and MaskFormer's `decoder.blocks` have different names in m2f because they have
elsewhere. A further format is a further table.
"""

from __future__ import annotations

from .key_mapping import ChannelMajor, LastPairFirst, Packed, Rule, Table
from .positions import Positions
from .vit_tables import VIT_TABLES

_XY = LastPairFirst()
_QKV = Packed(3)
_MERGE = ChannelMajor()

_INDEX = (r".*relative_position_index", "a constant: which row of the bias table each pair of tokens uses")
_BATCHES = (r".*num_batches_tracked", "a counter of training; frozen batch norm has none")
_CRITERION = (r"criterion\..*", "class weights of the loss")


# --- detectron2: the papers' own code (docs/methods/published-behaviour.md#7-2, #7-3) ---------------------------------

_PIXEL = "sem_seg_head.pixel_decoder."
_HEAD = "sem_seg_head.predictor."
_BLOCKS = _HEAD + "transformer.decoder.layers.{i}."

DETECTRON2 = Table(
    format="detectron2",
    marks=("sem_seg_head.",),
    rules=(
        Rule("backbone.patch_embed.{rest}", "backbone.patch_embed.{rest}"),
        Rule("backbone.stages.{i}.blocks.{j}.fc{k}.{p}", "backbone.layers.{i}.blocks.{j}.mlp.fc{k}.{p}"),
        Rule("backbone.stages.{i}.blocks.{rest}", "backbone.layers.{i}.blocks.{rest}"),
        Rule("backbone.stages.{i}.downsample.{rest}", "backbone.layers.{i}.downsample.{rest}"),
        Rule("backbone.norms.{i}.{p}", "backbone.norm{i}.{p}"),
        Rule("backbone.stem.{i}.conv.weight", "backbone.stem.conv{i+1}.weight"),
        Rule("backbone.stem.{i}.norm.{p}", "backbone.stem.conv{i+1}.norm.{p}"),
        Rule("backbone.stages.{i}.{j}.{part}.conv.weight", "backbone.res{i+2}.{j}.{part}.weight"),
        Rule("backbone.stages.{i}.{j}.{part}.norm.{p}", "backbone.res{i+2}.{j}.{part}.norm.{p}"),
        Rule("pixel_decoder.level_embed", _PIXEL + "transformer.level_embed"),
        Rule("pixel_decoder.input_projs.{i}.conv.{p}", _PIXEL + "input_proj.{i}.0.{p}"),
        Rule("pixel_decoder.input_projs.{i}.norm.{p}", _PIXEL + "input_proj.{i}.1.{p}"),
        Rule(
            "pixel_decoder.layers.{i}.attn.sampling_offsets.{p}",
            _PIXEL + "transformer.encoder.layers.{i}.self_attn.sampling_offsets.{p}",
            layout=_XY,
        ),
        Rule(  # MaskFormer's encoder has ordinary attention
            "pixel_decoder.layers.{i}.attn.in_proj.{p}",
            _PIXEL + "transformer.encoder.layers.{i}.self_attn.in_proj_{p}",
        ),
        Rule("pixel_decoder.layers.{i}.attn.{rest}", _PIXEL + "transformer.encoder.layers.{i}.self_attn.{rest}"),
        Rule("pixel_decoder.layers.{i}.ffn.{rest}", _PIXEL + "transformer.encoder.layers.{i}.{rest}"),
        Rule("pixel_decoder.layers.{i}.{rest}", _PIXEL + "transformer.encoder.layers.{i}.{rest}"),
        Rule("pixel_decoder.lateral.conv.weight", _PIXEL + "adapter_1.weight"),
        Rule("pixel_decoder.lateral.norm.{p}", _PIXEL + "adapter_1.norm.{p}"),
        Rule("pixel_decoder.output.conv.weight", _PIXEL + "layer_1.weight"),
        Rule("pixel_decoder.output.norm.{p}", _PIXEL + "layer_1.norm.{p}"),
        Rule("pixel_decoder.mask_features.{p}", _PIXEL + "mask_features.{p}"),
        Rule("pixel_decoder.input_proj.{p}", _PIXEL + "input_proj.{p}"),
        Rule("pixel_decoder.top.conv.weight", _PIXEL + "layer_4.weight"),
        Rule("pixel_decoder.top.norm.{p}", _PIXEL + "layer_4.norm.{p}"),
        Rule("pixel_decoder.laterals.{i}.conv.weight", _PIXEL + "adapter_{3-i}.weight"),
        Rule("pixel_decoder.laterals.{i}.norm.{p}", _PIXEL + "adapter_{3-i}.norm.{p}"),
        Rule("pixel_decoder.outputs.{i}.conv.weight", _PIXEL + "layer_{3-i}.weight"),
        Rule("pixel_decoder.outputs.{i}.norm.{p}", _PIXEL + "layer_{3-i}.norm.{p}"),
        Rule("decoder.input_projs.{i}.{p}", _HEAD + "input_proj.{i}.{p}"),
        Rule(
            "decoder.layers.{i}.cross_attn.in_proj.{p}",
            _HEAD + "transformer_cross_attention_layers.{i}.multihead_attn.in_proj_{p}",
        ),
        Rule(
            "decoder.layers.{i}.cross_attn.out_proj.{p}",
            _HEAD + "transformer_cross_attention_layers.{i}.multihead_attn.out_proj.{p}",
        ),
        Rule("decoder.layers.{i}.norm1.{p}", _HEAD + "transformer_cross_attention_layers.{i}.norm.{p}"),
        Rule(
            "decoder.layers.{i}.self_attn.in_proj.{p}",
            _HEAD + "transformer_self_attention_layers.{i}.self_attn.in_proj_{p}",
        ),
        Rule(
            "decoder.layers.{i}.self_attn.out_proj.{p}",
            _HEAD + "transformer_self_attention_layers.{i}.self_attn.out_proj.{p}",
        ),
        Rule("decoder.layers.{i}.norm2.{p}", _HEAD + "transformer_self_attention_layers.{i}.norm.{p}"),
        Rule("decoder.layers.{i}.ffn.{rest}", _HEAD + "transformer_ffn_layers.{i}.{rest}"),
        Rule("decoder.layers.{i}.norm3.{p}", _HEAD + "transformer_ffn_layers.{i}.norm.{p}"),
        Rule("decoder.norm.{p}", _HEAD + "decoder_norm.{p}"),
        Rule("decoder.blocks.{i}.self_attn.in_proj.{p}", _BLOCKS + "self_attn.in_proj_{p}"),
        Rule("decoder.blocks.{i}.self_attn.out_proj.{p}", _BLOCKS + "self_attn.out_proj.{p}"),
        Rule("decoder.blocks.{i}.cross_attn.in_proj.{p}", _BLOCKS + "multihead_attn.in_proj_{p}"),
        Rule("decoder.blocks.{i}.cross_attn.out_proj.{p}", _BLOCKS + "multihead_attn.out_proj.{p}"),
        Rule("decoder.blocks.{i}.ffn.{rest}", _BLOCKS + "{rest}"),
        Rule("decoder.blocks.{i}.{rest}", _BLOCKS + "{rest}"),
        Rule("decoder.output_norm.{p}", _HEAD + "transformer.decoder.norm.{p}"),
        Rule("decoder.classifier.{p}", _HEAD + "{p}"),  # PerPixelBaseline
        Rule("decoder.label_embed.{p}", _HEAD + "label_enc.{p}"),  # MP-Former
        Rule("decoder.{rest}", _HEAD + "{rest}"),
    ),
    spellings=(
        (r"^module\.", ""),
        # Version metadata is unreliable (Mask2Former issues 95, 110, 129): the level may be there, missing, or doubled.
        (r"^sem_seg_head\.(pixel_decoder\.)+", "sem_seg_head.pixel_decoder."),
        (r"^sem_seg_head\.(?!pixel_decoder\.|predictor\b)", "sem_seg_head.pixel_decoder."),
        (r"^sem_seg_head\.predictor\.static_query\.", "sem_seg_head.predictor.query_feat."),
    ),
    harmless=(
        _CRITERION,
        _INDEX,
        _BATCHES,
        (r".*\.attn_mask", "a constant of shifted windows"),
        (r"pixel_(mean|std)", "normalisation, which the configuration holds"),
    ),
)


# --- Hugging Face transformers (docs/methods/published-behaviour.md#7-4), names as on the hub -------------------------

_ENC = "model.pixel_level_module.encoder."
_PIX = "model.pixel_level_module.decoder."
_DEC = "model.transformer_module."
_RES = _ENC + "encoder.stages.{i}.layers.{j}."
_BLOCK = _ENC + "encoder.layers.{i}.blocks.{j}."

HUGGINGFACE = Table(
    format="huggingface",
    marks=("model.pixel_level_module.", "class_predictor."),
    maskformer_names=(
        (r"^(model\.pixel_level_module\.encoder\.)(embeddings|encoder\.layers|layernorm)\.", r"\1model.\2."),
        *((rf"\.hidden_states_norms\.stage{i + 1}\.", f".hidden_states_norms.{i}.") for i in range(4)),
        (r"^model\.transformer_module\.decoder\.mask_predictor\.", ""),
    ),
    rules=(
        Rule("backbone.patch_embed.proj.{p}", _ENC + "embeddings.patch_embeddings.projection.{p}"),
        Rule("backbone.patch_embed.norm.{p}", _ENC + "embeddings.norm.{p}"),
        Rule("backbone.stages.{i}.blocks.{j}.norm1.{p}", _BLOCK + "layernorm_before.{p}"),
        Rule("backbone.stages.{i}.blocks.{j}.norm2.{p}", _BLOCK + "layernorm_after.{p}"),
        Rule(
            "backbone.stages.{i}.blocks.{j}.attn.relative_position_bias_table",
            _BLOCK + "attention.self.relative_position_bias_table",
        ),
        Rule(
            "backbone.stages.{i}.blocks.{j}.attn.qkv.{p}",
            *(_BLOCK + f"attention.self.{part}.{{p}}" for part in ("query", "key", "value")),
            layout=_QKV,
        ),
        Rule("backbone.stages.{i}.blocks.{j}.attn.proj.{p}", _BLOCK + "attention.output.dense.{p}"),
        Rule("backbone.stages.{i}.blocks.{j}.fc1.{p}", _BLOCK + "intermediate.dense.{p}"),
        Rule("backbone.stages.{i}.blocks.{j}.fc2.{p}", _BLOCK + "output.dense.{p}"),
        Rule("backbone.stages.{i}.downsample.{rest}", _ENC + "encoder.layers.{i}.downsample.{rest}"),
        Rule("backbone.norms.{i}.{p}", _ENC + "hidden_states_norms.stage{i+1}.{p}"),
        Rule("backbone.stem.0.conv.weight", _ENC + "embedder.embedder.convolution.weight"),
        Rule("backbone.stem.0.norm.{p}", _ENC + "embedder.embedder.normalization.{p}"),
        Rule("backbone.stages.{i}.{j}.conv{k}.conv.weight", _RES + "layer.{k-1}.convolution.weight"),
        Rule("backbone.stages.{i}.{j}.conv{k}.norm.{p}", _RES + "layer.{k-1}.normalization.{p}"),
        Rule("backbone.stages.{i}.{j}.shortcut.conv.weight", _RES + "shortcut.convolution.weight"),
        Rule("backbone.stages.{i}.{j}.shortcut.norm.{p}", _RES + "shortcut.normalization.{p}"),
        Rule("pixel_decoder.level_embed", _PIX + "level_embed"),
        Rule("pixel_decoder.input_projs.{i}.conv.{p}", _PIX + "input_projections.{i}.0.{p}"),
        Rule("pixel_decoder.input_projs.{i}.norm.{p}", _PIX + "input_projections.{i}.1.{p}"),
        Rule(
            "pixel_decoder.layers.{i}.attn.sampling_offsets.{p}",
            _PIX + "encoder.layers.{i}.self_attn.sampling_offsets.{p}",
            layout=_XY,
        ),
        Rule("pixel_decoder.layers.{i}.attn.{rest}", _PIX + "encoder.layers.{i}.self_attn.{rest}"),
        Rule("pixel_decoder.layers.{i}.norm1.{p}", _PIX + "encoder.layers.{i}.self_attn_layer_norm.{p}"),
        Rule("pixel_decoder.layers.{i}.norm2.{p}", _PIX + "encoder.layers.{i}.final_layer_norm.{p}"),
        Rule("pixel_decoder.layers.{i}.ffn.linear{k}.{p}", _PIX + "encoder.layers.{i}.fc{k}.{p}"),
        Rule("pixel_decoder.lateral.conv.weight", _PIX + "adapter_1.0.weight"),
        Rule("pixel_decoder.lateral.norm.{p}", _PIX + "adapter_1.1.{p}"),
        Rule("pixel_decoder.output.conv.weight", _PIX + "layer_1.0.weight"),
        Rule("pixel_decoder.output.norm.{p}", _PIX + "layer_1.1.{p}"),
        Rule("pixel_decoder.mask_features.{p}", _PIX + "mask_projection.{p}"),
        Rule("pixel_decoder.top.conv.weight", _PIX + "fpn.stem.0.weight"),
        Rule("pixel_decoder.top.norm.{p}", _PIX + "fpn.stem.1.{p}"),
        Rule("pixel_decoder.laterals.{i}.conv.weight", _PIX + "fpn.layers.{i}.proj.0.weight"),
        Rule("pixel_decoder.laterals.{i}.norm.{p}", _PIX + "fpn.layers.{i}.proj.1.{p}"),
        Rule("pixel_decoder.outputs.{i}.conv.weight", _PIX + "fpn.layers.{i}.block.0.weight"),
        Rule("pixel_decoder.outputs.{i}.norm.{p}", _PIX + "fpn.layers.{i}.block.1.{p}"),
        Rule("decoder.input_proj.{p}", _DEC + "input_projection.{p}"),
        Rule("decoder.input_projs.{i}.{p}", _DEC + "input_projections.{i}.{p}"),
        Rule("decoder.query_feat.weight", _DEC + "queries_features.weight"),
        Rule("decoder.query_embed.weight", _DEC + "queries_embedder.weight"),
        Rule("decoder.level_embed.weight", _DEC + "level_embed.weight"),
        Rule("decoder.layers.{i}.cross_attn.in_proj.{p}", _DEC + "decoder.layers.{i}.cross_attn.in_proj_{p}"),
        Rule("decoder.layers.{i}.cross_attn.out_proj.{p}", _DEC + "decoder.layers.{i}.cross_attn.out_proj.{p}"),
        Rule(
            "decoder.layers.{i}.self_attn.in_proj.{p}",
            *(_DEC + f"decoder.layers.{{i}}.self_attn.{part}_proj.{{p}}" for part in "qkv"),
            layout=_QKV,
        ),
        Rule("decoder.layers.{i}.self_attn.out_proj.{p}", _DEC + "decoder.layers.{i}.self_attn.out_proj.{p}"),
        Rule("decoder.layers.{i}.ffn.linear{k}.{p}", _DEC + "decoder.layers.{i}.fc{k}.{p}"),
        Rule("decoder.layers.{i}.norm1.{p}", _DEC + "decoder.layers.{i}.cross_attn_layer_norm.{p}"),
        Rule("decoder.layers.{i}.norm2.{p}", _DEC + "decoder.layers.{i}.self_attn_layer_norm.{p}"),
        Rule("decoder.layers.{i}.norm3.{p}", _DEC + "decoder.layers.{i}.final_layer_norm.{p}"),
        *(
            Rule(
                f"decoder.blocks.{{i}}.{ours}.in_proj.{{p}}",
                *(_DEC + f"decoder.layers.{{i}}.{theirs}.{part}_proj.{{p}}" for part in "qkv"),
                layout=_QKV,
            )
            for ours, theirs in (("self_attn", "self_attn"), ("cross_attn", "encoder_attn"))
        ),
        Rule("decoder.blocks.{i}.self_attn.out_proj.{p}", _DEC + "decoder.layers.{i}.self_attn.out_proj.{p}"),
        Rule("decoder.blocks.{i}.cross_attn.out_proj.{p}", _DEC + "decoder.layers.{i}.encoder_attn.out_proj.{p}"),
        Rule("decoder.blocks.{i}.ffn.linear{k}.{p}", _DEC + "decoder.layers.{i}.fc{k}.{p}"),
        Rule("decoder.blocks.{i}.norm1.{p}", _DEC + "decoder.layers.{i}.self_attn_layer_norm.{p}"),
        Rule("decoder.blocks.{i}.norm2.{p}", _DEC + "decoder.layers.{i}.encoder_attn_layer_norm.{p}"),
        Rule("decoder.blocks.{i}.norm3.{p}", _DEC + "decoder.layers.{i}.final_layer_norm.{p}"),
        Rule("decoder.norm.{p}", _DEC + "decoder.layernorm.{p}"),
        Rule("decoder.output_norm.{p}", _DEC + "decoder.layernorm.{p}"),
        Rule("decoder.mask_embed.layers.{i}.{p}", _DEC + "decoder.mask_predictor.mask_embedder.{i}.0.{p}"),
        Rule("decoder.class_embed.{p}", "class_predictor.{p}"),
    ),
    spellings=(
        (r"^module\.", ""),
        # MaskFormer's backbone and mask head have other names, which `maskformer_names` restores
        (r"^(model\.pixel_level_module\.encoder\.)model\.", r"\1"),
        *((rf"(\.hidden_states_norms\.){i}\.", rf"\g<1>stage{i + 1}.") for i in range(4)),
        (r"^mask_embedder\.", "model.transformer_module.decoder.mask_predictor.mask_embedder."),
        # transformers >= 5 has other names inside the running model than on disk
        (r"^(model\.pixel_level_module\.encoder\.)swin\.", r"\1"),
        (r"^(model\.transformer_module\.decoder\..*_attn\.)o_proj\.", r"\1out_proj."),
        (r"^(model\.transformer_module\.decoder\.layers\.\d+\.)mlp\.", r"\1"),
        (r"\.attention\.q_proj\.", ".attention.self.query."),
        (r"\.attention\.k_proj\.", ".attention.self.key."),
        (r"\.attention\.v_proj\.", ".attention.self.value."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
        (
            r"\.attention\.relative_position_bias\.relative_position_bias_table$",
            ".attention.self.relative_position_bias_table",
        ),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    ),
    harmless=(
        _CRITERION,
        _INDEX,
        _BATCHES,
        (r"model\.pixel_level_module\.encoder\.layernorm\..*", "the classifier's last norm, which nothing uses"),
    ),
)


# --- OpenMMLab: mmsegmentation 1.x, mmdetection 3.x and 2.x (docs/methods/published-behaviour.md#7-5) -----------------

_MM = "decode_head."
_MM_PIXEL = _MM + "pixel_decoder."
_MM_LAYER = _MM + "transformer_decoder.layers.{i}."

OPENMMLAB = Table(
    format="openmmlab",
    marks=("decode_head.", "panoptic_head."),
    rules=(
        Rule("backbone.patch_embed.proj.{p}", "backbone.patch_embed.projection.{p}"),
        Rule("backbone.patch_embed.norm.{p}", "backbone.patch_embed.norm.{p}"),
        Rule("backbone.stages.{i}.blocks.{j}.norm{k}.{p}", "backbone.stages.{i}.blocks.{j}.norm{k}.{p}"),
        Rule("backbone.stages.{i}.blocks.{j}.attn.{rest}", "backbone.stages.{i}.blocks.{j}.attn.w_msa.{rest}"),
        Rule("backbone.stages.{i}.blocks.{j}.fc1.{p}", "backbone.stages.{i}.blocks.{j}.ffn.layers.0.0.{p}"),
        Rule("backbone.stages.{i}.blocks.{j}.fc2.{p}", "backbone.stages.{i}.blocks.{j}.ffn.layers.1.{p}"),
        Rule("backbone.stages.{i}.downsample.{rest}", "backbone.stages.{i}.downsample.{rest}", layout=_MERGE),
        Rule("backbone.norms.{i}.{p}", "backbone.norm{i}.{p}"),
        Rule("backbone.stem.0.conv.weight", "backbone.conv1.weight"),
        Rule("backbone.stem.0.norm.{p}", "backbone.bn1.{p}"),
        Rule("backbone.stages.{i}.{j}.conv{k}.conv.weight", "backbone.layer{i+1}.{j}.conv{k}.weight"),
        Rule("backbone.stages.{i}.{j}.conv{k}.norm.{p}", "backbone.layer{i+1}.{j}.bn{k}.{p}"),
        Rule("backbone.stages.{i}.{j}.shortcut.conv.weight", "backbone.layer{i+1}.{j}.downsample.0.weight"),
        Rule("backbone.stages.{i}.{j}.shortcut.norm.{p}", "backbone.layer{i+1}.{j}.downsample.1.{p}"),
        Rule("pixel_decoder.level_embed", _MM_PIXEL + "level_encoding.weight"),
        Rule("pixel_decoder.input_projs.{i}.conv.{p}", _MM_PIXEL + "input_convs.{i}.conv.{p}"),
        Rule("pixel_decoder.input_projs.{i}.norm.{p}", _MM_PIXEL + "input_convs.{i}.gn.{p}"),
        Rule(
            "pixel_decoder.layers.{i}.attn.sampling_offsets.{p}",
            _MM_PIXEL + "encoder.layers.{i}.self_attn.sampling_offsets.{p}",
            layout=_XY,
        ),
        Rule("pixel_decoder.layers.{i}.attn.in_proj.{p}", _MM_PIXEL + "encoder.layers.{i}.self_attn.attn.in_proj_{p}"),
        Rule(
            "pixel_decoder.layers.{i}.attn.out_proj.{p}", _MM_PIXEL + "encoder.layers.{i}.self_attn.attn.out_proj.{p}"
        ),
        Rule("pixel_decoder.layers.{i}.attn.{rest}", _MM_PIXEL + "encoder.layers.{i}.self_attn.{rest}"),
        Rule("pixel_decoder.layers.{i}.ffn.linear1.{p}", _MM_PIXEL + "encoder.layers.{i}.ffn.layers.0.0.{p}"),
        Rule("pixel_decoder.layers.{i}.ffn.linear2.{p}", _MM_PIXEL + "encoder.layers.{i}.ffn.layers.1.{p}"),
        Rule("pixel_decoder.layers.{i}.norm1.{p}", _MM_PIXEL + "encoder.layers.{i}.norms.0.{p}"),
        Rule("pixel_decoder.layers.{i}.norm2.{p}", _MM_PIXEL + "encoder.layers.{i}.norms.1.{p}"),
        Rule("pixel_decoder.lateral.conv.weight", _MM_PIXEL + "lateral_convs.0.conv.weight"),
        Rule("pixel_decoder.lateral.norm.{p}", _MM_PIXEL + "lateral_convs.0.gn.{p}"),
        Rule("pixel_decoder.output.conv.weight", _MM_PIXEL + "output_convs.0.conv.weight"),
        Rule("pixel_decoder.output.norm.{p}", _MM_PIXEL + "output_convs.0.gn.{p}"),
        Rule("pixel_decoder.mask_features.{p}", _MM_PIXEL + "mask_feature.{p}"),
        Rule("pixel_decoder.input_proj.{p}", _MM_PIXEL + "encoder_in_proj.{p}"),
        Rule("pixel_decoder.top.conv.weight", _MM_PIXEL + "last_feat_conv.conv.weight"),
        Rule("pixel_decoder.top.norm.{p}", _MM_PIXEL + "last_feat_conv.gn.{p}"),
        Rule("pixel_decoder.laterals.{i}.conv.weight", _MM_PIXEL + "lateral_convs.{2-i}.conv.weight"),
        Rule("pixel_decoder.laterals.{i}.norm.{p}", _MM_PIXEL + "lateral_convs.{2-i}.gn.{p}"),
        Rule("pixel_decoder.outputs.{i}.conv.weight", _MM_PIXEL + "output_convs.{2-i}.conv.weight"),
        Rule("pixel_decoder.outputs.{i}.norm.{p}", _MM_PIXEL + "output_convs.{2-i}.gn.{p}"),
        Rule("decoder.input_proj.{p}", _MM + "decoder_input_proj.{p}"),
        Rule("decoder.input_projs.{i}.{p}", _MM + "decoder_input_projs.{i}.{p}"),
        Rule("decoder.query_feat.weight", _MM + "query_feat.weight"),
        Rule("decoder.query_embed.weight", _MM + "query_embed.weight"),
        Rule("decoder.level_embed.weight", _MM + "level_embed.weight"),
        Rule("decoder.layers.{i}.{a}_attn.in_proj.{p}", _MM_LAYER + "{a}_attn.attn.in_proj_{p}"),
        Rule("decoder.layers.{i}.{a}_attn.out_proj.{p}", _MM_LAYER + "{a}_attn.attn.out_proj.{p}"),
        Rule("decoder.layers.{i}.ffn.linear1.{p}", _MM_LAYER + "ffn.layers.0.0.{p}"),
        Rule("decoder.layers.{i}.ffn.linear2.{p}", _MM_LAYER + "ffn.layers.1.{p}"),
        Rule("decoder.layers.{i}.norm1.{p}", _MM_LAYER + "norms.0.{p}"),
        Rule("decoder.layers.{i}.norm2.{p}", _MM_LAYER + "norms.1.{p}"),
        Rule("decoder.layers.{i}.norm3.{p}", _MM_LAYER + "norms.2.{p}"),
        Rule("decoder.blocks.{i}.{a}_attn.in_proj.{p}", _MM_LAYER + "{a}_attn.attn.in_proj_{p}"),
        Rule("decoder.blocks.{i}.{a}_attn.out_proj.{p}", _MM_LAYER + "{a}_attn.attn.out_proj.{p}"),
        Rule("decoder.blocks.{i}.ffn.linear1.{p}", _MM_LAYER + "ffn.layers.0.0.{p}"),
        Rule("decoder.blocks.{i}.ffn.linear2.{p}", _MM_LAYER + "ffn.layers.1.{p}"),
        Rule("decoder.blocks.{i}.norm{k}.{p}", _MM_LAYER + "norms.{k-1}.{p}"),
        Rule("decoder.norm.{p}", _MM + "transformer_decoder.post_norm.{p}"),
        Rule("decoder.output_norm.{p}", _MM + "transformer_decoder.post_norm.{p}"),
        Rule("decoder.class_embed.{p}", _MM + "cls_embed.{p}"),
        Rule("decoder.mask_embed.layers.{i}.{p}", _MM + "mask_embed.{2i}.{p}"),
    ),
    spellings=(
        (r"^module\.", ""),
        (r"^panoptic_head\.", "decode_head."),
        (r"^(decode_head\.pixel_decoder\.)encoder_out_proj\.", r"\1last_feat_conv."),  # with an encoder
        # before mmdetection 3.0 (UNVERIFIED in detail, docs/methods/published-behaviour.md#7-5): lists of attentions
        # and feed-forward networks
        (r"^(decode_head\.pixel_decoder\.encoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
        (r"^(decode_head\.transformer_decoder\.layers\.\d+)\.attentions\.0\.", r"\1.cross_attn."),
        (r"^(decode_head\.transformer_decoder\.layers\.\d+)\.attentions\.1\.", r"\1.self_attn."),
        (r"^(decode_head\..*layers\.\d+)\.ffns\.0\.", r"\1.ffn."),
    ),
    maskformer_spellings=(  # self-attention comes first in MaskFormer
        (
            r"^(?:module\.)?(?:panoptic|decode)_head\.(transformer_decoder\.layers\.\d+)\.attentions\.0\.",
            r"decode_head.\1.self_attn.",
        ),
        (
            r"^(?:module\.)?(?:panoptic|decode)_head\.(transformer_decoder\.layers\.\d+)\.attentions\.1\.",
            r"decode_head.\1.cross_attn.",
        ),
    ),
    harmless=(
        _INDEX,
        _BATCHES,
        (r"decode_head\.conv_seg\..*", "a classifier of the base class, which nothing uses"),
        (r"data_preprocessor\..*", "normalisation, which the configuration holds"),
    ),
)

# m2f files are identified by their header, not by names.
OURS = Table(
    format="m2f",
    marks=(),
    rules=(Rule("backbone.net.pos_embed", "backbone.net.pos_embed", layout=Positions()), Rule("{rest}", "{rest}")),
)

TABLES: dict[str, Table] = {table.format: table for table in (OURS, *VIT_TABLES, DETECTRON2, HUGGINGFACE, OPENMMLAB)}
MARKS = tuple(mark for table in TABLES.values() for mark in table.marks)
