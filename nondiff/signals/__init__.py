"""What comes over the boundary between two modules, in place of the true gradient or the true inputs."""

from nondiff.core.inputs import AbstractInputs
from nondiff.core.signal import AbstractSignal, Locked
from nondiff.signals.delayed import Delayed
from nondiff.signals.feedback_alignment import FeedbackAlignment
from nondiff.signals.forward_gradient import ForwardGradient
from nondiff.signals.local_loss import LocalLoss
from nondiff.signals.nets import AbstractNet, Hidden, Linear
from nondiff.signals.synthetic_gradient import SyntheticGradient
from nondiff.signals.synthetic_input import SyntheticInput

__all__ = [
    "AbstractInputs",
    "AbstractNet",
    "AbstractSignal",
    "Delayed",
    "FeedbackAlignment",
    "ForwardGradient",
    "Hidden",
    "Linear",
    "LocalLoss",
    "Locked",
    "SyntheticGradient",
    "SyntheticInput",
]
