"""Probes against a server that answers in vLLM's form: the evaluated answers pass, and each other one is told."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.errors import ArtifactError, InputError, RunError
from tunegate.serving.agreement import Sizes
from tunegate.serving.client import Client
from tunegate.serving.limits import AnswerLimits
from tunegate.serving.probe_making import ReadAnswer, make_probes
from tunegate.serving.probes import Probe, ProbeCheck, Probes, ProbeToken, check_probes, read_probes, write_probes

NAME = "0" * 64
END = 2
CHAT = ({"role": "user", "content": "?"},)

#: The evaluated model is sure of 7 and of the end, and finds 8 hardly likelier than 9.
ANSWER = (ProbeToken(7, -0.1, 3.0), ProbeToken(8, -0.7, 0.01), ProbeToken(END, -0.2, 2.0))
PROBES = Probes(
    model=NAME,
    gap_floor=0.1,
    noise=Sizes(6, 0.01, 0.03),
    end_ids=(END,),
    rows=(
        Probe("chat", CHAT, "", (5, 6), (5, 6), ANSWER, 8),
        Probe("text", (), "once", (5, 6, 4), (5,), (ProbeToken(7, -0.1, 3.0),) * 2, 2),
    ),
)

#: Token, log-probability and the other candidates at each place.
Place = tuple[int, float, dict[int, float]]


@dataclass
class Served:
    """A server that says what it is told to.

    Attributes:
        rendered: what it makes of messages, and of text.
        answers: prompt → its answer.
        reason: why each answer ends; None: as it should.
        status: of each answer.
        asked: the paths and requests that came.
    """

    rendered: dict[str, list[int]] = field(default_factory=lambda: {"chat": [5, 6], "text": [5, 6, 4]})
    answers: dict[tuple[int, ...], list[Place]] = field(
        default_factory=lambda: {
            (5, 6): [(7, -0.1, {3: -3.1}), (8, -0.7, {9: -0.71}), (END, -0.2, {3: -2.2})],
            (5,): [(7, -0.1, {3: -3.1}), (7, -0.1, {3: -3.1})],
        }
    )
    reason: str | None = None
    status: int = 200
    asked: list[tuple[str, Any]] = field(default_factory=list)

    def reply(self, path: str, request: Any) -> Any:
        self.asked.append((path, request))
        if path == "/v1/chat/completions":
            choice = {"token_ids": [7], "logprobs": {"content": [{"logprob": -0.1, "top_logprobs": []}]}}
            choice |= {"message": {"content": "a"}, "finish_reason": "length"}
            return {"choices": [choice], "prompt_token_ids": self.rendered["chat"]}
        rendered = isinstance(request["prompt"], str)
        prompt = self.rendered["text"] if rendered else request["prompt"]
        places = [(7, -0.1, {})] if rendered else self.answers[tuple(prompt)]
        reason = "stop" if places[-1][0] == END else "length"
        tops = [{f"token_id:{t}": p for t, p in {token: value, **others}.items()} for token, value, others in places]
        choice = {
            "text": "said", "token_ids": [token for token, *_ in places], "prompt_token_ids": prompt,
            "prompt_logprobs": None, "finish_reason": self.reason or reason,
            "logprobs": {"token_logprobs": [value for _, value, _ in places], "top_logprobs": tops},
        }  # fmt: skip
        return {"choices": [choice]}


@pytest.fixture
def served() -> Served:
    return Served()


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(served.reply(self.path, request)).encode()
            self.send_response(served.status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *of_a_request: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield Client(f"http://127.0.0.1:{http.server_port}")
        http.shutdown()


def checked(client: Client, *, probes: Probes = PROBES, limits: AnswerLimits | None = None) -> ProbeCheck:
    return check_probes(client, NAME, probes, limits or AnswerLimits())


def test_a_server_that_answers_as_evaluated_passes(client: Client, served: Served) -> None:
    found = checked(client)
    assert (found.passed, found.reasons) == (True, ())
    told = found.to_json()
    assert (told["rows"], told["tokens"], told["certain_tokens"], told["ties"]) == (2, 5, 4, 0)
    assert (told["agreement"], told["rendered"], told["ended"]) == (1.0, 1.0, 1.0)
    assert told["mean_difference"] == pytest.approx(0.0)
    assert {request["model"] for _, request in served.asked} == {NAME}
    assert [request["temperature"] for _, request in served.asked] == [0.0] * 4
    assert [request["max_tokens"] for _, request in served.asked] == [1, 8, 1, 2]
    json.dumps(told)
    assert check_probes(client, NAME, PROBES, AnswerLimits(), at_once=2) == found


def test_another_token_where_rounding_decides_is_a_tie_and_what_follows_is_not_compared(
    client: Client, served: Served
) -> None:
    served.answers[5, 6][1:] = [(9, -0.69, {8: -0.72}), (3, -0.1, {}), (END, -0.1, {})]
    found = checked(client)
    assert found.passed
    row = found.rows[0]
    assert (row.agreement.outcome, row.agreement.tokens, row.agreement.apart) == ("tie", 2, 1)
    assert row.differences == pytest.approx((0.0, -0.02))  # of the evaluated tokens, 7 and 8


def test_another_token_where_the_evaluated_model_is_sure_is_refused_by_its_row(client: Client, served: Served) -> None:
    served.answers[5, 6][0] = (3, -0.2, {7: -1.7})
    found = checked(client, limits=AnswerLimits(max_times_noise=None))
    assert (found.passed, found.figures.agreement) == (False, 0.5)
    assert found.reasons == ("min agreement 1: 0.5 (row chat)",)
    assert checked(client, limits=AnswerLimits(min_agreement=0.5, max_times_noise=None)).passed


def test_log_probabilities_beyond_the_policys_limits_are_refused_though_every_token_is_right(
    client: Client, served: Served
) -> None:
    served.answers[5, 6][0] = (7, -0.4, {3: -3.1})  # 0.3 off on one of five tokens: 6 times the noise
    found = checked(client)
    assert found.figures.agreement == 1.0
    assert found.reasons == ("max times noise 3: 6",)
    assert checked(client, limits=AnswerLimits(max_times_noise=7.0)).passed
    for limits in ({"max_mean_logprob_difference": 0.05}, {"max_logprob_difference": 0.2}):
        refused = checked(client, limits=AnswerLimits(max_times_noise=None, **limits))
        assert [name.split(":")[0] for name in refused.reasons] == [
            f"{next(iter(limits)).replace('_', ' ')} {next(iter(limits.values()))}"
        ]


@pytest.mark.parametrize("what", ["chat", "text"])
def test_another_rendering_is_refused_whatever_it_answers(client: Client, served: Served, what: str) -> None:
    served.rendered[what] = [5, 6, 6]
    assert checked(client).reasons == (f"another prompt is made of row {what}",)


def test_an_answer_that_ends_elsewhere_is_refused_though_its_tokens_are_right(client: Client, served: Served) -> None:
    del served.answers[5, 6][2:]
    assert checked(client).reasons == ("the answer ends elsewhere in row chat",)
    served.reason = "stop"
    assert checked(client).reasons == ("the answer ends elsewhere in row chat, text",)


def test_an_answer_that_runs_on_behind_its_end_is_refused(client: Client, served: Served) -> None:
    served.answers[5, 6] += [(7, -0.1, {}), (END, -0.1, {})]
    assert checked(client).reasons == ("the answer ends elsewhere in row chat",)


def test_a_check_in_which_nothing_could_have_differed_is_no_check(client: Client) -> None:
    assert (
        "nothing could have differed" in checked(client, probes=dataclasses.replace(PROBES, gap_floor=9.0)).reasons[0]
    )


def test_log_probabilities_that_are_no_numbers_keep_no_limit(client: Client, served: Served) -> None:
    served.answers[5, 6][0] = (7, float("nan"), {})
    assert checked(client).reasons == ("max times noise 3: no times noise was found",)


def test_a_server_that_fails_or_refuses_is_an_error_and_no_answer(client: Client, served: Served) -> None:
    served.status = 500
    with pytest.raises(RunError, match="failed at the request"):
        checked(client)
    served.status = 404
    with pytest.raises(InputError, match="refuses the request"):
        checked(client)


def test_probes_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    write_probes(PROBES, tmp_path / "probes.json")
    assert read_probes(tmp_path / "probes.json") == PROBES


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": 2}, "schema version 2"),
        ({"rows": []}, "no rows"),
        ({"rows": [{"row_id": "1"}]}, "KeyError"),
        ({"noise": {"mean": 1}}, "TypeError"),
        ({"gap_floor": None}, "TypeError"),
    ],
)
def test_a_file_that_holds_no_probes_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = tmp_path / "probes.json"
    write_probes(PROBES, path)
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")
    with pytest.raises(ArtifactError, match="holds no probes") as raised:
        read_probes(path)
    assert says in raised.value.seen
    with pytest.raises(ArtifactError, match="holds no probes"):
        read_probes(tmp_path / "absent.json")


@dataclass(frozen=True)
class Move:
    best_logprob: float


@dataclass(frozen=True)
class Read:
    best: int
    best_logprob: float
    gap: float
    moves: tuple[Move, ...] = (Move(0.02), Move(0.04))


def test_probes_go_as_far_as_the_evaluated_model_is_known() -> None:
    """Behind the first place where it parts from the answer that it read, it would have written something else."""
    places = (Read(7, -0.1, 3.0), Read(8, -0.7, 0.01, (Move(0.03),)), Read(9, -5.0, 1.0, (Move(9.0),)))
    known = ReadAnswer("chat", CHAT, "", (5, 6), (5, 6), 8, (7, 9, END), places)
    silent = dataclasses.replace(known, row_id="silent", token_ids=(), places=())
    found = make_probes(NAME, [known, silent], gap_floor=0.1, end_ids={END, 1})
    (row,) = found.rows
    assert row.answer == (ProbeToken(7, -0.1, 3.0), ProbeToken(8, -0.7, 0.01))
    assert (found.noise.tokens, found.noise.mean, found.end_ids) == (3, pytest.approx(0.03), (1, END))
