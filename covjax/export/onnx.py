"""A network as ONNX, for ONNX Runtime, OpenVINO, TensorRT and others.

The graph is written here, node by node, from the parameters: what models/unet.py and
models/intensity.py compute stands here a second time. A converter of JAX functions
(jax2onnx 0.17) cannot be installed beside this Orbax. What keeps the two alike: every
parameter has to be used, each export is run and compared before it is written, and
tests do so over all settings.

Inside, pictures are [B, C, H, W]. `metadata_props` has what the numbers mean, as
`weights.describe` tells it, under "covjax".
"""

import math
from typing import Any

import ml_collections
import numpy as np
import onnx
import onnxruntime
from flax.traverse_util import flatten_dict
from onnx import TensorProto, helper, numpy_helper

from covjax.data.pipeline import make_region
from covjax.errors import UsageError
from covjax.export.safetensors import Weights, describe

OPSET, IR = 21, 10  # of ONNX 1.16 (2024): the first whose GroupNormalization is Flax's
_EPSILON = {"batch": 1e-5, "group": 1e-6}  # Flax's
_LEVELS = 256


def make_onnx(weights: Weights) -> bytes:
    """Returns the content of a file: images to probabilities, as in inference.py.

    Raises:
      UsageError: if the network has a part that is not known here.
    """
    trained = weights.trained
    config, side = trained.config, trained.config.data.image_size
    graph = _Graph(flatten_dict(trained.state.evaluated(), sep="/"))
    try:
        logits, presence = _network(graph, config)
    except KeyError as error:
        raise UsageError(
            f"{trained.run}: no {error.args[0]}, which --format=onnx needs;"
            " --format=stablehlo does without"
        ) from None
    if unknown := graph.unused():
        raise UsageError(
            f"{trained.run}: --format=onnx does not know {unknown[0]};"
            " --format=stablehlo does"
        )
    logits = graph.add("Transpose", logits, perm=[0, 2, 3, 1])
    told = {"probability": (logits, [side, side, 1])}
    if presence is not None:
        told["presence"] = (presence, [])
    for name, (value, _) in told.items():
        graph.nodes.append(helper.make_node("Sigmoid", [value], [name]))
    shown = [side, side, make_region(config.data).channels]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            config.data.task,
            [_value("image", TensorProto.UINT8, shown)],
            [_value(name, TensorProto.FLOAT, of) for name, (_, of) in told.items()],
            [numpy_helper.from_array(a, name) for name, a in graph.constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR,
        producer_name="covjax",
    )
    helper.set_model_props(model, {"covjax": describe(weights)})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def run_onnx(content: bytes, images: np.ndarray) -> dict[str, np.ndarray]:
    """Computes what a file says of images, by ONNX Runtime on the CPU."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    arrays = map(np.asarray, session.run(names, {"image": images}))
    return dict(zip(names, arrays, strict=True))


def _value(name: str, dtype: int, shape: list[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, ["batch", *shape])


class _Graph:
    """Nodes and constants so far; values are known by their names.

    Attributes:
      nodes: in the order in which they are computed.
      constants: names → arrays.
    """

    def __init__(self, leaves: dict[str, Any]):
        """Starts with no node.

        Args:
          leaves: parameters and statistics, "params/head/bias" → array.
        """
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._leaves = leaves
        # Heads of coarser levels are for training alone.
        self._used = {leaf for leaf in leaves if leaf.startswith("params/deep_")}

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; returns the name of its output, or a list of several."""
        names = [f"{op}_{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value: Any, dtype: type = np.float32) -> str:
        """Adds a constant; returns its name."""
        return self._keep(f"constant_{len(self.constants)}", np.asarray(value, dtype))

    def numbers(self, *values: int) -> str:
        """Adds whole numbers, as shapes and axes are given; returns their name."""
        return self.constant(values, np.int64)

    def leaf(self, name: str) -> np.ndarray:
        """Returns a parameter.

        Raises:
          KeyError: if there is none.
        """
        self._used.add(name)
        return np.asarray(self._leaves[name], np.float32)

    def parameter(self, name: str) -> str:
        """Adds a parameter as it is; returns its name."""
        return self._keep(name, self.leaf(name))

    def kernel(self, name: str, *axes: int, turned: bool = False) -> str:
        """Adds a kernel [h, w, in, out] with other axes, or turned by 180 degrees."""
        kernel = self.leaf(name)
        kernel = kernel.reshape(1, 1, *kernel.shape) if kernel.ndim == 2 else kernel
        kernel = kernel[::-1, ::-1] if turned else kernel
        return self._keep(name, kernel.transpose(axes))

    def unused(self) -> list[str]:
        """Returns the parameters that nobody asked for, sorted."""
        return sorted(self._leaves.keys() - self._used)

    def _keep(self, name: str, array: np.ndarray) -> str:
        self.constants[name] = np.ascontiguousarray(array)
        return name


def _network(
    graph: _Graph, config: ml_collections.ConfigDict
) -> tuple[str, str | None]:
    """Adds all from "image" to logits [B, 1, H, W] and, with that head, [B]."""
    image = graph.add("Transpose", "image", perm=[0, 3, 1, 2])
    sample, *others = [image]
    if make_region(config.data).channels > 1:
        sample, *others = graph.add("Split", image, outputs=2, axis=1, num_outputs=2)
    x = _normalized(graph, sample, config)
    if others:
        x = graph.add("Concat", x, *(_unit(graph, o) for o in others), axis=1)
    if not config.eval.tta_flip:
        return _unet(graph, x, config.model)
    # The mirror image goes through the same nodes, as a second half of the batch.
    logits, presence = _unet(
        graph, graph.add("Concat", x, _mirrored(graph, x), axis=0), config.model
    )
    seen, mirrored = _halves(graph, logits)
    logits = _mean(graph, seen, _mirrored(graph, mirrored))
    return logits, presence and _mean(graph, *_halves(graph, presence))


def _unet(
    graph: _Graph, x: str, model: ml_collections.ConfigDict
) -> tuple[str, str | None]:
    skips = []
    for i in range(model.depth):
        x = _block(graph, x, f"encoder_{i}", model)
        skips.append(x)
        x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = _block(graph, x, "bottleneck", model)
    presence = _presence(graph, x) if model.presence_head else None
    for i in reversed(range(model.depth)):
        # JAX's transposed convolution correlates, ONNX's convolves.
        kernel = graph.kernel(f"params/upsample_{i}/kernel", 2, 3, 0, 1, turned=True)
        bias = graph.parameter(f"params/upsample_{i}/bias")
        x = graph.add("ConvTranspose", x, kernel, bias, strides=[2, 2])
        x = graph.add("Concat", skips[i], x, axis=1)
        x = _block(graph, x, f"decoder_{i}", model)
    kernel = graph.kernel("params/head/kernel", 3, 2, 0, 1)
    return graph.add("Conv", x, kernel, graph.parameter("params/head/bias")), presence


def _block(graph: _Graph, x: str, name: str, model: ml_collections.ConfigDict) -> str:
    past = None
    if model.residual and not name.startswith("decoder"):
        kernel = graph.kernel(f"params/{name}/shortcut/kernel", 3, 2, 0, 1)
        past = graph.add("Conv", x, kernel)
        past = _norm(graph, past, f"{name}/norm_shortcut", model.norm)
    for i in range(2):
        kernel = graph.kernel(f"params/{name}/conv_{i}/kernel", 3, 2, 0, 1)
        x = graph.add("Conv", x, kernel, pads=[1, 1, 1, 1])
        x = _norm(graph, x, f"{name}/norm_{i}", model.norm)
        if i == 1 and past is not None:
            x = graph.add("Add", x, past)
        x = graph.add("Relu", x)
    return x


def _norm(graph: _Graph, x: str, name: str, norm: str) -> str:
    scale = graph.parameter(f"params/{name}/scale")
    bias = graph.parameter(f"params/{name}/bias")
    epsilon = _EPSILON[norm]
    if norm == "group":
        groups = math.gcd(len(graph.constants[scale]), 8)
        return graph.add(
            "GroupNormalization", x, scale, bias, num_groups=groups, epsilon=epsilon
        )
    mean = graph.parameter(f"batch_stats/{name}/mean")
    variance = graph.parameter(f"batch_stats/{name}/var")
    return graph.add(
        "BatchNormalization", x, scale, bias, mean, variance, epsilon=epsilon
    )


def _presence(graph: _Graph, x: str) -> str:
    pooled = [graph.add("GlobalAveragePool", x), graph.add("GlobalMaxPool", x)]
    flat = graph.add("Flatten", graph.add("Concat", *pooled, axis=1))
    kernel = graph.parameter("params/presence/kernel")
    logit = graph.add("Gemm", flat, kernel, graph.parameter("params/presence/bias"))
    return graph.add("Squeeze", logit, graph.numbers(1))


def _normalized(graph: _Graph, sample: str, config: ml_collections.ConfigDict) -> str:
    """Adds models/intensity.py: levels uint8 [B, 1, H, W] to floats."""
    how, side = config.model.intensity, config.data.image_size
    if how == "standard":
        return _standardized(graph, sample)
    if how == "equal":
        return _equalized(graph, sample, side)
    return _unit(graph, sample)


def _unit(graph: _Graph, levels: str) -> str:
    return graph.add("Div", _float(graph, levels), graph.constant(255))


def _standardized(graph: _Graph, sample: str) -> str:
    levels, shown = _float(graph, sample), _float(graph, _above_black(graph, sample))
    one = graph.constant(1)
    pixels = graph.add("Max", _sum(graph, shown), one)
    # Of whole numbers: in float32 a sum of many large ones would be rounded.
    whole = graph.add("Cast", sample, to=TensorProto.INT32)
    mean = graph.add("Div", _float(graph, _sum(graph, whole)), pixels)
    centred = graph.add("Mul", graph.add("Sub", levels, mean), shown)
    squares = _sum(graph, graph.add("Mul", centred, centred))
    spread = graph.add("Sqrt", graph.add("Div", squares, pixels))
    return graph.add("Div", centred, graph.add("Max", spread, one))


def _equalized(graph: _Graph, sample: str, side: int) -> str:
    indices = graph.add("Cast", sample, to=TensorProto.INT64)
    indices = graph.add("Reshape", indices, graph.numbers(0, side * side))
    shown = _float(graph, _above_black(graph, indices))  # pixels at 0 do not count
    batch = graph.add("Shape", sample, start=0, end=1)
    size = graph.add("Concat", batch, graph.numbers(_LEVELS), axis=0)
    none = graph.add("Expand", graph.constant([0]), size)
    counts = graph.add("ScatterElements", none, indices, shown, axis=1, reduction="add")
    axis = graph.numbers(1)
    upto = graph.add("CumSum", counts, axis)
    half = graph.add("Div", counts, graph.constant(2))
    all_shown = graph.add("ReduceSum", counts, axis)
    all_shown = graph.add("Max", all_shown, graph.constant(1))
    ranks = graph.add("Div", graph.add("Sub", upto, half), all_shown)
    sample = graph.add("GatherElements", ranks, indices, axis=1)
    return graph.add("Reshape", sample, graph.numbers(0, 1, side, side))


def _above_black(graph: _Graph, levels: str) -> str:
    """Adds which pixels are not 0, bool."""
    return graph.add("Cast", levels, to=TensorProto.BOOL)


def _float(graph: _Graph, x: str) -> str:
    return graph.add("Cast", x, to=TensorProto.FLOAT)


def _sum(graph: _Graph, x: str) -> str:
    """Adds the sum over each image of [B, C, H, W]."""
    return graph.add("ReduceSum", x, graph.numbers(1, 2, 3))


def _mirrored(graph: _Graph, x: str) -> str:
    """Adds [B, C, H, W] from right to left."""
    first, last = graph.numbers(-1), graph.numbers(np.iinfo(np.int64).min)
    return graph.add("Slice", x, first, last, graph.numbers(3), graph.numbers(-1))


def _halves(graph: _Graph, x: str) -> list[str]:
    return graph.add("Split", x, outputs=2, axis=0, num_outputs=2)


def _mean(graph: _Graph, a: str, b: str) -> str:
    return graph.add("Div", graph.add("Add", a, b), graph.constant(2))
