"""The page's fixed words: titles, how to read a chart, what to look at in a picture. Findings are in readings.py."""

from typing import NamedTuple


class Words(NamedTuple):
    """What stands beside a picture or a chart."""

    title: str
    how: str
    """to read it"""


SIGHTS = {
    "reconstruction": Words(
        "Reconstructions",
        "Look at the hidden patches, third and fourth column: are edges carried on across the gaps, or only their "
        "colors?",
    ),
    "tokens": Words(
        "Visual tokens",
        "Look at the last two columns: where do the predicted tokens draw the same shape as the true ones, and where "
        "only a plausible texture?",
    ),
    "attention": Words(
        "Attention of the class token",
        "Look at whether the bright patches follow the object or stay in the same corner of every image.",
    ),
    "patches": Words(
        "Correspondences of patches",
        "Look at boxes of one color from image to image: do they mark like things, or only like colors?",
    ),
    "augmentations": Words("What each method was shown", "Look at how much of the image is left to recognize it by."),
}
"""WHAT of a picture -> title, and one sentence on what to look at"""

FIRST = ("attention-distance", "attention-nmi", "amplitude", "bands", "error-spectrum", "range", "targets", "cka")
SECOND = ("teacher-student", "averaging", "target-noise", "flatness", "collapse")
"""analyses of the two questions, in the order of the page"""

ANALYSES = {
    "attention-distance": Words(
        "How far does attention reach?",
        "Lines: mean over heads, with a band for the 95 % interval; dots: single heads. Low = a block mixes neighbors.",
    ),
    "attention-nmi": Words(
        "Does attention depend on the place?",
        "0 = every patch attends to the same places; 1 = every patch to its own. Dots: single heads.",
    ),
    "amplitude": Words(
        "How much fine detail do the tokens hold?",
        "Fourier amplitude of a block's tokens, relative to frequency 0, log scale. Less negative = more fine detail.",
    ),
    "bands": Words(
        "Which frequencies are the features read from?",
        "k-NN learned from whole images and is asked about filtered ones; 100 % is the accuracy on whole images.",
    ),
    "error-spectrum": Words(
        "What does painting pay for?",
        "Left: 1 is what predicting the mean gives. Right: how much of the squared error lies above a frequency. An "
        "MAE of normalized pixels borrows each patch's true mean and contrast when it is drawn in pixels.",
    ),
    "range": Words(
        "From how far away is a hidden patch predicted?",
        "0 = nothing is seen, 100 % = all visible patches are; each model with its own masks and loss. A curve that "
        "rises early predicts from its neighborhood.",
    ),
    "targets": Words(
        "What do the targets encode?",
        "Tokens and prototypes of one patch each. Targets that encode looks explain colors; targets that encode "
        "meaning share information with the class.",
    ),
    "cka": Words(
        "How alike are the representations?",
        "Linear CKA of the mean patch after every block: 1 = alike up to rotation and scale, 0 = unrelated. White "
        "lines part the models; within one, blocks run from first to last.",
    ),
    "teacher-student": Words(
        "Is the teacher better?",
        "k-NN on the class token of stored checkpoints, the same images for both networks; the gap's interval is "
        "paired, image by image.",
    ),
    "averaging": Words(
        "Is averaging enough?",
        "The run went on in memory. EMA m: average of its students with momentum m; ensemble: mean votes of 8 "
        "students. Right: squared distance from the mean of all, over that of single students.",
    ),
    "target-noise": Words(
        "Are the teacher's targets steadier?",
        "Answers to the same images some steps apart, of the teacher over the student's. Below 1 = the teacher moves "
        "less.",
    ),
    "flatness": Words(
        "Does the teacher lie in a flatter place?",
        "On fixed views and targets. A flatter place has the lower rise and the lower trace. Compare the two networks "
        "of one run only.",
    ),
    "collapse": Words(
        "Do the outputs still tell images apart?",
        "0 % information = the teacher's output says nothing of the image.",
    ),
}
"""analysis -> title, how to read its charts"""

CLAIM_1 = (
    "The claim in the literature: a network that fills in what is hidden (mae, beit) keeps fine detail and looks near, "
    "while one that agrees with a teacher (ibot, dino) looks far and the same way from everywhere. Each measurement "
    "below is held against it by its own numbers; intervals are over images, not over training runs."
)
CLAIM_2 = (
    "The claim: an average of students is a better, steadier and flatter network than each of them, and so a better "
    "target. Each measurement below is held against it by its own numbers; intervals are over images or draws, not "
    "over training runs."
)
GRIDS = (
    "The models see grids of different sizes ({grids}), which moves some of these numbers by itself: distances are "
    "divided by those of uniform attention, but frequencies, radii and NMI are not made equal."
)
VERDICTS = {"supports": "supports the claim", "against": "against the claim", "open": "not decided here"}
