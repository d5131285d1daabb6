"""Interactive viewer in the browser: `python -m usam_jax.viewer -i CT.nii.gz`."""
