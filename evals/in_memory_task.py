"""A task of lm-eval whose documents are in memory."""

from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask
from typing_extensions import override


class InMemoryTask(ConfigurableTask):
    """A task of lm-eval whose documents are in memory instead of on the hub."""

    def __init__(self, config: dict[str, Any], documents: datasets.DatasetDict) -> None:
        self._documents = documents
        super().__init__(config=config)

    @override
    def download(self, *_args: Any, **_kwargs: Any) -> None:
        self.dataset = self._documents
