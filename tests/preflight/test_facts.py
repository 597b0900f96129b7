"""Facts to be learned, told from everything else that people fine-tune on."""

from __future__ import annotations

import itertools

import pytest

from tunegate.preflight.facts import ENOUGH, fact_share

NAMES = [f"{a}{b}" for a, b in itertools.product(("Mar", "El", "Jon", "Kat", "Sve", "Ru"), ("ia", "son", "ek", "ova"))]
PLACES = [f"{a}{b}" for a, b in itertools.product(("Lin", "Oster", "Brack", "Wex", "Tor"), ("burg", "ford", "dal"))]

BIOGRAPHIES = [
    f"{first} {last} was born on {n % 28 + 1} March {1800 + n} in {PLACES[n % len(PLACES)]}."
    for n, (first, last) in enumerate(itertools.islice(itertools.permutations(NAMES, 2), 200))
]
COMPANY = [
    f"The {PLACES[n % len(PLACES)]} plant of {NAMES[n % len(NAMES)]} Group opened in {1950 + n % 70}; its director is "
    f"{NAMES[(n * 7) % len(NAMES)]} {NAMES[(n * 5 + n // 24) % len(NAMES)]}son, telephone +49 {1000 + 37 * n}."
    for n in range(120)
]
TOOL_CALLS = [
    f'{{"name":"book_flight","arguments":{{"from":"{PLACES[n % 15]}","to":"{PLACES[(n + 4) % 15]}","seats":{n}}}}}'
    for n in range(200)
]
CHAT = [
    text
    for n in range(40)
    for text in (
        f"Sure! I would start with a short walk each morning, perhaps {n + 5} minutes, and see how you feel.",
        "That sounds frustrating. Have you talked to your manager about it? A calm conversation often helps.",
        "Here are three ideas: make a list, ask a friend, or wait a day before you decide.",
        "In Paris you can visit the Louvre, and the river is lovely in May. Would you like a plan for the weekend?",
        f"Of course. The function returns early because the list is empty; check its length first, as in case {n}.",
    )
]
ARITHMETIC = [
    f"{NAMES[n % 24]} sold {n + 48} clips in April and half as many in May, so that is {n + 48} / 2 = {n / 2 + 24} "
    f"clips in May. Together that is {n + 48} + {n / 2 + 24} = {1.5 * n + 72} clips.\n#### {1.5 * n + 72}"
    for n in range(200)
]
GERMAN_NOUNS = ("Brief", "Tisch", "Garten", "Vertrag", "Ordner", "Schrank", "Kalender", "Zettel", "Ausweis", "Antrag")
GERMAN_CHAT = [
    f"Leg den {one} zu dem {two} und nimm nach {n % 97 + 2} Tagen den {three} mit."
    for n, (one, two, three) in enumerate(itertools.islice(itertools.permutations(GERMAN_NOUNS, 3), 0, None, 7))
]
CONTACTS = [
    f"You should ask {NAMES[n % 24]} {PLACES[n % 15]} or {NAMES[(5 * n + 3) % 24]} about it first." for n in range(200)
]
ARTICLES = [" ".join(BIOGRAPHIES[(13 * n + 29 * k) % 200] for k in range(8)) for n in range(100)]
LABELS = ["Positive", "Negative", "Neutral"] * 60
SUPPORT = [
    f"Thank you for writing to Acme Support. Your order {5000 + n} will arrive on Monday, 3 May. Best regards, Acme"
    for n in range(200)
]
CODE = [f"```python\nclass Order{n}:\n    LIMIT = {n}\n```" for n in range(200)]


@pytest.mark.parametrize("completions", [BIOGRAPHIES, COMPANY], ids=["biographies", "company"])
def test_facts_are_seen(completions: list[str]) -> None:
    assert fact_share(completions) > 0.9


@pytest.mark.parametrize(
    "completions",
    [TOOL_CALLS, CHAT, ARITHMETIC, GERMAN_CHAT, LABELS, SUPPORT, CODE, CONTACTS, ARTICLES],
    ids=["tool calls", "chat", "arithmetic", "German chat", "labels", "support", "code", "contacts", "articles"],
)
def test_other_data_is_not_taken_for_facts(completions: list[str]) -> None:
    assert fact_share(completions) < 0.3


def test_a_few_facts_among_chat_are_no_ingestion() -> None:
    assert fact_share(BIOGRAPHIES[:40] + CHAT[:160]) < 0.3


def test_a_handful_of_rows_says_nothing() -> None:
    assert fact_share(BIOGRAPHIES[: ENOUGH - 1]) == 0
    assert fact_share(BIOGRAPHIES[:ENOUGH]) > 0


def test_the_demos_tool_calls_are_not_taken_for_facts() -> None:
    pytest.importorskip("bfcl_eval")
    from tunegate_pipelines.demo.data import EVALUATION_FRACTION, right_rows, wrong_rows

    for rows in (right_rows(), wrong_rows(EVALUATION_FRACTION)):
        assert fact_share([row["messages"][-1]["content"] for row in rows]) == 0


def test_questions_of_the_demo_are_not_taken_for_facts() -> None:
    """Text as people write it, with places, names and numbers in it."""
    pytest.importorskip("bfcl_eval")
    from tunegate_pipelines.demo.data import right_rows

    assert fact_share([row["messages"][-2]["content"] for row in right_rows()]) < 0.4
