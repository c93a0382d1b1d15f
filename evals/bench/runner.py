"""Run a model once: prefill a prompt, decode greedily, and time both."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from hybridize.errors import HybridizeError, InputError
from hybridize.evals.bench.decoders import choose_decoding, make_decoder
from hybridize.evals.bench.largest_batch import fill_gpu
from hybridize.evals.bench.peak_memory import PeakMemory
from hybridize.evals.bench.results import AS_MANY_AS_FIT, Point
from hybridize.evals.bench.timer import timer_for
from hybridize.modeling.cache.hybrid import cache_bytes


@dataclass(frozen=True)
class Sample:
    """One run.

    Attributes:
        first_token: seconds until the first new token.
        decoding: seconds for the other new tokens.
        kv_bytes, state_bytes: size of the cache at the end.
        working_bytes: peak memory without the weights; None where it is unknown.
    """

    first_token: float
    decoding: float
    kv_bytes: int
    state_bytes: int
    working_bytes: int | None


class Runner:
    """One loaded model, which can run any number of times.

    Args:
        name: the user's name of the model.
        backend: the backend that loaded it.
        model: in evaluation mode.
        decoding: ``"auto"``, ``"eager"`` or ``"graph"``; see `choose_decoding`.

    Attributes:
        decoding: ``"eager"`` or ``"graph"``.
        weight_bytes: size of the parameters.

    Raises:
        InputError: CUDA graphs were requested but are not supported.
    """

    def __init__(
        self, name: str, backend: str, model: PreTrainedModel, decoding: str = "auto"
    ) -> None:
        self.name, self.backend, self.model = name, backend, model
        self.decoding = choose_decoding(decoding, model, name)
        self.weight_bytes = sum(parameter.nbytes for parameter in model.parameters())
        self._timer = timer_for(model.device)

    def fit(self, point: Point) -> Point:
        """Replace the batch size `AS_MANY_AS_FIT` by a number; other points are returned unchanged.

        Raises:
            InputError: the largest batch was requested but cannot be found for this model.
            HybridizeError: not even one sequence fits.
        """
        if point.batch_size != AS_MANY_AS_FIT:
            return point
        if self.decoding != "graph":
            raise InputError(
                f"`batch_size=max`: {self.name}: works only for models on a GPU whose steps are "
                "recorded (`decoding=graph`); give a number"
            )
        return fill_gpu(self.name, self.model, point)

    @torch.inference_mode()
    def run(self, point: Point, seed: int) -> Sample:
        """Prefill random tokens and decode greedily.

        Raises:
            HybridizeError: there is not enough memory.
        """
        device, timer = self.model.device, self._timer
        generator = torch.Generator().manual_seed(seed)
        shape, vocab_size = (point.batch_size, point.prompt_len), self.model.config.vocab_size
        prompt = torch.randint(vocab_size, shape, generator=generator).to(device)
        memory = PeakMemory(device)
        memory.start()
        try:
            decoder = make_decoder(self.model, self.decoding, point)
            start = timer.mark()
            decoder.prefill(prompt)
            first = timer.mark()
            for _ in range(point.gen_len - 1):
                decoder.step()
            last = timer.mark()
            times = timer.seconds(start, first), timer.seconds(first, last)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise HybridizeError(
                    f"{self.name}: {point} do not fit into memory; lower `batch_size` or "
                    "`prompt_len`"
                ) from error
            raise
        working = memory.stop()
        return Sample(*times, *cache_bytes(decoder.cache), working)
