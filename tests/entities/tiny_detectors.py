"""Tiny taggers and detectors with random weights, saved as the published ones are.

Each function fills a folder and returns it. What a published folder holds is there: `config.json`,
`model.safetensors`, tokenizer and processor files; of RAM the original checkpoint, a pickle with
the original names, its tag list and its thresholds.
"""

import pathlib

TAGS = (
    *("dog", "cat", "red ball", "person", "table", "chair", "tree", "box"),
    *("bird", "street sign", "room", "photo"),
)
# of BERT: the detectors look for these ids
SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
MARKS = {",": 1010, "-": 1011, ".": 1012, "?": 1029}
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORDS = (
    *("dog", "cat", "red", "blue", "ball", "person", "table", "chair", "tree", "box", "bird"),
    *("street", "sign", "room", "photo", "a", "of", "the", "green", "circle", "square"),
)


def ram_plus(folder: pathlib.Path) -> pathlib.Path:
    """Save a RAM++ checkpoint: 5 descriptions a tag, weighed by the image."""
    return _save_ram(folder, "ram_plus_tiny.pth", descriptions=5)


def ram(folder: pathlib.Path) -> pathlib.Path:
    """Save a RAM checkpoint: one embedding a tag."""
    return _save_ram(folder, "ram_tiny.pth", descriptions=0)


def ram_tensors(*, descriptions: int, seed: int = 0):
    """Return random tensors in the names of the original programs."""
    import torch

    random = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=0.2):
        return torch.randn(shape, generator=random) * scale

    def layer(name, rows, columns):
        return {f"{name}.weight": normal(rows, columns), f"{name}.bias": normal(rows)}

    def norm(name, width):
        return {f"{name}.weight": 1 + normal(width), f"{name}.bias": normal(width)}

    out = {"visual_encoder.patch_embed.proj.weight": normal(8, 3, 4, 4)}
    out |= {"visual_encoder.patch_embed.proj.bias": normal(8)}
    out |= norm("visual_encoder.patch_embed.norm", 8)
    for stage, heads in enumerate((1, 2, 2, 4)):
        width, grid = 8 * 2**stage, 24 // 2**stage
        for block in range(2):
            name = f"visual_encoder.layers.{stage}.blocks.{block}"
            out |= norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width)
            out[f"{name}.attn.relative_position_bias_table"] = normal(25, heads)
            out[f"{name}.attn.relative_position_index"] = torch.zeros(9, 9, dtype=torch.long)
            if block and grid > 3:
                out[f"{name}.attn_mask"] = torch.zeros((grid // 3) ** 2, 9, 9)
            out |= layer(f"{name}.attn.qkv", 3 * width, width)
            out |= layer(f"{name}.attn.proj", width, width)
            out |= layer(f"{name}.mlp.fc1", 4 * width, width)
            out |= layer(f"{name}.mlp.fc2", width, 4 * width)
        if stage < 3:
            name = f"visual_encoder.layers.{stage}.downsample"
            out |= norm(f"{name}.norm", 4 * width)
            out[f"{name}.reduction.weight"] = normal(2 * width, 4 * width)
    out |= norm("visual_encoder.norm", 64)
    for number in range(2):
        name = f"tagging_head.encoder.layer.{number}"
        out |= layer(f"{name}.crossattention.self.query", 32, 32)
        out |= layer(f"{name}.crossattention.self.key", 32, 16)
        out |= layer(f"{name}.crossattention.self.value", 32, 16)
        out |= layer(f"{name}.crossattention.output.dense", 32, 32)
        out |= norm(f"{name}.crossattention.output.LayerNorm", 32)
        out |= layer(f"{name}.intermediate.dense", 64, 32)
        out |= layer(f"{name}.output.dense", 32, 64) | norm(f"{name}.output.LayerNorm", 32)
    out |= layer("wordvec_proj", 32, 16) | layer("fc", 1, 32) | layer("image_proj", 16, 64)
    out["label_embed"] = normal(len(TAGS) * max(descriptions, 1), 16, scale=2)
    if descriptions:
        out["reweight_scale"] = torch.tensor(2.0)
    # a published checkpoint also has the parts that write captions
    return (
        out
        | layer("tag_encoder.encoder.layer.0.output.dense", 4, 4)
        | layer("text_decoder.cls.predictions.transform.dense", 4, 4)
    )


def grounding_dino(folder: pathlib.Path) -> pathlib.Path:
    """Save a Grounding DINO: 10 queries, prompts of at most 32 tokens."""
    import transformers

    return _save_dino(
        folder, transformers.GroundingDinoConfig, transformers.GroundingDinoForObjectDetection
    )


def mm_grounding_dino(folder: pathlib.Path) -> pathlib.Path:
    """Save an MM Grounding DINO: 10 queries, prompts of at most 32 tokens."""
    import transformers

    return _save_dino(
        folder, transformers.MMGroundingDinoConfig, transformers.MMGroundingDinoForObjectDetection
    )


def owlv2(folder: pathlib.Path) -> pathlib.Path:
    """Save an OWLv2: 16 patches, texts of at most 12 tokens."""
    import transformers
    from transformers.models.owlv2 import image_processing_pil_owlv2

    marks = ["<|startoftext|>", "<|endoftext|>"]
    pieces = [*("!", *LETTERS), *(f"{letter}</w>" for letter in LETTERS)]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *marks])}
    tokenizer = transformers.CLIPTokenizer(
        vocab=vocabulary, merges=[], unk_token=marks[1], bos_token=marks[0], eos_token=marks[1],
        pad_token="!", model_max_length=24,
    )  # fmt: skip
    tower = {"hidden_size": 16, "intermediate_size": 32}
    tower |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.Owlv2Config(
        text_config=tower | {
            "vocab_size": len(vocabulary), "max_position_embeddings": 24, "pad_token_id": 0,
            "bos_token_id": len(vocabulary) - 2, "eos_token_id": len(vocabulary) - 1,
        },
        vision_config=tower | {"image_size": 64, "patch_size": 16},
        projection_dim=16,
    )  # fmt: skip
    images = image_processing_pil_owlv2.Owlv2ImageProcessorPil(size={"height": 64, "width": 64})
    processor = transformers.Owlv2Processor(images, tokenizer)
    return _save(folder, lambda: transformers.Owlv2ForObjectDetection(config), processor)


def _save_ram(folder, name, *, descriptions):
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": ram_tensors(descriptions=descriptions)}, folder / name)
    (folder / "ram_tag_list.txt").write_text("\n".join(TAGS) + "\n")
    thresholds = ["0.15" if k % 3 else "0.2" for k in range(len(TAGS))]
    (folder / "ram_tag_list_threshold.txt").write_text("\n".join(thresholds) + "\n")
    return folder


def _save_dino(folder, config_class, model_class):
    import transformers
    from transformers.models.grounding_dino import image_processing_pil_grounding_dino as pil

    backbone = transformers.SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2],
        window_size=4, out_indices=[2, 3, 4], drop_path_rate=0.0,
    )  # fmt: skip
    vocabulary = _bert_vocabulary()
    text = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    config = config_class(
        backbone_config=backbone, text_config=text, d_model=64, encoder_layers=1, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, num_queries=10, max_text_len=32, encoder_n_points=2, decoder_n_points=2,
    )  # fmt: skip
    images = pil.GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    tokenizer = transformers.BertTokenizer(vocab=vocabulary)
    processor = transformers.GroundingDinoProcessor(images, tokenizer)
    return _save(folder, lambda: model_class(config), processor)


def _bert_vocabulary() -> dict[str, int]:
    """Return a vocabulary with BERT's special ids, some words, and letters for all others."""
    vocabulary = SPECIAL | MARKS
    pieces = [*WORDS, *(c for c in LETTERS if c not in WORDS), *(f"##{c}" for c in LETTERS)]
    vocabulary |= {piece: number for number, piece in enumerate(pieces, 1040)}
    taken = set(vocabulary.values())
    vocabulary |= {f"[unused{k}]": k for k in range(max(taken)) if k not in taken}
    return dict(sorted(vocabulary.items(), key=lambda item: item[1]))


def _save(folder, make, processor):
    """Save a model whose random weights are large enough to tell inputs apart."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
                # scores all over 0..1, and boxes of which most are inside the image
                if "class_embed" in name and name.endswith("bias"):
                    parameter.zero_()
                elif name.startswith("model.decoder.layer_norm"):
                    parameter.mul_(0.15 if model.config.model_type == "grounding-dino" else 1)
                elif name.startswith("box_head.dense2"):
                    parameter.mul_(0.1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
