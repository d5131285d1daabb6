"""A small problem on which thirty steps of the optimiser are compared with torch's."""

import numpy as np
import recipe
from ml_collections import ConfigDict

NUM_STEPS, TOTAL, WARMUP = 30, 40, 5
RATES = {"backbone": 1e-4, "image_encoder": 1e-4, "mask_decoder": 1e-3}
WEIGHT_DECAY = 1e-2
SHAPE = (3, 4)
GOLDEN = recipe.GOLDEN / "adamw_30_steps.npz"


def config() -> ConfigDict:
    rates = ConfigDict(RATES)
    return ConfigDict(
        {
            "name": "adamw",
            "learning_rates": rates,
            "weight_decay": WEIGHT_DECAY,
            "warmup": True,
            "clip_norm": 0.0,
        }
    )


def start(part: str) -> np.ndarray:
    return recipe.normal(f"adamw/{part}", SHAPE)


def gradient(part: str, step: int) -> np.ndarray:
    """A gradient of size 1e-4 to 1, as in different layers."""
    return recipe.normal(f"adamw/{part}/{step}", SHAPE) * np.float32(10.0 ** -(step % 5))


def factor(step: int) -> float:
    """Factor of the learning rate: the published schedule with warm-up."""
    return min((1 - (step - WARMUP) / TOTAL) ** 0.9, step / WARMUP)


def torch_steps() -> dict[str, np.ndarray]:
    """Parameters [steps 3 4] by part after each step of torch's AdamW with LambdaLR."""
    import torch

    tensors = {part: torch.nn.Parameter(torch.from_numpy(start(part))) for part in RATES}
    groups = [{"params": [tensors[part]], "lr": rate} for part, rate in RATES.items()]
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    found: dict[str, list[np.ndarray]] = {part: [] for part in RATES}
    for step in range(NUM_STEPS):
        for part, tensor in tensors.items():
            tensor.grad = torch.from_numpy(gradient(part, step))
        optimizer.step()
        scheduler.step()
        for part, tensor in tensors.items():
            found[part].append(tensor.detach().numpy().copy())
    return {part: np.stack(x) for part, x in found.items()}
