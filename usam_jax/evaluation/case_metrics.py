"""Metrics of one case in 3-D for each class: overlap, surface distances, volume and lesions.

Uses only NumPy and SciPy, so that threads can score cases while the device predicts others.
"""

import dataclasses
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

OK, MISSED, FALSE_ALARM, ABSENT = "ok", "missed", "false_alarm", "absent"
POLICIES = {
    "worst": "a missed class or a false alarm scores 0 in Dice, IoU and NSD, and the diagonal of the "
    "volume in HD95; a class that is absent from truth and prediction enters no mean",
    "skip": "a class that is missed, a false alarm, or absent from truth and prediction enters no mean",
}
LESION_WORDS = ("tumour", "tumor", "cancer", "lesion", "metastas", "nodule", "polyp")
LESION_OVERLAP = 0.1  # share of its voxels that has to be predicted for a lesion to be found
MM3_PER_ML = 1000.0

# Dice, IoU, HD95, NSD, TP, FP, FN, TN, n_pred, n_ref, volume, reference_volume, status and, for
# lesion classes, lesions, lesions_found, lesions_false. A metric that is not defined is None.
ClassScore = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Scoring:
    """Settings that the metrics depend on.

    `tolerances` are those of NSD, one per foreground class, in mm, or in pixels if the spacing is
    not known. `policy` is one of POLICIES. Classes whose name contains one of LESION_WORDS are
    lesion classes: their connected components are counted.
    """

    classes: tuple[str, ...]
    tolerances: tuple[float, ...]
    policy: str = "worst"

    @property
    def lesions(self) -> tuple[str, ...]:
        return tuple(x for x in self.classes if any(word in x.lower() for word in LESION_WORDS))


def score_case(
    truth: np.ndarray,
    predicted: np.ndarray,
    spacing: tuple[float, float, float] | None,
    scoring: Scoring,
) -> list[ClassScore]:
    """Score each foreground class of a case.

    Both labels are uint8[n h w] of the same shape.

    `spacing` is (z, y, x) in mm; if it is None, distances are in pixels and volumes are numbers of
    pixels. HD95 is the larger of the two directed 95th percentiles of the distances between
    surface voxels. NSD is the share of both surfaces that lies within the tolerance of the other.
    A volume of one slice is measured as a plane.
    """
    num_classes = len(scoring.classes)
    confusion = confusion_matrix(truth, predicted, num_classes)
    boxes = bounding_boxes(truth, predicted, num_classes)
    mm = np.array(spacing or (1.0, 1.0, 1.0))
    worst = float(np.linalg.norm(mm * (np.array(truth.shape) - (np.array(truth.shape) == 1))))
    unit = float(mm.prod()) / MM3_PER_ML if spacing else 1.0
    scores = []
    for c in range(1, num_classes):
        tp = int(confusion[c, c])
        n_ref, n_pred = int(confusion[c].sum()), int(confusion[:, c].sum())
        status = class_status(n_ref, n_pred)
        score: ClassScore = {"Dice": None, "IoU": None, "HD95": None, "NSD": None}
        if status == OK:
            a, b = truth[boxes[c]] == c, predicted[boxes[c]] == c
            if truth.shape[0] == 1:  # as a volume, every pixel would be on the surface
                a, b, mm = a[0], b[0], mm[-2:]
            score["Dice"] = 2 * tp / (n_ref + n_pred)
            score["IoU"] = tp / (n_ref + n_pred - tp)
            score |= surface_metrics(a, b, mm, scoring.tolerances[c - 1])
        elif status != ABSENT and scoring.policy == "worst":
            score = {"Dice": 0.0, "IoU": 0.0, "HD95": worst, "NSD": 0.0}
        score |= {
            "TP": tp,
            "FP": n_pred - tp,
            "FN": n_ref - tp,
            "TN": truth.size - n_ref - n_pred + tp,
            "n_pred": n_pred,
            "n_ref": n_ref,
            "volume": n_pred * unit,
            "reference_volume": n_ref * unit,
            "status": status,
        }
        if scoring.classes[c] in scoring.lesions:
            score |= count_lesions(truth[boxes[c]] == c, predicted[boxes[c]] == c)
        scores.append(score)
    return scores


def class_status(n_ref: int, n_pred: int) -> str:
    """Status of a class with `n_ref` voxels in the truth and `n_pred` in the prediction."""
    return (ABSENT, FALSE_ALARM, MISSED, OK)[2 * (n_ref > 0) + (n_pred > 0)]


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Number of voxels for each pair (truth, prediction), int64[k k].

    Counted slice by slice to save memory.
    """
    counts = np.zeros(num_classes**2, np.int64)
    for a, b in zip(truth, predicted, strict=True):
        pairs = a.ravel() * np.uint16(num_classes) + b.ravel()
        counts += np.bincount(pairs, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def bounding_boxes(
    truth: np.ndarray, predicted: np.ndarray, num_classes: int
) -> list[tuple[slice, ...]]:
    """For each class the smallest box that holds it in both labels, empty if it is in neither."""
    boxes = [ndimage.find_objects(x, num_classes - 1) for x in (truth, predicted)]
    joined: list[tuple[slice, ...]] = [(slice(0, 0),) * truth.ndim]
    for pair in zip(*boxes, strict=True):
        found = [box for box in pair if box]
        axes = zip(*found, strict=True)
        joined.append(
            tuple(slice(min(x.start for x in a), max(x.stop for x in a)) for a in axes) or joined[0]
        )
    return joined


def surface_voxels(mask: np.ndarray) -> np.ndarray:
    """Indices int64[m d] of the voxels of a mask that have a face neighbour outside the mask.

    Everything beyond the array counts as outside.
    """
    inside = np.pad(mask, 1)
    core = mask.copy()
    middle = (slice(1, -1),) * mask.ndim
    for axis in range(mask.ndim):
        for shifted in (slice(None, -2), slice(2, None)):
            core &= inside[(*middle[:axis], shifted, *middle[axis + 1 :])]
    return np.argwhere(mask & ~core)


def surface_metrics(
    a: np.ndarray, b: np.ndarray, spacing: np.ndarray, tolerance: float
) -> dict[str, float]:
    """HD95 and NSD between the surfaces of two non-empty masks.

    `spacing` float[d] is that of the axes, in mm.
    """
    from_a, from_b = surface_voxels(a) * spacing, surface_voxels(b) * spacing
    to_b, _ = KDTree(from_b).query(from_a)
    to_a, _ = KDTree(from_a).query(from_b)
    within = np.count_nonzero(to_b <= tolerance) + np.count_nonzero(to_a <= tolerance)
    return {
        "HD95": float(max(np.percentile(to_b, 95), np.percentile(to_a, 95))),
        "NSD": float(within / (to_a.size + to_b.size)),
    }


def count_lesions(truth: np.ndarray, predicted: np.ndarray) -> dict[str, int]:
    """Number of lesions in the truth, of those that are found, and of false predicted ones.

    A lesion is a connected component (voxels that share a corner are connected). It is found if at
    least LESION_OVERLAP of its voxels are predicted. A predicted component is false if it overlaps
    no lesion.
    """
    corners = np.ones((3,) * truth.ndim)
    lesions, count = ndimage.label(truth, corners)
    parts, num_parts = ndimage.label(predicted, corners)
    sizes = np.bincount(lesions.ravel(), minlength=count + 1)[1:]
    covered = np.bincount(lesions[predicted], minlength=count + 1)[1:]
    overlapping = np.unique(parts[truth & predicted]).size
    return {
        "lesions": count,
        "lesions_found": int(np.count_nonzero(covered >= LESION_OVERLAP * sizes)),
        "lesions_false": num_parts - overlapping,
    }
