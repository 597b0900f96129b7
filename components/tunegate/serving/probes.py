"""What the evaluated model answers to a few prompts, kept with it, and the check that a server answers the same.

Asking a server needs neither the evaluated model nor anything that could compute it: what it says at each place was
written down when the model was judged, and how far rounding moves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import ArtifactError
from tunegate.contracts.files import pretty_json, read_json_object
from tunegate.contracts.progress import Progress
from tunegate.serving.agreement import Agreement, Sizes, agreement, ends_as_evaluated, sizes
from tunegate.serving.answers import Token
from tunegate.serving.client import Client
from tunegate.serving.limits import AnswerLimits, Figures, Held, held
from tunegate.serving.together import asked_together

PROBES_NAME = "probes.json"
SCHEMA_VERSION = 1

#: How many candidates a server is asked for at each place: where it answers another token than the evaluated one, the
#: evaluated one's log-probability is among them. vLLM grants 20.
_CANDIDATES = 5


@dataclass(frozen=True)
class ProbeToken:
    """What the evaluated model says at one place of its answer.

    Attributes:
        token_id: its likeliest token.
        logprob: that token's natural log-probability.
        gap: by how much log-probability it leads.
    """

    token_id: int
    logprob: float
    gap: float


@dataclass(frozen=True)
class Probe:
    """A prompt, and what the evaluated model answers to it.

    Attributes:
        row_id: as in the data set.
        messages: ``role`` and ``content`` of each turn, which the server renders itself; empty for plain text.
        text: a prompt of plain text; empty for a conversation.
        rendered_ids: what evaluation makes of messages or text.
        prompt_ids: what the answer continues.
        answer: its tokens, up to the end, the cut, or a place behind which it is not known.
        max_tokens: where an answer is cut.
    """

    row_id: str
    messages: tuple[Mapping[str, str], ...]
    text: str
    rendered_ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    answer: tuple[ProbeToken, ...]
    max_tokens: int


@dataclass(frozen=True)
class Probes:
    """The probes of one model or adapter.

    Attributes:
        model: its content digest, under which it is served.
        gap_floor: a lead smaller than this may be rounding, in nats.
        noise: how far rounding alone moves the log-probabilities of the probes' tokens.
        end_ids: the tokens at which an answer ends.
        rows: the probes, at least one.
    """

    model: str
    gap_floor: float
    noise: Sizes
    end_ids: tuple[int, ...]
    rows: tuple[Probe, ...]


@dataclass(frozen=True)
class Answered:
    """A probe, answered by a server.

    Attributes:
        row_id: as in the data set.
        agreement: of its tokens with the evaluated ones.
        rendered: whether the server made the evaluated prompt of messages or text.
        ended: whether the answer ends where evaluation ends one.
        differences: of each evaluated token's log-probability, served − evaluated, in nats.
        text: the served answer.
    """

    row_id: str
    agreement: Agreement
    rendered: bool
    ended: bool
    differences: tuple[float, ...]
    text: str


@dataclass(frozen=True)
class ProbeCheck:
    """What came of asking a server the probes.

    Attributes:
        served_name: under which name it was asked.
        rows: the answers, as the probes stand.
        figures: what the limits are about.
        limits: each limit that is set, held against them.
        reasons: why it did not pass, with the rows; empty when it did.
    """

    served_name: str
    rows: tuple[Answered, ...]
    figures: Figures
    limits: tuple[Held, ...]
    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the server answers as the evaluated model does."""
        return not self.reasons

    def to_json(self) -> dict[str, Any]:
        """The figures, flat, with the reasons; the answers are left out."""
        return {
            "served_name": self.served_name,
            "passed": self.passed,
            "reasons": list(self.reasons),
            "rows": len(self.rows),
            "tokens": sum(row.agreement.tokens for row in self.rows),
            "certain_tokens": sum(row.agreement.certain_tokens for row in self.rows),
            "ties": sum(row.agreement.outcome == "tie" for row in self.rows),
            "rendered": _share([row.rendered for row in self.rows]),
            "ended": _share([row.ended for row in self.rows]),
            **asdict(self.figures),
            "times_noise": self.figures.times_noise,
        }


def write_probes(probes: Probes, path: Path) -> None:
    """Writes probes as JSON; equal probes give equal bytes."""
    path.write_bytes(pretty_json({"schema_version": SCHEMA_VERSION, **asdict(probes)}))


def read_probes(path: Path) -> Probes:
    """Reads what :func:`write_probes` wrote.

    Raises:
        ArtifactError: when it is absent, malformed, of another schema version, or holds no probe.
    """
    try:
        document = read_json_object(path)
        if document["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {document['schema_version']}")
        found = Probes(
            model=str(document["model"]),
            gap_floor=float(document["gap_floor"]),
            noise=Sizes(**document["noise"]),
            end_ids=tuple(map(int, document["end_ids"])),
            rows=tuple(_probe(row) for row in document["rows"]),
        )
        if not found.rows:
            raise ValueError("no rows")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path} holds no probes.",
            seen=f"{type(error).__name__}: {error}",
            expected=f"probes of schema version {SCHEMA_VERSION}, as serve_check writes them",
            remedy="promote a version whose run was served and checked (serve_check.enabled)",
        ) from error
    return found


def _probe(row: Mapping[str, Any]) -> Probe:
    return Probe(
        row_id=str(row["row_id"]),
        messages=tuple(dict(message) for message in row["messages"]),
        text=str(row["text"]),
        rendered_ids=tuple(map(int, row["rendered_ids"])),
        prompt_ids=tuple(map(int, row["prompt_ids"])),
        answer=tuple(ProbeToken(int(t["token_id"]), float(t["logprob"]), float(t["gap"])) for t in row["answer"]),
        max_tokens=int(row["max_tokens"]),
    )


def rendered_ids(
    client: Client, served_name: str, *, messages: Sequence[Mapping[str, str]], text: str
) -> tuple[int, ...]:
    """The prompt that a server itself makes of what users send: with its own chat template, or its own tokenizer.

    Args:
        client: asks the server.
        served_name: what it calls the model.
        messages: a conversation; empty for plain text.
        text: plain text, where there are no messages.

    Raises:
        InputError: when the server refuses the request.
        RunError: when it does not answer, or answers something else than vLLM does.
    """
    if messages:
        made = client.chat(messages, model=served_name, max_tokens=1)
    else:
        made = client.complete(text, model=served_name, max_tokens=1, add_special_tokens=True)
    return tuple(token.token_id for token in made.prompt)


def check_probes(
    client: Client,
    served_name: str,
    probes: Probes,
    limits: AnswerLimits,
    *,
    at_once: int = 1,
    progress: Progress | None = None,
) -> ProbeCheck:
    """Asks a server every probe and holds its answers against the evaluated ones.

    Args:
        client: asks the server.
        served_name: what it calls the model or adapter that the probes are of.
        probes: what the evaluated model says.
        limits: how far the answers may be from that.
        at_once: how many probes are under way at the same time.
        progress: counts the rows.

    Raises:
        InputError: when the server refuses a probe, for example one that does not fit its context.
        RunError: when it does not answer, or answers something else than vLLM does.
    """
    rows = asked_together(
        probes.rows, lambda probe: _ask(client, served_name, probe, probes), at_once=at_once, progress=progress
    )
    return _judged(served_name, tuple(rows), probes, limits)


def _ask(client: Client, name: str, probe: Probe, probes: Probes) -> Answered:
    rendered = rendered_ids(client, name, messages=probe.messages, text=probe.text)
    answer = client.complete(probe.prompt_ids, model=name, max_tokens=probe.max_tokens, logprobs=_CANDIDATES)
    ids = [token.token_id for token in answer.tokens]
    places = probe.answer
    found = agreement(ids, [p.token_id for p in places], [p.gap for p in places], gap_floor=probes.gap_floor)
    return Answered(
        row_id=probe.row_id,
        agreement=found,
        rendered=rendered == probe.rendered_ids,
        ended=ends_as_evaluated(ids, answer.finish_reason, end_ids=probes.end_ids, max_tokens=probe.max_tokens),
        differences=_differences(answer.tokens, places[: found.tokens]),
        text=answer.text,
    )


def _differences(served: Sequence[Token], places: Sequence[ProbeToken]) -> tuple[float, ...]:
    """Of each evaluated token; of none where the server answers another and does not count it among the best."""
    pairs = [(_logprob(token, place.token_id), place) for token, place in zip(served, places, strict=False)]
    return tuple(value - place.logprob for value, place in pairs if value is not None)


def _logprob(token: Token, wanted: int) -> float | None:
    """What the server says of the token ``wanted`` at a place; no number where it says nothing of its own answer."""
    if token.token_id == wanted:
        return float("nan") if token.logprob is None else token.logprob
    return next((other.logprob for other in token.top if other.token_id == wanted), None)


def _judged(name: str, rows: tuple[Answered, ...], probes: Probes, limits: AnswerLimits) -> ProbeCheck:
    found = sizes([difference for row in rows for difference in row.differences])
    figures = Figures(
        agreement=_share([row.agreement.outcome != "differs" for row in rows]),
        mean_difference=found.mean,
        max_difference=found.max,
        mean_noise=probes.noise.mean,
    )
    checks = held(limits, figures)
    other_prompt = [row.row_id for row in rows if not row.rendered]
    other_end = [row.row_id for row in rows if not row.ended]
    differing = [row.row_id for row in rows if row.agreement.outcome == "differs"]
    reasons = [f"another prompt is made of {_named(other_prompt)}"] if other_prompt else []
    reasons += [f"the answer ends elsewhere in {_named(other_end)}"] if other_end else []
    if not any(row.agreement.certain_tokens for row in rows):
        reasons.append("no token was certain: nothing could have differed")
    for check in checks:
        if not check.holds:
            rows_told = f" ({_named(differing)})" if check.name == "min agreement" and differing else ""
            reasons.append(f"{check.name} {check.limit:g}: {check.told}{rows_told}")
    return ProbeCheck(name, rows, figures, checks, tuple(reasons))


def _share(found: Sequence[bool]) -> float:
    return sum(found) / len(found)


def _named(rows: Sequence[str], shown: int = 3) -> str:
    """Some rows by their names, and how many more."""
    more = f" and {len(rows) - shown} more" if len(rows) > shown else ""
    return f"row {', '.join(rows[:shown])}{more}"
