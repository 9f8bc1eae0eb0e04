"""Tiny segmentation models with random weights, saved as their real counterparts are.

Every function writes a folder that `from_pretrained` reads: `config.json`, `model.safetensors`,
`preprocessor_config.json` and, for SAM3, the files of a CLIP tokenizer. The weights are a function
of the seed; the seeds of SAM are chosen so that different boxes give different masks. The scores of
SAM3 lie between 0 and 0.1.
"""

import json
import pathlib

SIDE = 64  # of the frame that SAM, SAM-HQ and SAM2 look at, in pixels
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
COMMON = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "resample": 2,
    "rescale_factor": 1 / 255,
}
PROMPT = {"hidden_size": 32, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 4}
DECODER = {
    "hidden_size": 32,
    "mlp_dim": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "iou_head_depth": 2,
    "iou_head_hidden_dim": 16,
}
VISION = {
    "hidden_size": 16,
    "output_channels": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 16,
    "window_size": 2,
    "global_attn_indexes": [1],
    "num_pos_feats": 16,
    "mlp_dim": 32,
}


def sam(folder, *, seed=9):
    """Save a SAM of 50 thousand parameters; return the folder."""
    import transformers

    config = transformers.SamConfig(
        vision_config=VISION, prompt_encoder_config=PROMPT, mask_decoder_config=DECODER
    )
    return _save(folder, transformers.SamModel, config, seed, _sam_images("SamProcessor"))


def sam_hq(folder, *, seed=8):
    """Save a SAM-HQ; return the folder."""
    import transformers

    decoder = DECODER | {"vit_dim": VISION["hidden_size"]}
    config = transformers.SamHQConfig(
        vision_config=VISION, prompt_encoder_config=PROMPT, mask_decoder_config=decoder
    )
    return _save(folder, transformers.SamHQModel, config, seed, _sam_images("SamHQProcessor"))


def sam2_config():
    """Return the configuration of the tiny SAM2."""
    import transformers

    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=8,
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 4, 4, 4],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[2, 2],
        image_size=[SIDE, SIDE],
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=32,
    )
    return transformers.Sam2Config(
        vision_config=vision, prompt_encoder_config=PROMPT, mask_decoder_config=DECODER
    )


def sam2(folder, *, seed=38, video=False):
    """Save a SAM2, or the video model that published folders hold; return the folder."""
    import transformers

    side = {"height": SIDE, "width": SIDE}
    images = {
        "image_processor_type": "Sam2ImageProcessorFast",
        "processor_class": "Sam2Processor",
        "size": side,
        "mask_size": {"height": SIDE // 4, "width": SIDE // 4},
    }
    kind, config = transformers.Sam2Model, sam2_config()
    if video:
        kind, config = transformers.Sam2VideoModel, _sam2_video_config(config)
    return _save(folder, kind, config, seed, images | IMAGENET)


def _sam2_video_config(config):
    import transformers

    return transformers.Sam2VideoConfig(
        vision_config=config.vision_config,
        prompt_encoder_config=dict(PROMPT),
        mask_decoder_config=dict(DECODER),
        image_size=SIDE,
        memory_attention_hidden_size=32,
        memory_attention_num_layers=1,
        memory_attention_num_attention_heads=1,
        memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[4, 4],
        memory_encoder_hidden_size=32,
        memory_encoder_output_channels=16,
        mask_downsampler_embed_dim=32,
        memory_fuser_embed_dim=32,
        memory_fuser_num_layers=1,
        memory_fuser_intermediate_dim=32,
    )


def sam3_config():
    """Return the configuration of the tiny SAM3."""
    import transformers

    part = {"hidden_size": 32, "num_attention_heads": 2, "num_layers": 1, "intermediate_size": 32}
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "window_size": 2,
        "global_attn_indexes": [1],
        "pretrain_image_size": 56,
    }
    vision = transformers.Sam3VisionConfig(
        backbone_config=backbone,
        fpn_hidden_size=32,
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    )
    text = {
        "model_type": "clip_text_model",
        "vocab_size": len(_clip_vocabulary()),
        "hidden_size": 32,
        "intermediate_size": 32,
        "projection_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    return transformers.Sam3Config(
        vision_config=vision,
        text_config=text,
        geometry_encoder_config=dict(part),
        detr_encoder_config=dict(part),
        detr_decoder_config=part | {"num_queries": 10},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )


def sam3(folder, *, seed=0, video=False):
    """Save a SAM3, or the folder of the video model that holds the same; return the folder."""
    import transformers

    images = {
        "image_processor_type": "Sam3ImageProcessorFast",
        "processor_class": "Sam3Processor",
        "size": {"height": 56, "width": 56},
        "mask_size": {"height": 16, "width": 16},
    }
    config = sam3_config()
    folder = _save(folder, transformers.Sam3Model, config, seed, images | HALF)
    tokenizer = transformers.CLIPTokenizer(vocab=_clip_vocabulary(), merges=[])
    tokenizer.save_pretrained(folder)
    if video:
        _as_video(folder, transformers.Sam3VideoConfig(detector_config=config.to_dict()))
    return folder


def _as_video(folder, config):
    """Turn the folder of a SAM3 into that of a video model with the same detector."""
    from safetensors import torch as safetensors

    config.save_pretrained(folder)
    tensors = safetensors.load_file(folder / "model.safetensors")
    renamed = {f"detector_model.{name}": tensor for name, tensor in tensors.items()}
    other = next(iter(tensors.values()))
    renamed |= {name: other.clone() for name in ("tracker_model.part", "tracker_neck.part")}
    safetensors.save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


def _clip_vocabulary():
    letters = "abcdefghijklmnopqrstuvwxyz0123456789-' "
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *[f"{c}</w>" for c in letters]]
    return {word: i for i, word in enumerate(dict.fromkeys(words))}


def _sam_images(processor):
    quarter = {"height": SIDE // 4, "width": SIDE // 4}
    return IMAGENET | {
        "image_processor_type": "SamImageProcessor",
        "processor_class": processor,
        "do_pad": True,
        "size": {"longest_edge": SIDE},
        "pad_size": {"height": SIDE, "width": SIDE},
        "mask_size": {"longest_edge": SIDE // 4},
        "mask_pad_size": quarter,
    }


def _save(folder, kind, config, seed, images):
    import torch

    folder = pathlib.Path(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config).eval()
        _liven(model)
    model.save_pretrained(folder)
    text = json.dumps(COMMON | images, indent=2, sort_keys=True) + "\n"
    (folder / "preprocessor_config.json").write_text(text)
    return folder


def _liven(model):
    """Enlarge fresh weights, which are so small that every output is nearly the same."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                fan_in = weight[0].numel()
                weight.normal_(0, 1.4 * fan_in**-0.5)
            elif not name.endswith("weight"):
                weight.normal_(0, 0.1)
