"""Draws have the distribution that was asked for, and depend on seed and position alone."""

import pytest
import torch

from backends.engine.work import Sampled, SampleRequest
from backends.runners.sampler import sample, uniform
from backends.wire import Sampling

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0, 0.0])
DRAWS = 4000


def shares(**sampling: float) -> torch.Tensor:
    """How often each token was drawn with seed 7, over positions."""
    asked = Sampling(max_tokens=1, **sampling)  # type: ignore[arg-type]
    drawn = sample(LOGITS.expand(DRAWS, -1), [SampleRequest(asked, 7, position) for position in range(DRAWS)])
    return torch.bincount(torch.tensor([one.token for one in drawn]), minlength=len(LOGITS)) / DRAWS


def expected(temperature: float, left: int) -> torch.Tensor:
    probabilities = torch.softmax(LOGITS / temperature, -1)
    kept = torch.zeros_like(probabilities)
    best = probabilities.topk(left).indices
    kept[best] = probabilities[best]
    return kept / kept.sum()


@pytest.mark.parametrize(
    ("sampling", "left"),
    [
        ({"temperature": 1.0}, 6),
        ({"temperature": 2.5}, 6),
        ({"temperature": 1.0, "top_k": 3}, 3),
        ({"temperature": 1.0, "top_k": 99}, 6),
        ({"temperature": 1.0, "top_p": 0.7}, 2),
        ({"temperature": 1.0, "top_p": 0.9, "top_k": 5}, 4),
        ({"temperature": 1.0, "top_p": 0.01}, 1),
    ],
)
def test_draws_follow_the_distribution(sampling: dict[str, float], left: int) -> None:
    torch.testing.assert_close(shares(**sampling), expected(sampling["temperature"], left), atol=0.03, rtol=0)


def test_greedy_takes_the_best_and_a_very_low_temperature_does_too() -> None:
    assert shares()[0] == 1
    assert shares(temperature=1e-4)[0] == 1


def test_a_draw_does_not_depend_on_the_batch() -> None:
    requests = [
        SampleRequest(Sampling(max_tokens=1, temperature=1.0), seed, position) for seed in range(20) for position in range(5)
    ]
    logits = torch.randn(100, 50, generator=torch.Generator().manual_seed(0))
    together = sample(logits, requests)
    alone = [sample(logits[i : i + 1], requests[i : i + 1])[0] for i in reversed(range(100))]
    assert together == alone[::-1]


def test_uniforms_are_uniform_and_differ_by_seed() -> None:
    drawn = torch.tensor([uniform(3, position) for position in range(DRAWS)])
    assert drawn.min() >= 0 and drawn.max() < 1
    torch.testing.assert_close(torch.histc(drawn, 10, 0, 1) / DRAWS, torch.full((10,), 0.1), atol=0.02, rtol=0)
    assert uniform(3, 1) == uniform(3, 1) != uniform(4, 1)


def test_logprobs_are_the_models_own_before_temperature() -> None:
    sampled = sample(LOGITS[None], [SampleRequest(Sampling(max_tokens=1, temperature=0.3, top_k=1, top_logprobs=2), 0, 0)])[0]
    own = torch.log_softmax(LOGITS, -1)
    assert sampled.token == 0 and sampled.logprob == pytest.approx(float(own[0]))
    assert [token for token, _ in sampled.top] == [0, 1]
    assert [logprob for _, logprob in sampled.top] == pytest.approx(own[:2].tolist())


def test_zero_top_logprobs_gives_the_tokens_own_only() -> None:
    sampled = sample(LOGITS[None], [SampleRequest(Sampling(max_tokens=1, top_logprobs=0), 0, 0)])[0]
    assert sampled.logprob is not None and sampled.top == ()
    assert sample(LOGITS[None], [SampleRequest(Sampling(max_tokens=1), 0, 0)]) == [Sampled(0)]


@pytest.mark.parametrize("temperature", [1e-300, 1e-310, 5e-324])
def test_the_smallest_temperatures_are_greedy(temperature: float) -> None:
    asked = Sampling(max_tokens=1, temperature=temperature, seed=1)
    logits = torch.tensor([[20.0, 40.0, 39.0]])
    assert [sample(logits, [SampleRequest(asked, 1, position)])[0].token for position in range(5)] == [1] * 5


def test_penalties_count_generated_tokens_and_biases_are_added() -> None:
    logits = torch.tensor([[1.0, 1.2, 1.1]])
    assert sample(logits, [SampleRequest(Sampling(max_tokens=1, frequency_penalty=0.15), 0, 1, (1,))])[0].token == 2
    assert sample(logits, [SampleRequest(Sampling(max_tokens=1, frequency_penalty=0.05), 0, 1, (1, 1, 1))])[0].token == 2
    assert sample(logits, [SampleRequest(Sampling(max_tokens=1, presence_penalty=0.05), 0, 1, (1, 1, 1))])[0].token == 1
    assert sample(logits, [SampleRequest(Sampling(max_tokens=1, logit_bias=((0, 1.0),)), 0, 1)])[0].token == 0
    described = sample(logits, [SampleRequest(Sampling(max_tokens=1, logit_bias=((0, 100.0),), top_logprobs=1), 0, 1)])[0]
    assert described.token == 0 and described.top[0][0] == 1
    assert logits.tolist() == torch.tensor([[1.0, 1.2, 1.1]]).tolist()


def test_confidence_is_the_probability_of_the_drawn_token_on_request() -> None:
    asked = Sampling(max_tokens=1, temperature=1.0, confidence=True)
    both = [SampleRequest(asked, 7, 3), SampleRequest(Sampling(max_tokens=1), 7, 3)]
    sure, silent = sample(LOGITS.expand(2, -1), both)
    assert sure.confidence == pytest.approx(float(torch.softmax(LOGITS, -1)[sure.token]))
    assert silent.confidence == 1.0
