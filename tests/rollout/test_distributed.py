"""Two gloo ranks with prompts of their own, against one rank without any wrapper."""

from pathlib import Path

from ranks import results_of


def test_ranks_generate_as_one_does() -> None:
    here = Path(__file__).parent
    results = [one for rank in results_of(here / "two_ranks.py", here.parent / "policy") for one in rank]
    assert len(results) == 8
    for found in results:
        assert found["tokens"] and found["sharded"], found
        assert found["gathers"] == found["sharded_modules"], found  # once a rollout, not once a step
