"""Continue a text with a model that `hybridize export --to onnx` wrote.

It needs only onnxruntime, numpy and tokenizers.

    python examples/onnx_generate.py DIR "Once upon a time" --max-new-tokens 40
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    options = parser.parse_args()

    description = json.loads((options.directory / "onnx.json").read_text("utf-8"))
    eos = description["eos_token_id"]
    eos_ids = eos if isinstance(eos, list) else [eos]
    tokenizer = Tokenizer.from_file(str(options.directory / "tokenizer.json"))
    prefill, decode = (
        onnxruntime.InferenceSession(options.directory / f"{name}.onnx")
        for name in ("prefill", "decode")
    )
    state_names = [state["name"] for state in description["states"]]

    ids = tokenizer.encode(options.prompt).ids
    logits, *states = prefill.run(None, {"input_ids": np.array([ids])})
    new_ids: list[int] = []
    while len(new_ids) < options.max_new_tokens:
        token = int(logits[0].argmax())
        if token in eos_ids:
            break
        new_ids.append(token)
        past = dict(zip(state_names, states, strict=True))
        logits, *states = decode.run(None, {"input_ids": np.array([[token]]), **past})
    print(tokenizer.decode(ids + new_ids))


if __name__ == "__main__":
    main()
