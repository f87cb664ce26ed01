"""The suites that ship: they say what they are for, hold equal what they claim to, and their cells run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from comparable import comparable
from libmoe.bench import Grid, load_grid
from libmoe.bench.cell import CellSpec, run_cell
from libmoe.bench.match import Matched, match_sizes, measure
from libmoe.core.files import to_json
from libmoe.methods import METHODS
from libmoe.models import save
from libmoe.train import build_model, train
from libmoe.train.recipe import load_recipe, packaged

ALL = dict(sorted(packaged("recipes/grids").items()))
SUITES = {name: file for name, file in ALL.items() if not name.startswith("vlm-")}
LARGE = ("libmoe-lm-154m", "libmoe-lm-660m")
FIVE = ["smoe", "xmoe", "sigmoid", "hyper-router", "perturbed-cosine"]
VOCABULARY = 2048
"""Tokens of the embedded tokenizer."""

Sizes = tuple[Grid, Mapping[str, Matched]]
Solve = Callable[[str], Sizes]


def local(name: str, folder: Path) -> list[str]:
    """What a suite needs to be set to where there is neither network nor anything prepared."""
    if name in LARGE:
        return ["recipe.data.source=embedded", "recipe.data.tokenizer=embedded"]
    if name in ("upcycle-vs-scratch", "expert-study"):
        return [f"recipe.backbone.checkpoint={folder / 'dense'}", "prepare=[]"]
    return []


SMALL = [
    "match=none", "solve=auto",
    "recipe.backbone.hidden_size=32", "recipe.backbone.num_hidden_layers=2", "recipe.backbone.intermediate_size=64",
    "recipe.data.seq_len=32", 'recipe.data.domains=["novel", "math"]', "recipe.train.steps=2",
    "recipe.train.batch_size=2", "recipe.train.micro_batch_size=1", "recipe.train.warmup_steps=1",
    "recipe.train.eval_every=null", "recipe.train.save_every=null", "recipe.eval.windows_per_domain=1",
    "recipe.eval.tasks=[]", "recipe.eval.sample_documents=0",
]  # fmt: skip


def _new() -> set[tuple[str, str]]:
    """Entries that no suite before has: of two suites that share a method and its options, one trains it."""
    seen: dict[str, tuple[str, str]] = {}
    for name in SUITES:
        for entry in load_grid(name).entries:
            kind = "large" if name in LARGE else "small"
            seen.setdefault(to_json([kind, entry.method, entry.options, entry.recipe]), (name, entry.key))
    return set(seen.values())


NEW = _new()


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dense model of `upcycling-dense`, untrained, and a narrow one."""
    folder = tmp_path_factory.mktemp("upcycling")
    narrow = [line.removeprefix("recipe.") for line in SMALL if line.startswith("recipe.backbone")]
    for name, overrides in (("dense", []), ("narrow/dense", narrow)):
        save(build_model(load_recipe("upcycling-dense", overrides), VOCABULARY), folder / name)
    return folder


@pytest.fixture(scope="module")
def sizes_of(dense: Path) -> Solve:
    """``sizes_of("router-zoo")``: the suite and its solved sizes, once for all tests."""

    @functools.cache
    def solve(name: str) -> Sizes:
        # A layer of the large models is sized like all of them, in a fraction of the time.
        grid = load_grid(
            name, [*local(name, dense), *(["recipe.backbone.num_hidden_layers=1"] if name in LARGE else [])]
        )
        return grid, match_sizes(grid)

    return solve


# Sizes of 75 entries are solved for half a minute; the same rule holds for the others in seconds.
LONG = {"libmoe-lm-mini": [pytest.mark.slow]}


@pytest.fixture(params=[pytest.param(n, marks=LONG.get(n, [])) for n in SUITES if n != "quickstart"])
def sized(request: pytest.FixtureRequest, sizes_of: Solve) -> Sizes:
    return sizes_of(request.param)


@pytest.mark.parametrize("name", ALL)
def test_a_suite_opens_with_its_question_its_command_and_its_cost(name: str) -> None:
    """A reader of the file alone knows how to run it and what that takes."""
    head = ALL[name].read_text("utf-8").partition(f"\nname: {name}\n")[0].splitlines()
    assert all(line.startswith("#") for line in head)
    text = " ".join(line.lstrip("# ") for line in head)
    assert f"libmoe bench {name}" in text
    if name != "quickstart":
        assert "?" in text and ("on two CPU cores" in text or "FLOPs each" in text)


def test_every_method_is_in_the_mini_suite() -> None:
    """A method that is added to the package and not to the suite fails here, unless text alone does not train it."""
    shipped = {name for name in METHODS if METHODS.get(name).__module__.startswith("libmoe.methods.")}
    shipped = {name for name in shipped if comparable(name)}
    assert {entry.method for entry in load_grid("libmoe-lm-mini").entries} == shipped


def test_the_five_routers_are_compared_among_themselves_with_three_seeds() -> None:
    grid = load_grid("libmoe-lm-mini")
    assert grid.families == {"routers": FIVE} and len(grid.seeds) >= 3
    assert len(load_grid("router-zoo").seeds) >= 3


def test_what_is_matched_agrees_within_one_per_cent(sized: Sizes) -> None:
    grid, sizes = sized
    for key, matched in sizes.items():
        assert all(abs(share) <= 0.01 for share in matched.residuals.values()), (grid.name, key)
        open_ended = key in (grid.baseline, "scratch-all") or grid.name == "expert-study"
        assert matched.residuals or open_ended, (grid.name, key)


def test_a_dense_model_of_all_parameters_is_in_every_suite_of_methods(sized: Sizes) -> None:
    grid, sizes = sized
    if "dense-wide" in sizes:
        wide, reference = sizes["dense-wide"].cost, sizes[grid.reference].cost
        assert wide.total_params == wide.active_params
        assert wide.total_params == pytest.approx(reference.total_params, rel=0.01)
    else:
        assert grid.name in ("router-zoo", "upcycle-vs-scratch", "expert-study")


def test_all_routers_of_the_zoo_have_the_same_experts(sizes_of: Solve) -> None:
    grid, sizes = sizes_of("router-zoo")
    options = [entry.options for entry in grid.entries if entry.method != "dense"]
    assert {(o["num_experts"], o["top_k"]) for o in options} == {(8, 2)}
    assert set(grid.families["routers"]) == {e.key for e in grid.entries} - {"dense"}
    total = sizes["smoe"].cost.total_params
    for entry in grid.entries:
        if entry.method != "dense":
            assert sizes[entry.key].cost.total_params == pytest.approx(total, rel=0.01)


def test_experts_are_split_at_equal_active_and_total_parameters(sizes_of: Solve) -> None:
    _, sizes = sizes_of("granularity")
    splits = [m for key, m in sizes.items() if key.startswith("smoe-g")]
    assert [m.options["num_experts"] for m in splits] == [4, 8, 16, 32, 64]
    assert all(m.options["num_experts"] == 4 * m.options["top_k"] for m in splits)
    for quantity in ("active_params", "total_params"):
        counts = [getattr(m.cost, quantity) for m in splits]
        assert max(counts) / min(counts) < 1.01


def test_upcycling_is_compared_at_equal_further_flops_and_at_equal_flops_in_all(
    sizes_of: Solve,
) -> None:
    grid, sizes = sizes_of("upcycle-vs-scratch")
    before, further = load_recipe("upcycling-dense"), sizes["dense-continued"]
    tokens = before.train.steps * before.train.batch_size * before.data.seq_len
    in_all = further.train_flops + further.cost.train_flops_per_token * tokens
    for key in ("upcycled", "scratch"):
        assert sizes[key].train_flops == pytest.approx(further.train_flops, rel=0.01)
    assert sizes["scratch-all"].train_flops == pytest.approx(in_all, rel=0.01)
    assert len({sizes[key].cost.total_params for key in grid.families["mixtures"]}) == 1
    assert before.seed not in grid.seeds


@pytest.mark.parametrize(
    ("name", "active", "total", "width"),
    [("libmoe-lm-154m", 32_195_584, 153_830_400, 128), ("libmoe-lm-660m", 122_730_496, 670_087_168, 256)],
)
def test_the_large_suites_have_the_sizes_of_the_published_ones(
    name: str, active: int, total: int, width: int, dense: Path, sizes_of: Solve
) -> None:
    """Counted by hand: 154 and (without its 8 million of embeddings) 662 million; the solver leaves experts alone."""
    _, sizes = sizes_of(name)
    assert {sizes[key].options["expert_hidden"] for key in ("smoe", "sigmoid", "deepseek-v3")} == {width}
    options = sizes["deepseek-v3"].options
    assert (options["num_experts"], options["top_k"], options["shared_experts"]) == (64, 6, 2)
    grid = load_grid(name, local(name, dense))
    smoe = measure(grid, grid.entry("smoe"), sizes["smoe"].options)
    assert (smoe.active_params, smoe.total_params) == (active, total)
    assert measure(grid, grid.entry("dense"), grid.entry("dense").options).active_params == active


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SUITES if name != "quickstart"])
def test_cells_of_a_small_copy_run(name: str, dense: Path, tmp_path: Path) -> None:
    """The reference is trained and evaluated as a cell; entries that no other suite has take two steps."""
    small = [*local(name, dense / "narrow"), *SMALL]
    if name in LARGE:
        small += ["recipe.backbone.vocab_size=null", "recipe.backbone.extra.head_dim=8"]
    grid = load_grid(name, small)
    grid.select([grid.reference, *(key for suite, key in NEW if suite == name)])
    for entry in grid.entries:
        entry.match = entry.solve = None  # sizes are another test's
    for key, matched in match_sizes(grid).items():
        entry = grid.entry(key)
        recipe = matched.recipe(grid, entry, grid.seeds[0])
        recipe.train.steps, recipe.train.warmup_steps = 2, 1
        if key == grid.reference:
            row = run_cell(CellSpec(key, key, recipe, str(tmp_path / key)))
            assert (row["status"], row["error"]) == ("ok", None)
            assert 0 < row["bits_per_byte"] < 20
        else:
            assert train(recipe, tmp_path / key, quiet=True).steps == 2, key


def test_upcycled_experts_start_from_the_dense_model(sizes_of: Solve) -> None:
    grid, sizes = sizes_of("upcycle-vs-scratch")
    ids = torch.arange(16)[None]
    models = {
        key: build_model(sizes[key].recipe(grid, grid.entry(key), 0), VOCABULARY).eval()
        for key in ("dense-continued", "upcycled", "scratch")
    }
    with torch.no_grad():
        logits = {key: model(input_ids=ids).logits for key, model in models.items()}
    assert torch.allclose(logits["upcycled"], logits["dense-continued"], atol=1e-5)
    assert not torch.allclose(logits["scratch"], logits["dense-continued"], atol=1e-2)
