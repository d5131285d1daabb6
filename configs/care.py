"""U-SAM-B on CARE, trained as in the paper, or any other network.

    python -m tools.prepare data/CARE --check
    python -m usam_jax.main --config=configs/care.py
    python -m usam_jax.main --config=configs/care.py:unet

On the test set, the paper reports a mean Dice of 73.38 and IoU of 58.05 with 3 points per class
from the ground truth, and 69.28 and 53.11 without prompts (--config.prompts.kind=none). Every field
can be set on the command line: --config.train.batch_size=8.
"""

from ml_collections import ConfigDict

from usam_jax import models

# U-SAM's groups of parameters, as published; any other group gets 1e-4.
LEARNING_RATES = {
    "backbone": 1e-4,
    "image_encoder": 1e-4,
    "mask_decoder": 1e-3,
    "lora": 1e-3,
    "interactive": 1e-3,  # U-SAM's extension, if config.model.interactive
}


def get_config(model: str = "usam") -> ConfigDict:
    """Return the config of a network.

    `model` is a file name of usam_jax/models, or the path of a Python file that defines SPEC.
    """
    spec = models.get(model)
    config = ConfigDict()
    config.seed = 0  # for initial weights, order, augmentation and training prompts
    # Initial weights: SAM (.pth or .safetensors), a published checkpoint, a workdir, or "".
    config.init_from = f"weights/{spec.pretrained}" if spec.pretrained else ""

    # The fields of the network itself are documented in usam_jax/models/NAME.py.
    config.model = models.make_config(model)
    config.model.num_classes = 3  # background included
    config.model.dtype = "float32"  # of computation: float32 or bfloat16; parameters are float32

    config.data = data = ConfigDict()
    data.kind = "care"  # care, nnunet (raw data set), word (NIfTI), word_npy, phantom or packed
    data.root = "data/CARE"  # holds train/train_npz and test/test_npz
    data.packed_dir = "packed"  # packed data sets, a folder for each data set and its settings
    data.classes = ("background", "normal rectum", "tumour")  # names of labels 0, 1, ...
    data.image_size = config.model.get_ref("image_size")  # slices are packed at this size
    # config.model.slices: consecutive slices of a case in one input. For networks of slices an odd
    # number, of which the neighbours are channels and the middle one is predicted; for networks of
    # windows their depth.
    data.slices = config.model.get_ref("slices")
    data.window_level = 40.0  # HU; for volumes, the window is mapped to grey 0 to 1
    data.window_width = 400.0  # HU
    data.intensity = "clip"  # values outside [0, 1]: clip, or wrap as the published code does
    data.clahe_limit = 2.5  # clip limit of CLAHE (contrast equalisation); 0: none
    data.random_clahe = False  # draw the limit from 1 to 4 in training; not in evaluation
    # Half of the slices: 90-degree rotation and flip; a quarter: rotation by up to 20 degrees.
    data.augment = True
    data.augment_scale = 0.0  # 0.2: scale each slice by a factor of 1/1.2 to 1.2
    data.augment_elastic = 0.0  # pixels of smooth random deformation of each slice
    data.augment_intensity = 0.0  # 0.2: contrast by up to 20 %, brightness by up to 10 % of white
    data.val_fraction = 0.1  # held-out fraction of training patients (CARE: of slices)
    data.split_seed = 0  # for the choice of held-out patients
    data.num_folds = 0  # 2 or more: cross-validation, with fold `fold` as the validation split
    data.fold = 0  # 0 to num_folds - 1
    data.train_on_empty = False  # train on slices without foreground too
    data.num_workers = 0  # processes that prepare training batches; 0: threads of the main process

    config.prompts = prompts = ConfigDict()
    # Prompts from the ground truth: none, points, box, points_box, mixed or interactive. With mixed,
    # each training slice draws one of the first four, so that one model serves all of them. With
    # interactive (and config.model.interactive), training simulates a user who clicks where the
    # mask is wrong. Models of both are evaluated with points; set another kind with --mode=eval.
    prompts.kind = "points" if spec.promptable else "none"
    prompts.points_per_class = 3  # the paper uses 1, 3 and 5
    prompts.rounds = 3  # simulated clicks per slice and step, interactive only
    prompts.negative_points = 0  # background points per slice that has any points
    prompts.box_jitter = 0.0  # maximum jitter of each side of a training box, in pixels
    prompts.order = "xy"  # order of coordinates: xy, or rowcol as in the published code

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adamw"  # adamw or sgd
    optimizer.learning_rates = ConfigDict({x: LEARNING_RATES.get(x, 1e-4) for x in spec.groups})
    optimizer.weight_decay = 1e-4  # AdamW decouples it; SGD adds it to the gradient
    optimizer.momentum = 0.9  # SGD only
    optimizer.nesterov = True  # SGD only
    optimizer.warmup = False  # linear warm-up over the first half epoch
    optimizer.decay_power = 0.9  # the rate falls as (1 - step / steps) ** decay_power
    optimizer.clip_norm = 0.0  # scale gradients down to this norm at most; 0: never

    config.train = train = ConfigDict()
    train.num_epochs = 100  # passes over the training split
    train.batch_size = 24  # slices, or windows of 3-D networks, over all devices
    # Micro-batches per step, computed one after the other; BatchNorm and Dice see one at a time.
    train.grad_accum_steps = 1
    train.statistics = "batch"  # BatchNorm and Dice over the "batch", or over each "device"'s share
    train.ce_weight = 0.4  # of the cross entropy in the loss
    train.dice_weight = 0.6  # of the Dice loss
    # Dice over all classes with squares in the denominator (squared), as U-SAM, or over the
    # foreground classes without squares (foreground), as nnU-Net.
    train.dice = "squared"
    train.ema_decay = 0.0  # 0.999: evaluate an exponential moving average of the parameters
    train.fsdp = False  # shard parameters and optimizer state over the devices between steps
    train.skip_nonfinite = False  # skip steps with a non-finite loss or gradient, do not stop
    train.deterministic = False  # on GPUs: bit-identical results, slower
    # Options of XLA for the step: ("xla_gpu_all_reduce_combine_threshold_bytes=100000000",).
    train.compiler_options = ()
    train.log_every_steps = 10  # write metrics to disk and to the progress line
    train.checkpoint_every_steps = 500  # in addition to one per evaluation

    config.eval = evaluation = ConfigDict()
    evaluation.batch_size = 24  # slices, or windows of 3-D networks, over all devices
    evaluation.every_epochs = 1  # epochs between evaluations, each with a checkpoint
    evaluation.select_on = "val"  # split that chooses the best epoch: val (held out) or test
    evaluation.split = "test"  # split of the final evaluation: test, val or train
    # Further prompt modes of the final evaluation, decoded from the same features.
    others = ("none", "points1", "points3", "points5", "box")  # also pointsN_box
    evaluation.prompts = others if spec.promptable else ()
    # With config.model.interactive: clicks of a robot user on each slice with foreground; 0: none.
    evaluation.max_clicks = 20
    # Jitter of the prompts of config.prompts, in pixels: the report plots Dice over the jitter.
    evaluation.prompt_jitter_px = (2.5, 5.0, 10.0, 20.0)
    # Tolerance of NSD in mm (pixels if the spacing is unknown): one, or one per foreground class.
    evaluation.nsd_tolerance_mm = (2.0,)
    evaluation.empty_policy = "worst"  # missed classes and false alarms: worst score, or skip
    config.lock()  # a misspelt field in a config that derives from this one is an error
    return config
