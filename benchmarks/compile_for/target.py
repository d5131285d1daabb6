"""GPUs to compile for without one, and what XLA needs to do so.

Imports the standard library only until a target is made: XLA reads its flags when JAX starts.
"""

import importlib.metadata
import os
from typing import Any, NamedTuple

HOST_DEVICES = 8  # GPUs of a host, joined by NVLink


class Gpu(NamedTuple):
    """A GPU as XLA describes it, and the rates that predictions assume.

    The rates are those that well-tuned programs reach, not the data sheet's: bytes/s of memory,
    FLOP/s in bfloat16 of matrix products and convolutions (half in float32, as TensorFloat-32), and
    seconds between two kernels.
    """

    description: str
    memory_rate: float
    matmul_rate: float
    conv_rate: float
    gap_s: float
    memory_bytes: int
    config: str

    @property
    def name(self) -> str:
        """The device's column of results.csv, which marks every row as a prediction."""
        return f"predicted, not measured: {self.description}"


HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: {memory} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 12 }} runtime_version {{ major: 13 }}
device_description_str: "{description}"
"""


def hopper(description: str, bandwidth: float, memory: int, memory_rate: float) -> Gpu:
    config = HOPPER.format(bandwidth=int(bandwidth), memory=memory, description=description)
    return Gpu(description, memory_rate, 600e12, 300e12, 1.2e-6, memory, config)


# Memory's rate: 78 % of the data sheet's 3.35 and 4.8 TB/s.
GPUS = {
    "h100": hopper("NVIDIA H100 80GB HBM3", 3.35232e12, 84929347584, 2.61e12),
    "h200": hopper("NVIDIA H200", 4.8e12, 150754820096, 3.74e12),
}
# Autotuning needs the device, and so does the choice of Triton's matrix products.
FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "JAX_PLATFORMS": "cpu,cuda",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "XLA_FLAGS": FLAGS,
    "TF_CPP_MIN_LOG_LEVEL": "3",  # XLA's messages about the missing GPU
}
# What the plugin's extra `with-cuda` installs; without these XLA cannot compile for a GPU.
PACKAGES = ("jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cudnn-cu13", "nvidia-cuda-nvcc")


def missing_packages(installed: list[str] | None = None) -> list[str]:
    """Those of PACKAGES that are not installed."""
    if installed is None:
        installed = [x.name.lower() for x in importlib.metadata.distributions()]
    return [x for x in PACKAGES if x not in installed]


def plugin_error(missing: list[str]) -> str:
    """What to install so that JAX can compile for CUDA."""
    return (
        f"compile_for: got no {', '.join(missing)}, expected JAX's plugin for CUDA 13. Run "
        "python -m pip install '.[cuda13]' in an environment of its own (3.4 GB, no GPU needed)"
    )


def prepare_environment() -> None:
    """Set what JAX and XLA read when they start. Call before JAX is imported."""
    os.environ |= ENVIRONMENT


def make_mesh(gpu: Gpu, num_devices: int) -> Any:
    """The mesh `data` over abstract GPUs, at most HOST_DEVICES on each host."""
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh

    hosts, local = max(1, num_devices // HOST_DEVICES), min(num_devices, HOST_DEVICES)
    shape = f"1x{hosts}x{local}"
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=gpu.config, topology=shape
    )
    return Mesh(np.array(topology.devices), ("data",), axis_types=(AxisType.Auto,))
