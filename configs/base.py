"""What both stages share. The variant, after a colon, says how large a run is.

- `lung.py`: the study, 256 px and width 64 on COVID-QU-Ex, on an accelerator.
- `lung.py:laptop`: the same images at 128 px and width 16, what two cores can do.
- `lung.py:phantom`: a small model on synthetic images, a minute or two on two cores.
"""

import ml_collections

VARIANTS = ("", "laptop", "phantom")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the settings that do not depend on the stage."""
    if variant not in VARIANTS:
        raise ValueError(
            f"no variant {variant!r}: {', '.join(v or '(none)' for v in VARIANTS)}"
        )
    config = ml_collections.ConfigDict()
    config.seed = 0  # of parameters, order, augmentation and dropout
    config.init_from = ""  # a run or a checkpoint to start from; --init_from sets it

    config.data = ml_collections.ConfigDict()
    config.data.root = ""  # else $COVJAX_DATA, else data/COVID-QU-Ex
    config.data.phantom_images = ()  # (Train, Val, Test): synthetic images, no root
    config.data.task = "lung"  # whose mask is the target: "lung" or "infection"
    # Region of interest: "none" (the whole image), "truth" (inside the true lungs),
    # "predicted" (inside the lungs that a stage-1 run predicts), "outside" (everything
    # but the true lungs, a test for shortcut learning).
    config.data.roi = "none"
    config.data.roi_dilate = 0  # pixels by which those lungs are widened
    # How the network gets it: "cut" (image x lungs, black elsewhere) or "channel" (the
    # whole image, with the lungs as a second channel).
    config.data.roi_as = "cut"
    config.data.lung_run = ""  # the run of stage 1; else init_from, where it is one
    config.data.image_size = 256
    config.data.train_share = 1.0  # of the Train images, the same share of each class
    # Share of each training batch that shows COVID-19, at the first step and at the
    # last, linear between; (): images as they come, each once an epoch.
    config.data.positive_share = ()
    # Folder of the images decoded once; "auto": $COVJAX_CACHE, else ~/.cache/covjax;
    # "": the images are decoded each time.
    config.data.cache = "auto"
    config.data.threads = 1  # that read and augment, in each worker
    # Number of worker processes that load training images; -1: half of the cores with
    # an accelerator, else none (covjax/runtime/cores.py).
    config.data.workers = -1
    config.data.prefetch = 4  # batches that wait on the host
    # All images and masks are looked at before the first step. One that cannot be used
    # is an "error", or, up to 1 % of a split, left out and listed: "skip".
    config.data.on_bad_record = "error"

    config.augment = ml_collections.ConfigDict()  # the study's three transforms
    config.augment.where = "host"  # or "device", where the host cannot keep up
    config.augment.flip_prob = 0.5
    config.augment.affine_prob = 0.5
    config.augment.shift = 0.0625  # share of the side, each way
    config.augment.scale = 0.1  # 0.1: from 0.9 to 1.1
    config.augment.rotate = 15.0  # degrees, each way
    config.augment.brightness_contrast_prob = 0.5
    config.augment.brightness = 0.2  # share of full scale, each way
    config.augment.contrast = 0.2  # 0.2: from 0.8 to 1.2
    # Beyond the study; a probability of 0 leaves a transform out.
    config.augment.gamma_prob = 0.0
    config.augment.gamma = 0.3  # 0.3: exponents of the levels from 0.7 to 1.3
    config.augment.noise_prob = 0.0
    config.augment.noise = 0.05  # largest standard deviation, share of full scale

    config.model = ml_collections.ConfigDict()
    config.model.width = 64
    config.model.depth = 4
    config.model.norm = "batch"  # "batch" or "group"
    # What the levels of an image become: "unit" (0 to 1), "standard" (mean 0 and
    # variance 1 over what is shown of it) or "equal" (their rank among those of the
    # image).
    config.model.intensity = "unit"
    config.model.residual = False  # a way past each block of the encoder
    config.model.presence_head = (
        False  # a head that tells whether there is a finding at all
    )
    config.model.deep_supervision = 0  # coarser levels of the decoder that have a head
    config.model.upsample = "transpose"  # or "depth_to_space", faster on a CPU
    config.model.dropout = 0.0
    config.model.dtype = "bfloat16"  # of the computation; parameters are float32
    config.model.remat = False  # compute blocks anew in the gradient: saves memory

    config.loss = ml_collections.ConfigDict()
    config.loss.dice = 1.0
    config.loss.bce = 0.0
    config.loss.focal = 0.0
    config.loss.focal_gamma = 2.0  # 0: the cross entropy
    config.loss.tversky = 0.0
    config.loss.tversky_beta = 0.7  # weight of missed pixels; false ones: the rest
    config.loss.batch_dice = False  # sum Dice and Tversky over the batch, all devices
    config.loss.presence = 0.0  # of the presence head's cross entropy
    # Weight of an image without foreground in the pixel losses. With 0, the mask learns
    # from images that have something, and the presence head when there is nothing.
    config.loss.empty_weight = 1.0

    config.optim = ml_collections.ConfigDict()  # AdamW, warm-up, cosine to 0
    config.optim.lr = 1e-3
    config.optim.weight_decay = 1e-4
    config.optim.warmup_epochs = 1.0
    config.optim.clip_norm = 1.0  # of the gradients; 0: no clipping
    # The weights that are evaluated: "none" (the last), "ema" (their exponential moving
    # average) or "epochs" (the mean of those at the ends of the last epochs, so far:
    # Val may find an earlier epoch better). Batch statistics are averaged likewise.
    config.optim.average = "none"
    config.optim.ema_decay = 0.998  # a step; less in the first steps
    config.optim.average_epochs = 3

    config.train = ml_collections.ConfigDict()
    config.train.epochs = 20
    config.train.batch_size = 32  # over all devices
    config.train.log_every = 20  # steps
    config.train.checkpoint_every = 500  # steps, beside each epoch; 0: epochs alone
    # A step whose loss, gradients or weights are not finite: "stop" the run, or "skip"
    # its update (and stop after ten in a row).
    config.train.on_nan = "stop"

    config.eval = ml_collections.ConfigDict()
    config.eval.threshold = 0.5  # probability above which a pixel is foreground
    config.eval.tta_flip = (
        False  # average the logits of an image and of its mirror image
    )
    # The best epoch has the highest Dice (`all`) on Val, "untuned" at the threshold
    # above or "tuned" at the operating point that Val gives this epoch.
    config.eval.choose = "untuned"

    config.transfer = ml_collections.ConfigDict()
    # Leaves that start anew although --init_from is given: regular expressions,
    # searched in names like "params/head/kernel". All others must be found there.
    config.transfer.fresh = ("^params/head/",)
    # Parameters that stay as they came for the first epochs: regular expressions, too.
    # (Batch statistics always follow the batches.)
    config.transfer.frozen = ()
    config.transfer.frozen_epochs = 0

    if variant:  # a CPU
        config.model.dtype = "float32"
        config.model.upsample = "depth_to_space"
        config.train.batch_size = 16
        config.optim.lr = 2e-3
        config.optim.warmup_epochs = 0.5
    if variant == "laptop":
        config.data.image_size = 128
        config.model.width = 16
    if variant == "phantom":
        config.data.phantom_images = (320, 64, 128)
        config.data.image_size = 64
        config.model.width = 8
        config.model.depth = 3
        config.optim.lr = 5e-3
    return config
