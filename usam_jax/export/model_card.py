"""The model card of an exported run: what it is, what it may be used for, and how."""

from typing import Any

CARD = """\
# {architecture}, {variant}: {foreground}

A model that finds {foreground} on axial CT slices, from points, a box or both that a user gives, or
from no prompt at all; a network after [U-SAM], trained with usam_jax, whose code nothing here needs.

| file | what it is |
| --- | --- |
| `model.jax_export` | the whole program with its weights, for JAX on CPUs and NVIDIA GPUs (CUDA) |
| `model.safetensors` | the weights by usam_jax's names, for `--config.init_from=model.safetensors` |
{torch_row}| `config.json` | preprocessing, classes, prompts, checkpoint, checksums |

Checkpoint: step {checkpoint_step}, chosen on the part `{checkpoint_chosen_on}`; it was trained
from {begin} on. Written with JAX {jax}; JAX reads such programs for at least six months.

## Use

With `jax`, `numpy` and `opencv-python-headless`:

```python
{code}
```

`labels` is uint8[b h w] with {numbered}; `probabilities` is float32[b h w {k}].
Both lie as `image` does: `[:, top : top + h, left : left + w]`, resized{transposed}, is the slice.
There may be any number of images, and of points on each: a label of 1 is foreground, 0 background,
and -1 no point. A box is (x0, y0, x1, y1). `prompts_given` tells which points count and, last,
whether the box does; all False is no prompt. `slice.npy` is axial with the patient's front at the
top and right on the left; a slice that lies otherwise gives wrong results.

## Training

- Data: kind `{kind}`, fingerprint `{fingerprint}`; slices: {slices}.{grey_note}
- Prompts: {trained_with}. A model trained without a kind of prompt does not understand it.

## Results

{results}

## Intended use

Research on segmentation, on CT like that of the training. This is **not a medical device**: it has
not been validated for diagnosis, planning or any other decision about a patient, and it may miss a
tumour or show one that is not there. Scanners, protocols and patients that the training has not
seen can change results without any sign of it.

## Licence

usam_jax is under Apache-2.0. The weights are also bound by the terms of what they were made from:
the training data, and the weights that training began from. Check both before passing this on.

[U-SAM]: https://arxiv.org/abs/2308.08283
"""
TORCH_ROW = (
    "| `usam.safetensors` | the weights by the published PyTorch names; load with strict=False |\n"
)
CODE = """\
import cv2, jax, jax.export, numpy as np
hu, pixel_mm = np.load("slice.npy"), (1.0, 1.0)  # [h w] in HU; height and width of a pixel
{transpose}grey = np.clip((hu.astype(np.float32) - {low}) / {width}, 0, 1)
image = (grey * 255).astype(np.int64).astype(np.uint8)
high, wide = image.shape[0] * pixel_mm[0], image.shape[1] * pixel_mm[1]
h, w = (max(1, round(side * ({size} / max(high, wide)))) for side in (high, wide))
how = cv2.INTER_AREA if h * w < image.size else cv2.INTER_LINEAR
image, top, left = cv2.resize(image, (w, h), interpolation=how), ({size} - h) // 2, ({size} - w) // 2
image = np.pad(image, ((top, {size} - h - top), (left, {size} - w - left)))
{clahe}points, point_labels = np.float32([[[{middle}, {middle}]]]), np.int32([[1]])  # {order}, in `image`
box, given = np.zeros((1, 4), np.float32), np.array([[True, False]])  # one point and no box
predict = jax.jit(jax.export.deserialize(open("model.jax_export", "rb").read()).call)
labels, probabilities = predict(image[None], points, point_labels, box, given)"""
TRANSPOSE = "hu, pixel_mm = hu.T, pixel_mm[::-1]  # as the slices of the training lay\n"
ARCHITECTURES = {"usam": "U-SAM", "sam": "SAM with a class-wise decoder"}
GREY_KINDS = ("care", "word_npy")
GREY_NOTE = " They came as grey values, windowed by others; scans in HU may look different."
NO_RESULTS = "None: this checkpoint has not been evaluated."
ABOUT_RESULTS = """
Per cent. Pooled: over all pixels of all slices; by case: the mean over cases in 3-D of the mean
over classes, with its 95 % interval. Prompts from the ground truth tell the model where the answer
is: such rows are no automatic results.{chosen}"""
CHOSEN_ON_TEST = " The checkpoint was chosen on the part `test`, so its figures are too high."


def write_card(description: dict[str, Any], evaluations: list[dict[str, Any]]) -> str:
    """Markdown, from what config.json tells and the summaries of this checkpoint's evaluations."""
    classes, data, model = (description[name] for name in ("classes", "data", "model"))
    sizes = {name: number for name, number in data["num_slices"].items() if number}
    return CARD.format(
        **{name: description[name] for name in ("checkpoint_step", "checkpoint_chosen_on")},
        architecture=ARCHITECTURES[model["name"]],
        variant=model["variant"],
        foreground=" and ".join(classes[1:]),
        torch_row=TORCH_ROW if "usam.safetensors" in description["sha256"] else "",
        begin=f"`{description['init_from']}`" if description["init_from"] else "random weights",
        jax=description["versions"]["jax"],
        code=write_code(description),
        numbered=", ".join(f"{i} {name}" for i, name in enumerate(classes)),
        k=len(classes),
        transposed=" and transposed" if description["preprocessing"]["transposed"] else "",
        kind=data["kind"],
        fingerprint=data["fingerprint"],
        grey_note=GREY_NOTE if data["kind"] in GREY_KINDS else "",
        slices=", ".join(f"{number} {name}" for name, number in sizes.items()),
        trained_with=description["prompts"]["trained_with"],
        results=write_results(description, evaluations),
    )


def write_code(description: dict[str, Any]) -> str:
    """A slice, prepared as the training's were, through the program."""
    how = description["preprocessing"]
    low = how["window_level_hu"] - how["window_width_hu"] / 2
    tiles = tuple(how["clahe_tiles"])
    clahe = f"image = cv2.createCLAHE({how['clahe_limit']}, {tiles}).apply(image)\n"
    return CODE.format(
        transpose=TRANSPOSE if how["transposed"] else "",
        low=f"({low})" if low < 0 else low,
        width=how["window_width_hu"],
        size=how["image_size"],
        clahe=clahe if how["clahe_limit"] else "",
        middle=how["image_size"] // 2,
        order="(row, column)" if description["prompts"]["order"] == "rowcol" else "(x, y)",
    )


def write_results(description: dict[str, Any], evaluations: list[dict[str, Any]]) -> str:
    """A table with a row for each evaluation, or that there is none."""
    if not evaluations:
        return NO_RESULTS
    names = [*description["classes"][1:], "mean"]
    head = ["part", "prompts", "slices", "cases", *(f"Dice {x}, pooled" for x in names)]
    rows = [[*head, "Dice, by case"], ["---"] * (len(head) + 1)]
    for found in evaluations:
        same = found["data_fingerprint"] == description["data"]["fingerprint"]
        by_case = found["cases"]["mean"]["Dice"]
        ends = [per_cent(x) for x in by_case["ci95"] or ()]
        rows.append(
            [
                found["split"] if same else f"{found['split']} of other data",
                found["prompts"],
                str(found["num_slices"]),
                str(found["num_cases"]),
                *(per_cent(found["pooled"]["dice"][x]) for x in names),
                per_cent(by_case["mean"]) + (f" ({ends[0]} to {ends[1]})" if ends else ""),
            ]
        )
    chosen = CHOSEN_ON_TEST if description["checkpoint_chosen_on"] == "test" else ""
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n{ABOUT_RESULTS.format(chosen=chosen)}"


def per_cent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
