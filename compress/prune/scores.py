"""The measured importance of a model's parts, and the file that keeps it for later cuts."""

from dataclasses import dataclass
from pathlib import Path

import torch

from hybridize.checkpoints.checksums import load_checked, save_checked
from hybridize.errors import InputError


@dataclass(frozen=True)
class Scores:
    """The importance of all parts of a model, measured on some text.

    Attributes:
        units: by axis name and block index, the importance of each unit: its share of what its
            block writes to the residual stream. The axis decides the shape.
        blocks: ``(blocks,)``, the KL divergence from the model in nats per token when a block is
            skipped.
        influence: ``(blocks,)``, one minus the cosine between the residual stream before and after
            a block.
        stream: ``(blocks + 1, hidden_size)``, mean square of the residual stream before each norm.
        gated: by block index, ``(d_inner,)``, mean square of the input of a Mamba-2 block's norm.
        source: a hash of the checkpoint's weights.
        tokens: the number of tokens that were measured.
    """

    units: dict[str, dict[int, torch.Tensor]]
    blocks: torch.Tensor
    influence: torch.Tensor
    stream: torch.Tensor
    gated: dict[int, torch.Tensor]
    source: str
    tokens: int

    def save(self, path: Path) -> None:
        """Write the scores to one safetensors file."""
        tensors = {"blocks": self.blocks, "influence": self.influence, "stream": self.stream}
        tensors |= {f"gated.{block_idx}": value for block_idx, value in self.gated.items()}
        for name, blocks in self.units.items():
            tensors |= {f"units.{name}.{block_idx}": value for block_idx, value in blocks.items()}
        metadata = {"source": self.source, "tokens": self.tokens, "format": "hybridize-scores"}
        save_checked(path, {name: value.float() for name, value in tensors.items()}, metadata)

    @staticmethod
    def load(path: Path, source: str) -> "Scores":
        """Read scores from a file that `save` wrote.

        Args:
            path: the file.
            source: the hash of the checkpoint. The scores must have been measured on it.

        Raises:
            InputError: the file was not written by `save`, or for another checkpoint.
        """
        try:
            tensors, metadata = load_checked(path)
            units: dict[str, dict[int, torch.Tensor]] = {}
            gated = {}
            for name, value in tensors.items():
                group, *rest = name.split(".")
                if group == "units":
                    units.setdefault(rest[0], {})[int(rest[1])] = value
                elif group == "gated":
                    gated[int(rest[0])] = value
            scores = Scores(
                units=units,
                blocks=tensors["blocks"],
                influence=tensors["influence"],
                stream=tensors["stream"],
                gated=gated,
                source=str(metadata["source"]),
                tokens=int(metadata["tokens"]),
            )
        except FileNotFoundError:
            raise InputError(f"`scores={path}`: no such file") from None
        except (KeyError, ValueError, TypeError, IndexError, OSError) as error:
            raise InputError(
                f"`scores={path}`: not a file that prune wrote ({type(error).__name__})"
            ) from None
        if scores.source != source:
            raise InputError(f"`scores={path}`: measured on another checkpoint; give another file")
        return scores
