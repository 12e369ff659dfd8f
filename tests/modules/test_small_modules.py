"""Losses, merging, retrieval, low-rank updates, scales, adapters and the cosine head, by hand and by NumPy."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import logsumexp
from torch import Tensor, nn

from perdure.modules.adapter import Adapter, adapters_in, dropping
from perdure.modules.cosine_head import CosineHead
from perdure.modules.heads import GrowingLinear, linear_scores
from perdure.modules.lora import LoRA
from perdure.modules.losses import masked_cross_entropy, norm_scaled, own_index_loss
from perdure.modules.merging import mean_of, pull_, pull_on_use, split_like
from perdure.modules.prompt_generator import PromptGenerator, over_its_length
from perdure.modules.retrieval import logits_found, refined
from perdure.modules.ssf import ScaleShift


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed))


def cross_entropy(logits: Tensor, targets: list[int]) -> float:
    x = logits.detach().double().numpy()
    return float(np.mean(logsumexp(x, axis=1) - x[np.arange(len(x)), targets]))


# --- losses


def test_the_compared_columns_come_to_the_device_of_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a search refuses bounds that are elsewhere; the meta device does not, so that it is asked here."""
    devices, search = [], torch.searchsorted
    monkeypatch.setattr(torch, "searchsorted", lambda a, b: devices.append((a.device, b.device)) or search(a, b))
    columns = torch.zeros(2, dtype=torch.long, device="meta")
    masked_cross_entropy(torch.zeros(2, 4, device="meta"), columns, torch.tensor([0, 1]))
    assert devices == [(columns.device, columns.device)]


def test_masked_cross_entropy_is_over_the_current_columns_alone() -> None:
    logits = drawn(4, 6).requires_grad_(True)
    loss = masked_cross_entropy(logits, torch.tensor([5, 2, 5, 3]), torch.tensor([2, 3, 5]))
    assert loss.item() == pytest.approx(cross_entropy(logits[:, [2, 3, 5]], [2, 0, 2, 1]), rel=1e-5)
    loss.backward()
    assert not logits.grad[:, [0, 1, 4]].any()
    assert logits.grad[:, [2, 3, 5]].all()
    whole = masked_cross_entropy(logits, torch.tensor([5, 2, 0, 3]), None)
    assert whole.item() == pytest.approx(cross_entropy(logits, [5, 2, 0, 3]), rel=1e-5)


def test_logits_are_divided_by_the_mean_norm_of_the_tasks() -> None:
    logits = torch.tensor([[3.0, 4.0, 1.0], [0.0, 0.0, 0.0]], requires_grad=True)
    blocks = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    scaled = norm_scaled(logits, blocks, 0.5)
    torch.testing.assert_close(scaled[0], logits[0] / (0.5 * (5 + 1) / 2), rtol=1e-5, atol=0)
    assert scaled[1].tolist() == [0, 0, 0]
    scaled.sum().backward()
    assert logits.grad.isfinite().all()
    tiny = norm_scaled(torch.tensor([[1e-9, 0.0, 0.0]]), blocks, 1.0)
    assert tiny[0, 0].item() == pytest.approx(1e-9 / ((1e-9 + 1e-7 + 1e-12 + 1e-7) / 2), rel=1e-3)


def test_rows_of_their_own_index_by_hand() -> None:
    rows = drawn(3, 5)
    assert own_index_loss(rows, 2.0).item() == pytest.approx(cross_entropy(rows @ rows.T / 2, [0, 1, 2]), rel=1e-5)
    assert own_index_loss(rows).item() == pytest.approx(cross_entropy(rows @ rows.T / 0.8, [0, 1, 2]), rel=1e-5)


# --- merging


def test_parameters_are_pulled_in_place_by_a_share() -> None:
    parameters, means = [torch.tensor([1.0, 5.0]), torch.zeros(1)], [torch.tensor([2.0, 1.0]), torch.full((1,), 4.0)]
    first = parameters[0]
    pull_(parameters, means, 0.25)
    assert [p.tolist() for p in parameters] == [[1.25, 4.0], [1.0]]
    assert parameters[0] is first
    assert [m.tolist() for m in means] == [[2.0, 1.0], [4.0]]


def test_any_use_of_a_part_pulls_all_of_them_once_before_it_computes() -> None:
    parts = [nn.Linear(1, 1, bias=False) for _ in range(2)]
    with torch.no_grad():
        parts[0].weight.fill_(0.0)
        parts[1].weight.fill_(8.0)
    means = [torch.ones(1, 1), torch.zeros(1, 1)]
    pull_on_use(parts, lambda: means, 0.25)
    assert parts[0](torch.ones(1, 1)).item() == 0.25
    assert [p.weight.item() for p in parts] == [0.25, 6.0]
    parts[1].eval()(torch.ones(1, 1))
    assert [p.weight.item() for p in parts] == [0.4375, 4.5]
    means.pop()
    with pytest.raises(ValueError, match="shorter"):
        parts[0](torch.ones(1, 1))


def test_the_mean_of_modules_is_taken_parameter_by_parameter() -> None:
    parts = [nn.Linear(2, 1) for _ in range(3)]
    with torch.no_grad():
        for i, part in enumerate(parts):
            part.weight.copy_(torch.tensor([[1.0, 2.0**24 * (i == 0) + (i > 0)]]))
            part.bias.fill_(i)
    weight, bias = mean_of(parts)
    assert weight.tolist() == [[1.0, np.float32((2**24 + 2) / 3)]], "float32 loses the ones"
    assert bias.tolist() == [1.0]
    assert (weight.dtype, weight.requires_grad) == (torch.float32, False)
    assert mean_of([]) == []


def test_a_vector_is_split_as_the_parameters_that_it_was_made_of() -> None:
    layer = nn.Linear(2, 3)
    vector = nn.utils.parameters_to_vector(layer.parameters()).detach()
    found = split_like(2 * vector, list(layer.parameters()))
    assert [p.shape for p in found] == [(3, 2), (3,)]
    assert all(torch.equal(p, 2 * own) for p, own in zip(found, layer.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="split"):
        split_like(vector[1:], list(layer.parameters()))


# --- retrieval


def test_an_image_is_asked_until_it_stays_and_four_times_at_most() -> None:
    """Class c is of task c; the first image moves on at every question, the second stays, the third moves once."""
    told = {0: [1, 0, 0], 1: [2, 1, 2], 2: [3, 2, 2], 3: [4, 3, 3], 4: [5, 4, 4], 5: [5, 5, 5]}
    asked: list[tuple[int, list[int]]] = []

    def logits(task: int, here: Tensor) -> Tensor:
        asked.append((task, here.tolist()))
        return F.one_hot(torch.tensor(told[task])[here], 6).float() * (task + 1)

    guess = torch.tensor([0, 1, 1])
    out = refined(logits, torch.arange(6), guess)
    assert asked == [(0, [0]), (1, [1, 2]), (1, [0]), (2, [2]), (2, [0]), (3, [0])]
    assert out.argmax(1).tolist() == [4, 1, 2]
    assert out.max(1).values.tolist() == [4, 2, 3]
    assert guess.tolist() == [0, 1, 1], "the guess given is left alone"
    assert refined(logits, torch.arange(6), guess[:0]).shape == (0, 6)


def test_classes_of_one_task_are_no_move() -> None:
    asked: list[int] = []

    def logits(task: int, here: Tensor) -> Tensor:
        asked.append(task)
        return torch.tensor([[0.0, 0.0, 9.0, 1.0]]).repeat(len(here), 1)

    refined(logits, torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0]))
    assert asked == [0, 1, 1]


def test_logits_are_found_from_features_and_the_first_are_not_asked_for_again() -> None:
    head, tasks, first = GrowingLinear(3), torch.tensor([0, 0, 1]), drawn(4, 3)
    head.grow(3, rng(), "torch_linear")
    asked: list[tuple[int, list[int]]] = []

    def features(task: int, here: Tensor) -> Tensor:
        asked.append((task, here.tolist()))
        return first[here] + task

    guess = torch.tensor([1, 0, 0, 1])
    found = logits_found(features, first, head, tasks, guess)
    wanted = refined(lambda task, here: linear_scores(first[here] + task, head), tasks, guess)
    assert torch.equal(found, wanted)
    assert asked[0] == (1, [0, 3])
    assert {task for task, _ in asked} == {1}


# --- beside a layer


def test_a_low_rank_update_by_hand() -> None:
    layer = nn.Linear(5, 6)
    lora = LoRA(layer, 2, rng(), scale=3.0, parts=3, updated=(0, 2))
    assert [tuple(a.shape) for a in lora.a] == [(2, 5)] * 2
    assert [tuple(b.shape) for b in lora.b] == [(2, 2)] * 2
    assert all(0.3 < a.abs().max() <= 5**-0.5 for a in lora.a)
    assert all((a.min() < 0 < a.max()) and not b.any() for a, b in zip(lora.a, lora.b, strict=True))
    assert not torch.equal(lora.a[0], lora.a[1])
    assert not lora(drawn(4, 5)).any()
    with torch.no_grad():
        for b in lora.b:
            b.copy_(drawn(2, 2, seed=int(b is lora.b[1])))
    x = drawn(4, 7, 5)
    added = lora(x)
    wanted = torch.cat([3 * x @ lora.a[0].T @ lora.b[0].T, torch.zeros(4, 7, 2), 3 * x @ lora.a[1].T @ lora.b[1].T], -1)
    torch.testing.assert_close(added, wanted)
    before = layer(x)
    lora.fold_into(layer)
    torch.testing.assert_close(layer(x), before + wanted)
    assert not layer.weight.requires_grad
    assert lora.extra_repr() == "scale=3.0, parts=3, updated=(0, 2)"


def test_a_low_rank_update_of_a_convolution_strides_as_it_does() -> None:
    layer = nn.Conv2d(3, 4, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2))
    lora, x = LoRA(layer, 2, rng(), scale=0.5, parts=2, updated=(1,)), drawn(2, 3, 9, 12)
    with torch.no_grad():
        lora.b[0].copy_(drawn(2, 2))
    assert not lora(x)[:, :2].any()
    assert lora(x)[:, 2:].all()
    assert all(0.8 * 45**-0.5 < a.abs().max() <= 45**-0.5 for a in lora.a)
    folded = copy.deepcopy(layer)
    lora.fold_into(folded)
    torch.testing.assert_close(layer(x) + lora(x), folded(x), atol=1e-5, rtol=1e-5)
    assert (folded.weight - layer.weight).abs().max() > 0.01


def test_scale_and_shift_by_hand() -> None:
    fresh, still = ScaleShift(4000, rng()), ScaleShift(4, rng(), std=0)
    for values, mean in ((fresh.gamma, 1), (fresh.beta, 0)):
        assert values.mean().item() == pytest.approx(mean, abs=2e-3)
        assert values.std().item() == pytest.approx(0.02, rel=0.05)
    assert not torch.equal(fresh.gamma - 1, fresh.beta)
    y = drawn(2, 3, 4)
    assert torch.equal(still(y), y)
    with torch.no_grad():
        still.gamma.copy_(torch.tensor([1.0, 2, 3, 4]))
        still.beta.copy_(torch.tensor([0.5, 0, -1, 0]))
    assert still(torch.ones(1, 4)).tolist() == [[1.5, 2, 2, 4]]
    assert still(y.bfloat16()).dtype == torch.bfloat16
    for layer, shape in ((nn.Linear(3, 4), (2, 3)), (nn.Linear(3, 4, bias=False), (2, 3)), (nn.Conv2d(3, 4, 1), ())):
        x = drawn(*(shape or (2, 3, 5, 5)), seed=1)
        wanted = layer(x)
        wanted = still(wanted) if shape else still(wanted.movedim(1, -1)).movedim(-1, 1)
        still.fold_into(layer)
        torch.testing.assert_close(layer(x), wanted)
        assert not layer.weight.requires_grad
        assert not layer.bias.requires_grad
    assert still.beta.requires_grad


def test_an_adapter_by_hand() -> None:
    adapter = Adapter(6, 4, rng())
    assert 0.8 * 6**-0.5 < adapter.down.weight.abs().max() <= 6**-0.5
    assert adapter.down.weight.min() < 0 < adapter.down.weight.max()
    assert not any(p.any() for p in (adapter.down.bias, adapter.up.weight, adapter.up.bias))
    u = drawn(2, 3, 6)
    assert not adapter(u).any()
    with torch.no_grad():
        for i, p in enumerate((adapter.down.bias, adapter.up.weight, adapter.up.bias)):
            p.copy_(drawn(*p.shape, seed=i))
    hidden = (u @ adapter.down.weight.T + adapter.down.bias).clamp(min=0)
    torch.testing.assert_close(adapter(u), 0.1 * (hidden @ adapter.up.weight.T + adapter.up.bias))
    other = Adapter(6, 4, rng(), scale=2.0)
    other.load_state_dict(adapter.state_dict())
    torch.testing.assert_close(other(u), 20 * adapter(u))
    assert other.extra_repr() == "scale=2.0"


def test_an_adapters_activation_is_a_choice_and_its_scale_may_learn() -> None:
    adapter, u = Adapter(6, 4, rng(), scale=0.5, activation=F.gelu, learned_scale=True), drawn(2, 3, 6)
    with torch.no_grad():
        adapter.up.weight.copy_(drawn(6, 4))
    by_hand = F.gelu(adapter.down(u)) @ adapter.up.weight.T
    torch.testing.assert_close(adapter(u), 0.5 * by_hand)
    adapter(u).sum().backward()
    assert float(adapter.scale.grad) == pytest.approx(by_hand.sum().item(), rel=1e-4)  # type: ignore[union-attr]
    assert sum(p.numel() for p in adapter.parameters()) == 6 * 4 + 4 + 4 * 6 + 6 + 1
    assert adapter.extra_repr() == "scale=0.5, activation=gelu", "views that differ in it share no stored feature"
    assert "scale" not in Adapter(6, 4, rng()).state_dict()


@pytest.mark.parametrize(("share", "options"), [(0.1, {}), (0.6, {"dropout": 0.6}), (0.0, {"dropout": 0.0})])
def test_an_adapter_drops_a_share_of_its_bottleneck_and_keeps_the_mean(share: float, options: dict[str, float]) -> None:
    adapter = Adapter(2, 2000, rng(), scale=1.0, **options)
    with torch.no_grad():
        adapter.down.weight.zero_()
        adapter.down.bias.fill_(1.0)
        adapter.up.weight.copy_(torch.ones(2, 2000) / 2000)
    whole = adapter(torch.zeros(1, 9, 2))
    torch.testing.assert_close(whole, torch.ones(1, 9, 2))
    adapter.dropout_rng = rng(1)
    hidden: list[Tensor] = []
    adapter.up.register_forward_pre_hook(lambda module, inputs: hidden.append(inputs[0]))
    state = torch.get_rng_state()
    adapter(torch.zeros(1, 9, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert hidden[0].mean().item() == pytest.approx(1, abs=0.03)
    assert (hidden[0] == 0).float().mean().item() == pytest.approx(share, abs=0.02)
    assert hidden[0].max().item() == pytest.approx(1 / (1 - share))


def test_adapters_drop_as_long_as_they_are_told_to_whatever_happens() -> None:
    layers = nn.Sequential(Adapter(2, 3, rng()), nn.Linear(2, 2), nn.Sequential(Adapter(2, 3, rng())))
    adapters, generator = adapters_in(layers), rng(1)
    assert adapters == [layers[0], layers[2][0]]

    def fail() -> None:
        with dropping(iter(adapters), generator):
            assert [a.dropout_rng for a in adapters] == [generator] * 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [a.dropout_rng for a in adapters] == [None] * 2
    with dropping(adapters, generator):
        with dropping(adapters[:1], None):
            assert [a.dropout_rng for a in adapters] == [None, generator]
        assert [a.dropout_rng for a in adapters] == [generator] * 2


def grown_cosine_head(generator: torch.Generator) -> nn.Module:
    head = CosineHead(4)
    head.grow(3, generator)
    return head


@pytest.mark.parametrize(
    "make",
    [
        lambda g: LoRA(nn.utils.skip_init(nn.Linear, 4, 4), 2, g),
        lambda g: ScaleShift(4, g),
        lambda g: Adapter(4, 3, g),
        lambda g: PromptGenerator(5, 3, 4, 2, "normal_1e-2", g),
        grown_cosine_head,
    ],
    ids=["LoRA", "ScaleShift", "Adapter", "PromptGenerator", "CosineHead"],
)
def test_initial_values_come_from_the_given_generator_alone(make: Callable[[torch.Generator], nn.Module]) -> None:
    before = torch.get_rng_state()
    one, again, other = (make(rng(seed)).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[key], again[key]) for key in one)
    drawn_from_it = [key for key in one if one[key].ndim and one[key].unique().numel() > 1]
    assert drawn_from_it
    assert not any(torch.equal(one[key], other[key]) for key in drawn_from_it)


# --- heads


def test_a_cosine_head_by_hand() -> None:
    head = CosineHead(2)
    head.grow(2, rng())
    assert head.weight.abs().max() <= 2**-0.5
    assert head.sigma.item() == 1
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, -7.0]]))
        head.sigma.fill_(10.0)
    torch.testing.assert_close(head(torch.tensor([[3.0, 4.0]])), torch.tensor([[6.0, -8.0]]))
    old = head.weight.detach().clone()
    head.grow(5, rng(1), "zeros")
    assert torch.equal(head.weight[:2], old)
    assert head.weight.shape == (5, 2)
    assert not head.weight[2:].any()
    other = CosineHead(2)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.weight, head.weight)
    assert other.sigma.item() == 10


def test_rows_of_a_head_learn_apart_and_come_back() -> None:
    head = GrowingLinear(3)
    head.grow(4, rng(), "torch_linear")
    before, columns = copy.deepcopy(head.state_dict()), torch.tensor([3, 1, 3])
    x, held = drawn(5, 3), (head.weight, head.bias)
    with head.apart(columns) as (part, own):
        assert own.tolist() == [1, 0, 1], "rows of the part are in ascending order"
        torch.testing.assert_close(part(x), head(x)[:, [1, 3]])
        assert part.weight.requires_grad
        with torch.no_grad():
            part.weight += 1
            part.bias -= 2
        assert torch.equal(head.weight, before["weight"])
        assert torch.equal(head.bias, before["bias"])
    assert torch.equal(held[0], before["weight"]), "learned tensors are replaced, not changed"
    assert torch.equal(held[1], before["bias"])
    torch.testing.assert_close(head.weight - before["weight"], torch.tensor([[0.0] * 3, [1] * 3, [0] * 3, [1] * 3]))
    torch.testing.assert_close(head.bias - before["bias"], torch.tensor([0.0, -2, 0, -2]))
    assert not head.weight.requires_grad
    assert not head.bias.requires_grad


def test_a_heads_scores_are_the_same_in_any_batch_and_have_the_bias() -> None:
    head, x = GrowingLinear(256), drawn(64, 256)
    head.grow(37, rng(), "torch_linear")
    whole = linear_scores(x, head)
    assert whole.dtype == torch.float32
    np.testing.assert_allclose(
        whole.detach().numpy(),
        x.double().numpy() @ head.weight.detach().double().numpy().T + head.bias.detach().double().numpy(),
        rtol=1e-5,
        atol=1e-6,
    )
    for size in (1, 3, 16):
        assert torch.equal(torch.cat([linear_scores(part, head) for part in x.split(size)]), whole)


# --- prompts made from tokens


def test_a_prompt_generator_mixes_normed_tokens_then_scales_and_shifts() -> None:
    made = PromptGenerator(5, 3, 4, 2, "normal_1e-2", rng())
    assert made.mixer_weight.std().item() == pytest.approx(0.01, rel=0.5)
    assert not made.mixer_bias.any()
    assert made.norm.eps == 1e-6
    film = 2**-0.5 * (2 * torch.rand(8, 3, generator=rng()) - 1)  # U(±1/√e) as of a linear layer, its bias last
    still = PromptGenerator(5, 3, 4, 2, "zeros", rng())
    assert torch.equal(torch.cat([still.film_weight, still.film_bias[:, None]], 1), film)
    assert made.film_weight.abs().max() <= 2**-0.5
    with torch.no_grad():
        made.mixer_bias.copy_(torch.tensor([1.0, -2, 3]))
    x, scale, shift = drawn(2, 5, 4), drawn(2, 4, seed=1), drawn(2, 4, seed=2)
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    mixed = made.mixer_weight @ normed + made.mixer_bias[:, None]
    torch.testing.assert_close(made(x, scale, shift), scale[:, None] * mixed + shift[:, None])
    torch.testing.assert_close(made(x, scale[:1], shift[:1]), scale[:1, None] * mixed + shift[:1, None])
    raw = drawn(3, 2, seed=3) @ made.film_weight.T + made.film_bias
    found = made.modulation(drawn(3, 2, seed=3))
    for part, wanted in zip(found, (raw[:, :4], raw[:, 4:]), strict=True):
        torch.testing.assert_close(part, wanted / wanted.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("mixer", [True, False])
def test_the_mixer_learns_when_it_is_told_to(mixer: bool) -> None:
    made = PromptGenerator(5, 3, 4, 2, "zeros", rng())
    assert not made.mixer_weight.any()
    made.requires_grad_(False)
    made.set_learning(mixer=mixer)
    learns = {name for name, p in made.named_parameters() if p.requires_grad}
    always = {"norm.weight", "norm.bias", "film_weight", "film_bias"}
    assert learns == always | ({"mixer_weight", "mixer_bias"} if mixer else set())


def test_rows_over_their_length_keep_the_radial_gradient() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    out = over_its_length(rows)
    assert out.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]
    out[0].sum().backward()
    assert rows.grad[0].tolist() == pytest.approx([0.2, 0.2])
