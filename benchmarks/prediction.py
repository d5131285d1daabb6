"""Time of a click, and the cost of predicting a volume in addition to the model."""

import time

import jax
import numpy as np

from benchmarks.limits import cpu_seconds
from benchmarks.results import Row
from configs import care
from usam_jax.data.phantoms import anatomy
from usam_jax.data.preprocessing import make_preparation
from usam_jax.io.geometry import Geometry
from usam_jax.models import init_variables, make_model
from usam_jax.predict import Predictor
from usam_jax.predict.model import NO_CLICKS, Network
from usam_jax.predict.slices import Options, predict_slices

NUM_CLICKS = 12
NUM_SLICES = 16
ROUNDS = 4
SIZE = 512  # pixels per side of the volume's slices
BATCH = 8


def measure_prediction() -> list[Row]:
    """Clicks on a slice and prediction of a volume, ViT-B on slices of 512x512 pixels."""
    config = care.get_config()
    model = make_model(config.model)
    saved = config.to_dict()
    variables = init_variables(config.model, jax.random.key(0))
    classes = tuple(config.data.classes)
    network = Network(model, variables, make_preparation(saved, "nnunet"), classes, saved, 0)
    hu = anatomy.make_patient(0, 0, SIZE, NUM_SLICES).image.astype(np.int16)
    alone, whole = measure_volume(network, hu)
    clicks = measure_clicks(Predictor(network), hu[0])
    return [
        ("a click after set_image, ViT-B, 512x512, median", float(np.median(clicks)), "s"),
        ("predicting a volume of 512x512, ViT-B", whole, "s of CPU a slice"),
        ("of that the model alone", alone, "s of CPU a slice"),
        ("share of the model in predicting a volume", alone / whole, ""),
    ]


def measure_clicks(predictor: Predictor, hu: np.ndarray) -> list[float]:
    """Seconds of each click on a slice int16[h w], without the first, which compiles."""
    predictor.set_slice(hu)
    rng = np.random.default_rng(0)
    seconds = []
    for count in range(NUM_CLICKS):
        start = time.perf_counter()
        predictor.predict(rng.uniform(0, SIZE - 1, (1 + count, 2)))
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def measure_volume(network: Network, hu: np.ndarray) -> tuple[float, float]:
    """CPU seconds per slice of the model alone and of the whole.

    Each the minimum of several runs.
    """
    n, h, w = hu.shape
    geometry = Geometry(
        (w, h, n), "LPS", tuple(map(tuple, np.eye(4).tolist())), hu.shape, (5, 0.8, 0.8)
    )
    images = np.stack([network.preparation.from_hu(x, (0.8, 0.8)) for x in hu[:BATCH]])

    def run_model() -> None:
        for _ in range(n // BATCH):
            computed = network.decode(network.encode(images), [NO_CLICKS] * BATCH)
            jax.block_until_ready(computed)

    def run_all() -> None:
        for _ in predict_slices(network, hu, geometry, {}, Options(BATCH)):
            pass

    run_model()  # compiles
    pairs = [(cpu_seconds(run_model) / n, cpu_seconds(run_all) / n) for _ in range(ROUNDS)]
    alone, whole = (min(x) for x in zip(*pairs, strict=True))
    return alone, whole
