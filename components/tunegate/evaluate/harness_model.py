"""The harness's model class, with our progress lines and exact token boundaries."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from tunegate.contracts.progress import Progress
from tunegate.models.chat import after_prompt

STEP = "evaluate"

#: Completions are scored in batches of this share of those that are answered: scoring is bound by computation, gains
#: nothing from large batches, and needs the logits of many positions in memory.
SCORING_SHARE = 4


def harness_model(model: Any, tokenizer: Any, *, batch_size: int, rendered: bool) -> Any:
    """A loaded model as lm-evaluation-harness wants it.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer, with a pad token.
        batch_size: rows a batch; the harness sorts rows by length first.
        rendered: whether prompts come rendered by the chat template; then the border between prompt and completion lies
            exactly where training had it. Otherwise the harness's own rule holds, which moves trailing white space of a
            prompt into the completion.
    """
    import torch
    from lm_eval.models.huggingface import HFLM

    can_keep_last = "logits_to_keep" in inspect.signature(model.forward).parameters

    class CountingModel(HFLM):  # type: ignore[misc]
        """HFLM that reports finished batches as plain lines instead of drawing a bar."""

        progress: Progress | None = None
        longest_completion = 0
        batch_size_per_gpu: Any

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Any:
            self.progress = Progress(STEP, len(requests), "rows answered")
            return super().generate_until(requests, disable_tqdm=True)

        def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
            tokens = super()._model_generate(context, *args, **kwargs)
            self._finished(len(context))
            return tokens

        def _loglikelihood_tokens(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            self.progress = Progress(STEP, len(requests), "completions scored")
            self.longest_completion = max(len(completion) for _, _, completion in requests)
            answered_together = self.batch_size_per_gpu
            self.batch_size_per_gpu = max(1, answered_together // SCORING_SHARE)
            try:
                return super()._loglikelihood_tokens(requests, *args, **{**kwargs, "disable_tqdm": True})
            finally:
                self.batch_size_per_gpu = answered_together

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
            if not rendered:
                pair: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
                return pair
            prompt = self.tok_encode(context)
            return prompt, after_prompt(prompt, self.tok_encode(context + continuation))

    # Chat templates write the first token themselves, so nothing is added to what they rendered.
    templated = rendered or bool(tokenizer.chat_template)
    return CountingModel(
        pretrained=model, tokenizer=tokenizer, batch_size=batch_size, add_bos_token=False if templated else None
    )
