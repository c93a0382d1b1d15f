"""What importance was measured to be, kept in a file for the next cut."""

from dataclasses import dataclass
from pathlib import Path

import torch

from hybridize.checkpoints.checksums import load_checked, save_checked
from hybridize.errors import InputError


@dataclass(frozen=True)
class Scores:
    """How much everything in a model matters, on some text.

    Attributes:
        units: by axis and by place, each unit's share in what its block writes to the residual
            stream, in the shape that the axis wants.
        blocks: ``(blocks,)``, nats per token by which the KL divergence from the model rises
            when a block is skipped.
        influence: ``(blocks,)``, one minus the cosine between the residual stream before and
            behind a block.
        stream: ``(blocks + 1, hidden)``, mean square of the residual stream before each norm.
        gated: by place, ``(inner,)``, mean square of what goes into a Mamba-2 block's norm.
        source: a hash of the checkpoint's weights.
        tokens: how much text they were measured on.
    """

    units: dict[str, dict[int, torch.Tensor]]
    blocks: torch.Tensor
    influence: torch.Tensor
    stream: torch.Tensor
    gated: dict[int, torch.Tensor]
    source: str
    tokens: int

    def save(self, path: Path) -> None:
        """Write them as one safetensors file."""
        tensors = {"blocks": self.blocks, "influence": self.influence, "stream": self.stream}
        tensors |= {f"gated.{place}": value for place, value in self.gated.items()}
        for name, places in self.units.items():
            tensors |= {f"units.{name}.{place}": value for place, value in places.items()}
        about = {"source": self.source, "tokens": self.tokens, "format": "hybridize-scores"}
        save_checked(path, {name: value.float() for name, value in tensors.items()}, about)

    @staticmethod
    def load(path: Path, source: str) -> "Scores":
        """Read them.

        Args:
            path: the file.
            source: the hash of the checkpoint that they have to be of.

        Raises:
            InputError: it is no such file, or of another checkpoint.
        """
        try:
            tensors, about = load_checked(path)
            units: dict[str, dict[int, torch.Tensor]] = {}
            gated = {}
            for name, value in tensors.items():
                what, *rest = name.split(".")
                if what == "units":
                    units.setdefault(rest[0], {})[int(rest[1])] = value
                elif what == "gated":
                    gated[int(rest[0])] = value
            found = Scores(
                units=units,
                blocks=tensors["blocks"],
                influence=tensors["influence"],
                stream=tensors["stream"],
                gated=gated,
                source=str(about["source"]),
                tokens=int(about["tokens"]),
            )
        except FileNotFoundError:
            raise InputError(f"--scores {path}: no such file") from None
        except (KeyError, ValueError, TypeError, IndexError, OSError) as error:
            raise InputError(
                f"--scores {path}: not scores that prune has written ({type(error).__name__})"
            ) from None
        if found.source != source:
            raise InputError(f"--scores {path}: measured on another checkpoint; leave it out")
        return found
