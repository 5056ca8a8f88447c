"""What comes back over the boundary between two modules, in place of the true gradient."""

from nondiff.core.signal import AbstractSignal, Locked
from nondiff.signals.delayed import Delayed
from nondiff.signals.feedback_alignment import FeedbackAlignment
from nondiff.signals.forward_gradient import ForwardGradient
from nondiff.signals.local_loss import LocalLoss
from nondiff.signals.nets import AbstractNet, Hidden, Linear
from nondiff.signals.synthetic_gradient import SyntheticGradient

__all__ = [
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
]
