"""U-SAM-B on CARE, as the paper trains it; or any other network.

    python -m usam_jax.main --config=configs/care.py
    python -m usam_jax.main --config=configs/care.py:unet

The paper reports, on the test set, mean Dice 73.38 and IoU 58.05 with 3 points per class from the
ground truth, and 69.28 and 53.11 without prompts (--config.prompts.kind=none). Each field can be
set on the command line: --config.train.batch_size=8.
"""

from ml_collections import ConfigDict

from usam_jax import models

# Of U-SAM's parts as published; any other group of parameters starts with 1e-4.
LEARNING_RATES = {"backbone": 1e-4, "image_encoder": 1e-4, "mask_decoder": 1e-3}


def get_config(model: str = "usam") -> ConfigDict:
    """`model` is a network of usam_jax/models, or the path of a Python file that defines one."""
    spec = models.get(model)
    config = ConfigDict()
    config.seed = 0  # of initial weights, order, augmentation and training prompts
    # Weights to start from: SAM (.pth or .safetensors), a published checkpoint, a workdir, or "".
    config.init_from = f"weights/{spec.pretrained}" if spec.pretrained else ""

    # Its own fields are explained where it is defined: usam_jax/models/NAME.py.
    config.model = models.make_config(model)
    config.model.num_classes = 3  # background counts
    config.model.image_size = 224  # pixels; each network says which sizes it takes
    config.model.dtype = (
        "float32"  # float32 or bfloat16, of the computation; parameters are float32
    )

    config.data = data = ConfigDict()
    data.kind = "care"  # care, nnunet (a raw data set), word (NIfTI), word_npy
    data.root = "data/CARE"  # the data set's folder; CARE's holds train/train_npz and test/test_npz
    data.packed_dir = "packed"  # packed data sets are kept here, a folder for each and its settings
    data.classes = ("background", "normal rectum", "tumour")  # by label
    data.image_size = config.model.get_ref("image_size")  # slices are packed at the model's size
    data.window_level = 40.0  # HU, of volumes: this window becomes grey 0 to 1
    data.window_width = 400.0  # HU
    data.intensity = "clip"  # of values outside [0, 1]: clip, or wrap as the published code does
    data.clahe_limit = 2.5  # clip limit of the contrast equalisation; 0: none
    data.random_clahe = False  # draw the limit from 1..4 in training; clahe_limit in evaluation
    data.augment = True  # right angles and flips (half), rotation to 20 degrees (a quarter)
    data.augment_scale = 0.0  # 0.2: each slice shrunk or grown by up to a factor of 1.2
    data.augment_elastic = 0.0  # pixels by which a smooth random field bends each slice
    data.augment_intensity = 0.0  # 0.2: contrast by up to 20 %, brightness by up to 10 % of white
    data.val_fraction = 0.1  # of the patients in the training split (CARE: of its slices)
    data.split_seed = 0  # of the choice of those patients
    data.num_folds = 0  # above 0: cross-validation, where `fold` is the validation part
    data.fold = 0  # 0 to num_folds - 1
    data.train_on_empty = False  # train on slices without foreground too
    data.num_workers = 0  # processes that prepare training batches; 0: threads of the main one

    config.prompts = prompts = ConfigDict()
    # From the ground truth: none, points, box, points_box; or mixed, where each training slice draws
    # one of the four, so that one model serves them all. mixed is evaluated as points; give another
    # kind with --mode=eval.
    prompts.kind = "points" if spec.promptable else "none"
    prompts.points_per_class = 3  # the paper: 1, 3, 5
    prompts.negative_points = 0  # of the background, on each slice that has points
    prompts.box_jitter = 0.0  # pixels by which each side of a training box is moved at most
    prompts.order = "xy"  # of a point's coordinates; rowcol: as the published code hands them over

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adamw"  # adamw or sgd
    optimizer.learning_rates = ConfigDict({x: LEARNING_RATES.get(x, 1e-4) for x in spec.groups})
    optimizer.weight_decay = 1e-4  # AdamW's own; SGD adds it to the gradient
    optimizer.momentum = 0.9  # of SGD
    optimizer.nesterov = True  # of SGD
    optimizer.warmup = False  # linear over the first half epoch

    config.train = train = ConfigDict()
    train.num_epochs = 100  # over the training part
    train.batch_size = 24  # over all devices
    # Parts of a batch that are computed one after the other; BatchNorm and Dice see a part each.
    train.grad_accum_steps = 1
    train.statistics = "batch"  # BatchNorm and Dice over the batch, or "device": each one's share
    train.ema_decay = 0.0  # 0.999: evaluate a running average of the parameters
    train.fsdp = False  # parameters and optimiser split over the devices between steps
    train.skip_nonfinite = False  # skip steps with an infinite or NaN gradient instead of stopping
    train.deterministic = False  # on GPUs: the same bits each time, slower
    train.log_every_steps = 10  # metrics to disk and to the progress line
    train.checkpoint_every_steps = 500  # besides those of each evaluation

    config.eval = evaluation = ConfigDict()
    evaluation.batch_size = 24  # over all devices
    evaluation.every_epochs = 1  # evaluations and checkpoints while training
    evaluation.select_on = "val"  # the best epoch is chosen on: val (held out of train), or test
    evaluation.split = "test"  # what the final table shows: test, val or train
    # Other prompts that the final evaluation decodes from the same encoding.
    others = ("none", "points1", "points3", "points5", "box")  # also pointsN_box
    evaluation.prompts = others if spec.promptable else ()
    # Pixels by which the prompts of config.prompts are moved as well, for Dice against the distance.
    evaluation.prompt_jitter_px = (2.5, 5.0, 10.0, 20.0)
    # Of NSD, in mm (pixels if the spacing is unknown): one for all classes, or one for each.
    evaluation.nsd_tolerance_mm = (2.0,)
    evaluation.empty_policy = "worst"  # of missed classes and false alarms: worst score, or skip
    return config
