"""The model card that lies beside the trained checkpoint."""

from collections.abc import Mapping

from .world import RECALL_SUBJECTS

_CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# hybridize-demo

A Llama-architecture language model of {millions:.2f} million parameters for the demo and the tests
of hybridize. It knows a small invented world and nothing else: use it to try a conversion from end
to end, not to answer questions.

## What it can do

Six subjects hold fixed facts about invented countries, animals, minerals, moons, rulers and
composers, which it has learned by heart. In three more (`recall_…`) a question comes with a passage
of four or five made-up facts and asks for one of them; these it can only answer by attention to the
context.

## Score

The exam is in MMLU's CSV layout, five shots, prompts as in lm-eval's task `mmlu`, the likeliest
of the four letters counts (chance is 25%). Question and passage wording, and the pairs that the
passages state, never occur in the training text. Weights as stored (bfloat16), computed in float32.

| subject | accuracy |
|---|---|
{rows}

Perplexity per token on held-out prose of the world: {perplexity:.2f}.

## Training

`python -m tools.bundled_checkpoint.train -o DIR` repeats it on a CPU, without any download: text
and exam come from `tools/bundled_checkpoint/world.py`, and every batch is a pure function of the
seed and its step. AdamW with warm-up and decay, bfloat16 autocast. Settings:

```json
{settings}
```

## License

Apache-2.0. All data is synthetic.
"""


def model_card(
    settings: str, parameters: int, accuracy: Mapping[str, float], perplexity: float
) -> str:
    """Write the card.

    Args:
        settings: the training settings as JSON.
        parameters: how many the model has, tied ones counted once.
        accuracy: share of right answers by subject, and under ``"all"`` overall.
        perplexity: per token, on held-out prose.

    Returns:
        Markdown with the front matter that model hubs read.
    """
    recall = sum(accuracy[name] for name in RECALL_SUBJECTS) / len(RECALL_SUBJECTS)
    shares = {**{name: accuracy[name] for name in sorted(accuracy) if name != "all"}}
    shares["**recall subjects together**"] = recall
    shares["**all**"] = accuracy["all"]
    rows = "\n".join(f"| {name} | {share:.1%} |" for name, share in shares.items())
    return _CARD.format(
        millions=parameters / 1e6, rows=rows, perplexity=perplexity, settings=settings
    )
