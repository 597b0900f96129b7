"""serve_check: vLLM on exactly the candidate's bytes, asked, and held against the evaluated model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.artifact import produce, refuse_foreign_output
from tunegate.contracts.errors import ArtifactError, RunError
from tunegate.contracts.files import pretty_json, read_json_object
from tunegate.contracts.manifest import Manifest, tool_versions, validation_rows_digest, verify
from tunegate.contracts.progress import Progress, say
from tunegate.contracts.settings import settings_document
from tunegate.models.files import check_model_folder
from tunegate.models.probe import read_probe
from tunegate.models.reading import Noise, runs_read
from tunegate.serve_check.answers import Answer, ask
from tunegate.serve_check.compare import Compared, compare
from tunegate.serve_check.evaluated import Read, read_answers, rows_read
from tunegate.serve_check.page import serving_page, unchecked_page
from tunegate.serve_check.questions import Question, check_lengths, evaluated_questions, probe_questions
from tunegate.serve_check.report import serving_document, summary, timings_document, unchecked_document
from tunegate.serve_check.rows_file import write_rows
from tunegate.serve_check.settings import ServeCheckSettings
from tunegate.serving.environment import ServeEnvironment, find_environment
from tunegate.serving.flags import ServingFlags, production_engine, served_dtype
from tunegate.serving.probe_making import ReadAnswer, make_probes
from tunegate.serving.probes import PROBES_NAME, Probes, write_probes
from tunegate.serving.process import Server, start

KIND = "serving"
STEP = "serve_check"
SERVING_NAME = "serving.json"

#: What tells of the run and not of the model.
_VOLATILE = ("page.html", "timings.json")

#: The distributions that decide what the evaluated model computes.
_EVALUATED_WITH = ("torch", "transformers", "compressed-tensors")


@dataclass(frozen=True)
class _Evaluation:
    """What of an evaluation is needed here."""

    dtype: str
    max_new_tokens: int
    kept: list[dict[str, Any]]


def run(
    settings: ServeCheckSettings, flags: ServingFlags, *, model: Path, dataset: Path, evaluation: Path, output: Path
) -> Manifest:
    """Serves ``model`` as production does, holds its answers against the evaluated model and writes ``serving``.

    Args:
        settings: on what, and whether at all.
        flags: how the model is served.
        model: the candidate, as quantize wrote it.
        dataset: what prepare wrote: its validation rows are asked, and its evaluation rows where the settings say so.
        evaluation: the candidate's evaluation.
        output: where the artifact will be; vLLM's log lies beside it.

    Raises:
        ArtifactError: when an input does not verify, or the evaluation is of another model.
        SettingsError: when there is no serving environment, or the flags cannot be used with this model.
        RunError: when vLLM ends early, is not ready in time or serves something else.
    """
    check_model_folder(model)
    parents = {
        "model": verify(model).content_digest,
        "validation_rows": validation_rows_digest(verify(dataset, kind="dataset")),
        "evaluation": verify(evaluation, kind="evaluation").content_digest,
    }
    where = find_environment(settings.python) if settings.enabled else None
    document = {**settings_document(settings), "serving": settings_document(flags)}
    document["vllm"] = where.vllm_version if where else ""
    refuse_foreign_output(output, kind=KIND, parents=parents, settings=document)
    if where is None:
        return produce(
            output,
            kind=KIND,
            parents=parents,
            settings=document,
            build=lambda folder: _write_unchecked(folder, parents),
        )
    evaluated = _read_evaluation(evaluation, parents["model"])
    questions = _questions(settings, flags, model, dataset, evaluated)
    log = output.with_name(f"{output.name}-vllm.log")

    def build(folder: Path) -> None:
        with _started(settings, flags, model, where, log=log, digest=parents["model"]) as server:
            answers = _asked(server, questions, at_once=settings.rows_at_once)
        checked = held_against(model, answers, settings, dtype=evaluated.dtype)
        found = serving_document(
            checked.rows,
            checked.noise,
            digests=parents,
            served_name=server.served_name,
            engine=_engine(flags, where),
            evaluated_with=_evaluated_with(evaluated.dtype),
            texts=checked.texts,
        )
        write_probes(checked.probes(parents["model"]), folder / PROBES_NAME)
        _write(
            folder,
            found,
            timings_document(answers, started_seconds=server.started_seconds, rows_at_once=settings.rows_at_once),
            checked,
        )

    return produce(output, kind=KIND, parents=parents, settings=document, build=build, volatile=_VOLATILE)


@dataclass(frozen=True)
class Checked:
    """Served answers, held against the evaluated model.

    Attributes:
        answers: what the server said.
        reads: what the evaluated model says of each.
        noise: how far rounding moves that.
        end_ids: the tokens at which evaluation ends an answer.
        rows: every row, compared.
        texts: token → its text, of the tokens that differ.
    """

    answers: Sequence[Answer]
    reads: Sequence[Read]
    noise: Noise
    end_ids: frozenset[int]
    rows: Sequence[Compared]
    texts: Mapping[int, str]

    def probes(self, model: str) -> Probes:
        """What a deployment asks again, of the model with this content digest."""
        known = [_read_answer(answer, read) for answer, read in zip(self.answers, self.reads, strict=True)]
        return make_probes(model, known, gap_floor=self.noise.gap_floor, end_ids=self.end_ids)


def _read_answer(answer: Answer, read: Read) -> ReadAnswer:
    asked = answer.question
    return ReadAnswer(
        row_id=asked.row_id,
        messages=asked.messages,
        text=asked.text,
        rendered_ids=asked.rendered_ids,
        prompt_ids=asked.prompt_ids,
        max_tokens=asked.max_tokens,
        token_ids=answer.token_ids,
        places=read.answer,
    )


def held_against(model: Path, answers: Sequence[Answer], settings: ServeCheckSettings, *, dtype: str) -> Checked:
    """The served answers against a model that transformers loads as an evaluation does.

    Args:
        model: the folder of the evaluated model.
        answers: what the server said.
        settings: how rows are computed together, and how the noise is measured.
        dtype: what the evaluation computed in.
    """
    from tunegate.models.load import load_causal_lm, load_tokenizer
    from tunegate.models.quiet import quiet

    say(STEP, "reading the answers with the evaluated model")
    progress = Progress(STEP, runs_read(settings.noise_runs) * len(rows_read(answers)), "sequences read")
    with quiet("transformers"):
        tokenizer = load_tokenizer(model)
        loaded = load_causal_lm(model, dtype=dtype).eval()
        reads, noise = read_answers(
            loaded, answers, batch_size=settings.batch_size, noise_runs=settings.noise_runs, progress=progress
        )
    ends = frozenset({tokenizer.eos_token_id, *_ids(loaded.generation_config.eos_token_id)})
    rows = [
        compare(answer, read, gap_floor=noise.gap_floor, end_ids=ends, text=_decoded(tokenizer, answer))
        for answer, read in zip(answers, reads, strict=True)
    ]
    shown = {token for row in rows for token in (row.served_token, row.evaluated_token) if token is not None}
    texts = {token: tokenizer.decode([token]) for token in shown}
    return Checked(answers, reads, noise, ends, rows, texts)


def _decoded(tokenizer: Any, answer: Answer) -> str:
    """The answer as an evaluation reads it: of a character that the cut parts in two, a server shows nothing."""
    return str(tokenizer.decode(list(answer.token_ids), skip_special_tokens=True))


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list) else () if value is None else (int(value),)


def _read_evaluation(evaluation: Path, model_digest: str) -> _Evaluation:
    import pyarrow.parquet as pq

    try:
        results = read_json_object(evaluation / "results.json")
        seen = str(results["model_digest"])
        dtype, max_new_tokens = str(results["engine"]["dtype"]), int(results["settings"]["max_new_tokens"])
        columns = ["row_id", "task", "metric", "score", "answer", "prompt_digest"]
        kept = pq.read_table(evaluation / "rows.parquet", columns=columns).to_pylist()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{evaluation} cannot be read as an evaluation.",
            seen=f"{type(error).__name__}: {error}",
            expected="what evaluate writes",
            remedy="evaluate the model again",
        ) from error
    if seen != model_digest:
        raise ArtifactError(
            "The evaluation is of another model.",
            seen=f"model {seen[:12]}",
            expected=f"model {model_digest[:12]}",
            remedy="give the evaluation of the model that will be served",
        )
    return _Evaluation(dtype, max_new_tokens, kept)


def _questions(
    settings: ServeCheckSettings, flags: ServingFlags, model: Path, dataset: Path, evaluated: _Evaluation
) -> list[Question]:
    from tunegate.models.load import load_tokenizer

    context = flags.max_model_len or int(check_model_folder(model).get("max_position_embeddings", 1 << 30))
    tokenizer = load_tokenizer(model)
    probe = read_probe(
        dataset,
        tokenizer,
        rows=settings.rows,
        max_length=context - 1,
        max_scored_tokens=settings.max_scored_tokens,
    )
    questions = probe_questions(
        probe, dataset, tokenizer, max_new_tokens=settings.max_new_tokens, context_tokens=context
    )
    if settings.evaluation_rows:
        questions += evaluated_questions(
            dataset,
            tokenizer,
            evaluated.kept,
            rows=settings.evaluation_rows,
            max_new_tokens=evaluated.max_new_tokens,
        )
    check_lengths(questions, context_tokens=context)
    return questions


def _started(
    settings: ServeCheckSettings, flags: ServingFlags, model: Path, where: ServeEnvironment, *, log: Path, digest: str
) -> Server:
    """The server, which has hashed the files that it loads and lists the model under that digest.

    Raises:
        RunError: when that is not the digest of the artifact that was given.
    """
    server = start(production_engine(flags, model, where), where, log=log, ready_seconds=settings.ready_seconds)
    if server.served_name != digest:
        server.stop()
        raise RunError(
            "The model changed while the check ran.",
            seen=f"served {server.served_name[:12]}",
            expected=f"the model that was given, {digest[:12]}",
            remedy="let nothing write to the model's folder, and run the check again",
        )
    return server


def _asked(server: Server, questions: Sequence[Question], *, at_once: int) -> list[Answer]:
    say(STEP, f"asking {len(questions)} rows")
    progress = Progress(STEP, len(questions), "rows answered")
    try:
        return ask(server.client, server.served_name, questions, progress, at_once=at_once)
    except RunError:
        server.check_alive()
        raise


def _engine(flags: ServingFlags, where: ServeEnvironment) -> dict[str, Any]:
    """What serves, with every flag of production as it was given to vLLM."""
    built_for = "cpu" if where.cpu else "gpu"
    told = {**asdict(flags), "options": " ".join(flags.options)}
    told |= {"dtype": served_dtype(flags, where), "enforce_eager": flags.enforce_eager or where.cpu}
    return {"name": "vllm", "version": where.vllm_version, "built_for": built_for, **told}


def _evaluated_with(dtype: str) -> dict[str, str]:
    from tunegate.models.load import device_type

    versions = tool_versions()
    return {
        **{name: versions[name] for name in _EVALUATED_WITH if name in versions},
        "dtype": dtype,
        "device": device_type(),
    }


def _write(
    folder: Path,
    document: Mapping[str, Any],
    timings: Mapping[str, Any],
    checked: Checked,
) -> None:
    write_rows(checked.rows, folder)
    (folder / SERVING_NAME).write_bytes(pretty_json(document))
    (folder / "timings.json").write_bytes(pretty_json(timings))
    (folder / "summary.json").write_bytes(pretty_json(summary(document)))
    (folder / "page.html").write_text(serving_page(document, timings, checked.rows, checked.noise), "utf-8")
    say(STEP, f"{document['agreement']:.1%} of {document['rows']} rows answer as evaluated ({document['ties']} ties)")
    found, floor = document["logprobs"], document["noise"]
    if found["mean"] is not None and floor["mean"] is not None:
        say(STEP, f"log-probabilities differ by {found['mean']:.3g} on average, rounding makes {floor['mean']:.3g}")
    speed = timings["tokens_per_second"] or 0
    say(STEP, f"first token after {timings['first_token_seconds']['p50']:.2f} s, {speed:.1f} tokens/s")


def _write_unchecked(folder: Path, digests: Mapping[str, str]) -> None:
    document = unchecked_document(digests)
    (folder / SERVING_NAME).write_bytes(pretty_json(document))
    (folder / "summary.json").write_bytes(pretty_json(summary(document)))
    (folder / "page.html").write_text(unchecked_page(document), "utf-8")
    say(STEP, "not checked: serve_check.enabled is false")
