"""The same U-Net, loss and optimizer in PyTorch; the peer of step.py.

Its own process, which may run in an environment of its own: it needs torch and nothing
of covjax. It is spoken to in JSON, a line each way: first the settings, then
{"kind": "train" or "infer", "steps": n}, which is answered by {"seconds": t}.

As a careful user of PyTorch would have it: channels_last; autocast to bfloat16 where
the config says so; on a GPU `torch.compile`, cuDNN's own search for the fastest
convolution, and a fused AdamW.
"""

import contextlib
import json
import sys
import time
from typing import Any

from answers import answer

try:
    import torch
    from torch import nn
    from torch.nn import functional
except (ImportError, OSError) as error:  # a library of torch's own may be missing
    answer(missing=str(error))
    sys.exit()


class ConvBlock(nn.Module):
    """Twice: a 3x3 convolution, a norm, a ReLU."""

    def __init__(self, channels: int, features: int):
        """Makes the layers."""
        super().__init__()
        layers = []
        for of_input in (channels, features):
            layers += [
                nn.Conv2d(of_input, features, 3, padding=1, bias=False),
                nn.BatchNorm2d(features),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [B, C, H, W] to [B, features, H, W]."""
        return self.layers(x)


class UNet(nn.Module):
    """The layers of covjax.models.unet.UNet, with its transposed convolutions."""

    def __init__(self, width: int, depth: int):
        """Makes the layers."""
        super().__init__()
        sizes = [width * 2**i for i in range(depth + 1)]
        self.encoders = nn.ModuleList(
            ConvBlock(c, f) for c, f in zip([1, *sizes], sizes[:-1], strict=False)
        )
        self.bottleneck = ConvBlock(sizes[-2], sizes[-1])
        self.upsamples = nn.ModuleList(
            nn.ConvTranspose2d(2 * f, f, 2, stride=2) for f in sizes[:-1]
        )
        self.decoders = nn.ModuleList(ConvBlock(2 * f, f) for f in sizes[:-1])
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images [B, 1, H, W] to logits [B, 1, H, W]."""
        skips = []
        for encoder in self.encoders:
            x = encoder(x)
            skips.append(x)
            x = functional.max_pool2d(x, 2)
        x = self.bottleneck(x)
        for i in reversed(range(len(skips))):
            x = torch.cat([skips[i], self.upsamples[i](x)], 1)
            x = self.decoders[i](x)
        return self.head(x)


def soft_dice_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The mean, over images, of covjax.train.losses.soft_dice_loss."""
    p, axes = torch.sigmoid(logits.float()), (1, 2, 3)
    both = (p * masks).sum(axes)
    return (1 - (2 * both + 1) / (p.sum(axes) + masks.sum(axes) + 1)).mean()


class Steps:
    """A network, its optimizer, and a batch that lies on the device."""

    def __init__(self, settings: dict[str, Any]):
        """Makes them.

        Args:
          settings: width, depth, image_size, batch, dtype ("float32" or "bfloat16").
        """
        self._gpu = torch.cuda.is_available()
        device = "cuda" if self._gpu else "cpu"
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = True  # the shapes stay: look for the fastest
        model = UNet(settings["width"], settings["depth"]).to(device)
        self._eager = model.to(memory_format=torch.channels_last)
        self._optimizer = torch.optim.AdamW(
            model.parameters(), 1e-3, weight_decay=1e-4, fused=self._gpu
        )
        self._model: Any = torch.compile(self._eager) if self._gpu else self._eager
        shape = (settings["batch"], 1, settings["image_size"], settings["image_size"])
        self._images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        self._masks = torch.randint(0, 2, shape, device=device).float()
        self._half = settings["dtype"] == "bfloat16"
        self._device = device

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._half:
            return torch.autocast(self._device, torch.bfloat16)
        return contextlib.nullcontext()

    def _logits(self) -> torch.Tensor:
        images = self._images.float().div(255)
        with self._autocast():
            return self._model(images.contiguous(memory_format=torch.channels_last))

    def _train(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        soft_dice_loss(self._logits(), self._masks).backward()
        nn.utils.clip_grad_norm_(self._eager.parameters(), 1.0)
        self._optimizer.step()

    def run(self, kind: str, steps: int) -> float:
        """Returns the seconds that some steps take.

        Args:
          kind: "train" or "infer".
          steps: how many.
        """
        self._model.train(kind == "train")
        start = time.perf_counter()
        for _ in range(steps):
            if kind == "train":
                self._train()
            else:
                with torch.inference_mode():
                    self._logits()
        if self._gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start


def _main() -> None:
    steps = Steps(json.loads(sys.stdin.readline()))
    form = "compiled" if torch.cuda.is_available() else "eager"
    answer(torch=torch.__version__, threads=torch.get_num_threads(), form=form)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer(seconds=steps.run(question["kind"], question["steps"]))
        except torch.OutOfMemoryError:
            answer(failed="out of memory")
            return


if __name__ == "__main__":
    _main()
