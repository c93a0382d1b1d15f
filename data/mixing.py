"""Mix the text of several sources, and hold out a part of each for validation."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, islice
from typing import Any

import numpy as np

from hybridize.console import console
from hybridize.data.packing import Packed, SequencePacker, reveal
from hybridize.errors import InputError

Tokenized = Iterator[tuple[Any, np.ndarray]]
"""Positions and the int32 token ids of documents; those that are not learned are complements, see
`packing.hide`."""


@dataclass(frozen=True)
class TokenSource:
    """A source of tokenized documents.

    Attributes:
        name: in the words of an error message.
        weight: its share of the text, relative to the other sources; None if none was given.
        read: yields the documents from a position on; None is the beginning.
    """

    name: str
    weight: float | None
    read: Callable[[Any], Tokenized]


class Mixture:
    """Sequences of text from several sources, in proportion to their weights.

    A sequence has text of one source. The shares of the sources are right, up to a few sequences,
    in any part of the text. The order of the sources depends on the seed.

    Without weights, all sources have the same share until they end; the others go on. With
    weights, a source that ends is read again, until each has been read to its end.

    Documents that `hold_out` has returned, or that have the same tokens, do not occur in the
    sequences.

    Args:
        sources: the sources. All of them have a weight, or none.
        length: tokens per sequence.
        seed: random seed.
        state: where to continue, see `state`; None for the beginning.
    """

    def __init__(
        self, sources: Sequence[TokenSource], length: int, seed: int, state: Any = None
    ) -> None:
        self._length = length
        self._repeats = sources[0].weight is not None
        weights = np.array([1.0 if s.weight is None else s.weight for s in sources])
        self._shares = weights / weights.sum()
        self._phases = np.random.default_rng(seed).random(len(sources))
        self._held_out = set[bytes]()
        self._rests_taken = 0
        states = [None] * len(sources)
        if state is not None:
            self._held_out = {bytes.fromhex(digest) for digest in state["held_out"]}
            self._rests_taken, states = state["rests_taken"], state["sources"]
        self._sources = [
            _Source(source, length, self._held_out, each)
            for source, each in zip(sources, states, strict=True)
        ]

    def state(self) -> Any:
        """Return where the mixture is, as JSON values."""
        return {
            "held_out": sorted(digest.hex() for digest in self._held_out),
            "rests_taken": self._rests_taken,
            "sources": [source.state() for source in self._sources],
        }

    def hold_out(self, sequences: int) -> list[Packed]:
        """Return the first sequences of each source, before any other is taken.

        Every source has its share of them, and at least one. The rest of a document of which a
        part is held out is not used, unless the source has no other document.

        Raises:
            InputError: there are fewer sequences than sources, or a source has too little text.
        """
        held_out = list[Packed]()
        if sequences:
            for source, count in zip(self._sources, self._quotas(sequences), strict=True):
                held_out += source.hold_out(int(count))
        return held_out

    def _quotas(self, sequences: int) -> np.ndarray:
        """Return the number of held-out sequences of each source (largest remainders)."""
        if sequences < len(self._shares):
            raise InputError(
                f"`validation_sequences={sequences}`: give at least {len(self._shares)}, one for "
                "each source of text"
            )
        quotas = np.maximum(1, np.floor(self._shares * sequences)).astype(int)
        while quotas.sum() != sequences:
            error = self._shares * sequences - quotas
            if quotas.sum() < sequences:
                quotas[error.argmax()] += 1
            else:
                quotas[np.where(quotas > 1, error, np.inf).argmin()] -= 1
        return quotas

    def __iter__(self) -> Iterator[Packed]:
        """Yield the sequences that are left."""
        while (number := self._next()) is not None:
            sequence = self._sources[number].take()
            if sequence is None:
                self._end(self._sources[number])
            else:
                yield sequence
        if not self._repeats:
            for sequence in islice(self._rests(), self._rests_taken, None):
                self._rests_taken += 1
                yield sequence

    def _next(self) -> int | None:
        """Return the source that is the farthest behind its share; None at the end."""
        ended = [source.ended for source in self._sources]
        if all(ended):
            return None
        counts = np.array([source.sequences for source in self._sources])
        positions = (counts + self._phases) / self._shares
        if not self._repeats:
            positions[ended] = np.inf
        return int(positions.argmin())

    def _end(self, source: "_Source") -> None:
        """Remember that a source has ended, and begin it again if it is repeated."""
        if not source.found_text and len(self._sources) > 1:
            raise InputError(
                f"{source.name}: has no text, or none beside what is held out for validation; give "
                "more text, or leave the source out"
            )
        first_end, source.ended = not source.ended, True
        if all(each.ended for each in self._sources):
            return
        if self._repeats:
            source.restart()
        if first_end:
            effect = "it is read again" if self._repeats else "the other sources go on"
            console.note(f"{source.name}: has ended after {source.sequences} sequences; {effect}")

    def _rests(self) -> Iterator[Packed]:
        """Yield sequences of what the sources have left; each has less than a sequence."""
        packer = SequencePacker(self._length)
        for source in self._sources:
            for document in source.rest():
                packer.add(document)
                while packer.is_full():
                    yield packer.take()


class _Source:
    """One source: its position, and the tokens that are not in any sequence yet.

    A position is a document, and the number of its first tokens that are left out.
    """

    def __init__(
        self, source: TokenSource, length: int, held_out: set[bytes], state: Any = None
    ) -> None:
        self.name, self._read = source.name, source.read
        self._length, self._held_out = length, held_out
        self._packer = SequencePacker(length)
        self._begin: tuple[Any, int] = (None, 0)  # after what is held out
        self.sequences, self.ended, self.found_text = 0, False, False
        position = self._begin
        if state is not None:
            document, left_out = state["begin"]
            self._begin = (document, left_out)
            document, left_out = state["position"]
            position = (document, left_out)
            self.sequences, self.ended = state["sequences"], state["ended"]
            self.found_text = state["found_text"]
        self._start(position, self._read(position[0]))

    def _start(self, position: tuple[Any, int], documents: Tokenized) -> None:
        self._position, self._documents = position, documents
        self._left_out = position[1]  # of the next document

    def state(self) -> dict[str, Any]:
        """Return where the source is, as JSON values."""
        position = self._position
        if self._packer.first is not None:
            (document, left_out), used = self._packer.first
            position = (document, left_out + used)
        return {
            "begin": list(self._begin),
            "position": list(position),
            "sequences": self.sequences,
            "ended": self.ended,
            "found_text": self.found_text,
        }

    def restart(self) -> None:
        """Begin again after what is held out."""
        self._start(self._begin, self._read(self._begin[0]))
        self.found_text = False

    def hold_out(self, count: int) -> list[Packed]:
        """Return the first sequences, and remember their documents."""
        packer, sequences, digests = SequencePacker(self._length), list[Packed](), list[bytes]()
        last: tuple[Any, np.ndarray] | None = None
        for document in self._documents:
            digest = _digest(document[1])
            if digest in self._held_out:
                continue
            last = document
            digests.append(digest)
            packer.add(document[1])
            while packer.is_full() and len(sequences) < count:
                sequences.append(packer.take())
            if len(sequences) == count:
                break
        if not sequences:
            raise InputError(f"{self.name}: less text than one sequence of {self._length} tokens")
        if last is None or len(sequences) < count:
            raise InputError(
                f"{self.name}: has {len(sequences)} sequences of {self._length} tokens, and "
                f"{count} are held out; give more text or lower `validation_sequences`"
            )
        following, left = next(self._documents, None), packer.available
        if following is None:
            self._begin = (last[0], len(last[1]) - left)
            digests.pop()
            following = last
            console.note(
                f"{self.name}: has no document beside those that are held out for validation, so "
                f"its last one is cut; its last {left:,} tokens are trained on"
            )
        else:
            self._begin = (following[0], 0)
            if left > count * self._length:
                console.note(
                    f"{self.name}: {left:,} tokens of a document are not used, because its "
                    "beginning is held out for validation"
                )
        self._held_out.update(digests)
        self._start(self._begin, chain([following], self._documents))
        return sequences

    def take(self) -> Packed | None:
        """Return the next sequence; None if the source has ended."""
        while not self._packer.is_full():
            if not self._add():
                return None
        self.sequences += 1
        return self._packer.take()

    def rest(self) -> list[np.ndarray]:
        """Return what is left of a source that has ended."""
        while self._add():  # after a resumed run, the rest is read again
            pass
        return self._packer.rest()

    def _add(self) -> bool:
        """Read a document; return False if there is none."""
        found = next(self._documents, None)
        if found is None:
            return False
        document, ids = found
        left_out, self._left_out = self._left_out, 0
        if not self._held_out or _digest(ids) not in self._held_out:
            self._packer.add(ids[left_out:], (document, left_out))
            self.found_text |= left_out < len(ids)
        return True


def _digest(ids: np.ndarray) -> bytes:
    """Return a hash by which documents with the same tokens are found."""
    return blake2b(reveal(ids)[0].astype("<i4").tobytes(), digest_size=16).digest()
