"""What further trials would bring, and when a search has converged."""

from __future__ import annotations

import pytest

from cst_search.study.outlook import IN_A_ROW, LEAST_TRIALS, Outlook, has_converged

QUIET, LOUD = Outlook(gain=0.0019, noise=0.01), Outlook(gain=0.002, noise=0.01)  # ten trials: 0.0095 and 0.01


@pytest.mark.parametrize(
    ("outlooks", "n_trials", "converged"),
    [
        ([QUIET] * IN_A_ROW, LEAST_TRIALS, True),
        ([QUIET] * IN_A_ROW, LEAST_TRIALS - 1, False),  # too few trials to know
        ([QUIET] * (IN_A_ROW - 1), 100, False),
        ([LOUD, *[QUIET] * IN_A_ROW], 100, True),  # what was expected earlier does not count
        ([*[QUIET] * IN_A_ROW, LOUD], 100, False),  # as much as the noise is worth a trial
        ([], 100, False),  # a sampler without a model
    ],
)
def test_a_search_has_converged_when_ten_trials_gain_less_than_the_noise(
    outlooks: list[Outlook], n_trials: int, converged: bool
) -> None:
    assert has_converged(outlooks, n_trials) is converged


def test_words() -> None:
    assert str(Outlook(0.0042, 0.0004)) == (
        "the next 10 trials are expected to add about 2.1 % to the hypervolume; other seeds change it by less than "
        "0.1 %"
    )
