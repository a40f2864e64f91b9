"""How side blocks start: layer dropping, pruning by norm and by Fisher information, a look at the data before."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from test_side_network import side_network
from torch import nn

from cst_search.config.recipe import DETECTORS, Recipe
from cst_search.data.dataset import DetectionData
from cst_search.data.images import CocoImages, loader
from cst_search.detector.build import build_detector, prepare
from cst_search.detector.pyramid import Backbone
from cst_search.petl import METHODS
from cst_search.petl.cst import GRANULARITIES, CstOptions
from cst_search.petl.modules.cst import Ladder
from cst_search.petl.modules.pruning import N_IMAGES, fisher, l1, prune
from cst_search.trial.engine import Precision, losses

# --- layer dropping and pruned starts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "stage4"),
    [
        ("all", ["c4.0", "c4.1", "c4.2", "c4.3", "c4.4", "c4"]),
        ("every_second", ["c4.1", "c4.3", "c4"]),  # counted from the last, which the pyramid reads
        ("last_per_stage", ["c4"]),
    ],
)
def test_dropped_blocks_have_no_side_block(keep: str, stage4: list[str]) -> None:
    body, side = side_network(CstOptions(granularity="block", keep=keep), backbone="resnet34")  # 3, 4, 6, 3 blocks
    assert [key for key in side.keys if key.startswith("c4")] == stage4
    assert set(side.keys) >= set(side.up)
    assert [node.halves for node in side.nodes] == [
        i > 0 and side.keys[i - 1][:2] != key[:2] for i, key in enumerate(side.keys)
    ]
    side(body(torch.randn(1, 3, 65, 97)))  # the grids fit


def test_last_per_stage_equals_granularity_stage() -> None:
    body, last = side_network(CstOptions(granularity="block", keep="last_per_stage"))
    _, stage = side_network(CstOptions())
    stage.load_state_dict(last.state_dict())
    features = body(torch.randn(1, 3, 64, 64))
    for up in (*last.up.values(), *stage.up.values()):
        nn.init.ones_(up.weight)
    assert all(torch.equal(value, stage(features)[key]) for key, value in last(features).items())


def test_pruning_takes_the_largest_l1_norms_in_order() -> None:
    source, conv = nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(2, 3, 1, bias=False)
    rows = [[1, -1, 0, 0], [0, 0.1, 0, 0], [5, 0, -2, 0], [0, 3, -4, 0.5]]
    with torch.no_grad():
        source.weight.copy_(torch.tensor(rows)[:, :, None, None])
    prune(conv, source, l1(source))
    # rows 0, 2, 3 (norms 2, 7, 7.5; row 1 has 0.1); of these, columns 0 and 2 (norms 6 and 6; column 1 has 4)
    assert conv.weight.flatten(1).tolist() == [[1, 0], [5, -2], [0, -4]]


def test_tensors_that_the_source_lacks_keep_their_random_start() -> None:
    source, conv = nn.Conv2d(2, 2, 3, bias=False), nn.Conv2d(3, 3, 3, bias=False)
    drawn = conv.weight.detach().clone()
    prune(conv, source, l1(source))
    assert torch.equal(conv.weight[:2, :2], source.weight)
    assert torch.equal(conv.weight[2], drawn[2]) and torch.equal(conv.weight[:, 2], drawn[:, 2])


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(
    ("backbone", "block", "n_pruned"),
    [
        ("resnet18", "3x3", 1),
        ("resnet50", "3x3", 1),
        ("resnet50", "bottleneck", 3),  # 1x1, 3x3, 1x1, as the backbone's block
        ("resnet18", "bottleneck", 1),  # the backbone has no 1x1: only the 3x3 between them has a counterpart
        ("resnet18", "depthwise", 0),
        ("resnet18", "1x1", 0),
    ],
)
def test_side_blocks_start_as_pruned_blocks(backbone: str, block: str, n_pruned: int, granularity: str) -> None:
    def build(init: str) -> Any:
        torch.manual_seed(0)
        recipe = Recipe(backbone=backbone, width=0.25, weights="none")
        built = Backbone(recipe)
        options = CstOptions(reduction=8, granularity=granularity, block=block, init=init)
        METHODS["cst"].apply(built, options)
        return built

    pruned, drawn = build("prune_l1"), build("random")
    differ = {
        name
        for name, value in pruned.side.state_dict().items()
        if not torch.equal(value, drawn.side.state_dict()[name])
    }
    assert all(".block." in name for name in differ)
    assert len(differ) == n_pruned * len(pruned.side.nodes)
    if n_pruned:  # the last node of stage 3 stands beside the last block of that stage
        node: Any = pruned.side.nodes[pruned.side.keys.index("c3")]
        conv = node.block[0] if block == "3x3" else node.block[1]
        wide = pruned.body.layer2[-1].conv2.weight
        n = conv.weight.shape[0]
        rows = wide.abs().sum((1, 2, 3)).topk(n).indices.sort().values
        columns = wide[rows].abs().sum((0, 2, 3)).topk(n).indices.sort().values
        assert torch.equal(conv.weight, wide[rows][:, columns])


def test_pruning_goes_by_importance_and_not_by_the_weights() -> None:
    source, conv = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(2, 2, 1, bias=False)
    with torch.no_grad():
        source.weight.copy_(torch.arange(9.0).reshape(3, 3, 1, 1))
    prune(conv, source, torch.tensor([[0.0, 1, 4], [3, 0, 0], [2, 2, 2]]))
    # rows 0 and 2 (5 and 6; row 1 has 3); of these, columns 1 and 2 (3 and 6; column 0 has 2)
    assert conv.weight.flatten(1).tolist() == [[1, 2], [7, 8]]


def test_fisher_information_is_the_mean_squared_gradient() -> None:
    """By hand: L_n = k_n sum(W M), so dL_n / dW = k_n M."""
    built = Backbone(Recipe(backbone="resnet18", width=0.125, weights="none"))
    built.body.requires_grad_(False)
    sources: list[Any] = [built.body.layer2[0].conv2, built.body.layer3[1].conv1]
    masks = [torch.randn_like(source.weight) for source in sources]
    opened: list[Any] = []

    def losses() -> Any:
        for k in (1.0, -2.0, 3.0):
            opened.append((built.body.grad_from, built.body.recompute, built.side))
            yield sum(k * (source.weight * mask).sum() for source, mask in zip(sources, masks, strict=True))

    built.side = Ladder(built.body.shape(built.used_stages), CstOptions())
    side = built.side
    found = fisher(built, sources, losses())
    for each, mask in zip(found, masks, strict=True):
        torch.testing.assert_close(each, (1 + 4 + 9) / 3 * (mask**2).sum((2, 3)))
    assert opened == [(2, True, None)] * 3  # from stage 3 on, where the first source is; without the side network
    assert (built.body.grad_from, built.body.recompute, built.side) == (5, False, side)
    assert not any(p.requires_grad or p.grad is not None for p in built.body.parameters())


def test_fisher_information_looks_at_so_many_images_and_passes_over_what_overflowed() -> None:
    built = Backbone(Recipe(backbone="resnet18", width=0.125, weights="none"))
    source: Any = built.body.layer1[0].conv1
    asked: list[int] = []

    def losses() -> Any:
        for n in itertools.count():
            asked.append(n)
            yield (math.inf if n == 0 else 1.0) * source.weight.sum()

    (found,) = fisher(built, [source], losses())
    assert len(asked) == N_IMAGES
    torch.testing.assert_close(found, torch.full_like(found, 9 * (N_IMAGES - 1) / N_IMAGES))


def test_what_is_opened_for_fisher_information_is_closed_after_a_fault() -> None:
    built = Backbone(Recipe(backbone="resnet18", width=0.125, weights="none"))
    built.body.requires_grad_(False)

    def losses() -> Any:
        yield built.body.layer1[0].conv1.weight.sum()
        raise MemoryError

    with pytest.raises(MemoryError):
        fisher(built, [built.body.layer1[0].conv1], losses())
    assert built.body.grad_from == 5 and not built.body.recompute
    assert not any(p.requires_grad or p.grad is not None for p in built.body.parameters())
    (built.body(torch.randn(1, 3, 64, 64))["c5"].sum() + nn.Parameter(torch.zeros(()))).backward()
    assert all(p.grad is None for p in built.body.parameters())


# --- a look at the data before training ------------------------------------------------------------------------------


def single_losses(model: nn.Module, data: DetectionData, recipe: Recipe) -> Any:
    sizes = {"image_size_px": recipe.image_size_px, "max_size_px": recipe.max_size_px}
    images = CocoImages(data.splits["train"], hflip=True, **sizes)
    batches = loader(images, batch_size=1, shuffle=True, seed=recipe.seed)
    yield from losses(model, batches, device=torch.device("cpu"), precision=Precision(None, False))


def prepared(recipe: Recipe, data: DetectionData) -> Any:
    model = build_detector(recipe, 3)
    prepare(model, recipe, single_losses(model, data, recipe))
    return model


FISHER: list[tuple[str, dict[str, Any]]] = [
    ("lst", {}),
    ("cst", {}),
    ("cst", {"granularity": "block", "keep": "every_second", "norm": "bn", "block": "bottleneck"}),
]


@pytest.mark.usefixtures("few_boxes")
# every pair of options and family, of options and weights, of family and weights
@pytest.mark.parametrize(
    ("weights", "method", "options", "detector"),
    [
        (("file", "none")[(m + d) % 2], method, options, detector)  # none: norms with statistics
        for m, (method, options) in enumerate(FISHER)
        for d, detector in enumerate(DETECTORS)
    ],
    ids=str,
)
def test_pruning_by_fisher_information_changes_side_blocks_and_not_one_bit_else(
    tiny_recipe: Any, tiny_data: DetectionData, detector: str, method: str, options: dict[str, Any], weights: str
) -> None:
    changes = {} if weights == "file" else {"weights": weights}
    recipe = tiny_recipe(detector=detector, method=method, options={**options, "init": "prune_fisher"}, **changes)
    model: Any = build_detector(recipe, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    body, side, drawn = model.backbone.body, model.backbone.side, torch.get_rng_state()
    flags = body.grad_from, body.recompute, [type(m) for m in model.modules()]
    prepare(model, recipe, single_losses(model, tiny_data, recipe))
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith("backbone.side.nodes.") and ".block." in name for name in moved)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trained
    assert all(p.grad is None for p in model.parameters())
    assert flags == (body.grad_from, body.recompute, [type(m) for m in model.modules()])
    assert model.backbone.side is side and torch.equal(torch.get_rng_state(), drawn)
    assert not any(value.requires_grad for value in body(torch.rand(1, 3, 64, 64)).values())


@pytest.mark.usefixtures("few_boxes")
@pytest.mark.parametrize("detector", DETECTORS)
def test_fisher_information_is_that_of_the_training_loss(
    tiny_recipe: Any, tiny_data: DetectionData, detector: str
) -> None:
    """By stock layers, nothing recomputed, the side network in its place, and autograd asked for one weight."""
    options = {"init": "prune_fisher", "reduction": 4}
    model = prepared(tiny_recipe(detector=detector, method="lst", options=options), tiny_data)
    recipe = tiny_recipe(detector=detector, method="lst", options=options, memsave=False, recompute="none")
    plain: Any = build_detector(recipe, 3)
    source = plain.backbone.body.layer2[1].conv2
    source.weight.requires_grad_(True)
    plain.backbone.body.grad_from = 1
    squares = []
    with torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)
        for loss in single_losses(plain, tiny_data, recipe):
            squares.append(torch.autograd.grad(loss, source.weight)[0] ** 2)
    assert len(squares) == 8
    wide = source.weight.detach()
    importance = torch.stack(squares).mean(0).sum((2, 3))
    rows = importance.sum(1).topk(4).indices.sort().values
    columns = importance[rows].sum(0).topk(4).indices.sort().values
    node = model.backbone.side.nodes[model.backbone.side.keys.index("c3")]
    assert torch.equal(node.block[0].weight, wide[rows][:, columns])
    by_l1 = build_detector(tiny_recipe(detector=detector, method="lst", options={**options, "init": "prune_l1"}), 3)
    side: Any = by_l1.backbone.side  # type: ignore[union-attr]
    assert not torch.equal(side.nodes[side.keys.index("c3")].block[0].weight, node.block[0].weight)


def test_pruning_by_fisher_information_is_repeatable(tiny_recipe: Any, tiny_data: DetectionData) -> None:
    recipe = tiny_recipe(detector="fasterrcnn", method="lst", options={"init": "prune_fisher"})  # samples its regions
    one, two = (prepared(recipe, tiny_data).state_dict() for _ in range(2))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize(("method", "options"), [*((m, {}) for m in sorted(METHODS)), ("cst", {"init": "prune_l1"})])
def test_methods_that_need_no_data_read_none(tiny_recipe: Any, method: str, options: dict[str, Any]) -> None:
    def none() -> Any:
        raise AssertionError("data was read")
        yield

    recipe = tiny_recipe(method=method, options=options)
    model = build_detector(recipe, 3)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    prepare(model, recipe, none())
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trained
