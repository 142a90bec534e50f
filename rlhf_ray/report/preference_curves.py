"""The charts of preference learning, on fixed data or online, and those that all training on fixed data has."""

from __future__ import annotations

from rlhf_ray import metrics as m
from rlhf_ray.report.curves import Plan

LOSS_PLAN = Plan(
    "loss",
    "Loss",
    "A held-out loss that rises while the training loss falls means that the model learns the data by heart.",
    (("loss", False, (("training", m.TRAIN_LOSS), ("held-out", m.HELDOUT_LOSS))),),
    wide=True,
)
PREFERENCE_PLANS = (
    Plan(
        "accuracy",
        "Chosen answer above rejected",
        "Share of pairs in which the chosen answer gets the higher score. 50% is chance.",
        (("pairs", True, (("training", m.TRAIN_ACCURACY), ("held-out", m.HELDOUT_ACCURACY))),),
    ),
    Plan(
        "margin",
        "Margin",
        "Mean score of the chosen answer minus that of the rejected one.",
        (("score difference", False, (("training", m.TRAIN_MARGIN), ("held-out", m.HELDOUT_MARGIN))),),
    ),
    Plan(
        "rewards",
        "Implicit rewards",
        "beta x log(policy / reference). Both falling: the policy leaves the data, chosen answers included.",
        (("implicit reward", False, (("chosen", m.CHOSEN_REWARD), ("rejected", m.REJECTED_REWARD))),),
    ),
    Plan(
        "beta",
        "Beta and the distance it holds",
        "The controller raises beta when the KL is above its target and lowers it below.",
        (
            ("KL per answer (nats)", False, (("measured, smoothed", m.BETA_KL), ("target", m.BETA_TARGET_KL))),
            ("reward gap (log-ratio)", False, (("gap of the batch", m.REWARD_GAP),)),
            ("beta", False, (("beta", m.BETA),)),
        ),
    ),
)
OPTIMIZER_PLAN = Plan(
    "optimizer",
    "Optimizer",
    "Norm of the gradient before clipping, and the learning rate.",
    (
        ("gradient norm", False, (("gradient norm", m.TRAIN_GRAD_NORM),)),
        ("learning rate", False, (("learning rate", m.LEARNING_RATE),)),
    ),
)
SPEED_PLAN = Plan(
    "speed",
    "Speed",
    "Tokens a second, padding left out.",
    (("tokens a second", False, (("tokens a second", m.TOKENS_PER_SECOND),)),),
)
