"""What the analyses say about the second question: whether and why a teacher is better than its student.

As in readings.py: numbers first, then `supports`, `against` or `open`, where the claim is that the average is
better, steadier and flatter than what it averages.
"""

from collections.abc import Callable
from typing import Any

from .comparison import Comparison
from .readings import Found, Reading, at, percent


def teacher_student(found: Found, about: Comparison) -> Reading:
    """B1: the gap at the last checkpoint, and where it cannot be told from 0."""
    sentences, verdicts = [], []
    for name, each in found.items():
        label = about.label(name)
        if "steps" not in each:  # as logged while training, without intervals
            for title, pair in each.items():
                gaps = pair["gap"]
                ahead = sum(gap > 0 for gap in gaps)
                sentences.append(
                    f"{label}, {title}: the teacher was ahead at {ahead} of {len(gaps)} evaluations, and by "
                    f"{100 * gaps[-1]:+.1f} points at the last; without intervals."
                )
            verdicts.append("")
            continue
        last = at(each["gap"], -1)
        sentences.append(
            f"{label}: at step {each['steps'][-1]:,} the teacher's k-NN accuracy minus its student's is "
            f"{points(last)} points; at {len(each['not_told_apart'])} of {len(each['steps'])} checkpoints the two "
            "cannot be told apart."
        )
        verdicts.append(_above(last, 0.0))
        sentences[-1] += {
            "supports": " At the end the teacher is the better one.",
            "against": " At the end the student is the better one.",
            "open": " At the end neither is shown to be better.",
        }[verdicts[-1]]
    return Reading(" ".join(sentences), _joint(verdicts))


def averaging(found: Found, about: Comparison) -> Reading:
    """B2: whether a plain average of students is better than the student, and how much of its noise is left."""
    sentences, verdicts = [], []
    for name, each in found.items():
        accuracy = each["accuracy"]
        student, teacher = accuracy["student"], accuracy["run's teacher"]
        averages = {key: value for key, value in accuracy.items() if key.startswith("EMA") or key == "mean of all"}
        best = max(averages, key=lambda key: averages[key]["value"])
        momentum = max(each["kept_variance"], key=float)
        kept, predicted = each["kept_variance"][momentum], each["predicted"][momentum]
        sentences.append(
            f"{about.label(name)}: after {each['steps']:,} more steps the student has {one(student)}, the best plain "
            f"average of students ({best}) {one(averages[best])} and the run's teacher {one(teacher)} %."
        )
        if averages[best]["low"] > student["high"]:
            verdicts.append("supports")
            sentences.append("Averaging alone is better than the student, beyond the intervals.")
        elif averages[best]["high"] < student["low"]:
            verdicts.append("against")
            sentences.append("Averaging alone is worse than the student, beyond the intervals.")
        else:
            verdicts.append("open")
            sentences.append("The intervals of student and average overlap.")
        if kept is not None and predicted:
            sentences.append(
                f"Of the students' spread, momentum {momentum} leaves {100 * kept:.2g}\u00a0%, where independent noise "
                f"would leave {100 * predicted:.2g}\u00a0%."
            )
    return Reading(" ".join(sentences), _joint(verdicts))


def target_noise(found: Found, about: Comparison) -> Reading:
    """B3: whether the teacher's answers move less than its student's from one step to the next."""
    sentences, verdicts = [], []
    for name, each in found.items():
        targets, features = at(each["ratio"]["target_variance"], 0), at(each["ratio"]["jitter"], 0)
        steps, predicted = each["distances"][0], each["predicted_ratio"][0]
        if None in (*targets.values(), *features.values()):
            sentences.append(f"{about.label(name)}: the student does not move, so nothing can be steadier.")
            verdicts.append("")
            continue
        verdicts.append(_above({"value": 0, "low": -targets["high"], "high": -targets["low"]}, -1.0))
        said = {"supports": "steadier than", "against": "less steady than", "open": "about as steady as"}[verdicts[-1]]
        sentences.append(
            f"{about.label(name)}: over {steps} step{'s' if steps > 1 else ''} the teacher's targets vary "
            f"{targets['value']:.3g} times as much as its student's would and its features move "
            f"{features['value']:.3g} times as much; averaging independent noise would give {predicted:.3g}. "
            f"As targets, the teacher is {said} the student."
        )
    return Reading(" ".join(sentences), _joint(verdicts))


def flatness(found: Found, about: Comparison) -> Reading:
    """B4: whether the loss rises less around the teacher than around its student."""
    sentences, verdicts = [], []
    for name, each in found.items():
        if "teacher" not in each:
            continue
        sigma = max(each["student"]["sharpness"], key=float)
        rises = {who: each[who]["sharpness"][sigma] for who in ("student", "teacher")}
        traces = {who: each[who]["hessian_trace"]["value"] for who in ("student", "teacher")}
        side = _apart(rises["teacher"], rises["student"])
        verdicts.append(side)
        said = {"supports": "rises less", "against": "rises more", "open": "rises alike, within the intervals,"}[side]
        sentences.append(
            f"{about.label(name)}: a random step of {sigma} of each filter's norm changes the loss by "
            f"{rises['student']['value']:.3g} around the student and {rises['teacher']['value']:.3g} around the "
            f"teacher, and the Hessian's trace is {traces['student']:.3g} and {traces['teacher']:.3g}. The loss {said} "
            "around the teacher."
        )
    if not sentences:
        return Reading("None of these has a teacher; scales of different losses do not compare.", "")
    return Reading(" ".join(sentences), _joint(verdicts))


def collapse(found: Found, about: Comparison) -> Reading:
    """B6: whether the outputs still tell images apart. No verdict on the claim: a precondition of it."""
    sentences = []
    for name, each in found.items():
        label = about.label(name)
        if "information" not in each:
            last = each["logged"]
            sentences.append(f"{label}: last logged entropy {last['entropy']:.2f} nats, {_shares(last)}.")
            continue
        entropy, most, whole = each["entropy"]["value"], each["ln_K"], each["ln_K"] - each["kl_uniform"]
        if whole < 0.05 * most:
            said = "nearly all images get one and the same output: it has collapsed to a point"
        elif entropy > 0.95 * most:
            said = "outputs are close to uniform: it has collapsed for lack of sharpening"
        elif each["information"] < 0.1 * most:
            said = "outputs say little of the image: it is close to collapse"
        else:
            said = "outputs tell images apart: it has not collapsed"
        sentences.append(
            f"{label}: the output of an image holds {each['information']:.2f} of at most {most:.2f} nats of "
            f"information on the image (ln K), with {_shares(each)}. Its {said}."
        )
    return Reading(" ".join(sentences), "")


READINGS: dict[str, Callable[[Found, Comparison], Reading]] = {
    "teacher-student": teacher_student,
    "averaging": averaging,
    "target-noise": target_noise,
    "flatness": flatness,
    "collapse": collapse,
}


def points(gap: Found) -> str:
    """A difference of fractions in points, with its interval."""
    return f"{100 * gap['value']:+.1f} [{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}]"


def one(estimate: Found) -> str:
    """An accuracy in percent, with its interval."""
    return f"{100 * estimate['value']:.1f} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"


def _shares(each: Found) -> str:
    agreement = each["agreement"]["value"] if isinstance(each["agreement"], dict) else each["agreement"]
    return f"{percent(each['usage'])} of the prototypes in use and {percent(agreement)} agreement with the student"


def _above(estimate: dict[str, Any], level: float) -> str:
    return "supports" if estimate["low"] > level else "against" if estimate["high"] < level else "open"


def _apart(lower: Found, higher: Found) -> str:
    """Whether the first is below the second, beyond both intervals."""
    return "supports" if lower["high"] < higher["low"] else "against" if lower["low"] > higher["high"] else "open"


def _joint(verdicts: list[str]) -> str:
    """Of several runs: what they agree on."""
    return verdicts[0] if len(set(verdicts)) == 1 else "open" if any(verdicts) else ""
