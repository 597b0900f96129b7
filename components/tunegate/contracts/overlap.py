"""From when on a row that is trained on gives a row away that is judged on: one rule for prepare and evaluate."""

from __future__ import annotations

#: Jaccard similarity of distinctive shingles. Berkeley's two rewordings of one question measure 0.77, its different
#: questions of one kind at most 0.68.
OVERLAP_THRESHOLD = 0.7

#: Answers shorter than this are alike without one knowing the other: a label, a number, a common call.
ANSWER_CHARACTERS = 200
