"""A trained network of covjax in PyTorch; the peer of predict/predict.py.

Its own process, which may run in an environment of its own: it needs torch and nothing
of covjax. It is spoken to in JSON, a line each way. The first line names the files of
the weights and of sample images, and where what the network says of these is to be
written; then {"batches": n} is answered by {"seconds": t}, from images in the host's
memory to probabilities there.

As a careful user of PyTorch would have it: norms folded into the convolutions before
them, as ONNX Runtime does by itself; channels_last; as many threads as cores; on a GPU
`torch.compile`, cuDNN's own search for the fastest convolution, and autocast to
bfloat16 where the config says so.
"""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from answers import answer
from raw_tensors import RawTensor, read_tensors

try:
    import torch
    from torch import nn
    from torch.nn import functional
except (ImportError, OSError) as error:  # a library of torch's own may be missing
    answer(missing=str(error))
    sys.exit()

_DTYPES = {"F16": torch.float16, "F32": torch.float32}
_EPSILON = 1e-5  # of Flax's BatchNorm

Leaves = dict[str, torch.Tensor]


def as_float32(raw: RawTensor) -> torch.Tensor:
    """Returns an array of a file."""
    flat = torch.frombuffer(raw.content, dtype=_DTYPES[raw.dtype])
    return flat.reshape(raw.shape).float()


def make_conv(leaves: Leaves, kernel: str, norm: str) -> nn.Conv2d:
    """Returns a convolution, and the norm after it, as one convolution.

    Args:
      leaves: names → parameters and statistics, as in the file.
      kernel: its name; [3, 3, in, out], or [in, out] for one of 1x1.
      norm: name of the norm.
    """
    weight = leaves[f"params/{kernel}/kernel"]
    weight = weight.reshape(1, 1, *weight.shape) if weight.ndim == 2 else weight
    spread = (leaves[f"batch_stats/{norm}/var"] + _EPSILON).sqrt()
    scale = leaves[f"params/{norm}/scale"] / spread
    bias = leaves[f"params/{norm}/bias"] - leaves[f"batch_stats/{norm}/mean"] * scale
    size, _, channels, features = weight.shape
    conv = nn.Conv2d(channels, features, size, padding=size // 2)
    conv.weight.data = (weight * scale).permute(3, 2, 0, 1).contiguous()
    conv.bias = nn.Parameter(bias)
    return conv


def make_upsample(leaves: Leaves, name: str) -> nn.ConvTranspose2d:
    """Returns a transposed 2x2 convolution of stride 2."""
    kernel = leaves[f"params/{name}/kernel"]
    conv = nn.ConvTranspose2d(kernel.shape[2], kernel.shape[3], 2, stride=2)
    # JAX's transposed convolution correlates, torch's convolves.
    conv.weight.data = kernel.flip(0, 1).permute(2, 3, 0, 1).contiguous()
    conv.bias = nn.Parameter(leaves[f"params/{name}/bias"])
    return conv


class ConvBlock(nn.Module):
    """Twice: a 3x3 convolution with its norm, a ReLU; with a shortcut if there is one.

    The same as covjax.models.unet.ConvBlock.
    """

    def __init__(self, leaves: Leaves, name: str):
        """Makes the layers."""
        super().__init__()
        self.convs = nn.ModuleList(
            make_conv(leaves, f"{name}/conv_{i}", f"{name}/norm_{i}") for i in range(2)
        )
        self.shortcut: nn.Module | None = None
        if f"params/{name}/shortcut/kernel" in leaves:
            self.shortcut = make_conv(
                leaves, f"{name}/shortcut", f"{name}/norm_shortcut"
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [B, C, H, W] to [B, features, H, W]."""
        past = self.shortcut(x) if self.shortcut is not None else None
        x = self.convs[1](functional.relu(self.convs[0](x), inplace=True))
        x = x if past is None else x.add_(past)
        return functional.relu(x, inplace=True)


class Network(nn.Module):
    """What covjax.export.inference computes, of networks with batch norm."""

    def __init__(self, leaves: Leaves, config: dict[str, Any]):
        """Makes the layers.

        Args:
          leaves: names → parameters and statistics.
          config: of the run.
        """
        super().__init__()
        levels = range(config["model"]["depth"])
        self.encoders = nn.ModuleList(ConvBlock(leaves, f"encoder_{i}") for i in levels)
        self.bottleneck = ConvBlock(leaves, "bottleneck")
        self.upsamples = nn.ModuleList(
            make_upsample(leaves, f"upsample_{i}") for i in levels
        )
        self.decoders = nn.ModuleList(ConvBlock(leaves, f"decoder_{i}") for i in levels)
        kernel = leaves["params/head/kernel"]
        self.head = nn.Conv2d(kernel.shape[2], 1, 1)
        self.head.weight.data = kernel.permute(3, 2, 0, 1).contiguous()
        self.head.bias = nn.Parameter(leaves["params/head/bias"])
        self.presence: nn.Linear | None = None
        if config["model"]["presence_head"]:
            kernel = leaves["params/presence/kernel"]
            self.presence = nn.Linear(kernel.shape[0], 1)
            self.presence.weight.data = kernel.T.contiguous()
            self.presence.bias = nn.Parameter(leaves["params/presence/bias"])
        self.flip = config["eval"]["tta_flip"]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Maps images, uint8 [B, H, W, C], to probabilities [B, H, W], and [B]."""
        x = images.permute(0, 3, 1, 2).float().div(255)
        x = x.contiguous(memory_format=torch.channels_last)
        if not self.flip:
            told = self._unet(x)
        else:
            told = self._unet(torch.cat([x, x.flip(3)]))
            pairs = [logits.chunk(2) for logits in told]
            told = [(pairs[0][0] + pairs[0][1].flip(2)) / 2]
            told += [(seen + mirrored) / 2 for seen, mirrored in pairs[1:]]
        return [torch.sigmoid(logits.float()) for logits in told]

    def _unet(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Maps [B, C, H, W] to logits [B, H, W] and, with that head, [B]."""
        skips = []
        for encoder in self.encoders:
            x = encoder(x)
            skips.append(x)
            x = functional.max_pool2d(x, 2)
        x = self.bottleneck(x)
        presence = []
        if self.presence is not None:
            pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
            presence = [self.presence(pooled)[:, 0]]
        for i in reversed(range(len(skips))):
            x = torch.cat([skips[i], self.upsamples[i](x)], 1)
            x = self.decoders[i](x)
        return [self.head(x)[:, 0], *presence]


class Peer:
    """The network, and a batch of images in the host's memory."""

    def __init__(self, told: dict[str, Any]):
        """Makes them, and writes what the network says of the images.

        Args:
          told: the first line: "weights" and "images" (uint8 of "shape", [N, H, W, C])
            are files, "said" is one to be; "batch" and "threads" are numbers.
        """
        torch.set_num_threads(told["threads"])
        torch.backends.cudnn.benchmark = True  # the shapes stay: look for the fastest
        gpu = torch.cuda.is_available()
        self._device = "cuda" if gpu else "cpu"
        tensors, config = read_tensors(Path(told["weights"]))
        leaves = {name: as_float32(raw) for name, raw in tensors.items()}
        network = Network(leaves, config).eval().to(self._device)
        network = network.to(memory_format=torch.channels_last)
        self._network: Any = torch.compile(network) if gpu else network
        self._half = gpu and config["model"]["dtype"] == "bfloat16"
        content = bytearray(Path(told["images"]).read_bytes())
        samples = torch.frombuffer(content, dtype=torch.uint8).reshape(told["shape"])
        # A batch at a time, so that the network is compiled for no other number.
        n, batch = len(samples), told["batch"]
        batches = [
            self._say(samples[torch.arange(start, start + batch) % n])
            for start in range(0, n, batch)
        ]
        with open(told["said"], "wb") as out:
            for parts in zip(*batches, strict=True):
                out.write(_bytes(torch.cat(parts)[:n]))
        self._images = samples[torch.arange(batch) % n]

    def _say(self, samples: torch.Tensor) -> list[torch.Tensor]:
        half = contextlib.nullcontext()
        if self._half:
            half = torch.autocast(self._device, torch.bfloat16)
        with torch.inference_mode(), half:
            return [told.cpu() for told in self._network(samples.to(self._device))]

    def run(self, batches: int) -> float:
        """Returns the seconds that some batches take."""
        start = time.perf_counter()
        for _ in range(batches):
            self._say(self._images)
        return time.perf_counter() - start


def _bytes(values: torch.Tensor) -> bytearray:
    """Returns float32 values in C order."""
    content = bytearray(4 * values.numel())
    torch.frombuffer(content, dtype=torch.float32).copy_(values.flatten())
    return content


def _main() -> None:
    peer = Peer(json.loads(sys.stdin.readline()))
    gpu = torch.cuda.is_available()
    answer(
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name() if gpu else "cpu",
        form="compiled" if gpu else "eager",
    )
    for line in sys.stdin:
        answer(seconds=peer.run(json.loads(line)["batches"]))


if __name__ == "__main__":
    _main()
