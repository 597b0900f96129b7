"""The harness's model class, with our progress lines and exact token boundaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunegate.contracts.progress import Progress

STEP = "evaluate"


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
    from lm_eval.models.huggingface import HFLM

    class CountingModel(HFLM):  # type: ignore[misc]
        """HFLM that reports finished batches as plain lines instead of drawing a bar."""

        progress: Progress | None = None

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Any:
            self.progress = Progress(STEP, len(requests), "rows answered")
            return super().generate_until(requests, disable_tqdm=True)

        def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
            tokens = super()._model_generate(context, *args, **kwargs)
            self._finished(len(context))
            return tokens

        def _loglikelihood_tokens(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            self.progress = Progress(STEP, len(requests), "completions scored")
            return super()._loglikelihood_tokens(requests, *args, **{**kwargs, "disable_tqdm": True})

        def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
            logits = super()._model_call(inps, *args, **kwargs)
            self._finished(len(inps))
            return logits

        def _finished(self, rows: int) -> None:
            if self.progress is not None:
                self.progress.advance(rows)

        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            if not rendered:
                pair: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
                return pair
            prompt = self.tok_encode(context)
            return prompt, self.tok_encode(context + continuation)[len(prompt) :]

    # Chat templates write the first token themselves, so nothing is added to what they rendered.
    templated = rendered or bool(tokenizer.chat_template)
    return CountingModel(
        pretrained=model, tokenizer=tokenizer, batch_size=batch_size, add_bos_token=False if templated else None
    )
