"""The model card of an exported run: content, use, training, results and intended use."""

import string
from importlib import resources
from typing import Any

from usam_jax.data.class_names import MEAN
from usam_jax.utils.formatting import MISSING, format_interval, percent

OWN_FILES = ("model.jax_export", "model.safetensors")
PUBLISHED_ROW = "| `{}` | the weights under the published PyTorch names; load with strict=False |\n"
PROMPTED = "from points, a box or both that a user gives, or without a prompt"
AUTOMATIC = "without prompts"
PROMPT_INPUTS = """\
The number of images, and of points per image, is free. A point label of 1 is foreground, 0 background
and -1 padding. A box is (x0, y0, x1, y1). `prompts_given` marks the valid points and, in its last
entry, whether the box is valid; if all are False, there is no prompt.
"""
CLICK_INPUTS = """\
`point_classes` names the class of each point, 0 for background, with the point label 0. For one more
click, give all points so far, and the last `probabilities` as `previous`. The program does not check
that classes exist and that points lie in the image. Give whole numbers
for their (x, y), as pixels are numbered, and of several points on one pixel the last alone.
"""
CLICK_CODE = """\
classes = np.int32([[1]])  # {name}, at the point
previous = np.zeros((1, {size}, {size}, {num_classes}), np.float32)  # no prediction before this one
"""
PROMPT_NOTE = " A model does not understand a kind of prompt that it was not trained with."
TRANSPOSE = "hu, pixel_mm = hu.T, pixel_mm[::-1]  # the training slices were transposed\n"
GREY_KINDS = ("care", "word_npy")
GREY_NOTE = " They were distributed as grey values with an unknown window; scans in HU may differ."
NO_RESULTS = "None: this checkpoint has not been evaluated."
ABOUT_RESULTS = """
In per cent. Pooled: over all pixels of all slices. By case: the mean over cases in 3-D of the mean
over classes, with its 95 % interval. Prompts from the ground truth reveal the location of the answer:
these rows are not automatic segmentation.{chosen}"""
CHOSEN_ON_TEST = " The checkpoint was selected on the `test` split, so its results are too high."


def write_card(description: dict[str, Any], evaluations: list[dict[str, Any]]) -> str:
    """The card as Markdown, from config.json and the summaries of the checkpoint's evaluations."""
    classes, data, model = (description[name] for name in ("classes", "data", "model"))
    network = ", ".join(model[name] for name in ("name", "variant") if name in model)
    published = [name for name in description["sha256"] if name not in OWN_FILES]
    promptable = takes_prompts(description)
    sizes = {name: number for name, number in data["num_slices"].items() if number}
    return fill_template(
        "model_card.md",
        **{name: description[name] for name in ("checkpoint_step", "checkpoint_chosen_on")},
        network=network,
        how_prompted=PROMPTED if promptable else AUTOMATIC,
        prompt_inputs=describe_prompt_inputs(description),
        prompt_note=PROMPT_NOTE if promptable else "",
        foreground=" and ".join(classes[1:]),
        published_rows="".join(PUBLISHED_ROW.format(name) for name in published),
        start=f"`{description['init_from']}`" if description["init_from"] else "random weights",
        jax=description["versions"]["jax"],
        code=write_code(description),
        numbered=", ".join(f"{i} {name}" for i, name in enumerate(classes)),
        num_classes=len(classes),
        transposed=" and transposed" if description["preprocessing"]["transposed"] else "",
        kind=data["kind"],
        fingerprint=data["fingerprint"],
        grey_note=GREY_NOTE if data["kind"] in GREY_KINDS else "",
        slices=", ".join(f"{number} {name}" for name, number in sizes.items()),
        trained_with=description["prompts"]["trained_with"],
        results=write_results(description, evaluations),
    )


def takes_prompts(description: dict[str, Any]) -> bool:
    return "points_xy" in description["inputs"]


def takes_classes(description: dict[str, Any]) -> bool:
    """Whether each point names its class, and the previous prediction is an input."""
    return "point_classes" in description["inputs"]


def describe_prompt_inputs(description: dict[str, Any]) -> str:
    if not takes_prompts(description):
        return ""
    return PROMPT_INPUTS + (CLICK_INPUTS if takes_classes(description) else "")


def write_code(description: dict[str, Any]) -> str:
    """Example code that prepares a slice as in training and runs the program on it."""
    how = description["preprocessing"]
    low = how["window_level_hu"] - how["window_width_hu"] / 2
    tiles = tuple(how["clahe_tiles"])
    clahe = f"image = cv2.createCLAHE({how['clahe_limit']}, {tiles}).apply(image)\n"
    prepare = fill_template(
        "prepare.py.txt",
        transpose=TRANSPOSE if how["transposed"] else "",
        low=f"({low})" if low < 0 else low,
        width=how["window_width_hu"],
        size=how["image_size"],
    )
    if takes_prompts(description):
        classes, size = description["classes"], how["image_size"]
        clicks = CLICK_CODE.format(name=classes[1], size=size, num_classes=len(classes))
        named = takes_classes(description)
        predict = fill_template(
            "predict_prompted.py.txt",
            classes=clicks if named else "",
            more=", classes, previous" if named else "",
            middle=how["image_size"] // 2,
            order="(row, column)" if description["prompts"]["order"] == "rowcol" else "(x, y)",
        )
    else:
        predict = fill_template("predict.py.txt")
    return (prepare + (clahe if how["clahe_limit"] else "") + predict).rstrip()


def write_results(description: dict[str, Any], evaluations: list[dict[str, Any]]) -> str:
    """A table with a row per evaluation, or a sentence that there is none."""
    if not evaluations:
        return NO_RESULTS
    names = [*description["classes"][1:], MEAN]
    head = ["split", "prompts", "slices", "cases", *(f"Dice {x}, pooled" for x in names)]
    rows = [[*head, "Dice, by case"], ["---"] * (len(head) + 1)]
    for summary in evaluations:
        same = summary["data_fingerprint"] == description["data"]["fingerprint"]
        by_case = summary["cases"][MEAN]["Dice"]
        interval = format_interval(by_case["ci95"], "Dice", digits=1) if by_case["ci95"] else ""
        rows.append(
            [
                summary["split"] if same else f"{summary['split']} of other data",
                summary["prompts"],
                str(summary["num_slices"]),
                str(summary["num_cases"]),
                *(percent(summary["pooled"]["dice"][x], 1, MISSING) for x in names),
                f"{percent(by_case['mean'], 1, MISSING)} {interval}".rstrip(),
            ]
        )
    chosen = CHOSEN_ON_TEST if description["checkpoint_chosen_on"] == "test" else ""
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n{ABOUT_RESULTS.format(chosen=chosen)}"


def fill_template(name: str, **fields: Any) -> str:
    text = resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")
    return string.Template(text).substitute(fields)
