"""SAM's image encoder in torch at 224x224, from transformers and timm.

Starts no JAX.
"""

import copy
import importlib.util
import time
from collections.abc import Callable
from typing import Any

from benchmarks.accelerator.context import (
    PEAK,
    NotRun,
    add,
    quiet,
    seconds_in_a_row,
    settings,
)

ENCODER_FLOP = 35.1e9  # of a forward pass, as benchmarks/limits.py counts them; that one needs JAX
DRY_SAM: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "global_attn_indexes": [1],
}


def require(*names: str) -> None:
    """Raise NotRun if a package is not installed."""
    if missing := [x for x in names if not importlib.util.find_spec(x)]:
        raise NotRun(f"not installed: {', '.join(missing)}")


def transformers(dtype: str, batch: str) -> None:
    """SamVisionModel of the transformers library, with sdpa attention."""
    require("torch", "transformers")
    from transformers import SamVisionConfig, SamVisionModel, __version__

    config = SamVisionConfig(image_size=224, **(DRY_SAM if settings().dry else {}))
    config._attn_implementation = "sdpa"
    model = SamVisionModel(config)
    found = {type(x).__name__ for x in model.modules() if "Attention" in type(x).__name__}
    print("attention:", found, flush=True)
    measure(f"transformers {__version__}", model, lambda y: y.last_hidden_state, dtype, int(batch))


def timm(dtype: str, batch: str) -> None:
    """samvit_base_patch16_224 of timm."""
    require("torch", "timm")
    import timm

    model = timm.create_model("samvit_base_patch16_224", num_classes=0, global_pool="")
    measure(f"timm {timm.__version__}", model, lambda y: y, dtype, int(batch))


def measure(library: str, model: Any, output: Callable[[Any], Any], dtype: str, batch: int) -> None:
    """Forward with weights in `dtype`, and gradients under autocast, each eager and compiled."""
    import torch

    dry = settings().dry
    device = "cpu" if dry else "cuda"
    torch.set_float32_matmul_precision("high")
    kind = getattr(torch, dtype)
    x = torch.rand(2 if dry else batch, 3, 224, 224, device=device)
    cast = copy.deepcopy(model).to(device, kind).eval()
    model = model.to(device).train()
    above = torch.randn_like(output(model(x)).detach().float())

    def wait(_found: Any) -> None:
        if not dry:
            torch.cuda.synchronize()

    def forward(module: Any) -> Any:
        with torch.inference_mode():
            return module(x.to(kind))

    def gradients(module: Any) -> None:
        with torch.autocast(device, dtype=kind):
            found = output(module(x))
        (found.float() * above).sum().backward()
        model.zero_grad(set_to_none=True)

    def show(how: str, run: Callable[[], Any], work: float) -> None:
        name = f"SAM's ViT-B encoder at 224x224, {library} in torch {torch.__version__}, {how}"
        name += f", {dtype}, batch {batch}"
        start = time.perf_counter()
        wait(run())
        first = time.perf_counter() - start
        with quiet():
            took = seconds_in_a_row(run, wait, 0.5)
        add(
            (f"{name}, in a row", len(x) / took, "slices/s"),
            (f"{name}, of the data sheet's peak", work * len(x) / took / PEAK[dtype], ""),
            (f"{name}, the first call", first, "s"),
        )

    show("eager", lambda: forward(cast), ENCODER_FLOP)
    show("eager with gradients", lambda: gradients(model), 3 * ENCODER_FLOP)
    if dry:
        print("torch.compile: does not run without a GPU", flush=True)
        return
    fast, trained = torch.compile(cast), torch.compile(model)
    show("torch.compile", lambda: forward(fast), ENCODER_FLOP)
    show("torch.compile with gradients", lambda: gradients(trained), 3 * ENCODER_FLOP)
    add((f"peak of the device, {library}", torch.cuda.max_memory_allocated() / 1e9, "GB"))
