"""Our models in lm-evaluation-harness: importing this module registers the model `questlm` there.

    from questlm.integrations.lm_eval import harness_results

    harness_results("model/", ["hellaswag"])  # items from the hub

or, with the harness's own function and any of its tasks:

    import lm_eval
    import questlm.integrations.lm_eval

    lm_eval.simple_evaluate("questlm", model_args={"pretrained": "model/"}, tasks=["winogrande"])

Needs `pip install questlm[eval]`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.models  # registers its own, which it does not where ours is the first
import numpy as np
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from questlm.config import GenerationOptions, TrainConfig
from questlm.errors import ConfigError, DataError, cleaned, nearest_name, quoted
from questlm.evaluation.likelihood import Request, log_likelihoods
from questlm.evaluation.task_result import TaskResult
from questlm.inference.generate import generate_tokens
from questlm.inference.text import TextDecoder
from questlm.tokenizer_files import encode_text
from questlm.trained.opened import open_model

__all__ = ["QuestlmLM", "harness_results", "local_task"]

_MOST_NEW_TOKENS = 256  # the harness's own, where a task does not say
_SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty")  # settings of a task that are ours of the same name
_CACHE_DTYPES = {None: None, "float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


@register_model("questlm")
class QuestlmLM(TemplateLM):
    """A run, packed model or Hugging Face folder as lm-evaluation-harness calls it.

    Args:
        pretrained: its path, as `questlm.evaluate` takes it.
        device: 'auto', 'cpu', 'cuda' or 'cuda:N'.
        cache_dtype: of a packed model: 'float32', 'bfloat16' or 'int8' for keys and values.
        max_length: most tokens to give the model at once; None: as many as it was trained with.
        batch_size, max_batch_size: not used, because items are batched by length.

    Raises:
        ConfigError: no tokenizer, or a device or dtype that cannot be used.
    """

    def __init__(
        self,
        pretrained: str,
        device: str | None = "auto",
        cache_dtype: str | None = None,
        max_length: int | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
    ) -> None:
        super().__init__()
        if cache_dtype not in _CACHE_DTYPES:
            allowed = ", ".join(name for name in _CACHE_DTYPES if name is not None)
            raise ConfigError(f"cache_dtype = {quoted(str(cache_dtype))}; allowed: {allowed}")
        self.opened = open_model(Path(pretrained), device or "auto", _CACHE_DTYPES[cache_dtype])
        self.max_length = self.opened.longest if max_length is None else TrainConfig(seq_len=int(max_length)).seq_len
        if self.opened.tokenizer is None:
            raise ConfigError(f"{pretrained} has no tokenizer, so the text of a task cannot be made tokens")
        self._tokenizer = self.opened.tokenizer

    @property
    def eot_token_id(self) -> int:
        """The token that ends a document, which stands for an empty text too."""
        if self.opened.end_of_text is None:
            raise ConfigError("the tokenizer has no token that ends a document, which this task needs")
        return self.opened.end_of_text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text; our models are trained without special tokens before it."""
        return encode_text(self._tokenizer, string)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> Sequence[tuple[float, bool]]:
        asked = [Request(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        model, vocabulary = self.opened.model, self.opened.vocab_size
        return list(log_likelihoods(model, asked, self.max_length, vocabulary, not disable_tqdm))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log probability of each whole text, in windows of `max_length`."""
        windows: list[tuple[Any, list[int], list[int]]] = []
        counts: list[int] = []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            pairs = get_rolling_token_windows(ids, self.eot_token_id, self.max_length, context_len=1)
            found = [(None, *make_disjoint_window(pair)) for pair in pairs]
            windows, counts = windows + found, [*counts, len(found)]
        nats = iter([nats for nats, _ in self._loglikelihood_tokens(windows, disable_tqdm)])
        return [math.fsum(next(nats) for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each context, up to the first of its stop strings."""
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, settings: Mapping[str, Any]) -> str:
        stop, model = settings.get("until") or (), self.opened.model
        sampled = bool(settings.get("do_sample", False))
        options = GenerationOptions(
            max_new_tokens=int(settings.get("max_gen_toks", _MOST_NEW_TOKENS)),
            temperature=float(settings.get("temperature", 1.0)) if sampled else 0.0,
            **{name: settings[name] for name in _SAMPLING if name in settings},
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
        )
        room = self.max_length - options.max_new_tokens
        if room < 1:
            raise ConfigError(
                f"{options.max_new_tokens} new tokens leave no room for a text: the model reads {self.max_length} at "
                'once; give simple_evaluate gen_kwargs={"max_gen_toks": N} or model_args with a longer "max_length"'
            )
        prompt = (self.tok_encode(context) or [self.eot_token_id])[-room:]
        decoder = TextDecoder(self._tokenizer, prompt, options.stop)
        cache = model.new_cache(1, len(prompt) + options.max_new_tokens)
        text = ""
        for ((_, token),) in generate_tokens(model.next_logits, cache, [prompt], options, {0}):
            if token == self.opened.end_of_text:
                break
            text += decoder.add(token)
            if decoder.stopped:
                break
        return text + decoder.finish()


def harness_results(
    model: str | Path, tasks: Sequence[str | dict[str, Any]], limit: int | None = None, **settings: Any
) -> dict[str, TaskResult]:
    """Score tasks of the harness, by their names there, on the items that it fetches.

    Args:
        model: as `questlm.evaluate` takes it.
        tasks: names, or settings of tasks as the harness takes them.
        limit: only so many items of each task.
        settings: for `QuestlmLM`.

    Raises:
        DataError: items that cannot be fetched.
        ConfigError: no such task, one of another kind than multiple choice or the likelihood of a text, or a model
            without a tokenizer.
    """
    manager = TaskManager()
    for name in (each for each in tasks if isinstance(each, str)):
        if name not in manager.all_tasks:
            near = nearest_name(name, manager.all_tasks)
            raise ConfigError(f"lm-evaluation-harness has no task {quoted(name)}; see: lm_eval ls tasks.{near}")
    subject = QuestlmLM(str(model), **settings)
    try:
        found = lm_eval.simple_evaluate(
            subject, tasks=list(tasks), limit=limit, bootstrap_iters=0, task_manager=manager
        )
    except OSError as problem:  # of the network too
        raise DataError(
            f"lm-evaluation-harness cannot fetch the items ({cleaned(problem, 200)}); without a network, give a folder "
            "of files (--tasks-dir)"
        ) from None
    return {name: _result(name, samples) for name, samples in found["samples"].items()}


def local_task(name: str, file: Path, cache_dir: Path) -> dict[str, Any]:
    """Settings by which the harness scores a task of ours on a JSONL file, in a form of its own for all: no network.

    Args:
        name: in `questlm.evaluation.tasks.TASKS`.
        file: as `read_items` reads it; of PIQA with "query", "choices" and "gold".
        cache_dir: where the library `datasets` keeps its copy.
    """
    single = name.startswith("lambada")
    question = "{{query}}" if name == "hellaswag" else "{{query}}\nAnswer:"
    texts = (
        {"output_type": "loglikelihood", "doc_to_text": "{{context}}", "doc_to_target": "{{' ' + continuation}}"}
        if single
        else {
            "output_type": "multiple_choice",
            "doc_to_text": question,
            "doc_to_target": "gold",
            "doc_to_choice": "choices",
        }
    )
    measures = ["acc"] if single else ["acc", "acc_norm"]
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(cache_dir)},
        "test_split": "test",
        "metric_list": [{"metric": each, "aggregation": "mean", "higher_is_better": True} for each in measures],
        **texts,
    }


def _result(task: str, samples: Sequence[Mapping[str, Any]]) -> TaskResult:
    """Our result from the harness's samples, whose items are known by their hash there."""
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    if not all("acc" in sample for sample in ordered):
        raise ConfigError(f"the task {task} has no accuracy of likelihoods; use lm_eval.simple_evaluate for it")
    nats = tuple(tuple(float(response[0]) for response in sample["filtered_resps"]) for sample in ordered)
    measures = [name for name in ("acc", "acc_norm") if name in ordered[0]]
    correct = {name: np.array([bool(sample[name]) for sample in ordered]) for name in measures}
    digest = " ".join(sample["doc_hash"] for sample in ordered)
    return TaskResult(task, digest, correct, nats)
