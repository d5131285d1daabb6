"""U-SAM, the U-shaped Segment Anything Model for rectal-cancer CT, in JAX and Flax."""

__version__ = "0.1.0"
