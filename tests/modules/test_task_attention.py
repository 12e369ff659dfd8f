"""Task attention by hand; that it is the naive one is golden test 9 of ESN."""

from __future__ import annotations

import torch

from perdure.modules.task_attention import TaskAttention, TaskAttentions, normalised
from rows import drawn, generator


def test_without_a_query_a_block_takes_the_mean_of_all_tokens() -> None:
    """Identity value and projection, no MLP, norms at their start: e + the mean of LN e and LN x."""
    block = TaskAttention(torch.tensor([3.0, 1.0, 1.0, -1.0]), 2, generator()).double()
    for layer in (block.query, block.fc2):
        layer.weight.data.zero_()
    for layer in (block.value, block.proj):
        layer.weight.data = torch.eye(4, dtype=torch.float64)
    x = drawn(2, 3, 4)
    own = normalised(block.token[None, None])[0]
    mean = (own + normalised(x).sum(1)) / 4
    torch.testing.assert_close(block(normalised(x)), block.token + mean)
    torch.testing.assert_close(normalised(5 * x + 2), normalised(x), atol=1e-3, rtol=0)


def test_a_new_block_starts_from_the_token_with_small_weights_of_the_generator() -> None:
    token = drawn(8).float()
    stack = TaskAttentions(token, 2)
    before = torch.get_rng_state()
    stack.add(generator(1))
    stack.add(generator(2))
    assert torch.equal(torch.get_rng_state(), before)
    first, second = stack.parts
    assert torch.equal(first.token, token)
    assert first.token is not token
    assert not torch.equal(first.query.weight, second.query.weight)
    weights = torch.cat([p.flatten() for name, p in first.named_parameters() if name.endswith("weight") and p.ndim > 1])
    assert 0.015 < weights.std() < 0.025
    assert all(not p.any() for name, p in first.named_parameters() if name.endswith("bias"))
    assert not any(p.requires_grad for p in stack.parameters())


def test_a_state_makes_as_many_blocks_as_it_holds() -> None:
    stack, other = TaskAttentions(torch.ones(8), 2), TaskAttentions(torch.zeros(8), 2)
    for seed in range(3):
        stack.add(generator(seed))
    for n_before in (0, 5):
        while len(other) < n_before:
            other.add(generator())
        other.load_state_dict(stack.state_dict())
        assert len(other) == 3
        x = normalised(drawn(2, 3, 8).float())
        assert all(torch.equal(a(x), b(x)) for a, b in zip(stack.parts, other.parts, strict=True))
    assert set(stack.one()) == {
        key.removeprefix("parts.0.") for key in stack.state_dict() if key.startswith("parts.0.")
    }
    other.load_state_dict({})
    assert len(other) == 0
