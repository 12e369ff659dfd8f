"""The numbered golden tests of CODA-Prompt's specification, section 12 (D = 8, two layers, Lp = 4, two tasks of two
components), and its numbered pitfalls, section 9."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import Tensor, nn

from perdure import Backbone, Task
from perdure.backbone.vit import embed_patches
from perdure.checks import check_method
from perdure.checks.subject import equal, pixels, small_stream
from perdure.config import laid_over, load
from perdure.data import LabelledImages, Preprocess
from perdure.errors import BackboneError, CheckpointError, ConfigError, DataError, NotFittedError, RecipeError
from perdure.methods import coda_prompt
from perdure.methods.coda_prompt import CODAPrompt, CODAPromptConfig
from perdure.modules.components import Components
from perdure.modules.prefix import component_weights, orthogonality_penalty
from perdure.run.checkpoint import load_state, save_state
from perdure.train.batches import NO_IMAGES, Batch, planned
from perdure.train.session import Session, parameters_of
from perdure.train.settings import QuarterCosine
from tiny_vit import ON_ANOTHER_VIT, second_vit

TWO_TASKS = small_stream((2, 2), train_per_class=5)
SMALL: dict[str, Any] = {
    "layers": [0, 1], "length": 4, "components": {"name": "per_task", "each": 2},
    "train": {"epochs": 1, "batch_size": 2, "lr": 0.01},
}  # fmt: skip
SHARES = {"name": "pool", "pool": 4, "tasks": 2}
KINDS = ("prompts", "keys", "attention")


def vit(**options: Any) -> VisionTransformer:
    """L = 2, D = 8, H = 2, patches of 4 px in 8 px images, all weights shaken."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}
        model = VisionTransformer(num_classes=0, **(sizes | options)).eval().requires_grad_(False)
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def coda(model: VisionTransformer | None = None, *, seed: int = 0, **config: Any) -> Any:
    backbone = Backbone(model or vit(), name="tiny", preprocess=Preprocess(image_size=8), device="cpu")
    return CODAPrompt(backbone, CODAPromptConfig(**laid_over(SMALL, config)), seed=seed)


def grown(method: Any, n_tasks: int) -> Any:
    """The method with the components of ``n_tasks`` tasks, untrained."""
    for task in small_stream((1,) * n_tasks, train_per_class=1):
        method.components_.add(task.index, method._generator(task.index), method._initial())
        method.tasks_seen_ += 1
    return method


def in_float64(method: Any) -> tuple[Any, Tensor, Tensor]:
    """The method with all weights in float64, with embedded images (5, n, D) and queries (5, D)."""
    model = method.backbone.model.double()
    method.components_.double()
    images = torch.randn(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    embedded = embed_patches(model, images)
    return method, embedded, model.norm(model.blocks(embedded))[:, 0]


def set_rows(rows: Any, values: Tensor) -> None:
    """Overwrites a TaskBlocks' rows."""
    with torch.no_grad():
        for block, part in zip(rows.blocks, values.split([len(b) for b in rows.blocks]), strict=True):
            block.copy_(part)


def gram(rows: Tensor) -> Tensor:
    return rows.detach().flatten(1) @ rows.detach().flatten(1).T


def through_disk(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    save_state(folder, state)
    return load_state(folder)


def record_gradients(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor | None]]:
    """Of every training step: the gradient of each parameter of ``module``, by its name."""
    steps: list[dict[str, Tensor | None]] = []
    run = Session.run

    def note() -> None:
        steps.append({n: None if p.grad is None else p.grad.clone() for n, p in module.named_parameters()})

    monkeypatch.setattr(Session, "run", lambda self, loss: run(self, loss, after_backward=note))
    return steps


def untrained(method: Any) -> list[tuple[Any, list[nn.Parameter]]]:
    """The loss of every task, and what learns in it, where training is left out."""
    given: list[tuple[Any, list[nn.Parameter]]] = []
    method._train = lambda task, config, rng, loss, learns, queries: given.append((loss, parameters_of(learns)))
    return given


def record_adam(monkeypatch: pytest.MonkeyPatch) -> tuple[list[list[Tensor]], list[float]]:
    """What every new Adam is given, and the learning rate of every step."""
    given: list[list[Tensor]] = []
    rates: list[float] = []
    init, step = torch.optim.Adam.__init__, torch.optim.Adam.step

    def noted_init(self: Any, params: Any, *args: Any, **kwargs: Any) -> None:
        given.append([p for group in params for p in group["params"]])
        init(self, params, *args, **kwargs)

    def noted_step(self: Any, *args: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "__init__", noted_init)
    monkeypatch.setattr(torch.optim.Adam, "step", noted_step)
    return given, rates


@pytest.mark.parametrize("init", [{}, {"components": {"name": "pool", "pool": 4, "tasks": 2, "ortho": "whole"}}])
def test_the_first_block_is_orthonormal_and_later_rows_do_not_exist_yet(init: dict[str, Any]) -> None:
    """Golden 1; where the reference holds zero rows for later tasks, ours are not there (pitfall 11)."""
    method = grown(coda(**init), 1)
    for layer in method.components_:
        for kind in KINDS:
            rows = getattr(layer, kind)()
            assert len(rows) == 2
            torch.testing.assert_close(gram(rows), torch.eye(2), atol=1e-6, rtol=0)
    first, second = method.components_
    assert (first.keys() - first.attention()).abs().max() > 0.01
    assert (first.keys() - second.keys()).abs().max() > 0.01


def test_a_new_block_is_orthogonal_to_orthonormal_old_rows() -> None:
    """Golden 2, first half: old rows stay bit-identical."""
    for how in ("qr", "reference"):
        method = grown(coda(components={"ortho": how}), 1)
        before = copy.deepcopy(method.components_.state_dict())
        method.components_.add(1, method._generator(1), method._initial())
        for layer in method.components_:
            for kind in KINDS:
                torch.testing.assert_close(gram(getattr(layer, kind)()), torch.eye(4), atol=1e-6, rtol=0)
        assert all(torch.equal(method.components_.state_dict()[k], v) for k, v in before.items())


@pytest.mark.parametrize("how", ["qr", "reference"])
def test_with_correlated_old_rows_only_qr_keeps_the_new_block_orthogonal(how: str) -> None:
    """Golden 2, second half: it documents what the released code's orthogonalisation does after training."""
    method = grown(coda(components={"ortho": how}), 1)
    old = torch.zeros(2, 8)
    old[0, 0], old[1, :2] = 2.0, torch.tensor([1.0, 0.5])
    for layer in method.components_:
        set_rows(layer.keys, old)
    method.components_.add(1, method._generator(1), method._initial())
    for layer in method.components_:
        new = layer.keys.newest.detach()
        assert torch.equal(layer.keys()[:2], old)
        torch.testing.assert_close(new.norm(dim=1), torch.ones(2))
        to_old = (new @ F.normalize(old, dim=1).T).abs().max()
        among = (gram(new) - torch.eye(2)).abs().max()
        assert (to_old < 1e-6 and among < 1e-6) if how == "qr" else (to_old > 0.05)


def test_a_query_that_is_a_key_chooses_its_component() -> None:
    """Golden 3; and the weights know no softmax (pitfall 10)."""
    layer = Components(4, 4, 8).double()
    layer.grow(torch.Generator().manual_seed(0))
    layer.double()
    set_rows(layer.attention, torch.ones(4, 8))
    set_rows(layer.keys, torch.eye(4, 8))
    q = torch.eye(8, dtype=torch.float64)[[2]]
    assert layer.weights(q).tolist() == [[0, 0, 1, 0]]
    torch.testing.assert_close(layer(q)[0], layer.prompts()[2], atol=1e-12, rtol=0)
    q, a, k = (torch.randn(n, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in (3, 5, 6))
    k, weights = k[:5], component_weights(q, a, k[:5])
    for scaled in (component_weights(7 * q, a, k), component_weights(q, 0.3 * a, k), component_weights(q, a, 9 * k)):
        torch.testing.assert_close(scaled, weights, atol=1e-12, rtol=0)
    torch.testing.assert_close(component_weights(-q, a, k), -weights, atol=1e-12, rtol=0)
    assert weights.min() < 0 < weights.max()


def test_a_mask_of_one_coordinate_leaves_nothing_else_of_the_query() -> None:
    """Golden 4."""
    q = torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q[:, 0] = q[:, 0].abs() + 0.01
    first = torch.eye(8, dtype=torch.float64)[:1].expand(3, -1)
    torch.testing.assert_close(component_weights(q, first, first), torch.ones(6, 3, dtype=torch.float64))


def test_the_fast_formula_is_the_naive_one() -> None:
    """Golden 5: to 1e-10, gradients too."""
    outcomes = []
    for fast in (True, False):
        rng = torch.Generator().manual_seed(0)
        q, a, k = (torch.randn(n, 8, dtype=torch.float64, generator=rng).requires_grad_(True) for n in (5, 4, 4))
        if fast:
            weights = component_weights(q, a, k)
        else:
            weights = torch.einsum("bmd,md->bm", F.normalize(q[:, None] * a, dim=2), F.normalize(k, dim=1))
        weights.mul(torch.randn(5, 4, dtype=torch.float64, generator=rng)).sum().backward()
        outcomes.append((weights.detach(), q.grad, a.grad, k.grad))
    for fast, naive in zip(*outcomes, strict=True):
        torch.testing.assert_close(fast, naive, atol=1e-10, rtol=0)


def test_the_first_half_of_the_rows_are_keys_and_the_second_values() -> None:
    """Golden 6 and pitfall 3: Lp = 4 is two keys and two values, and a prefix of zeros is not nothing."""
    method, embedded, queries = in_float64(grown(coda(layers=[0]), 1))
    layer, block = method.components_[0], method.backbone.vit.blocks[0]
    set_rows(layer.attention, torch.ones(2, 8))
    set_rows(layer.keys, torch.eye(2, 8))
    queries = torch.eye(8, dtype=torch.float64)[[0] * 5]  # the prompt is P_0
    seen: list[Tensor] = []
    block.attn.proj.register_forward_pre_hook(lambda module, args: seen.append(args[0].unflatten(2, (2, 4))))
    method.backbone.walk(embedded)
    q, k, _ = block.attn.qkv(block.norm1(embedded)).reshape(5, -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    z, y0 = (q @ k.mT / 2).exp().sum(-1)[..., None].transpose(1, 2), seen.pop()

    def attended(keys: Tensor, values: Tensor) -> Tensor:
        set_rows(layer.prompts, torch.stack([torch.cat([keys, values]), torch.full((4, 8), 9.0).double()]))
        method._prompted(embedded, queries)
        return seen.pop()

    zero, rows = torch.zeros(2, 8, dtype=torch.float64), torch.arange(16, dtype=torch.float64).reshape(2, 8) / 10
    torch.testing.assert_close(attended(zero, zero), y0 * z / (z + 2), atol=1e-12, rtol=0)
    values = rows.unflatten(1, (2, 4)).sum(0)  # (heads, head_dim)
    torch.testing.assert_close(attended(zero, rows), (y0 * z + values) / (z + 2), atol=1e-12, rtol=0)
    prefix = rows.unflatten(1, (2, 4)).transpose(0, 1)  # (heads, 2, head_dim)
    more = (q @ prefix.mT / 2).exp().sum(-1)[..., None].transpose(1, 2)
    torch.testing.assert_close(attended(rows, zero), y0 * z / (z + more), atol=1e-12, rtol=0)


@pytest.mark.parametrize("options", [{}, {"train": {"optimizer": {"name": "adamw", "weight_decay": 0.5}}}, {"mu": 1.0}])
def test_old_rows_stay_bit_identical_and_are_used(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden 7 and pitfall 6: five steps, weight decay or not, move the new block alone."""
    method = coda(**options).fit_task(TWO_TASKS[0])
    before = copy.deepcopy(method.components_.state_dict())
    start, rng = coda(**options).load_state_dict(copy.deepcopy(method.state_dict())), method._generator(1)
    start.head_.grow(4, rng, start.config.head_init)
    start.components_.add(1, rng, start._initial())
    steps = record_gradients(method.components_, monkeypatch)
    method.fit_task(TWO_TASKS[1])  # 10 images, 2 a step
    assert len(steps) == 5
    assert len(steps[-1]) == 2 * len(before)
    for key, grad in steps[-1].items():
        assert (grad is not None) == key.endswith("blocks.1")
        assert grad is None or (grad != 0).any()
    after = method.components_.state_dict()
    assert all(torch.equal(after[key], rows) for key, rows in before.items())
    moved = {key: float((after[key] - rows).abs().max()) for key, rows in start.components_.state_dict().items()}
    assert all((0.005 < most < 0.5) == key.endswith("blocks.1") for key, most in moved.items())  # lr is 0.01
    images = pixels(method, TWO_TASKS.test(0))
    scores = method.scores(images)
    set_rows(method.components_[0].prompts, torch.cat([torch.zeros(2, 4, 8), method.components_[0].prompts.newest]))
    assert (method.scores(images) - scores).abs().max() > 1e-4


def test_a_test_uses_the_components_of_the_tasks_seen() -> None:
    """Golden 8: pt at t = 0, 2 pt at t = 1. Rows that are not used are not there: neither a later task's, nor those
    that the pool has beyond T floor(M/T)."""
    method = coda(components={"name": "pool", "pool": 5, "tasks": 2, "ortho": "whole"}).fit_task(TWO_TASKS[0])
    images = pixels(method, TWO_TASKS.test(0))
    queries = method.backbone.features(images)
    weights, scores = method.components_[0].weights(queries), method.scores(images)
    assert weights.shape == (len(images), 2)
    method.fit_task(TWO_TASKS[1])
    assert method.components_[0].weights(queries).shape == (len(images), 4)
    torch.testing.assert_close(method.components_[0].weights(queries)[:, :2], weights)
    assert (method.scores(images)[:, :2] - scores).abs().max() > 1e-4
    state = method.state_dict()
    parts = {k: v for k, v in state["components_"].items() if k.endswith("blocks.0")}
    head = {k: v[:2] for k, v in state["head_"].items()}
    state |= {key: state[key][:2] for key in ("classes_", "names_", "displays_")}
    state |= {"tasks_seen_": 1, "components_": parts, "head_": head}
    first = coda(components={"name": "pool", "pool": 5, "tasks": 2, "ortho": "whole"}).load_state_dict(state)
    assert torch.equal(first.scores(images), scores)


def test_the_schedule_is_a_quarter_of_a_cosine_by_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden 9: K = 20 epochs of 5 steps end at 0.015707; K = 1 is constant."""
    _, rates = record_adam(monkeypatch)
    coda(train={"epochs": 20, "lr": 0.5}).fit_task(TWO_TASKS[0])
    by_epoch = np.reshape(rates, (20, 5))
    assert (by_epoch == by_epoch[:, :1]).all()
    assert by_epoch[[0, 19], 0] == pytest.approx([0.5, 0.5 * 0.015707], rel=1e-4)
    assert by_epoch[10, 0] == pytest.approx(0.5 * np.cos(99 * np.pi * 10 / (200 * 19)))
    rates.clear()
    coda(train={"epochs": 1, "lr": 0.5}).fit_task(TWO_TASKS[0])
    assert rates == [0.5] * 5
    assert QuarterCosine().factor(0, 1, 0, 1) == 1


@pytest.mark.parametrize(("n_epochs", "mean"), [(20, 0.685), (5, 0.806)])
def test_the_released_schedule_runs_one_epoch_late(n_epochs: int, mean: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden 9, as released: the first two epochs are at the peak, and epoch e has the printed value of e - 1."""
    _, rates = record_adam(monkeypatch)
    coda(preset="official", components=SHARES, train={"epochs": n_epochs, "lr": 0.5}).fit_task(TWO_TASKS[0])
    by_epoch = np.reshape(rates, (n_epochs, 5)) / 0.5
    assert (by_epoch == by_epoch[:, :1]).all()
    assert by_epoch.mean() == pytest.approx(mean, abs=5e-4)
    if n_epochs == 20:
        assert by_epoch[[0, 1, 2, 18, 19], 0] == pytest.approx([1, 1, 0.996652, 0.178441, 0.097400], abs=1e-6)
    assert [QuarterCosine(released=True).factor(0, 1, 0, k) for k in (1, 2)] == [1, 1]


def test_the_penalty_and_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden 10: R is a mean, and only cross terms pull on a new block that is orthonormal itself."""
    assert orthogonality_penalty(torch.eye(3, 8)).item() == 0
    assert orthogonality_penalty(torch.eye(1, 8).expand(2, -1)).item() == 0.5
    monkeypatch.setattr(coda_prompt, "masked_cross_entropy", lambda logits, *_: 0 * logits.sum())  # its term alone
    method, plain = coda(mu=0.5), coda()
    losses = [untrained(m) for m in (method, plain)]
    for m in (method, plain):
        m.fit_task(TWO_TASKS[0]).fit_task(TWO_TASKS[1])
    loss, without = (tasks[1][0] for tasks in losses)
    keys = torch.eye(4, 8)
    keys[2] = F.normalize(torch.tensor([1.0, 0, 1, 0, 0, 0, 0, 0]), dim=0)  # R: two of 16 entries are 1/2
    for layer in method.components_:
        set_rows(layer.keys, keys)
    images = method.backbone.embed_tokens(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    columns = torch.zeros(2, dtype=torch.long)
    batch = Batch(torch.arange(2), columns, NO_IMAGES, tokens=images, rows=torch.randn(2, 8), n_new=2)
    term = loss(batch)
    assert term.item() == pytest.approx(0.5 * 2 * 2 * 0.5 / 16, rel=1e-5)  # mu, layers, entries
    term.backward()
    for layer in method.components_:
        old, new = layer.keys.blocks
        assert old.grad is None
        assert new.grad[0].abs().max() > 0.01
        assert new.grad[1].abs().max() < 1e-6
    assert coda().config.mu == without(batch).item() == 0


@pytest.mark.parametrize("layers", [[0, 1], [2, 0, 1]])
def test_every_task_has_an_optimiser_of_its_own_block_and_the_head(
    layers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Golden 11: the new parameters themselves, 3 tensors per layer and 2 of the head, and nothing else."""
    given, _ = record_adam(monkeypatch)
    method = coda(vit(depth=3), layers=layers)
    for t, task in enumerate(TWO_TASKS):
        method.fit_task(task)
        newest = [getattr(layer, kind).newest for layer in method.components_ for kind in KINDS]
        wanted = [*newest, method.head_.weight, method.head_.bias]
        assert len(given) == t + 1
        assert len(given[t]) == len(layers) * 3 + 2
        assert {id(p) for p in given[t]} == {id(p) for p in wanted}


def test_a_resumed_run_is_the_straight_one(tmp_path: Path) -> None:
    """Golden 12, at the boundary; the state is all there is, the generators derive from the task's index."""
    straight = coda().fit_task(TWO_TASKS[0]).fit_task(TWO_TASKS[1])
    first = coda().fit_task(TWO_TASKS[0])
    resumed = coda().load_state_dict(through_disk(first.state_dict(), tmp_path)).fit_task(TWO_TASKS[1])
    assert equal(resumed.state_dict(), straight.state_dict())
    images = pixels(straight, TWO_TASKS.test(1))
    assert torch.equal(resumed.scores(images), straight.scores(images))


def test_a_task_that_fails_half_way_is_undone_and_its_repetition_is_the_straight_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Golden 12, mid-task: there is no state between boundaries, so a broken task is run anew from its boundary."""
    straight = coda().fit_task(TWO_TASKS[0]).fit_task(TWO_TASKS[1])
    method = coda().fit_task(TWO_TASKS[0])
    before = copy.deepcopy(method.state_dict())
    steps: list[int] = []
    step = torch.optim.Adam.step

    def breaks_at_the_third(self: Any, *args: Any) -> Any:
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", breaks_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        method.fit_task(TWO_TASKS[1])
    assert equal(method.state_dict(), before)
    assert equal(method.fit_task(TWO_TASKS[1]).state_dict(), straight.state_dict())


def test_a_state_without_its_tasks_or_blocks_is_refused() -> None:
    """Golden 12: what the reference keeps outside its state dict, and everything that must agree with it."""
    method = coda().fit_task(TWO_TASKS[0])
    state = copy.deepcopy(method.state_dict())
    parts = state["components_"]
    missing = {k: v for k, v in parts.items() if k != "1.keys.blocks.0"}
    none = {k: v for k, v in parts.items() if not k.startswith("1.keys")}
    broken = [
        ({k: v for k, v in state.items() if k != "tasks_seen_"}, "tasks_seen_"),
        ({**state, "tasks_seen_": 2}, r"components_.0\.prompts\.blocks\.1 must be .* but got None"),
        ({**state, "tasks_seen_": 0}, r"components_ must be without other entries"),
        ({**state, "components_": missing}, r"1\.keys\.blocks\.0"),
        ({**state, "components_": none}, r"1\.keys\.blocks\.0"),
        ({**state, "components_": {}}, r"0\.prompts\.blocks\.0"),
        ({**state, "components_": {**parts, "0.keys.blocks.0": torch.zeros(3, 8)}}, r"\(3, 8\)"),
    ]
    for bad, told in broken:
        with pytest.raises(CheckpointError, match=told):
            method.load_state_dict(bad)
        assert equal(method.state_dict(), state)
    with pytest.raises(CheckpointError, match=r"\(2, 4, 8\)"):
        coda(length=6).load_state_dict(state)


def test_the_backbone_gets_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden 13 and pitfall 4."""
    method = coda()
    steps = record_gradients(nn.ModuleList([method.head_, method.backbone.model]), monkeypatch)
    method.fit_task(TWO_TASKS[0])
    assert [key for key, grad in steps[-1].items() if grad is not None] == ["0.weight", "0.bias"]
    assert not any(p.requires_grad for p in method.backbone.parameters())


def test_the_published_size_is_3_840_000() -> None:
    """Golden 13: five layers of ViT-B's width; a task trains a tenth of it and the head."""
    model = vit(img_size=8, patch_size=8, embed_dim=768, depth=5, num_heads=12, mlp_ratio=0.1)
    method = coda(model, preset="official", components={"name": "pool"}, layers=[0, 1, 2, 3, 4], length=8)
    for index in range(9):
        method.components_.add(index, method._generator(index), method._initial())
    assert method.learned_parameters() == 9 * 384_000
    method.tasks_seen_, method.classes_ = 9, list(range(1000, 1098))
    method.names_ = method.displays_ = [str(c) for c in method.classes_]
    tasks = untrained(method)
    method.fit_task(Task(9, TWO_TASKS[0].train, TWO_TASKS[0].classes))
    assert method.learned_parameters() == 3_840_000 + 76_900
    ((_, learns),) = tasks
    assert sum(p.numel() for p in learns) == 384_000 + 76_900


def test_an_image_scores_the_same_alone_and_in_any_batch() -> None:
    """Golden 14: bit for bit in float64, to rounding in float32."""
    method = coda().fit_task(TWO_TASKS[0]).fit_task(TWO_TASKS[1])
    images = torch.cat([pixels(method, TWO_TASKS.test(i)) for i in range(2)])
    whole, order = method.scores(images), torch.tensor([3, 1, 4, 0, 5, 2])
    for parts in ([[i] for i in range(6)], [[0, 1], [2, 3, 4, 5]], [order.tolist()]):
        found = torch.cat([method.scores(images[p]) for p in parts])
        torch.testing.assert_close(found, whole[[i for p in parts for i in p]], atol=1e-6, rtol=0)
    method, embedded, queries = in_float64(method)
    features = method._prompted(embedded, queries)
    alone = [method._prompted(embedded[i : i + 1], queries[i : i + 1]) for i in range(5)]
    assert torch.equal(torch.cat(alone), features)
    assert torch.equal(method._prompted(embedded[[4, 2]], queries[[4, 2]]), features[[4, 2]])


def test_a_published_pool_is_cut_by_the_number_of_tasks() -> None:
    """Pitfall 2: floor(M/T) components a task, none is an error, and so is a task more."""
    for ortho in ("qr", "whole"):
        pool = {"name": "pool", "pool": 7, "ortho": ortho}
        assert coda(components={**pool, "tasks": 2}).config.components.each == 3
        with pytest.raises(RecipeError, match=r"components\.tasks must be at most pool = 7, but got 8"):
            load(CODAPromptConfig, {"components": {**pool, "tasks": 8}})
    with pytest.raises(RecipeError, match=r"but got 'components\.pool'\. Another kind of components has it"):
        load(CODAPromptConfig, {"components": {"pool": 4}})
    method = coda(components={"name": "pool", "pool": 7, "tasks": 2})
    stream = small_stream((1, 1, 1), train_per_class=2)
    method.fit_task(stream[0]).fit_task(stream[1])
    with pytest.raises(ConfigError, match="tasks must be at least 3, but got 2"):
        method.fit_task(stream[2])
    assert method.tasks_seen_ == 2


def test_components_that_cannot_be_orthogonal_are_refused() -> None:
    with pytest.raises(ConfigError, match="width 8, to be orthogonal, but got 9"):
        coda(components={"each": 9})
    with pytest.raises(ConfigError, match="width 8, to be orthogonal, but got 10"):
        coda(components={"name": "pool", "pool": 10, "tasks": 5, "ortho": "whole"})
    assert coda(components={"name": "pool", "pool": 10, "tasks": 5}).config.components.each == 2


def test_layers_and_lengths_that_do_not_exist_are_refused() -> None:
    for layers in ([0, 2], [1, 1], [-1]):
        told = rf"layers must be distinct and from 0 to 1 \(tiny has 2 blocks\), but got {re.escape(str(layers))}"
        with pytest.raises(ConfigError, match=told):
            coda(layers=layers)
    for bad in ({"layers": []}, {"length": 5}, {"length": 0}):
        with pytest.raises(RecipeError, match=next(iter(bad))):
            load(CODAPromptConfig, bad)
    with pytest.raises(BackboneError, match="ParallelScalingBlock"):
        coda(vit(block_fn=ParallelScalingBlock)).fit_task(TWO_TASKS[0])


def test_the_last_batch_is_left_out_from_four_batches_on_and_the_preset_refuses_small_tasks() -> None:
    """Pitfall 8."""
    train = coda(train={"batch_size": 4}).config.train
    assert [len(b) for b in planned(10, train, torch.Generator())] == [4, 4, 2]
    assert [len(b) for b in planned(18, train, torch.Generator())] == [4, 4, 4, 4]
    with pytest.raises(DataError, match="128 images or more, but got 10"):
        coda(preset="official", train={"batch_size": 128}, components=SHARES).fit_task(TWO_TASKS[0])


def test_queries_are_the_frozen_features_without_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pitfall 9: of the view that is trained on, in training and in tests."""
    method = coda(train={"batch_size": 10, "augment": {"min_scale": 1.0, "flip": False}})
    features = method.backbone.features(pixels(method, TWO_TASKS[0].train))
    seen: list[Tensor] = []
    inner = method._prompted
    monkeypatch.setattr(method, "_prompted", lambda x, q: (seen.append(q), inner(x, q))[1])
    method.fit_task(TWO_TASKS[0])
    found = torch.cat(seen)
    nearest = torch.cdist(found, features)
    assert nearest.argmin(1).sort().values.tolist() == list(range(10))
    assert nearest.min(1).values.max() < 1e-5
    seen.clear()
    list(method.scores_of(TWO_TASKS.test(0)))
    torch.testing.assert_close(torch.cat(seen), method.backbone.features(pixels(method, TWO_TASKS.test(0))))


def test_a_domain_is_a_task_with_a_block_and_without_columns() -> None:
    """Pitfall 14."""
    task = TWO_TASKS[0]
    method = coda(logits="seen").fit_task(task).fit_task(Task(1, task.train, task.classes))
    assert len(method.components_[0].keys) == 2
    assert method.scores(pixels(method, task.train)).shape[1] == 2


def test_selection_is_the_soft_share_of_every_component() -> None:
    method = coda()
    with pytest.raises(NotFittedError, match="selection_of"):
        method.selection_of(TWO_TASKS.test(0))
    method.fit_task(TWO_TASKS[0]).fit_task(TWO_TASKS[1])
    shares = method.selection_of(TWO_TASKS.test(0))
    queries = method.backbone.features(pixels(method, TWO_TASKS.test(0)))
    by_layer = torch.stack([layer.weights(queries).abs().mean(0) for layer in method.components_]).detach()
    torch.testing.assert_close(shares, (by_layer / by_layer.sum(1, keepdim=True)).mean(0))
    assert shares.shape == (4,)
    assert shares.sum().item() == pytest.approx(1)
    empty = LabelledImages(TWO_TASKS.test(0).source, TWO_TASKS.test(0).labels[:0], np.arange(0))
    assert method.selection_of(empty).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("preset", ["default", *CODAPromptConfig.presets])
def test_the_built_in_vit_takes_every_preset_as_it_is(preset: str) -> None:
    method = CODAPrompt(Backbone.load("default", device="cpu"), CODAPromptConfig(preset=preset))
    assert method.config.components.each == 10


def test_within_a_task_it_remembers(backbone: Backbone) -> None:
    """What the expected failure of ``check_remembers_every_task`` says: only classes of two tasks get confused."""
    config = CODAPromptConfig(**laid_over(CODAPrompt.tags.small, CODAPrompt.tags.learns))
    stream, method = small_stream(train_per_class=8), CODAPrompt(backbone, config)
    for task in stream:
        method.fit_task(task)
    for i in range(3):
        scores = torch.cat(list(method.scores_of(stream.test(i))))[:, 2 * i : 2 * i + 2]
        right = method.columns(stream.test(i).labels) - 2 * i
        assert (scores.argmax(1) == right).float().mean() > 0.9


def test_all_checks_pass_on_another_vit() -> None:
    results = check_method(CODAPrompt, only=ON_ANOTHER_VIT, make_backbone=second_vit)
    assert [r for r in results if not r.ok] == []
