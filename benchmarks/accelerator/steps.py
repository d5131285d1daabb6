"""The steps in the order of their worth, with the time that each may take."""

import importlib
from collections.abc import Callable
from typing import NamedTuple


class Step(NamedTuple):
    """`call` is "module:function argument ...".

    `limit` and `likely` are seconds.

    A module without a dot is one of this package. A step with `jax` False starts no JAX.
    """

    call: str
    limit: float
    likely: float
    jax: bool = True

    def resolve(self) -> tuple[Callable[..., object], list[str]]:
        """Import the function, and split off its arguments."""
        name, *arguments = self.call.split()
        module, function = name.split(":")
        module = module if "." in module else f"{__package__}.{module}"
        return getattr(importlib.import_module(module), function), arguments

    def kind(self) -> tuple[str, ...]:
        """Steps of one kind share a process: those of JAX, those of torch, the checks."""
        module, *words = self.call.replace(":", " ").split()
        return ("model" if module == "levers" else module, *(x for x in words if x in ALONE))


STEPS = [  # most wanted first; "train bfloat16 32": dtype and slices per batch
    Step("model:device", 60, 10),
    Step("model:measure_limits", 60, 10),
    Step("levers:try_up_convolution 32", 90, 40),
    Step("model:train bfloat16 32", 200, 95),
    Step("model:profile", 60, 15),
    Step("model:evaluate bfloat16 32", 90, 25),
    Step("model:train bfloat16 64", 120, 45),
    Step("model:evaluate bfloat16 128", 90, 20),
    Step("model:pipeline bfloat16 32", 90, 30),
    Step("model:encoder bfloat16 32", 90, 30),
    Step("peer:transformers bfloat16 32", 110, 60, jax=False),
    Step("levers:try_attention 32", 90, 35),
    Step("levers:try_batch_norm 32", 60, 15),
    Step("levers:try_update", 60, 15),
    Step("levers:try_step 32", 150, 70),
    Step("model:train float32 32", 120, 45),
    Step("model:evaluate float32 32", 90, 20),
    Step("model:click bfloat16", 60, 25),
    Step("model:warm bfloat16 32", 90, 25),
    Step("model:evaluate bfloat16 8", 90, 20),
    Step("model:evaluate bfloat16 256", 90, 20),
    Step("model:train bfloat16 96", 120, 45),
    Step("model:train bfloat16 8", 120, 45),
    Step("model:train bfloat16 64 remat", 120, 45),
    Step("peer:timm bfloat16 32", 90, 45, jax=False),
    Step("model:stream bfloat16 64", 90, 40),
    Step("model:train bfloat16 16", 120, 45),
    Step("model:evaluate bfloat16 64", 90, 20),
    Step("model:evaluate float32 128", 90, 20),
    Step("model:train float32 64", 120, 45),
    Step("model:click float32", 60, 25),
    Step("model:train bfloat16 32 deterministic", 120, 45),
    Step("model:train bfloat16 32 no-graphs", 120, 60),
]
CHECKS = [  # not timed, so they run next to the steps
    Step("checks:precision", 200, 60),
    Step("checks:golden", 300, 120),
    Step("checks:bits first deterministic", 200, 60),
    Step("checks:bits second deterministic", 200, 60),
]
XLA_OPTIONS = {  # words of a step's call, and the XLA flags that they stand for
    "deterministic": "--xla_gpu_deterministic_ops=true",
    "no-graphs": "--xla_gpu_enable_command_buffer=",
}
ALONE = {*XLA_OPTIONS, "first", "second"}  # words of steps that need a process of their own


def select(steps: list[Step], only: list[str], skip: list[str]) -> list[Step]:
    """Steps whose call contains a part of `only` (all if it is empty) and none of `skip`."""
    chosen = [x for x in steps if not only or any(y in x.call for y in only)]
    return [x for x in chosen if not any(y in x.call for y in skip)]
