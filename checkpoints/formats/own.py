"""hybridize's own architecture: whatever the model can be, it holds.

The directory carries a modeling file, so that a machine without hybridize opens it with
``trust_remote_code=True``; with hybridize, ``import hybridize`` is enough.
"""

import json

from hybridize.checkpoints.formats.base import Fit, Format, Names, Raw, written_rope
from hybridize.checkpoints.formats.modeling_file import MODELING_FILE, modeling_source
from hybridize.modeling.config import HybridConfig
from hybridize.modeling.layout import KINDS


class Own(Format):
    """``model_type: hybridize``."""

    name = "hybridize"
    names = Names(
        embedding="model.embed_tokens",
        final_norm="model.norm",
        norms=dict.fromkeys(KINDS, "model.blocks.{}.norm"),
        mixers=dict.fromkeys(KINDS, "model.blocks.{}.mixer"),
    )

    def to_hybrid(self, raw: Raw) -> HybridConfig:
        """See `Format.to_hybrid`."""
        for name in raw:
            if name != "num_hidden_layers" and isinstance(vars(HybridConfig).get(name), property):
                raise ValueError(f"{name} follows from the blocks, which say it; leave it out")
        return HybridConfig.from_dict(raw)

    def fit(self, config: HybridConfig) -> Fit:
        """See `Format.fit`."""
        return Fit(config, notes=("opens with `import hybridize`, or with trust_remote_code=True",))

    def from_hybrid(self, config: HybridConfig) -> Raw:
        """See `Format.from_hybrid`."""
        raw: Raw = json.loads(config.to_json_string(use_diff=False))
        module = MODELING_FILE.removesuffix(".py")
        return {
            "architectures": ["HybridForCausalLM"],
            "auto_map": {
                "AutoConfig": f"{module}.HybridConfig",
                "AutoModelForCausalLM": f"{module}.HybridForCausalLM",
            },
            **{key: value for key, value in raw.items() if not key.startswith("_")},
            "rope_parameters": written_rope(config)["rope_parameters"],
        }

    def extra_files(self, config: HybridConfig) -> dict[str, str]:
        """See `Format.extra_files`."""
        del config
        return {MODELING_FILE: modeling_source()}
