"""Shared setup: eight virtual devices, checked shapes, small data sets and runs."""

import contextlib
import fcntl
import importlib
import importlib.metadata
import inspect
import os
import pathlib
import shutil

ROOT = pathlib.Path(__file__).parents[1]

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Tests compile the same programs many times, in this process and in others.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".pytest_cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# By default the folder is part of each program's key, so that no other clone could use it.
os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"

import jaxtyping
import numpy as np
import pytest
import recipe
from beartype.claw import beartype_packages
from jaxtyping import install_import_hook
from ml_collections import ConfigDict

from usam_jax.utils import xla_flags

xla_flags.use_fast_convolutions()
if "QUICK_COMPILE" in os.environ:  # a quarter of the compile time, but some sums are less exact
    xla_flags.add("--xla_backend_optimization_level=0")
    if importlib.metadata.version("jaxlib").startswith("0.10."):  # jax 0.11 has no such flag
        xla_flags.add("--xla_cpu_use_fusion_emitters=false")
checked = ["usam_jax.models", "usam_jax.training.losses", "usam_jax.evaluation.pixel_counts"]
checked += ["usam_jax.data.phantoms.anatomy"]
install_import_hook(checked, "beartype.beartype")
# No array shapes to check here, and beartype alone is several times as fast.
beartype_packages(("usam_jax.data", "usam_jax.io"))

# Real data, used if present. Its licence does not allow the project to include it.
REAL_DATA = pathlib.Path(os.environ.get("USAM_JAX_REAL_DATA", ROOT.parent / "shared"))


def each_network(names, always) -> list:
    """Parameters of which only those in `always` belong to `make test`: the others take long."""
    return [pytest.param(x, marks=() if x in always else pytest.mark.networks) for x in names]


def model_config(**changes) -> ConfigDict:
    """`config.model` of the network `name` (default usam) with these fields changed."""
    from usam_jax import models

    config = models.make_config(changes.pop("name", "usam"))
    config.update(changes)
    return config


def phantom_config(network: str = "usam", **changes) -> ConfigDict:
    """The demo's config, made small enough to train in seconds."""
    from configs import phantom
    from usam_jax import models
    from usam_jax.models import usam

    # Half the demo's blocks, since compile time grows with their number.
    usam.VARIANTS["smallest"] = usam.Variant(48, 2, 2, (1,), window=7, dim=32)
    config = phantom.get_config(network)
    if "variant" in config.model:
        config.model.variant = "smallest"
    if models.get(network).promptable:
        config.prompts.kind = "points"
    if "interactive" in config.model:
        config.model.interactive = False
    if "deep_supervision" in config.model:
        config.model.deep_supervision = 0.0
    if models.get(network).at(config.model).image_size.accepts(32):
        config.model.image_size = 32
    config.data.anatomy, config.data.phantom_seed = "single", 1
    config.data.num_patients = (3, 2)
    config.data.slices_per_patient = 8
    config.data.val_fraction = 0.3
    config.train.batch_size = 8
    config.train.num_epochs = 2
    config.train.log_every_steps = 1
    config.eval.batch_size = 8
    config.eval.every_epochs = 1
    set_fields(config, changes)
    return config


def make_variables(config: ConfigDict) -> dict:
    """Arbitrary variables of `config.model`, faster than compiling the initialisers."""
    import jax.numpy as jnp
    from flax import traverse_util

    from usam_jax import models

    flat = traverse_util.flatten_dict(models.variable_shapes(config))
    for path, like in flat.items():
        noise = recipe.normal("/".join(path), like.shape)
        fan_in = np.prod(like.shape[:-1]) if len(like.shape) > 1 else 100
        noise = jnp.asarray(noise * fan_in**-0.5, jnp.float32)
        flat[path] = 1 + abs(noise) if path[-1] in ("scale", "var") else noise
    return traverse_util.unflatten_dict(flat)


def set_fields(config: ConfigDict, changes: dict) -> None:
    """Set fields by dotted name. Raises KeyError for one that does not exist, unlike ConfigDict."""
    for name in changes:
        section = config
        for part in name.split("."):
            section = section[part]
    config.update_from_flattened_dict(changes)


def save_run(workdir: pathlib.Path, config: ConfigDict, variables, packed=None) -> None:
    """Write a workdir as a run leaves it, with `variables` as its best checkpoint."""
    import jax

    from usam_jax import models
    from usam_jax.data import splits
    from usam_jax.training import optimizer, step
    from usam_jax.utils.files import write_json
    from usam_jax.utils.mesh import make_mesh
    from usam_jax.weights import run_checkpoint, saved_config

    spec = models.get(config.model.name)
    tx = optimizer.make_optimizer(config.optimizer, optimizer.polynomial_decay(9), spec)
    shapes = jax.eval_shape(lambda: variables)
    target = step.placed_state(tx, shapes, make_mesh(1), config.train, spec)
    state = step.create_state(tx, jax.device_get(variables), target, config.train, spec)
    write_json(workdir / "config.json", saved_config.to_json(config))
    if packed:
        parts = splits.split_subsets(packed, config.data, "val")
        splits.write_record(workdir, packed, parts)
    with run_checkpoint.Checkpoints(workdir) as saved:
        saved.save(1, state, 0.5)


@contextlib.contextmanager
def without_shape_checks():
    """Export needs it: jaxtyping rejects the symbolic batch size, which is not an int."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def write_care(root: pathlib.Path, num_train: int, num_test: int) -> None:
    """Write phantoms in CARE's layout: NAME.npz with float64 image and label."""
    from usam_jax.data.datasets.phantom import load_phantom

    for seed, (split, count) in enumerate((("train", num_train), ("test", num_test))):
        folder = root / split / f"{split}_npz"
        folder.mkdir(parents=True)
        # With this patient each slice has labels.
        images, labels = load_phantom(seed, 7, 224, count)
        names = [str(i) for i in range(1, count + 1)]
        for name, image, label in zip(names, images, labels, strict=True):
            np.savez(folder / f"{name}.npz", image=image.astype(float), label=label.astype(float))
        rows = "".join(f'{name},"[0, 0, 0, 0]"\n' for name in names)
        (root / split / f"{split}_bbox.csv").write_text("name,bbox\n" + rows)


def take(iterator, count: int) -> list[dict]:
    return [next(iterator) for _ in range(count)]


def assert_same_batches(a: list[dict], b: list[dict]) -> None:
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name])


def config_maker(name: str, **changes):
    """A function that makes the config `name` for a data root and a folder to pack into."""

    def make(root: pathlib.Path, packed_dir: pathlib.Path) -> ConfigDict:
        config = importlib.import_module(f"configs.{name}").get_config()
        paths = {"data.root": str(root), "data.packed_dir": str(packed_dir)}
        set_fields(config, {**paths, **changes})
        return config

    return make


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """A function that returns the folder that `make` fills, once for all of pytest's workers."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def get(name: str, make) -> pathlib.Path:
        with (base / f"{name}.lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not lock.tell():
                (base / name).mkdir()
                make(base / name)
                lock.write("made")
        return base / name

    return get


@pytest.fixture
def care_config():
    return config_maker("care")


@pytest.fixture
def word_config():
    return config_maker("word")


@pytest.fixture
def nnunet_config():
    return config_maker(
        "care", **{"data.kind": "nnunet", "model.image_size": 48, "data.val_fraction": 0.3}
    )


@pytest.fixture(scope="session")
def nnunet_source(tmp_path_factory):
    from usam_jax.data.phantoms import nifti_export

    # A space and an umlaut, as in people's folders.
    root = tmp_path_factory.mktemp("nnunet") / "Dataset 001 Rektum Ü"
    nifti_export.write_nnunet(root, num_train=4, num_test=2, size=48, num_slices=6)
    return root


@pytest.fixture
def nnunet(nnunet_source, tmp_path, nnunet_config):
    """A data set of phantoms in nnU-Net's layout, and its config."""
    root = tmp_path / nnunet_source.name
    shutil.copytree(nnunet_source, root)
    return root, nnunet_config(root, tmp_path / "packed")


@pytest.fixture(scope="session")
def care_samples() -> pathlib.Path:
    """Three real slices in CARE's layout. Tests that use them are skipped if absent."""
    folder = REAL_DATA / "care_samples"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


@pytest.fixture(scope="session")
def care_variables():
    """Full-size variables (ViT-B, three classes) of the golden values."""
    from usam_jax import convert

    return convert.from_usam(recipe.state_dict("usam_care"), model_config())


# What `make test-fast` leaves out, next to tests that start processes and `@pytest.mark.slow`.
SLOW_FILES = (  # compiling dominates their time
    "benchmarks/test_accelerator.py",
    "benchmarks/test_networks_benchmark.py",
    "benchmarks/test_zoo_page.py",
    "evaluation/test_evaluate.py",
    "export/test_export.py",
    "io/test_torch_fuzz.py",
    "models/test_golden.py",
    "models/test_interactive.py",
    "models/test_models.py",
    "predict/test_predict.py",
    "test_end_to_end.py",
    "test_networks.py",
    "test_networks_of_windows.py",
    "test_own_network.py",
    "test_zoo.py",
    "weights/test_saved_config.py",
    "training/test_compiled.py",
    "training/test_deep_supervision.py",
    "training/test_loop.py",
    "training/test_optimizer.py",
    "training/test_simulated_clicks.py",
    "tools/test_sweep_tools.py",
    "weights/test_convert.py",
)
SLOW_FIXTURES = {"care_variables"}  # ViT-B


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    files = {ROOT / "tests" / name for name in SLOW_FILES}
    for item in items:
        slow_fixtures = SLOW_FIXTURES & set(item.fixturenames)
        if item.path in files or slow_fixtures or starts_processes(item.function):
            item.add_marker("slow")


def starts_processes(test) -> bool:
    """Whether a test, or a function that it calls by name, uses `subprocess`."""
    called = [test.__globals__.get(name) for name in test.__code__.co_names]
    functions = [test, *filter(inspect.isfunction, called)]
    return any("subprocess" in x.__code__.co_names for x in functions)


def finish_run(workdir, config) -> None:
    """Write the checkpoint folder and the config of a run that has a finished checkpoint."""
    (workdir / "checkpoints" / "5").mkdir(parents=True)
    (workdir / "config.json").write_text(config.to_json_best_effort())
