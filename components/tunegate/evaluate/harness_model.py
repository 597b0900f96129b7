"""The harness's model class, with our progress lines, exact token boundaries and batches that fit into memory."""

from __future__ import annotations

import inspect
import json
from collections.abc import Hashable, Sequence
from typing import Any

from tunegate.contracts.progress import Progress
from tunegate.evaluate.halving import STEP, Answers, asked_in_smaller_batches
from tunegate.models.chat import rendered_pair

#: Completions are scored in batches of this share of those that are answered: scoring is bound by computation, gains
#: nothing from large batches, and needs the logits of many positions in memory.
SCORING_SHARE = 4


def harness_model(model: Any, tokenizer: Any, *, batch_size: int, rendered: bool) -> Any:
    """A loaded model as lm-evaluation-harness wants it.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer, with a pad token.
        batch_size: rows a batch, halved when memory runs out; the harness sorts rows by length first.
        rendered: whether prompts come rendered by the chat template; then the border between prompt and completion lies
            exactly where training had it. Otherwise the harness's own rule holds, which moves trailing white space of a
            prompt into the completion.
    """
    import torch
    from lm_eval.models.huggingface import HFLM

    can_keep_last = "logits_to_keep" in inspect.signature(model.forward).parameters

    class CountingModel(HFLM):  # type: ignore[misc]
        """HFLM that reports finished batches as plain lines instead of drawing a bar, and halves them when it must."""

        progress: Progress | None = None
        longest_completion = 0
        batch_size_per_gpu: Any

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Any:
            self.progress = Progress(STEP, len(requests), "rows answered")
            if len({_generated(request.args) for request in requests}) < len(requests):
                return super().generate_until(requests, disable_tqdm=True)  # the same prompt, to be sampled anew
            self.cache_hook = Answers(_generated)
            return asked_in_smaller_batches(
                lambda left: super(CountingModel, self).generate_until(left, disable_tqdm=True), requests,
                key=lambda request: _generated(request.args), answers=self.cache_hook, halve=self._halve,
            )  # fmt: skip

        def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
            tokens = super()._model_generate(context, *args, **kwargs)
            self._finished(len(context))
            return tokens

        def _loglikelihood_tokens(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            self.progress = Progress(STEP, len(requests), "completions scored")
            self.longest_completion = max(len(completion) for _, _, completion in requests)
            given = {**kwargs, "disable_tqdm": True}
            self.cache_hook = Answers(tuple)
            answered_together = self.batch_size_per_gpu
            self.batch_size_per_gpu = max(1, answered_together // SCORING_SHARE)
            whole = self.batch_size_per_gpu
            try:
                if any(
                    request[0] is None for request in requests
                ):  # parts of a text, which the harness does not report
                    return super()._loglikelihood_tokens(requests, *args, **given)
                return asked_in_smaller_batches(
                    lambda left: super(CountingModel, self)._loglikelihood_tokens(left, *args, **given), requests,
                    key=lambda request: tuple(request[0]), answers=self.cache_hook, halve=self._halve,
                )  # fmt: skip
            finally:
                fits = self.batch_size_per_gpu
                self.batch_size_per_gpu = answered_together if fits == whole else fits * SCORING_SHARE

        def _halve(self) -> tuple[int, int] | None:
            before = self.batch_size_per_gpu
            if before == 1:
                return None
            self.batch_size_per_gpu = before // 2
            return before, before // 2

        def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
            with torch.no_grad():
                logits = self.model(inps, **self._positions(inps)).logits
            self._finished(len(inps))
            return logits

        def _positions(self, inps: Any) -> dict[str, int]:
            """Asks for the last positions only, as many as hold every completion of a batch padded with zeros behind.

            The harness counts positions from the end of what it gets, so that leaving out the first ones is safe.
            """
            if not can_keep_last:
                return {}
            padding = int(((inps.flip(1) != 0).int().cummax(1).values == 0).sum(1).max())
            return {"logits_to_keep": min(inps.shape[1], padding + self.longest_completion)}

        def _finished(self, rows: int) -> None:
            if self.progress is not None:
                self.progress.advance(rows)

        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            if rendered:
                return rendered_pair(self.tok_encode, context, continuation)
            pair: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
            return pair

    # Chat templates write the first token themselves, so nothing is added to what they rendered.
    templated = rendered or bool(tokenizer.chat_template)
    return CountingModel(
        pretrained=model, tokenizer=tokenizer, batch_size=batch_size, add_bos_token=False if templated else None
    )


def _generated(arguments: Sequence[Any]) -> Hashable:
    """What a generation is known by: its prompt and how it is to be answered."""
    prompt, how = arguments
    return prompt, json.dumps(how, sort_keys=True, default=str)
