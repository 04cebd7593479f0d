"""Two gloo ranks, DDP and FSDP2, against one rank that holds both ranks' groups."""

from pathlib import Path

from ranks import results_of


def test_two_ranks_have_the_gradients_of_one():
    results = results_of(Path(__file__).with_name("two_ranks.py"))[0]
    assert len(results) == 14
    for case, found in results.items():
        assert found["missing"] == [], case
        assert found["parameters"] > 0, case
        assert found["error"] < 1e-6, (case, found)
        assert found["logps"] < 1e-9, (case, found)
