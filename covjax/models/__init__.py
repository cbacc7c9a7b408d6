"""Networks, and `make_model`, which makes the one that a config asks for."""

import jax.numpy as jnp
import ml_collections

from covjax.models.unet import UNet


def make_model(config: ml_collections.ConfigDict) -> UNet:
    """Returns the network of `config.model`; its parameters come from `init`."""
    model = config.model
    return UNet(
        width=model.width,
        depth=model.depth,
        norm=model.norm,
        upsample=model.upsample,
        dropout=model.dropout,
        dtype=jnp.dtype(model.dtype),
        remat=model.remat,
        intensity=model.intensity,
        residual=model.residual,
        presence_head=model.presence_head,
        deep_supervision=model.deep_supervision,
    )
