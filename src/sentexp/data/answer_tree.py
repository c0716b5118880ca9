"""The tokens of all label words as a tree behind a prompt, so that one forward pass scores every label."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(kw_only=True, slots=True)
class AnswerTree:
    """The places of the tokens of label words after a prompt, and what predicts each of them.

    The end of the prompt predicts the first token of every word. A further token is predicted by the one before it, so
    all tokens of a word but its last follow the prompt: a branch, which only its own label sees. With the words
    [7], [8, 9, 4] and [5, 6]:

        column           0             1  2  3
        branch_tokens    (prompt end)  8  9  5      behind the prompt
        branch_labels                  1  1  2      whose branch it is
        branch_depths                  0  1  0      its position behind the prompt

        tokens           7  8  9  4  5  6           what is scored
        labels           0  1  1  1  2  2           whose token it is
        columns          0  0  1  2  0  3           the column that predicts it

        word_lengths     1  3  2                    tokens of each word
    """

    tokens: list[int]
    labels: list[int]
    columns: list[int]
    word_lengths: list[int]
    branch_tokens: list[int]
    branch_labels: list[int]
    branch_depths: list[int]

    @classmethod
    def of(cls, answers: Sequence[Sequence[int]]) -> "AnswerTree":
        """Return the tree of the tokens of each label's word."""
        starts = list(accumulate((len(answer) - 1 for answer in answers), initial=1))
        places = [(label, depth) for label, answer in enumerate(answers) for depth in range(len(answer))]
        branch = [(label, depth) for label, depth in places if depth < len(answers[label]) - 1]
        return cls(
            tokens=[answers[label][depth] for label, depth in places],
            labels=[label for label, _ in places],
            columns=[starts[label] + depth - 1 if depth else 0 for label, depth in places],
            word_lengths=[len(answer) for answer in answers],
            branch_tokens=[answers[label][depth] for label, depth in branch],
            branch_labels=[label for label, _ in branch],
            branch_depths=[depth for _, depth in branch],
        )
