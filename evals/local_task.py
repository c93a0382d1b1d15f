"""A task of lm-eval's whose documents are at hand."""

from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask


class LocalTask(ConfigurableTask):
    """A task of lm-eval's whose documents are at hand instead of on the hub."""

    def __init__(self, config: dict[str, Any], documents: datasets.DatasetDict) -> None:
        self._documents = documents
        super().__init__(config=config)

    def download(self, *_args: Any, **_kwargs: Any) -> None:
        """Take the documents that the task was made with."""
        self.dataset = self._documents
