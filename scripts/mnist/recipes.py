"""Recipes: settings of the training command that belong together, by name."""

from typing import Any, NamedTuple

from funcnet.distortions import CIRESAN, Distortion


class Recipe(NamedTuple):
    """Settings that belong together."""

    about: str
    literature: str  # the test error of the source with its own settings
    settings: dict[str, Any]


_DISTORT = {
    "hidden_sizes": (1000, 500),
    "distortion": Distortion(rotation=12.0, shear=12.0, scale=0.12, shift=1.0, alpha=36.0, sigma=5.0),
    "soft_finish": 0.15,
    "views": 32,
    "batch_size": 256,
    "epochs": 220,
    "validation": 0,
    "compute_dtype": "auto",
}
RECIPES = {
    "default": Recipe("784-512-10 in a quarter of a minute", "", {}),
    "plain": Recipe(
        "weight decay and label smoothing",
        "1.6%, 784-800-10 (Simard, Steinkraus and Platt, 2003)",
        {"hidden_sizes": (800,), "optimizer": "adamw", "weight_decay": 0.3, "label_smoothing": 0.1, "epochs": 40,
         "validation": 0},
    ),
    "dropout": Recipe(
        "dropout and weight decay, on upright images",
        "1.05%, 784-898-1532-10; 0.95%, 784-8192-8192-10 (Srivastava et al., 2014)",
        {"hidden_sizes": (1024, 1024), "upright": (0.0,), "dropout": 0.5, "input_dropout": 0.2, "optimizer": "adamw",
         "weight_decay": 0.3, "epochs": 60, "batch_size": 256, "validation": 0, "compute_dtype": "auto"},
    ),
    "vat": Recipe(
        "virtual adversarial training, weight decay and label smoothing",
        "0.64%, 784-1200-600-300-150-10 with batch normalisation (Miyato et al., 2018)",
        {"hidden_sizes": (1000, 600, 300), "vat_radius": 2.1, "lr": 1e-3, "optimizer": "adamw", "weight_decay": 0.3,
         "label_smoothing": 0.05, "epochs": 60, "validation": 0, "compute_dtype": "auto"},
    ),
    "distort": Recipe(
        "fresh deformations in each epoch", "0.7%, 784-800-10 (Simard, Steinkraus and Platt, 2003)", _DISTORT
    ),
    "distort-large": Recipe(
        "twelve million parameters, for a GPU",
        "0.35% (Ciresan et al., 2010)",
        _DISTORT | {"hidden_sizes": (2500, 2000, 1500, 1000, 500), "distortion": CIRESAN, "epochs": 800},
    ),
    "ensemble": Recipe(
        "four of `distort` in one program, for longer, on images deformed more",
        "0.31%, seven networks (Ciresan et al., 2011)",
        _DISTORT | {"ensemble": 4, "epochs": 360, "distortion": Distortion(
            rotation=14.4, shear=14.4, scale=0.144, shift=1.2, alpha=43.2, sigma=5.0)},
    ),
}  # fmt: skip


def described(name: str) -> str:
    """A recipe in one line, with the test error in the literature."""
    about, literature, _ = RECIPES[name]
    return f"{about}; in the literature {literature}" if literature else about
