"""Run a Granite hybrid from a GGUF file in plain numpy: float64, token by token.

It uses the keys as llama.cpp does, and shares no code with the exporter.
"""

from pathlib import Path

import numpy as np
from gguf import GGUFReader


class Reference:
    """One model; `logits` runs it."""

    def __init__(self, path: Path) -> None:
        reader = GGUFReader(path)
        self.keys = {name: field.contents() for name, field in reader.fields.items()}
        self.kinds = {t.name: t.tensor_type.name for t in reader.tensors}
        self.tensors = {t.name: self._numbers(t).astype(np.float64) for t in reader.tensors}

    @staticmethod
    def _numbers(tensor) -> np.ndarray:
        if tensor.tensor_type.name != "BF16":
            return tensor.data
        bits = tensor.data.view(np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32)

    def key(self, name: str, default=None):
        return self.keys.get(f"granitehybrid.{name}", default)

    def logits(self, ids: list[int]) -> np.ndarray:
        x = self.tensors["token_embd.weight"][ids] * self.key("embedding_scale")
        for layer, kv_heads in enumerate(self.key("attention.head_count_kv")):
            part = {
                name.removeprefix(f"blk.{layer}."): value
                for name, value in self.tensors.items()
                if name.startswith(f"blk.{layer}.")
            }
            mixer = self.attention if kv_heads else self.mamba
            args = (kv_heads,) if kv_heads else ()
            y = mixer(part, self.norm(x, part["attn_norm.weight"]), *args)
            x = x + y * self.key("residual_scale")
            y = self.norm(x, part["ffn_norm.weight"])
            gate, up = (affine(part, f"ffn_{name}", y) for name in ("gate", "up"))
            x = x + affine(part, "ffn_down", silu(gate) * up) * self.key("residual_scale")
        x = self.norm(x, self.tensors["output_norm.weight"])
        head = self.tensors.get("output.weight", self.tensors["token_embd.weight"])
        return x @ head.T / self.key("logit_scale")

    def norm(self, x, weight):
        eps = self.key("attention.layer_norm_rms_epsilon")
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight

    def attention(self, part, x, kv_heads):
        heads, size = self.key("attention.head_count"), self.key("attention.key_length")
        q = affine(part, "attn_q", x).reshape(len(x), heads, size)
        k = affine(part, "attn_k", x).reshape(len(x), kv_heads, size)
        v = affine(part, "attn_v", x).reshape(len(x), kv_heads, size)
        if self.key("rope.scaling.finetuned"):
            q, k = self.rope(q), self.rope(k)
        k, v = (np.repeat(y, heads // kv_heads, 1) for y in (k, v))
        scores = np.einsum("ihd,jhd->hij", q, k) * self.key("attention.scale")
        scores = np.where(np.tril(np.ones((len(x), len(x)), bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        y = np.einsum("hij,jhd->ihd", weights, v).reshape(len(x), -1)
        return affine(part, "attn_output", y)

    def rope(self, x):
        size = self.key("rope.dimension_count")
        frequencies = self.key("rope.freq_base") ** (-np.arange(0, size, 2) / size)
        frequencies = frequencies / self.tensors.get("rope_freqs.weight", 1.0)
        angles = np.arange(len(x))[:, None, None] * frequencies
        scale = self.key("rope.scaling.attn_factor", 1.0)
        cos, sin = np.cos(angles) * scale, np.sin(angles) * scale
        out = x.copy()
        even, odd = x[..., 0:size:2], x[..., 1:size:2]
        out[..., 0:size:2], out[..., 1:size:2] = even * cos - odd * sin, odd * cos + even * sin
        return out

    def mamba(self, part, x):
        inner, state = self.key("ssm.inner_size"), self.key("ssm.state_size")
        heads, groups = self.key("ssm.time_step_rank"), self.key("ssm.group_count")
        z, xbc, raw_dt = np.split(affine(part, "ssm_in", x), [inner, -heads], axis=-1)
        taps = part["ssm_conv1d.weight"]
        width = self.key("ssm.conv_kernel")
        assert taps.shape[1] == width
        padded = np.concatenate([np.zeros((width - 1, xbc.shape[1])), xbc])
        mixed = sum(padded[tap : tap + len(x)] * taps[:, tap] for tap in range(width))
        mixed = silu(mixed + part["ssm_conv1d.bias"])
        values, b, c = np.split(mixed, [inner, inner + groups * state], axis=-1)
        values = values.reshape(len(x), heads, -1)
        b, c = (
            np.repeat(y.reshape(len(x), groups, state), heads // groups, axis=1) for y in (b, c)
        )
        dt = np.logaddexp(0, raw_dt + part["ssm_dt.bias"])
        ssm_state = np.zeros((heads, values.shape[-1], state))
        ys = []
        for t in range(len(x)):
            ssm_state *= np.exp(dt[t, :, None] * part["ssm_a"])[:, :, None]
            ssm_state += (dt[t, :, None] * values[t])[:, :, None] * b[t, :, None]
            ys.append((ssm_state * c[t, :, None]).sum(-1) + part["ssm_d"] * values[t])
        y = (np.stack(ys).reshape(len(x), inner) * silu(z)).reshape(len(x), groups, -1)
        return affine(part, "ssm_out", self.norm(y, part["ssm_norm.weight"]).reshape(len(x), inner))


def affine(part, name, x):
    return x @ part[f"{name}.weight"].T + part.get(f"{name}.bias", 0.0)


def silu(x):
    return x / (1 + np.exp(-x))
