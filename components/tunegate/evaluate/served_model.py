"""The harness's model class over a vLLM server: prompts go as token ids, so the borders are those that we set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tunegate.contracts.errors import ModelError, RunError, SettingsError
from tunegate.contracts.progress import Progress
from tunegate.evaluate.halving import STEP
from tunegate.models.chat import rendered_pair
from tunegate.serving.answers import Token
from tunegate.serving.client import Client
from tunegate.serving.together import asked_together

R = TypeVar("R")

#: Where an answer is cut when its task does not say: as in the harness's model of transformers.
DEFAULT_NEW_TOKENS = 256


@dataclass(frozen=True)
class Served:
    """A model on a server.

    Attributes:
        client: the server.
        name: what it calls the model: its content digest.
        context_tokens: the longest prompt and answer together that it takes; 0 where it does not say.
        version: the version of vLLM.
        adapters: whether the server has adapters as well. vLLM 0.32 on a CPU then dies of two prompts whose likelihoods
            are asked at once (``bgmv_shrink`` of its LoRA layers gets rows of one batch and indices of another).
    """

    client: Client
    name: str
    context_tokens: int
    version: str
    adapters: bool


def find_served(client: Client, digest: str) -> Served:
    """The model of that content digest on a server.

    Raises:
        ModelError: when it serves others: scores of another model would be taken for this one's.
        RunError: when it does not answer.
    """
    models = client.models()
    found = next((model for model in models if model.name == digest), None)
    if found is None:
        raise ModelError(
            f"The server at {client.url} does not serve this model.",
            seen=", ".join(model.name for model in models) or "no model",
            expected=f"a model of the name {digest}",
            remedy="serve the model's folder under its content digest (vLLM: --served-model-name), as tunegate does",
        )
    adapters = any(model.parent for model in models)
    return Served(client, found.name, found.max_model_len, client.version(), adapters)


def served_model(served: Served, tokenizer: Any, *, rows_at_once: int, rendered: bool) -> Any:
    """A model on a server as lm-evaluation-harness wants it.

    Args:
        served: the model.
        tokenizer: its tokenizer: what is sent are token ids.
        rows_at_once: how many requests are under way at a time.
        rendered: as in :func:`~tunegate.evaluate.harness_model.harness_model`.
    """
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import postprocess_generated_text

    templated = rendered or bool(tokenizer.chat_template)

    class ServedModel(TemplateLM):  # type: ignore[misc]
        """Asks the server row by row; it makes its own batches."""

        batch_size = rows_at_once
        tokenizer_name = served.name

        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = tokenizer

        @property
        def eot_token_id(self) -> int:
            return int(tokenizer.eos_token_id)

        @property
        def prefix_token_id(self) -> int:
            return int(tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            """Chat templates write the first token themselves; a text that begins with it gets no second one."""
            begun = bool(tokenizer.bos_token) and string.startswith(tokenizer.bos_token)
            special = not (templated or begun) if add_special_tokens is None else add_special_tokens
            return list(tokenizer.encode(string, add_special_tokens=special))

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return str(
                tokenizer.apply_chat_template(
                    chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )  # fmt: skip

        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            if rendered:
                return rendered_pair(self.tok_encode, context, continuation)
            pair: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
            return pair

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            return _asked(requests, self._answer, rows_at_once, "rows answered")

        def _answer(self, request: Any) -> str:
            prompt, how = request.args
            if how.get("do_sample") or how.get("temperature"):
                raise SettingsError(
                    "This task samples its answers.", seen=str(how), expected="greedy answers, the same each time",
                    remedy="ask it with backend: transformers, or leave it out",
                )  # fmt: skip
            until = how.get("until") or []
            stop = [until] if isinstance(until, str) else list(until)
            completion = served.client.complete(
                self.tok_encode(prompt), model=served.name, logprobs=0,
                max_tokens=int(how.get("max_gen_toks", DEFAULT_NEW_TOKENS)),
                stop=stop,
            )  # fmt: skip
            # Decoded here: of a character that the limit cuts in two, transformers shows a mark and the server nothing.
            said = tokenizer.decode([token.token_id for token in completion.tokens], skip_special_tokens=True)
            return str(postprocess_generated_text(said, stop=stop, think_end_token=None))

        def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            at_once = 1 if served.adapters else rows_at_once
            return _asked(requests, self._likelihood, at_once, "completions scored")

        def _likelihood(self, request: Any) -> tuple[float, bool]:
            _, prompt, completion = request
            found = served.client.complete(
                [*prompt, *completion], model=served.name, max_tokens=1, logprobs=0, prompt_logprobs=1
            ).prompt  # fmt: skip
            return likelihood(found, len(prompt), len(completion))

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            length = served.context_tokens or tokenizer.model_max_length
            totals = []
            for (text,) in (request.args for request in requests):
                windows = utils.get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, length - 1, 1)
                parts = [(None, *utils.make_disjoint_window(window)) for window in windows]
                totals.append(sum(value for value, _ in self._loglikelihood_tokens(parts)))
            return totals

    return ServedModel()


def likelihood(tokens: Sequence[Token], prompt_tokens: int, completion_tokens: int) -> tuple[float, bool]:
    """The log-likelihood in nats of a completion that was sent behind its prompt, and whether greedy decoding gives it.

    Raises:
        RunError: when the server saw other tokens than were sent, or does not say how likely they were.
    """
    scored = tokens[prompt_tokens:]
    if len(tokens) != prompt_tokens + completion_tokens or any(token.logprob is None for token in scored):
        raise RunError(
            "The server does not say how likely a completion is.",
            seen=f"{len(tokens)} tokens, {sum(token.logprob is not None for token in scored)} with a likelihood",
            expected=f"{prompt_tokens + completion_tokens} tokens, the last {completion_tokens} with one",
            remedy="use a vLLM server: others have no prompt_logprobs",
        )
    return (
        sum(token.logprob for token in scored if token.logprob is not None),
        all(token.top[0].token_id == token.token_id for token in scored),
    )


def _asked(requests: Sequence[Any], ask: Callable[[Any], R], at_once: int, unit: str) -> list[R]:
    return asked_together(requests, ask, at_once=at_once, progress=Progress(STEP, len(requests), unit))
