"""Config fields that were renamed, by section: old name to new name."""

# Renamed by version 2 of the saved config.
RENAMED = {
    "model": {"arch": "name", "size": "variant"},
    "train": {"accumulate": "grad_accum_steps", "shard_state": "fsdp"},
    "eval": {"noise": "prompt_jitter_px", "tolerance": "nsd_tolerance_mm"},
}
