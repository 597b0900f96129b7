"""What an adapter's own PEFT model answers: written down once, and asked of the server before it gets a request (D3).

The adapter is taken as it was trained, before any export: what the server gives is held against PEFT, not against
what was made for the server.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ArtifactError
from tunegate.contracts.manifest import verify
from tunegate.contracts.progress import Progress
from tunegate.fleet.file import ProbeSettings
from tunegate.models.chat import prompt_only, token_ids
from tunegate.models.files import check_model_folder, tokenizer_files
from tunegate.models.probe import ProbeRow, read_probe
from tunegate.models.reading import noise_of, read_rows, runs_read
from tunegate.serve_check.questions import PROBE, Question, probe_questions
from tunegate.serving.probe_making import ReadAnswer, make_probes
from tunegate.serving.probes import Probes, read_probes

TASK = "fleet"


def questions_of(
    adapter: Path, base: Path, settings: ProbeSettings, *, dataset: Path | None, asked: Path | None
) -> list[Question]:
    """What an adapter is asked.

    Args:
        adapter: its folder; it is rendered with its own tokenizer, where it has one.
        base: the model that it is served on.
        settings: how much.
        dataset: what prepare wrote, whose validation rows are asked.
        asked: without a data set, the probes of the version that it is of.

    Raises:
        ArtifactError: when the data set does not verify, or there are no prompts.
    """
    from tunegate.models.load import load_tokenizer

    tokenizer = load_tokenizer(adapter if tokenizer_files(adapter) else base)
    context = int(check_model_folder(base).get("max_position_embeddings", 1 << 30))
    if dataset is not None:
        verify(dataset, kind="dataset")
        probe = read_probe(dataset, tokenizer, rows=settings.rows, max_length=context - 1, max_scored_tokens=1)
        return probe_questions(
            probe, dataset, tokenizer, max_new_tokens=settings.max_new_tokens, context_tokens=context
        )
    if asked is None:
        raise ArtifactError(
            f"There is nothing to ask the adapter in {adapter}.",
            seen="a version that was promoted without having been served, and no dataset in the fleet file",
            expected="prompts: its answers are held against those of its PEFT model",
            remedy="add 'dataset:', the folder that prepare wrote; or serve unchecked with --check none",
        )
    return _asked_again(read_probes(asked), tokenizer, settings)


def _asked_again(probes: Probes, tokenizer: Any, settings: ProbeSettings) -> list[Question]:
    """The prompts of other probes, rendered by this tokenizer; their answers are another model's."""
    found = []
    for probe in probes.rows[: settings.rows]:
        rendered = probe.rendered_ids
        if probe.messages:
            rendered = tuple(token_ids(tokenizer, prompt_only(tokenizer, probe.messages)))
        prompt = rendered if probe.messages else probe.prompt_ids
        cut = min(settings.max_new_tokens, probe.max_tokens)
        found.append(Question(probe.row_id, PROBE, probe.messages, probe.text, rendered, prompt, (), cut))
    return found


def probes_of_adapter(
    adapter: Path, base: Path, questions: Sequence[Question], settings: ProbeSettings, *, served: str, dtype: str
) -> Probes:
    """What the adapter says, as PEFT computes it on the base in the dtype of the server.

    Args:
        adapter: its folder, in PEFT's format.
        base: the model's folder.
        questions: what it is asked.
        settings: how it is computed again to measure the noise.
        served: the name that it is served under.
        dtype: in what the server computes.
    """
    from peft import PeftModel

    from tunegate.models.load import load_causal_lm, load_tokenizer
    from tunegate.models.quiet import quiet

    with quiet("transformers"):
        tokenizer = load_tokenizer(base)
        model = PeftModel.from_pretrained(load_causal_lm(base, dtype=dtype), str(adapter)).eval()
        ends = frozenset({tokenizer.eos_token_id, *_ids(model.generation_config.eos_token_id)})
        progress = Progress(TASK, len(questions) * (1 + runs_read(settings.noise_runs)), "sequences of PEFT's")
        answers = []
        for question in questions:
            answers.append(_answer(model, question, ends))
            progress.advance()
        rows = [
            ProbeRow(asked.row_id, (*asked.prompt_ids, *answer), len(asked.prompt_ids))
            for asked, answer in zip(questions, answers, strict=True)
        ]
        read = read_rows(model, rows, batch_size=settings.batch_size, noise_runs=settings.noise_runs, progress=progress)
    noise = noise_of(place for places in read for place in places)
    known = [
        ReadAnswer(
            row_id=asked.row_id,
            messages=asked.messages,
            text=asked.text,
            rendered_ids=asked.rendered_ids,
            prompt_ids=asked.prompt_ids,
            max_tokens=asked.max_tokens,
            token_ids=answer,
            places=places,
        )
        for asked, answer, places in zip(questions, answers, read, strict=True)
    ]
    del model
    gc.collect()  # the next adapter loads the base again
    return make_probes(served, known, gap_floor=noise.gap_floor, end_ids=ends)


def _answer(model: Any, question: Question, ends: Collection[int]) -> tuple[int, ...]:
    """The likeliest tokens one behind the other. Where batches say otherwise later, the answer is known up to there."""
    import torch

    prompt = torch.tensor([question.prompt_ids], device=model.device)
    plain = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0}
    with torch.no_grad():
        whole = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=question.max_tokens,
            eos_token_id=sorted(ends),
            pad_token_id=min(ends),
            **plain,
        )
    return tuple(whole[0, prompt.shape[1] :].tolist())


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list) else () if value is None else (int(value),)
