"""Every leaf of a transfer is taken or starts anew by name; nothing is guessed."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covjax.errors import UsageError
from covjax.models.unet import ConvBlock, UNet
from covjax.train.transfer import format_transfer, transfer

HEAD = ("^params/head/",)


def make_tree(value: float) -> dict:
    """The leaves of a small network, each filled with one number."""
    return {
        "params": {
            "encoder_0": {
                "conv_0": {"kernel": np.full((3, 3, 1, 2), value)},
                "norm_0": {"bias": np.full(2, value), "scale": np.full(2, value)},
            },
            "head": {"bias": np.full(1, value), "kernel": np.full((1, 2), value)},
        },
        "batch_stats": {
            "encoder_0": {
                "norm_0": {"mean": np.full(2, value), "var": np.full(2, value)}
            }
        },
    }


def values(tree: dict) -> dict[str, float]:
    """Names → the number that fills a leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        "/".join(key.key for key in path): float(np.unique(leaf).item())
        for path, leaf in leaves
    }


def refusal(source: dict, target: dict, fresh=HEAD) -> str:
    with pytest.raises(UsageError) as caught:
        transfer(source, target, fresh=fresh, name="runs/lung")
    return str(caught.value)


def test_all_but_the_fresh_leaves_come_from_the_source():
    result = transfer(make_tree(1), make_tree(2), fresh=HEAD, name="runs/lung")
    found = values(result.variables)
    assert {name for name, value in found.items() if value == 2} == {
        "params/head/bias",
        "params/head/kernel",
    }
    assert result.fresh == ("params/head/bias", "params/head/kernel")
    assert set(result.taken) == {name for name, value in found.items() if value == 1}
    assert jax.tree.structure(result.variables) == jax.tree.structure(make_tree(0))


def test_batch_statistics_travel():
    result = transfer(make_tree(1), make_tree(2), fresh=HEAD, name="runs/lung")
    assert set(values(result.variables["batch_stats"]).values()) == {1}
    assert "batch_stats/encoder_0/norm_0/mean" in result.taken
    assert "batch_stats/encoder_0/norm_0/var" in result.taken


def test_source_and_target_stay_as_they_are():
    source, target = make_tree(1), make_tree(2)
    transfer(source, target, fresh=HEAD, name="runs/lung")
    assert values(source) == values(make_tree(1))
    assert values(target) == values(make_tree(2))


def test_without_patterns_everything_is_taken():
    result = transfer(make_tree(1), make_tree(2), fresh=(), name="runs/lung")
    assert set(values(result.variables).values()) == {1}
    assert result.fresh == ()
    assert len(result.taken) == 7


@pytest.mark.parametrize(
    ("fresh", "expected"),
    [
        (("head", "norm_0"), 6),
        (("kernel$",), 2),
        (("^batch_stats/",), 2),
        (("^params/encoder_0/", "/conv_0/"), 3),  # a leaf may match twice
    ],
)
def test_patterns_are_searched_in_the_whole_name(fresh, expected):
    result = transfer(make_tree(1), make_tree(2), fresh=fresh, name="runs/lung")
    assert len(result.fresh) == expected
    assert list(values(result.variables).values()).count(2) == expected
    assert all(any(re.search(p, leaf) for p in fresh) for leaf in result.fresh)


def test_leaf_that_the_source_lacks_is_named():
    source = make_tree(1)
    del source["params"]["encoder_0"]["norm_0"]
    said = refusal(source, make_tree(2))
    assert said.startswith("params/encoder_0/norm_0/bias is not in runs/lung: ")


def test_leaf_that_only_the_source_has_is_named():
    source = make_tree(1)
    source["params"]["encoder_1"] = {"kernel": np.ones(1)}
    said = refusal(source, make_tree(2))
    assert said.startswith("params/encoder_1/kernel of runs/lung is not in here: ")


def test_leaf_of_another_shape_is_named_with_both():
    source = make_tree(1)
    source["params"]["encoder_0"]["conv_0"]["kernel"] = np.ones((3, 3, 1, 4))
    source["params"]["encoder_0"]["norm_0"]["bias"] = np.ones(4)
    assert refusal(source, make_tree(2)).startswith(
        "params/encoder_0/conv_0/kernel is (3, 3, 1, 4) in runs/lung and"
        " (3, 3, 1, 2) here: "
    )


def test_statistics_that_the_source_lacks_are_named():
    source = make_tree(1) | {"batch_stats": {}}
    said = refusal(source, make_tree(2))
    assert said.startswith("batch_stats/encoder_0/norm_0/mean is not in runs/lung: ")


def test_pattern_that_matches_nothing_is_named():
    said = refusal(make_tree(1), make_tree(2), fresh=("^params/head/", "^head/"))
    assert "'^head/' matches no leaf" in said
    assert "batch_stats/encoder_0/norm_0/mean" in said  # how leaves are named


def test_bad_regular_expression_is_named():
    said = refusal(make_tree(1), make_tree(2), fresh=("params/(head",))
    assert "config.transfer.fresh" in said and "params/(head" in said


FIRST = "params/encoder_0/conv_0/kernel"


def with_first(value: float, shape: tuple[int, ...]) -> dict:
    tree = make_tree(value)
    tree["params"]["encoder_0"]["conv_0"]["kernel"] = np.full(shape, value)
    return tree


def test_first_convolution_may_have_more_inputs_than_its_source():
    source, target = with_first(1, (3, 3, 1, 2)), with_first(2, (3, 3, 3, 2))
    result = transfer(source, target, fresh=HEAD, name="runs/lung")
    kernel = result.variables["params"]["encoder_0"]["conv_0"].pop("kernel")
    assert kernel.shape == (3, 3, 3, 2)
    assert (kernel[:, :, 0] == 1).all() and (kernel[:, :, 1:] == 0).all()
    assert result.widened == (FIRST,) and FIRST in result.taken
    others = values(result.variables)
    assert {name for name, value in others.items() if value == 2} == set(result.fresh)
    assert values(source) == values(make_tree(1))  # not changed


def test_nothing_is_widened_where_shapes_are_the_same_or_the_leaf_is_fresh():
    result = transfer(make_tree(1), make_tree(2), fresh=HEAD, name="runs/lung")
    assert result.widened == ()
    assert "widened" not in format_transfer(result, "runs/lung")
    target = with_first(2, (3, 3, 2, 2))
    result = transfer(make_tree(1), target, fresh=("conv_0",), name="runs/lung")
    assert result.widened == () and values(result.variables)[FIRST] == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((3, 3, 2, 2), (3, 3, 1, 2)),  # fewer
        ((3, 3, 1, 2), (3, 3, 2, 4)),  # and another width
        ((3, 3, 1, 2), (5, 5, 2, 2)),  # and another window
        ((1, 2), (3, 3, 2, 2)),
    ],
)
def test_first_convolution_that_differs_otherwise_is_refused(old, new):
    said = refusal(with_first(1, old), with_first(2, new))
    assert said.startswith(f"{FIRST} is {old} in runs/lung and {new} here: ")
    assert "config.data.roi_as" in said


def test_no_other_kernel_is_widened():
    source, target = make_tree(1), make_tree(2)
    for tree, inputs in ((source, 1), (target, 2)):
        kernel = np.ones((3, 3, inputs, 2))
        tree["params"]["encoder_1"] = {"conv_0": {"kernel": kernel}}
    said = refusal(source, target)
    assert said.startswith("params/encoder_1/conv_0/kernel is (3, 3, 1, 2) in")


def test_widened_block_says_at_first_what_its_source_says():
    block = ConvBlock(2, "group", jnp.dtype("float32"), residual=True)  # two ways in
    rng = np.random.default_rng(0)
    both = rng.random((2, 8, 8, 2), np.float32)
    sample = both[..., :1]

    def start(image: np.ndarray) -> dict:
        init = functools.partial(block.init, train=False)
        shapes = jax.eval_shape(init, jax.random.key(0), image)["params"]
        params = jax.tree.map(lambda s: rng.normal(size=s.shape), shapes)
        return {"params": {"encoder_0": params}, "batch_stats": {}}

    def says(tree: dict, image: np.ndarray) -> np.ndarray:
        params = tree["params"]["encoder_0"]
        return np.asarray(block.apply({"params": params}, image, train=False))

    source = start(sample)
    result = transfer(source, start(both), fresh=(), name="runs/lung")
    assert len(result.widened) == 2
    np.testing.assert_allclose(
        says(result.variables, both), says(source, sample), rtol=1e-5, atol=1e-6
    )


def test_fresh_leaf_may_have_another_shape_in_the_source():
    source = make_tree(1)
    source["params"]["head"]["kernel"] = np.ones((1, 9))
    result = transfer(source, make_tree(2), fresh=HEAD, name="runs/lung")
    assert result.variables["params"]["head"]["kernel"].shape == (1, 2)


def test_fresh_leaf_may_be_absent_in_the_source():
    source = make_tree(1)
    del source["params"]["head"]
    result = transfer(source, make_tree(2), fresh=HEAD, name="runs/lung")
    assert values(result.variables)["params/head/kernel"] == 2


def test_surplus_leaf_of_the_source_may_be_explained():
    source = make_tree(1)
    source["params"]["head"]["temperature"] = np.ones(1)
    result = transfer(source, make_tree(2), fresh=HEAD, name="runs/lung")
    assert set(values(result.variables)) == set(values(make_tree(0)))


def test_leaves_that_only_the_source_has_are_explained_by_a_pattern_of_their_own():
    source, target = make_tree(1), make_tree(0)
    source["params"]["deep_1"] = {"kernel": np.full((1, 2), 1.0)}
    said = refusal(source, target)
    assert "params/deep_1/kernel" in said and "config.transfer.fresh" in said
    found = transfer(source, target, fresh=(*HEAD, "^params/deep_"), name="runs/lung")
    assert "deep_1" not in found.variables["params"]
    assert not any("deep_1" in leaf for leaf in (*found.taken, *found.fresh))


def test_network_without_batch_statistics_is_taken():
    source, target = (make_tree(k) | {"batch_stats": {}} for k in (1, 2))
    result = transfer(source, target, fresh=HEAD, name="runs/lung")
    assert result.variables["batch_stats"] == {}
    assert len(result.taken) == 3
    assert len(result.fresh) == 2


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_names_of_the_network_fit_the_patterns_of_the_config(norm):
    image = np.zeros((1, 8, 8, 1), np.float32)
    shapes = jax.eval_shape(
        lambda key: UNet(width=2, depth=1, norm=norm).init(key, image, train=False),
        jax.random.key(0),
    )
    tree = {"batch_stats": {}} | jax.tree.map(lambda s: np.zeros(s.shape), shapes)
    result = transfer(tree, tree, fresh=HEAD, name="runs/lung")
    assert result.fresh == ("params/head/bias", "params/head/kernel")
    assert bool(result.variables["batch_stats"]) == (norm == "batch")


def test_table_adds_up():
    result = transfer(
        make_tree(1), make_tree(2), fresh=("head", "norm_0/bias"), name="runs/lung"
    )
    first, header, *rows = format_transfer(result, "runs/lung").splitlines()
    assert first == "4 leaves from runs/lung, 3 start anew"
    assert header.split() == ["module", "taken", "anew"]
    counts = {name: (int(a), int(b)) for name, a, b in map(str.split, rows)}
    assert counts == {
        "batch_stats/encoder_0": (2, 0),
        "params/encoder_0": (2, 1),
        "params/head": (0, 2),
    }
    assert len({len(line) for line in (header, *rows)}) == 1


def test_table_tells_what_was_widened():
    target = with_first(2, (3, 3, 2, 2))
    result = transfer(make_tree(1), target, fresh=HEAD, name="runs/lung")
    first, widened, header, *_ = format_transfer(result, "runs/lung").splitlines()
    assert first == "5 leaves from runs/lung, 2 start anew"
    assert widened.startswith(f"{FIRST} is widened: ") and "start at 0" in widened
    assert header.split() == ["module", "taken", "anew"]
