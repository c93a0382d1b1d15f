"""Plans: every answer is in one batch, and no token is read more often than without a plan."""

from hypothesis import given
from hypothesis import strategies as st

from hybridize.evals.prefix_plan import GPU_PASS, MIN_PREFIX, PASS, Question, Row, Run, plan

tokens = st.integers(0, 3)
prefixes = st.sampled_from([(), (1,) * 100, (2,) * 300, (2,) * 280 + (3,) * 40])
rows = st.lists(
    st.builds(Row, st.lists(tokens, max_size=9).map(tuple), st.just((0,))), min_size=1, max_size=5
).map(tuple)
contexts = st.builds(
    lambda prefix, rest: prefix + tuple(rest), prefixes, st.lists(tokens, min_size=1, max_size=90)
)
questions = st.lists(st.builds(Question, contexts, rows), max_size=12)


def _cost(runs: list[Run], pass_cost: int = PASS) -> int:
    """The tokens that the model reads, padding included, and the fixed cost of the passes."""
    cost = 0
    for run in runs:
        cost += len(run.prefix) + pass_cost * bool(run.prefix)
        for batch in run.batches:
            longest = max(question.length for question in batch.questions)
            count = sum(len(question.rows) for question in batch.questions)
            cost += count * (longest - batch.shared) + pass_cost
            once = batch.shared - len(run.prefix)
            cost += len(batch.questions) * once + pass_cost * bool(once)
    return cost


@given(questions, st.integers(1, 9), st.booleans())
def test_every_question_is_scored_once_and_shares_only_what_is_equal(
    given: list[Question], batch_size: int, share: bool
) -> None:
    runs = plan(given, batch_size, share=share)
    planned = [each for run in runs for batch in run.batches for each in batch.questions]
    assert sorted(map(id, planned)) == sorted(map(id, given))
    for run in runs:
        assert share or not run.prefix
        for batch in run.batches:
            count = sum(len(question.rows) for question in batch.questions)
            assert count <= batch_size or len(batch.questions) == 1
            for question in batch.questions:
                # The last token of the context predicts the first one of the answer.
                assert len(run.prefix) <= batch.shared < len(question.context)
                assert tuple(question.context[: len(run.prefix)]) == run.prefix
            if not share:
                assert batch.shared == 0


@given(questions, st.integers(1, 9), st.sampled_from([PASS, GPU_PASS]))
def test_sharing_is_never_dearer_than_reading_each_question_alone(
    given: list[Question], batch_size: int, pass_cost: int
) -> None:
    alone = sum(len(question.rows) * question.length + pass_cost for question in given)
    runs = plan(given, batch_size, share=True, pass_cost=pass_cost)
    assert _cost(runs, pass_cost) <= alone


def test_solved_examples_are_read_once_per_subject() -> None:
    rows = (Row((), (4, 5, 6, 7)),)  # four letters
    subjects = [
        [Question((subject,) * 400 + (9, question) * 20, rows) for question in range(10)]
        for subject in range(3)
    ]
    runs = plan([question for subject in subjects for question in subject], 4, share=True)
    assert [len(run.prefix) for run in runs] == [401] * 3  # and the first token of the questions
    assert _cost(runs) == 3 * (401 + PASS + 10 * 39 + 3 * PASS)


def test_the_answers_to_one_question_share_it() -> None:
    rows = tuple(Row((answer,) * 5, (0,)) for answer in range(4))
    (run,) = plan([Question(range(MIN_PREFIX), rows)], 2, share=True)
    assert run.prefix == ()
    assert run.batches[0].shared == MIN_PREFIX - 1
    assert _cost([run]) == MIN_PREFIX - 1 + 4 * 6 + 2 * PASS
