"""What the analyses say about the first question, in sentences computed from their numbers.

The claim: networks that reconstruct keep fine detail and look near, against networks that agree with a teacher. A
reading states the numbers and then whether they carry the claim here: `supports`, `against`, or `open` where
intervals or single models of the two groups overlap. Without models of both groups there is no verdict.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .comparison import DISTILLATION, RECONSTRUCTION, Comparison

Found = dict[str, Any]
"""the part `found` of an analysis' JSON: numbers by model"""


class Reading(NamedTuple):
    """Two sentences, and what they say of the claim."""

    text: str
    verdict: str
    """supports, against, open; empty where the analysis cannot judge the claim"""


class Value(NamedTuple):
    """A number of one model with its 95 % interval."""

    label: str
    kind: str
    value: float
    low: float
    high: float


def values_of(found: Found, about: Comparison, of: Callable[[str, Found], Found]) -> list[Value]:
    """A number for each model, in the order of the file; models of which it is not known are left out.

    Args:
        found: by model.
        about: names and kinds of the models.
        of: from a model's name and numbers to {value, low, high}.
    """
    rows = []
    for name, each in found.items():
        look, number = about.look(name), of(name, each)
        if None not in (number["value"], number["low"], number["high"]):
            rows.append(Value(look.label, look.kind, number["value"], number["low"], number["high"]))
    return rows


def average(estimate: Found, scale: float = 1.0) -> Found:
    """Mean of several estimates. The mean of their ends is an interval that is rather too wide than too narrow.

    Where one of them is not known (None: a share of nothing), nor is the mean.
    """
    return {
        part: None if None in estimate[part] else scale * float(np.mean(estimate[part]))
        for part in ("value", "low", "high")
    }


def at(estimate: Found, i: int) -> Found:
    """One of several estimates."""
    return {part: estimate[part][i] for part in ("value", "low", "high")}


def contrast(values: Sequence[Value], *, higher: bool, more: str, less: str) -> Reading:
    """Whether the models that reconstruct lie on the claimed side of those that agree with a teacher.

    Args:
        values: of all models.
        higher: the claim is that reconstruction is higher.
        more, less: what being higher and lower means: "reconstruction looks farther".
    """
    ours = [each for each in values if each.kind in RECONSTRUCTION]
    theirs = [each for each in values if each.kind in DISTILLATION]
    if not ours or not theirs:
        missing = "agrees with a teacher" if ours else "reconstructs"
        return Reading(f"No model that {missing} is among these, so the claim is not put to the test.", "")
    us, them = (", ".join(v.label for v in side) for side in (ours, theirs))
    if min(v.low for v in ours) > max(v.high for v in theirs):
        return Reading(
            f"Here reconstruction ({us}) {more} than agreement with a teacher ({them}), beyond the intervals.",
            "supports" if higher else "against",
        )
    if max(v.high for v in ours) < min(v.low for v in theirs):
        return Reading(
            f"Here reconstruction ({us}) {less} than agreement with a teacher ({them}), beyond the intervals.",
            "against" if higher else "supports",
        )
    said = (
        f"Reconstruction ({us}) and agreement with a teacher ({them}) are not told apart: intervals or models overlap."
    )
    return Reading(said, "open")


def listed(values: Sequence[Value], form: Callable[[float], str]) -> str:
    """Name the models with their numbers, highest first."""
    if not values:
        return "not known"
    ordered = sorted(values, key=lambda each: -each.value)
    parts = [f"{each.label} {form(each.value)}" for each in ordered]
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def attention_distance(found: Found, about: Comparison) -> Reading:
    """A1. Distances are divided by that of uniform attention, for grids may differ."""
    values = values_of(found, about, lambda name, each: average(each["layers"], 1 / (uniform(about, name) or 1.0)))
    known = all(uniform(about, name) for name in found)
    form = percent if known else "{:.1f} px".format
    unit = "of the distance that uniform attention has" if known else "averaged over blocks"
    judged = contrast(values, higher=False, more="looks farther", less="looks nearer")
    extra = "averaged over blocks, " if known else ""
    return Reading(f"How far patches look, {extra}{unit}: {listed(values, form)}. {judged.text}", judged.verdict)


def uniform(about: Comparison, name: str) -> float | None:
    """Mean distance, in pixels, of uniform attention on a model's own grid; None where its sizes are not known."""
    vit = about.vit(name)
    if vit is None:
        return None
    (h, w), (ph, pw) = (side if isinstance(side, list) else (side, side) for side in (vit["image_size"], vit["patch"]))
    rows, columns = np.meshgrid(np.arange(0, h, ph), np.arange(0, w, pw), indexing="ij")
    places = np.stack([rows.flatten(), columns.flatten()], 1).astype(float)
    return float(np.linalg.norm(places[:, None] - places[None], axis=-1).mean())


def attention_nmi(found: Found, about: Comparison) -> Reading:
    """A2, of the last block: there attention is said to become one map for all patches."""
    values = values_of(found, about, lambda _, each: at(each["layers"], -1))
    judged = contrast(values, higher=True, more="looks more by place", less="looks less by place")
    text = f"In the last block the NMI of where a patch is and where it looks is {listed(values, '{:.3f}'.format)}"
    return Reading(f"{text}. {judged.text}", judged.verdict)


def amplitude(found: Found, about: Comparison) -> Reading:
    """A3, of the last block."""
    values = values_of(found, about, lambda _, each: at(each["drop"], -1))
    judged = contrast(values, higher=True, more="keeps more fine detail", less="keeps less fine detail")
    text = (
        f"From the lowest to the highest frequency the last block's log-amplitude changes by {listed(values, signed)}"
    )
    return Reading(f"{text} (0 would be all detail kept). {judged.text}", judged.verdict)


def bands(found: Found, about: Comparison) -> Reading:
    """A4: mean relative accuracy on high-pass images."""
    values = values_of(found, about, lambda _, each: average(each["relative"]["high"]))
    low = values_of(found, about, lambda _, each: average(each["relative"]["low"]))
    if not values:
        return Reading("None of the models is right about any whole image, so there are no shares of that to keep.", "")
    judged = contrast(
        values, higher=True, more="keeps more of it on high frequencies", less="keeps less of it on high frequencies"
    )
    text = (
        f"Averaged over cut-offs, images without their low frequencies keep this share of the accuracy: "
        f"{listed(values, percent)}; without their high ones: {listed(low, percent)}"
    )
    return Reading(f"{text}. {judged.text}", judged.verdict)


def error_spectrum(found: Found, about: Comparison) -> Reading:
    """A5: where painting fails, and whether normalizing patches moves the loss to high frequencies."""
    sentences, verdicts = [], []
    for name, each in found.items():
        label, ratio = about.label(name), each["pixels"]["error_over_image"]["value"]
        ratio = ratio[: shown(about, name, len(ratio))]
        lost = next((rho for rho, value in enumerate(ratio) if value is not None and value >= 1), None)
        last = max((rho for rho, value in enumerate(ratio) if value is not None), default=0)
        good = max((rho for rho in range(last + 1) if all(v is None or v < 0.5 for v in ratio[: rho + 1])), default=0)
        where = f"no better than gray from {lost} cycles an image on" if lost is not None else "nowhere worse than gray"
        cut = next(iter(each["pixels"]["share"])).removeprefix("above ")
        i = int(cut.split()[0])
        raw, norm = (at(each[kind]["loss_share"], i) for kind in ("pixels", "normalized"))
        if None in (*raw.values(), *norm.values()):
            sentences.append(f"{label}: there is no error to divide by frequency.")
            continue
        sentences.append(
            f"{label} paints more than half of the energy up to {good} cycles an image and is {where}. Above {cut} lie "
            f"{percent(raw['value'])} of its squared error in pixels and {percent(norm['value'])} in normalized pixels"
        )
        side = "supports" if norm["low"] > raw["high"] else "against" if norm["high"] < raw["low"] else "open"
        verdicts.append(side)
        sentences[-1] += {
            "supports": ": normalizing patches moves the loss to fine detail.",
            "against": ": normalizing patches moves the loss away from fine detail.",
            "open": ": normalizing patches moves the loss by no more than its interval.",
        }[side]
    joint = verdicts[0] if len(set(verdicts)) == 1 else "open" if verdicts else ""
    return Reading(" ".join(sentences), joint)


def shown(about: Comparison, name: str, most: int) -> int:
    """Frequencies that are drawn, from 0 to half a side: beyond lie the corners of the spectrum alone."""
    vit = about.vit(name)
    side = vit["image_size"] if vit else 2 * most
    return min((min(side) if isinstance(side, list) else side) // 2 + 1, most)


def dependence(found: Found, about: Comparison) -> Reading:
    """A6: what the 8 nearest patches give of what all visible ones give."""
    values = values_of(found, about, lambda _, each: at(each["gain"], 1))
    if not values:
        return Reading("For none of the models do visible patches help to predict a hidden one.", "")
    half = [(about.label(name), each["R_50"]) for name, each in found.items() if each["R_50"] is not None]
    reach = "; half is reached at a radius of " + ", ".join(f"{label} {radius:.1f}" for label, radius in half)
    judged = contrast(
        values, higher=True, more="predicts more from next neighbors", less="predicts less from next neighbors"
    )
    text = f"The ring of next neighbors gives this part of what all visible patches give: {listed(values, percent)}"
    text += f"{reach} patches" if half else ""
    return Reading(f"{text}. {judged.text}", judged.verdict)


def targets(found: Found, about: Comparison) -> Reading:
    """A7: how much of a patch's mean color its target holds, and how much of the class, beyond chance."""
    values = values_of(found, about, lambda _, each: each["r2_color"])
    classes = [(about.label(name), each["nmi"] - each["nmi_by_chance"]) for name, each in found.items()]
    beyond = ", ".join(f"{label} {value:+.3f}" for label, value in classes)
    judged = contrast(
        [each._replace(kind="beit") if not each.kind else each for each in values],  # a dvae stands for its beit
        higher=True, more="has targets that say more of color", less="has targets that say less of color",
    )  # fmt: skip
    text = f"A target explains this part of its patch's mean color: {listed(values, percent)}"
    return Reading(f"{text}; its NMI with the class, beyond chance, is {beyond}. {judged.text}", judged.verdict)


def cka(found: Found, about: Comparison) -> Reading:
    """A8: whether last blocks are more alike within the two groups than between them. Without intervals."""
    models = list(dict.fromkeys(block.rpartition("/")[0] for block in found["blocks"]))
    last = {name: max(i for i, b in enumerate(found["blocks"]) if b.rpartition("/")[0] == name) for name in models}
    pairs = [
        (a, b, found["cka"][last[a]][last[b]])
        for i, a in enumerate(models) for b in models[i + 1 :]
        if found["cka"][last[a]][last[b]] is not None
    ]  # fmt: skip
    if not pairs:
        return Reading("One model alone: its blocks are compared with each other.", "")
    (a, b, most), (c, d, least) = max(pairs, key=lambda pair: pair[2]), min(pairs, key=lambda pair: pair[2])
    text = f"The last blocks of {about.label(a)} and {about.label(b)} are the most alike (CKA {most:.2f})"
    if len(pairs) > 1:
        text += f", those of {about.label(c)} and {about.label(d)} the least ({least:.2f})"
    group = {name: "r" if about.look(name).kind in RECONSTRUCTION else "d" if about.look(name).kind in DISTILLATION
             else "" for name in models}  # fmt: skip
    within = [value for x, y, value in pairs if group[x] and group[x] == group[y]]
    between = [value for x, y, value in pairs if group[x] and group[y] and group[x] != group[y]]
    if not within or not between:
        return Reading(f"{text}. Two methods of one kind and one of the other are needed to compare the kinds.", "")
    inner, outer = float(np.mean(within)), float(np.mean(between))
    said = f"Methods of one kind have {inner:.2f} in the mean, methods of different kinds {outer:.2f}"
    if abs(inner - outer) < 0.05:
        return Reading(f"{text}. {said}: no difference worth the name.", "open")
    side = "supports" if inner > outer else "against"
    return Reading(f"{text}. {said}: the kind of the target {'shows' if inner > outer else 'does not show'}.", side)


READINGS: dict[str, Callable[[Found, Comparison], Reading]] = {
    "attention-distance": attention_distance,
    "attention-nmi": attention_nmi,
    "amplitude": amplitude,
    "bands": bands,
    "error-spectrum": error_spectrum,
    "range": dependence,
    "targets": targets,
    "cka": cka,
}


def percent(value: float) -> str:
    """A fraction for people."""
    return f"{100 * value:.0f}\u00a0%"  # unbroken


def signed(value: float) -> str:
    """A number with its sign."""
    return f"{value:+.2f}"
