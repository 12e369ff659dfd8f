"""The numbered golden tests of DAP's specification, section 12, its pitfalls, and the extensions of perdure."""

from __future__ import annotations

import copy
import dataclasses as dc
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from perdure import Backbone, Task
from perdure.backbone.vit import Prompt, walk
from perdure.checks import check_method
from perdure.config import laid_over
from perdure.data import LabelledImages, Preprocess, Stream
from perdure.data.stream import class_incremental
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import CheckpointError, ConfigError, ShapeError
from perdure.methods import dap as module
from perdure.methods.dap import DAP, DAPConfig
from perdure.modules.prompts import unit
from perdure.train.batches import NO_IMAGES, Batch, TaskImages
from perdure.train.session import Session, parameters_of
from perdure.train.settings import Adam, Constant
from tiny_vit import ON_ANOTHER_VIT, second_vit

D, N, TOKENS = 8, 3, 5
SMALL: dict[str, Any] = {"n_prompts": N, "embedding_dim": 2, "train": {"batch_size": 4, "epochs": 1}}


@functools.cache
def stream() -> Stream:
    """Three tasks of two classes, 8 training and 4 test images each, stored class by class."""
    return class_incremental(synthetic_dataset(range(6)), (2, 2, 2), range(6))


def tiny(*, precision: str = "float32", **options: Any) -> Backbone:
    """L = 2, D = 8, H = 2, n = 5, all weights shaken."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 8, "patch_size": 4, "embed_dim": D, "depth": 2, "num_heads": 2}
    model = VisionTransformer(num_classes=0, **(sizes | options))
    for p in model.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    preprocess = Preprocess(image_size=8)
    return Backbone(model, name="tiny", preprocess=preprocess, device="cpu", precision=precision)


def dap(backbone: Backbone | None = None, **config: Any) -> DAP:
    return DAP(backbone or tiny(), DAPConfig(**laid_over(SMALL, config)))


def begun(n_tasks: int, **config: Any) -> tuple[Any, Tensor]:
    """A method at the start of its n-th task, in float64 but for its head, and tokens (3, n, D) of three images.

    What it would train is noted instead: ``method.trains`` has the loss and the parameters of every task.
    """
    method: Any = dap(**config)
    method.trains = []
    method._train = lambda task, config, rng, loss, learns, queries: method.trains.append((loss, parameters_of(learns)))
    fitted(method, n_tasks)
    for part in (method.backbone.model, method.generators_, method.embeddings_, method.keys_):
        part.double()
    torch.manual_seed(1)
    return method, torch.randn(3, TOKENS, D, dtype=torch.float64)


def batch_of(tokens: Tensor, queries: Tensor, columns: Tensor) -> Batch:
    return Batch(torch.arange(len(tokens)), columns, NO_IMAGES, tokens=tokens, rows=queries, n_new=len(tokens))


def prompts_of(method: DAP, x: Tensor, embedding: Tensor) -> dict[int, Prompt]:
    """What the method lays beside the tokens in each block."""
    given: list[dict[int, Prompt]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method.backbone, "walk", lambda x, prompts: given.append(prompts))
        patch.setattr(method.backbone, "pool", lambda out: x[:, 0])
        method._prompted(x, embedding)
    return given[0]


def fitted(method: DAP, upto: int = 2) -> DAP:
    for task in stream()[method.tasks_seen_ : upto]:
        method.fit_task(task)
    return method


def pixels(method: DAP, data: LabelledImages) -> Tensor:
    return torch.cat([images for _, images in data.batches(method.backbone.preprocess, 64)])


def set_keys(method: DAP, keys: Tensor) -> None:
    for block, key in zip(method.keys_.blocks, keys, strict=True):
        block.data = key[None].to(block.dtype)


def e(i: int) -> Tensor:
    return torch.eye(D, dtype=torch.float64)[i]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What was trained, the session that did, and the loss of every step."""
    seen: dict[str, Any] = {"losses": []}
    run = Session.run

    def spy(self: Session[Batch], loss: Any) -> None:
        def noted(batch: Batch) -> Tensor:
            value = loss(batch)
            seen["losses"].append(value.item())
            return value

        seen.update(session=self, parameters=self.learned)
        run(self, noted)

    monkeypatch.setattr(Session, "run", spy)
    return seen


@pytest.fixture
def key_loss_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training's loss is the key's own term."""
    monkeypatch.setattr(module, "masked_cross_entropy", lambda logits, columns, compared: torch.zeros(()))


def test_01_at_init_every_prompt_is_the_shift() -> None:
    """1: beta / |beta|, of length 1, whatever the image and the prompt's index."""
    method, x = begun(1)
    prompts = prompts_of(method, x, method.embeddings_.newest)
    assert list(prompts) == [0, 1]
    for index, generator in enumerate(method.generators_):
        beta = generator.film_weight[D:] @ method.embeddings_.newest[0] + generator.film_bias[D:]
        made = prompts[index].tokens(x)
        torch.testing.assert_close(made, (beta / beta.norm()).expand(3, N, D), atol=1e-12, rtol=0)
        torch.testing.assert_close(made.norm(dim=2), torch.ones(3, N).double(), atol=1e-12, rtol=0)


def test_02_an_averaging_mixer_gives_the_scaled_mean_token() -> None:
    """2: gamma = e_0, beta = 0, rows of W 1/n: e_0 times the mean of the normalised tokens."""
    method, x = begun(1)
    generator = method.generators_[0]
    generator.norm.weight.data.uniform_(0.5, 2), generator.norm.bias.data.uniform_(-1, 1)
    generator.mixer_weight.data.fill_(1 / TOKENS)
    made = generator(x, e(0)[None], torch.zeros(1, D).double())
    y = F.layer_norm(x, (D,), generator.norm.weight, generator.norm.bias, eps=1e-6)
    torch.testing.assert_close(made, (e(0) * y.mean(1))[:, None].expand(3, N, D), atol=1e-12, rtol=0)
    assert made[..., 0].abs().min() > 1e-3


def test_03_a_one_hot_row_picks_its_token() -> None:
    """3: G[:, i] = dap_norm(X)[:, j]; c is added to all of a prompt's entries."""
    method, x = begun(1)
    generator = method.generators_[1]
    for i, j in enumerate((4, 0, 2)):
        generator.mixer_weight.data[i, j] = 1.0
    generator.mixer_bias.data = torch.tensor([0.0, 0.0, 7.0]).double()
    made = generator(x, torch.ones(1, D).double(), torch.zeros(1, D).double())
    expected = F.layer_norm(x, (D,), eps=1e-6)[:, [4, 0, 2]] + torch.tensor([0.0, 0.0, 7.0]).double()[:, None]
    torch.testing.assert_close(made, expected, atol=1e-12, rtol=0)


def test_04_the_gradient_passes_the_length_as_a_constant() -> None:
    """4: d loss / d gamma_raw = d loss / d gamma_hat / |gamma_raw|, radial part included; F.normalize has none."""
    method, x = begun(1, mixer_init="normal_1e-2")
    generator, embedding = method.generators_[0], method.embeddings_.newest
    generator.mixer_weight.data.mul_(100)
    scale, shift = generator.modulation(embedding)
    scale.retain_grad(), shift.retain_grad()
    generator(x, scale, shift).exp().sum().backward()
    raw = F.linear(embedding, generator.film_weight, generator.film_bias).detach()[0]
    for part, hat in ((slice(0, D), scale), (slice(D, 2 * D), shift)):
        grad, length = generator.film_bias.grad[part], raw[part].norm()
        torch.testing.assert_close(hat[0], raw[part] / length, atol=1e-12, rtol=0)
        torch.testing.assert_close(grad, hat.grad[0] / length, atol=1e-12, rtol=1e-12)
        assert (grad @ raw[part] / length).abs() > 0.1
        projected = raw[part].clone().requires_grad_()
        (F.normalize(projected, dim=0) @ hat.grad[0]).backward()
        assert (projected.grad @ raw[part]).abs() < 1e-10
        assert (projected.grad - grad).abs().max() > 1e-2


@pytest.mark.parametrize("mixer_init", ["zeros", "normal_1e-2"])
def test_05_mixers_of_zeros_keep_their_rows_equal(mixer_init: str) -> None:
    """5: after 30 Adam steps the rows of W are equal to 1e-9 from zeros, and differ from random values."""
    method, x = begun(1, mixer_init=mixer_init)
    batch, (loss, learns) = batch_of(x, x[:, 0].float(), torch.tensor([0, 1, 1])), method.trains[0]
    optimizer = method.config.train.optimizer.make([{"params": learns}], 0.01)
    for _ in range(30):
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()
    for generator in method.generators_:
        assert generator.mixer_weight.abs().max() > 0.02
        gap = (generator.mixer_weight - generator.mixer_weight[:1]).abs().max()
        assert gap < 1e-9 if mixer_init == "zeros" else gap > 1e-3
        if mixer_init == "zeros":
            assert (generator.mixer_bias - generator.mixer_bias[0]).abs().max() < 1e-9


def test_06_prompts_last_one_block_and_have_no_order() -> None:
    """6: n tokens come into and leave every block; no prompts, no change; permuting prompts changes nothing."""
    method, x = begun(1, mixer_init="normal_1e-2")
    clean, within = [], []
    for generator, block in zip(method.generators_, method.backbone.vit.blocks, strict=True):
        generator.mixer_weight.data.mul_(100)
        generator.register_forward_pre_hook(lambda module, args: clean.append(args[0].shape[1]))
        block.register_forward_pre_hook(lambda module, args: within.append(args[0].shape[1]))
    vit, embedding = method.backbone.vit, method.embeddings_.newest
    out = walk(vit, x, prompts_of(method, x, embedding)).all
    assert (clean, within, out.shape[1]) == ([TOKENS] * 2, [TOKENS + N] * 2, TOKENS)
    assert (out - walk(vit, x).all).abs().max() > 1e-3
    for generator in method.generators_:
        generator.mixer_weight.data = generator.mixer_weight.data[[2, 0, 1]]
    torch.testing.assert_close(walk(vit, x, prompts_of(method, x, embedding)).all, out, atol=1e-12, rtol=0)

    none, _ = begun(1, n_prompts=0)
    assert torch.equal(walk(vit, x, prompts_of(none, x, none.embeddings_.newest)).all, walk(vit, x).all)


def test_07_prompts_that_copy_the_tokens_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """7: p_l := X, N = n: the class token is the unprompted one to 1e-10."""
    method, x = begun(1, n_prompts=TOKENS)
    for generator in method.generators_:
        monkeypatch.setattr(generator, "forward", lambda x, scale, shift: x)
    vit = method.backbone.vit
    out = walk(vit, x, prompts_of(method, x, method.embeddings_.newest))
    torch.testing.assert_close(out.cls, walk(vit, x).cls, atol=1e-10, rtol=0)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("resumed", [False, True])
def test_08_the_second_task_leaves_mixers_and_old_rows_alone(
    optimizer: str, resumed: bool, trained: dict[str, Any]
) -> None:
    """8: bit-identical after 8 steps; FiLM and norms go on. Optimisers are never kept: ``keep_optimizer`` is left out.

    What could drift is out of the optimiser, also where the first task was learned by another object.
    """
    config = {"train": {"optimizer": optimizer, "epochs": 2}}
    method = fitted(dap(**config), 1)
    if resumed:
        method = dap(**config).load_state_dict(copy.deepcopy(method.state_dict()))
    before = {k: v.clone() for k, v in method.generators_.state_dict().items()}
    assert all(v.all() for k, v in before.items() if "mixer" in k)  # the first task moved them off zero
    rows = method.embeddings_().clone(), method.keys_().clone()
    trained["losses"].clear()
    fitted(method)
    assert len(trained["losses"]) == 8
    for name, value in method.generators_.state_dict().items():
        assert torch.equal(value, before[name]) == ("mixer" in name), name
    assert torch.equal(method.embeddings_()[:1], rows[0])
    assert torch.equal(method.keys_()[:1], rows[1])
    assert len(method.embeddings_()) == len(method.keys_()) == 2
    learning = {id(p) for p in trained["parameters"]}
    mixers = [p for name, p in method.generators_.named_parameters() if "mixer" in name]
    assert learning.isdisjoint(map(id, [*mixers, method.keys_.blocks[0], method.embeddings_.blocks[0]]))


def test_09_the_best_key_gives_the_task() -> None:
    """9: instance-wise 1, 1, 0; by batch vote 1 for all; instance-wise results do not depend on the batch."""
    slots, votes = {}, {"instance": None, "batch_vote": {}}
    for how in ("instance", "batch_vote"):
        method, _ = begun(2, vote=votes[how])
        set_keys(method, torch.stack([e(0), e(1)]))
        assert method._test_slots((0.6 * e(1) + 0.3 * e(0))[None]).tolist() == [1]
        slots[how] = method._test_slots(torch.stack([e(1), e(1) + 0.1 * e(0), e(0)])).tolist()
    assert slots == {"instance": [1, 1, 0], "batch_vote": [1, 1, 1]}

    for how in slots:
        method = fitted(dap(vote=votes[how]))
        images = pixels(method, stream().test(0))[[0, 0, 4]]
        queries = method.backbone.features(images)
        set_keys(method, queries[[2, 0]])
        alone, together = method.scores(images[2:]), method.scores(images)[2:]
        assert ((alone - together).abs().max() < 1e-5) == (how == "instance")


@pytest.mark.parametrize("mask_by_task", [True, False])
def test_10_a_wrong_task_hides_the_true_class(mask_by_task: bool) -> None:
    """10: masked, it can never be predicted, and all scores stay finite; not masked, it can."""
    method, data = fitted(dap(mask_by_task=mask_by_task)), stream().test(0)
    mean = method.backbone.features(pixels(method, data)).mean(0)
    set_keys(method, torch.stack([-mean, mean]))  # the first task's images match the second task's key
    method.head_.bias.data = torch.tensor([1e6, 1e6, 0.0, 0.0])
    assert method.selection_of(data).tolist() == [0.0, 1.0]
    predicted = set(method.predict(data).tolist())
    assert predicted <= ({2, 3} if mask_by_task else {0, 1})
    assert torch.isfinite(method.scores(pixels(method, data))).all()


@pytest.mark.usefixtures("key_loss_alone")
def test_11_the_mean_query_is_where_the_key_rests() -> None:
    """11: there the gradient of the similarity term vanishes to 1e-8; elsewhere it does not. Other tensors get none."""
    method, x = begun(1)
    queries = torch.randn(3, D)
    batch, (loss, learns) = batch_of(x, queries, torch.tensor([0, 1, 1])), method.trains[0]
    for key, largest in ((unit(queries).mean(0), 1e-8), (e(0), None)):
        set_keys(method, key[None])
        term = loss(batch)
        cosine = (unit(queries) @ unit(key.float())).mean()
        torch.testing.assert_close(term, -0.1 * cosine)
        (grad,) = torch.autograd.grad(term, [method.keys_.newest])
        assert (grad.abs().max() < largest) if largest else (grad.abs().max() > 1e-3)
    others = [p for p in learns if p is not method.keys_.newest]
    assert len(others) == len(learns) - 1
    assert all(g is None for g in torch.autograd.grad(loss(batch), others, allow_unused=True))


@pytest.mark.usefixtures("key_loss_alone")
@pytest.mark.parametrize("b", [1, 3])
def test_the_released_key_term_is_the_batch_size_times_the_mean(b: int) -> None:
    """Section 4: keys (b, 1, D) times queries (b, D) pair every image with every other; their sum is divided by b."""
    method, _ = begun(1, keys={"pull_over": "sum", "pull": 2.0})
    queries, x = torch.randn(b, D), torch.randn(b, TOKENS, D, dtype=torch.float64)
    term = method.trains[0][0](batch_of(x, queries, torch.zeros(b, dtype=torch.long)))
    chosen = unit(method.keys_.newest.float())[[0] * b][:, None]  # (b, 1, D)
    pairs = chosen * unit(queries)
    assert pairs.shape == (b, b, D)
    torch.testing.assert_close(term, -2.0 * pairs.sum() / b)
    torch.testing.assert_close(term, -2.0 * b * (unit(queries) @ chosen[0, 0]).mean())


def test_12_vit_b_16_learns_363376_numbers_in_ten_tasks() -> None:
    """12: without the head, N = 10, e = 16."""
    sizes = {"img_size": 224, "patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 1 / 768}
    model = VisionTransformer(num_classes=0, weight_init="skip", **sizes)
    method = DAP(Backbone(model, name="vit", preprocess=Preprocess(image_size=224), device="cpu"))
    method.classes_ = [0, 1]
    for _ in range(10):
        method._add_task(stream()[0], torch.Generator().manual_seed(0))
    assert method.learned_parameters() == 363_376
    bound = 0.0625  # of the keys, v = sqrt(6 / (3 s^2 + D))
    assert 0.99 * bound < method.keys_().abs().max() <= bound
    assert all(0.2 < g.film_weight.abs().max() <= 0.25 for g in method.generators_)  # 1 / sqrt(e)


def test_13_training_leaves_the_images_as_they_are() -> None:
    """13: an image read twice, with training between, is the same."""
    method = dap(train={"epochs": 2})
    before = pixels(method, stream()[0].train)
    fitted(method, 1)
    assert torch.equal(pixels(method, stream()[0].train), before)
    assert before.dtype == torch.uint8


@pytest.mark.parametrize("epochs", [1, 3])
def test_14_cached_training_queries_change_no_bit(
    epochs: int, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """14: the view is deterministic, so losses are bit-identical; the cache saves a pass per image and later epoch."""
    config = {"train": {"epochs": epochs, "batch_size": 16}}
    cached, n = fitted(dap(**config), 1), len(stream()[0].train)
    losses = list(trained["losses"])
    trained["losses"].clear()
    with monkeypatch.context() as patch:
        batch = TaskImages.batch  # the store has the queries by now, but they are not handed out
        patch.setattr(TaskImages, "batch", lambda *args: dc.replace(batch(*args), rows=None))
        fresh = fitted(dap(**config), 1)
    assert trained["losses"] == losses
    assert len(losses) == epochs
    assert (cached.backbone.passes.images, fresh.backbone.passes.images) == ((1 + epochs) * n, 2 * epochs * n)


# --- settings


def test_the_defaults_are_the_published_ones(trained: dict[str, Any]) -> None:
    method = DAP(tiny())
    fitted(method, 1)
    session, c = trained["session"], method.config
    (group,) = session.optimizer.param_groups
    told = {"betas": (0.9, 0.9), "amsgrad": True, "weight_decay": 0.0, "peak": 0.01, "lr": 0.01}
    assert {k: group[k] for k in told} == told
    assert isinstance(session.optimizer, torch.optim.Adam)
    assert (session.config, session.n_steps) == (c.train, 5)
    assert c.train.optimizer == Adam(beta1=0.9, beta2=0.9, amsgrad=True)
    assert (c.train.schedule, c.train.clip_norm, c.train.epochs) == (Constant(), 1.0, 5)
    assert (c.train.batch_size, c.n_prompts, c.embedding_dim, c.mixer_init) == (128, 10, 16, "zeros")
    assert (c.keys.name, c.keys.pull, c.keys.pull_over) == ("sgd", 0.1, "mean")
    assert (c.train.augment.min_scale, c.train.augment.flip, c.vote, c.mask_by_task) == (1.0, False, None, False)
    assert not method.promises.depends_on_test_batch
    assert c.head_init == "normal_0.02"  # not published: a growing head does not know the number of all classes


@pytest.mark.parametrize("preset", ["official", "official_inr", "mammoth"])
def test_the_official_presets_vote_and_say_that_they_depend_on_the_batch(preset: str) -> None:
    """Of mammoth's data sets only one votes, so its preset does not."""
    assert DAP(tiny(), DAPConfig(preset=preset)).promises.depends_on_test_batch == (preset != "mammoth")


def test_the_stored_order_is_for_mixed_images() -> None:
    few = {"epochs": 1, "batch_size": 4}
    config = {"preset": "official_inr", "train": few, "n_prompts": 1, "embedding_dim": 2}
    task = stream()[0]
    with pytest.raises(ConfigError, match=r"stored class by class, but got False\. Set train.shuffle=true"):
        DAP(tiny(), DAPConfig(**config)).fit_task(task)
    mixed = Task(0, task.train.subset(np.arange(16).reshape(2, 8).T.ravel()), task.classes)
    for unproblematic in (mixed, Task(0, task.train.of_classes(task.classes[:1]), task.classes[:1])):
        assert DAP(tiny(), DAPConfig(**config)).fit_task(unproblematic).tasks_seen_ == 1
    for train in ({**few, "shuffle": True}, {**few, "batch_size": 16}):  # or one batch
        assert DAP(tiny(), DAPConfig(**{**config, "train": train})).fit_task(task).tasks_seen_ == 1


def test_the_last_block_may_go_without_prompts() -> None:
    method = fitted(dap(last_block_prompts=False, mixer_init="normal_1e-2"))
    assert len(method.generators_) == 1
    within = []
    for block in method.backbone.vit.blocks:
        block.register_forward_pre_hook(lambda module, args: within.append(args[0].shape[1]))
    embedded = method.backbone.embed_tokens(pixels(method, stream().test(0)))
    assert list(prompts_of(method, embedded, method.embeddings_.newest)) == [0]
    method._test_logits(embedded, torch.zeros(len(embedded), D))
    assert within == [TOKENS + N, TOKENS]


def test_without_prompts_it_is_a_linear_head_on_the_frozen_features() -> None:
    method = fitted(dap(n_prompts=0))
    images = pixels(method, stream().test(1))
    features = method.backbone.features(images)
    torch.testing.assert_close(method.scores(images), method.head_(features), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("flip", [False, True])
def test_a_mean_key_needs_one_query_per_image_and_does_not_learn(flip: bool, trained: dict[str, Any]) -> None:
    method = fitted(dap(keys="mean", train={"epochs": 2, "augment": {"flip": flip}}), 1)
    queries = method.backbone.features(pixels(method, stream()[0].train))
    torch.testing.assert_close(method.keys_()[0], unit(queries).mean(0))
    assert all(p is not method.keys_.newest for p in trained["parameters"])
    assert any(p is method.embeddings_.newest for p in trained["parameters"])
    assert method.backbone.passes.images == 16 * (1 + 2) + len(queries)
    trained_key = fitted(dap(train={"epochs": 2}), 1).keys_()
    assert not torch.equal(trained_key, method.keys_())


@pytest.mark.parametrize(("vote", "shares"), [(None, [3 / 7, 4 / 7]), ({"batch_size": 4}, [4 / 7, 3 / 7])])
def test_selection_is_shared_out_over_the_tasks(vote: dict[str, int] | None, shares: list[float]) -> None:
    method, source = fitted(dap(vote=vote)), stream().test(0).source
    rows = np.array([0, 0, 0, 8, 8, 8, 8])  # batches of 4 vote 0 and 1
    data = LabelledImages(source, np.zeros(7, np.int64), rows)
    set_keys(method, method.backbone.features(pixels(method, data))[[0, 3]])
    assert method.selection_of(data).tolist() == pytest.approx(shares)
    assert method.selection_of(data.subset(np.arange(0))).tolist() == [0.0, 0.0]


def test_known_classes_in_a_new_task_belong_to_both() -> None:
    method = fitted(dap(mask_by_task=True), 1)
    images = synthetic_dataset((1, 7), seed=3).train
    method.fit_task(Task(1, images, (7, 1)))
    assert method.classes_ == [0, 1, 7]
    assert method.task_columns_ == [[0, 1], [1, 2]]
    queries = method.backbone.features(pixels(method, images))[:2]
    set_keys(method, queries)
    scores = method.scores(pixels(method, images)[:2])
    assert (scores > -1e10).tolist() == [[True, True, False], [False, True, True]]


# --- the walk


def test_training_takes_the_new_tasks_embedding_and_testing_each_images_own(monkeypatch: pytest.MonkeyPatch) -> None:
    method, x = begun(2)
    vit, rows = method.backbone.vit, method.embeddings_()
    alone = [walk(vit, x, prompts_of(method, x, row[None])).cls.float() for row in rows]
    assert (alone[0] - alone[1]).abs().max() > 1e-3
    read: list[Tensor] = []
    inner = method._prompted
    monkeypatch.setattr(method, "_prompted", lambda *args: read.append(inner(*args)) or read[-1])
    method.trains[1][0](batch_of(x, x[:, 0].float(), torch.tensor([2, 3, 3])))
    torch.testing.assert_close(read.pop(), alone[1])
    set_keys(method, torch.stack([e(0), e(1)]))
    method._test_logits(x, torch.stack([e(1), e(0), e(1)]))
    torch.testing.assert_close(read.pop(), torch.stack([alone[1][0], alone[0][1], alone[1][2]]))


def test_modulation_is_computed_once_per_task_not_per_image(monkeypatch: pytest.MonkeyPatch) -> None:
    method = fitted(dap())
    rows: list[int] = []
    for generator in method.generators_:
        original = generator.modulation
        spy = lambda given, original=original: rows.append(len(given)) or original(given)  # noqa: E731
        monkeypatch.setattr(generator, "modulation", spy)
    method.scores(pixels(method, stream().test(0)))
    assert rows == [2, 2]  # T = 2 tasks, 8 images
    rows.clear()
    fitted(method, 3)
    assert rows == [1] * 8  # 2 blocks, 4 steps


def test_prompts_stand_behind_cls_and_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny(reg_tokens=2)
    method = dap(backbone)
    assert method.generators_[0].mixer_weight.shape == (N, 1 + 2 + 4)
    fitted(method, 1)
    seen = []
    backbone.vit.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    embedded = backbone.embed_tokens(pixels(method, stream().test(0)))
    prompts = prompts_of(method, embedded, method.embeddings_.newest)
    backbone.walk(embedded, prompts)
    expected = torch.cat([embedded[:, :3], prompts[0].tokens(embedded), embedded[:, 3:]], dim=1)
    torch.testing.assert_close(seen[0], expected)


def test_another_image_size_is_refused_with_its_number_of_tokens() -> None:
    method = fitted(dap(tiny(dynamic_img_size=True)), 1)
    with pytest.raises(ShapeError, match=r"tokens of an image must be 5, but got 10\. Use the image size of training"):
        method._scores(torch.zeros(2, 3, 12, 12))
    other = dap(tiny(reg_tokens=1))
    with pytest.raises(CheckpointError, match="generators_"):
        other.load_state_dict({**method.state_dict(), "origin_": other.origin_})


def test_bfloat16_learns_and_scores() -> None:
    method = fitted(dap(tiny(precision="bfloat16"), mixer_init="normal_1e-2"))
    assert torch.isfinite(method.scores(pixels(method, stream().test(0)))).all()
    assert all(p.dtype == torch.float32 for p in method.generators_.parameters())


def test_the_common_checks_hold_on_a_second_vit() -> None:
    results = check_method(DAP, only=ON_ANOTHER_VIT, make_backbone=second_vit)
    assert [(r.name, r.note) for r in results if not r.ok] == []
