"""The settings of a training run: their meaning, where they come from, and checks."""

import argparse
import json
import math
import stat
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro
from mnist.environment import differences
from mnist.recipes import RECIPES, described

from funcnet import activations
from funcnet.distortions import Distortion

NO_DISTORTION = Distortion()
ENVIRONMENT, DATA = "environment", "data"  # the entries of config.json that are not settings
LONGEST_FILE = 10_000_000  # bytes
LARGEST, LARGEST_FLOAT = 2**31 - 1, 3.4e38  # the largest of JAX's integers, and of its floats


@dataclass(frozen=True)
class Config:
    """Train a multilayer perceptron on MNIST, with a hand-written backward pass."""

    recipe: Literal["default", "plain", "dropout", "vat", "distort", "distort-large", "ensemble"] = "default"
    """The defaults of the other settings; see above."""
    repeat: Path | None = None
    """The config.json of an earlier run, to use its settings; only the run folder is new."""
    dataset: str = "auto"
    """mnist, fashion (Fashion-MNIST) or digits (bundled with scikit-learn); or your own: FILE.npz with the arrays x and
    y, or x_train, y_train, x_test and y_test, a folder with these as x.npy and so on, FILE.csv with a column `label`,
    or a folder of IDX files, as for KMNIST and EMNIST. `auto` is MNIST, or the digits if MNIST is not available."""
    data_dir: Path | None = None
    """Folder with the files of MNIST or Fashion-MNIST; otherwise $FUNCNET_DATA, then the user's cache, then a
    download."""
    hidden_sizes: tuple[int, ...] = (512,)
    """Widths of the hidden layers; none at all is logistic regression."""
    activation: str = "relu"
    """Of the hidden layers: relu, leaky_relu(0.1), sigmoid, tanh, softplus, elu, silu, gelu or identity."""
    dropout: float = 0.0
    """Fraction of the hidden units dropped in training."""
    input_dropout: float = 0.0
    """Fraction of the pixels dropped in training."""
    weight_limit: float = 0.0
    """Largest norm of a unit's incoming weights; 0 is no limit."""
    label_smoothing: float = 0.0
    """Fraction of each target spread evenly over the classes."""
    vat_radius: float = 0.0
    """How far virtual adversarial training moves each image; 0 is off."""
    upright: tuple[float, ...] = ()
    """First make all images upright, with this width: the standard deviation of the ink's columns, in pixels; 0 keeps
    the width of each. For an ensemble, one width for all networks or one for each. Without a width, images are not
    changed."""
    distortion: Distortion = NO_DISTORTION
    """How much each image is deformed, at random in each epoch."""
    soft_finish: float = 0.0
    """The last fraction of the epochs, in which images are deformed half as much."""
    views: int = 1
    """Test-time averaging: also score the mean over this many views of each image, deformed half as much; 1 is off."""
    optimizer: Literal["adam", "adamw", "rmsprop", "sgd"] = "adam"
    """Update rule."""
    lr: float = 2e-3
    """Peak learning rate."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """`cosine` warms up over the first epoch, then decreases to 0."""
    momentum: float = 0.9
    """Of sgd."""
    weight_decay: float = 1e-4
    """Of adamw."""
    average: float = 0.0
    """Decay of an exponential average of the weights, which is then evaluated and saved; 0 is no average."""
    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 128
    """Images per update."""
    ensemble: int = 1
    """Networks trained in one program, whose probabilities are averaged."""
    validation: int | None = None
    """Training images held out for validation; by default a twelfth (5,000 of MNIST)."""
    fold: int = 0
    """Which images to hold out: 0 the last ones, 1 as many before those, and so on; for cross-validation."""
    patience: int = 0
    """Stop after this many epochs without a smaller validation loss, and keep the weights of the epoch with the
    smallest; 0 trains to the end and keeps the last. The schedule is still that of all the epochs."""
    test: bool = True
    """Evaluate on the test set, once, at the end; use --no-test while you choose settings."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Of the inputs of matrix products; `auto` measures at the start whether bfloat16 is faster here, and config.json
    stores the choice."""
    accumulate: int = 1
    """Number of parts of each batch, computed one by one in the memory of one part."""
    mesh: str = ""
    """How devices share the work, such as `data=4,model=2`; by default one device does it all."""
    coordinator: str | None = None
    """For several processes: `host:port` of the first, the same for all, or `auto` if a cluster configures JAX."""
    processes: int | None = None
    """With --coordinator host:port: the number of processes."""
    process: int | None = None
    """With --coordinator host:port: the number of this process, from 0."""
    checkpoint_every: float = 30.0
    """Seconds between two checkpoints, which are written at the end of an epoch; 0 is after every epoch."""
    keep: int = 3
    """Number of checkpoints to keep."""
    resume: Path | None = None
    """The folder of a run that ended early, to continue from its last undamaged checkpoint; give no other settings."""
    seed: int = 0
    """Determines all random numbers: same seed and same device, same weights."""
    run_dir: Path | None = None
    """Folder for weights, metrics, config and pictures; by default a new one under runs/."""


def from_command_line(arguments: list[str] | None = None) -> Config:
    """The settings of the recipe, or of the run to repeat or resume, with those on the command line in their place."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", default="default")
    first.add_argument("--repeat", type=at_home)
    first.add_argument("--resume", type=at_home)
    start, _ = first.parse_known_args(arguments)
    if (start.recipe != "default") + bool(start.repeat) + bool(start.resume) > 1:
        raise ValueError("--recipe, --repeat and --resume are ways to start; give one of them")
    if start.resume:
        default = saved(start.resume)
    elif start.repeat:
        default = read(start.repeat)
    else:
        default = Config(**RECIPES.get(start.recipe, RECIPES["default"]).settings)
    recipes = "\n\n".join(f"{name}: {described(name)}" for name in RECIPES)
    about = f"{Config.__doc__}\n\nRecipes:\n\n{recipes}"
    return tyro.cli(Config, args=arguments, default=default, description=about)


def at_home(path: str | Path) -> Path:
    """A path, in which a leading tilde is a user's home.

    Raises:
      ValueError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}; ./{path} is a folder of that name") from error


def with_paths(config: Config) -> Config:
    """The settings with strings converted to paths, and leading tildes expanded."""
    paths = {name: getattr(config, name) for name in ("run_dir", "repeat", "resume")}
    return replace(config, **{name: at_home(path) for name, path in paths.items() if isinstance(path, str | Path)})


def in_words(width: float) -> str:
    """A width of upright images, as text."""
    return f"{width:g}" if width else "own width"


def as_json(config: Config) -> str:
    """The settings as text."""
    return json.dumps(asdict(config) | {"distortion": config.distortion._asdict()}, indent=2, default=str)


def read(path: Path) -> Config:
    """The settings of an earlier run, to run it again.

    Raises:
      OSError: there is no such file.
      ValueError: it is not a configuration of this version; the message names the missing or unknown settings.
    """
    settings, hints = (
        {name: value for name, value in _content(path).items() if name not in (ENVIRONMENT, DATA)},
        _hints(),
    )
    if settings.keys() != hints.keys():
        odd = sorted(settings.keys() ^ hints.keys())
        raise ValueError(f"{path}: not the configuration of a run of this version: {odd} unknown or missing")
    for name, value in settings.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"{path}: {name} is {_short(value)}, expected {_in_words(hints[name])}")
    settings |= dict.fromkeys(("run_dir", "resume", "coordinator", "processes", "process")) | {"repeat": path}
    settings |= {name: tuple(settings[name]) for name in ("hidden_sizes", "upright")}
    settings["distortion"] = Distortion(**settings["distortion"])
    settings["data_dir"] = settings["data_dir"] and Path(settings["data_dir"])
    return Config(**settings)


def facts_of(path: Path, name: str) -> dict[str, Any]:
    """The facts that a run stored under `name`, besides its settings; empty if there are none."""
    kept = _content(path).get(name)
    return kept if isinstance(kept, dict) else {}


def _content(path: Path) -> dict[str, Any]:
    """The content of a configuration's file, checked to be small and a JSON object."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError(f"{path}: not the configuration of a run: it is not an ordinary file")
    if about.st_size > LONGEST_FILE:
        raise ValueError(f"{path}: not the configuration of a run: it has {about.st_size:,} bytes")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # bad JSON or UTF-8, too many digits or brackets
        raise ValueError(f"{path}: not the configuration of a run: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not the configuration of a run of this version: {type(content).__name__} unknown or "
                         "missing")  # fmt: skip
    return content


# Settings that may change when a run continues.
FREE_TO_CHANGE = frozenset({"data_dir", "mesh", "coordinator", "processes", "process", "checkpoint_every", "keep",
                            "resume", "repeat", "run_dir"})  # fmt: skip
# Settings that may differ between the processes of a run.
OF_ONE_PROCESS = frozenset({"data_dir", "coordinator", "process", "repeat"})


def saved(run_dir: Path) -> Config:
    """The settings of a run that continues in its folder.

    Raises:
      OSError: there is no such run.
      ValueError: its settings cannot be read.
    """
    if not (run_dir / "config.json").is_file():
        raise FileNotFoundError(f"--resume {run_dir}: no run has begun there: there is no config.json in it")
    return replace(read(run_dir / "config.json"), repeat=None, resume=run_dir, run_dir=run_dir)


def check_same_run(config: Config, run_dir: Path) -> None:
    """Refuse to continue a run with other settings.

    Raises:
      ValueError: a setting differs; the message names it.
    """
    before = saved(run_dir)
    for name, value in asdict(config).items():
        was = asdict(before)[name]
        if name not in FREE_TO_CHANGE and value != was:
            raise ValueError(f"--resume {run_dir}: {name} is {value!r}, but that run began with {was!r}")
    if config.run_dir not in (None, run_dir):
        raise ValueError(f"--resume {run_dir} continues in that folder; --run-dir is {config.run_dir}")
    decisive, _ = differences(facts_of(run_dir / "config.json", ENVIRONMENT))
    if decisive:
        raise ValueError(f"--resume {run_dir}: since that run began, {decisive[0]}, or the bits will differ")


def _hints() -> dict[str, Any]:
    """The type of each setting."""
    return get_type_hints(Config)


def _in_words(hint: Any) -> str:
    return (hint.__name__ if isinstance(hint, type) else str(hint)).replace("typing.", "")


def _short(value: Any) -> str:
    """A value for a message, shortened if it is long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python shows
        return "a very large number"
    return text if len(text) <= 100 else f"{text[:100]}..."


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON is of this type."""
    if hint is Distortion:
        amounts = value if isinstance(value, dict) else {}
        return amounts.keys() == {*hint._fields} and all(_fits(amount, float) for amount in amounts.values())
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is UnionType:
        return any(_fits(value, part) for part in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, list) and all(_fits(v, get_args(hint)[0]) for v in value)
    if hint is float and isinstance(value, int) and abs(value) >= 2**1023:
        return False  # no float is so large
    kinds: dict[Any, Any] = {float: (int, float), Path: str}
    return isinstance(value, kinds.get(hint, hint)) and isinstance(value, bool) == (hint is bool)


def _is_unicode(path: Path) -> bool:
    """Whether Python could decode all bytes of the path."""
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in str(path))


def _floats(config: Config) -> dict[str, Any]:
    """The settings that are floats, by flag."""
    hints = _hints()
    numbers = {_flag(name): getattr(config, name) for name, hint in hints.items() if hint is float}
    numbers |= {f"{_flag('upright')}[{i}]": width for i, width in enumerate(config.upright)}
    return numbers | {f"--distortion.{name}": value for name, value in config.distortion._asdict().items()}


def check(config: Config) -> None:
    """Refuse settings that make no sense, before the data are loaded."""
    kept, hints = json.loads(as_json(config)), _hints()
    for name, hint in hints.items():
        if not _fits(kept[name], hint):
            raise ValueError(f"{_flag(name)} is {_short(kept[name])}, expected {_in_words(hint)}")
    for flag, value in _floats(config).items():
        if not abs(value) <= LARGEST_FLOAT and (flag, value) != ("--checkpoint-every", math.inf):
            raise ValueError(f"{flag} is {value}, expected a finite number in the range of float32")
    for path in (config.run_dir, config.resume):
        if path is not None and not _is_unicode(path.absolute()):
            raise ValueError(
                f"run folder {path}: its name is not UTF-8, and checkpoints cannot be written there; if it is UTF-8, "
                "set PYTHONUTF8=1"
            )
    least = {"epochs": 0, "batch_size": 1, "ensemble": 1, "lr": 0, "weight_decay": 0, "weight_limit": 0,
             "vat_radius": 0, "validation": 0, "fold": 0, "seed": 0, "views": 1, "accumulate": 1, "patience": 0,
             "checkpoint_every": 0, "keep": 1}  # fmt: skip
    for name, smallest in least.items():
        value = getattr(config, name)
        if value is not None and not value >= smallest:
            raise ValueError(f"{_flag(name)} is {_short(value)}, expected at least {smallest}")
        largest = 2**32 - 1 if name == "seed" else LARGEST  # a key is made of 32 bits of the seed
        if isinstance(value, int) and value > largest:
            raise ValueError(f"{_flag(name)} is {_short(value)}, expected at most {largest}")
    if len(config.activation) > 100:
        raise ValueError(f"--activation is {_short(config.activation)}, expected the name of one")
    activations.from_name(config.activation)
    for width in config.hidden_sizes:
        if width < 1:
            raise ValueError(f"--hidden-sizes has {_short(width)}, expected at least 1")
        if width > 2**53:  # `check_memory` checks smaller ones
            raise ValueError(f"--hidden-sizes has {_short(width)}, expected at most {2**53}")
    for name in ("dropout", "input_dropout", "label_smoothing", "average", "momentum", "soft_finish"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{_flag(name)} is {getattr(config, name)}, expected a number in [0, 1)")
    for name, value in config.distortion._asdict().items():
        if not value >= 0 or (name == "sigma" and value == 0):
            raise ValueError(f"--distortion.{name} is {value}, expected a positive number")
    if config.distortion.sigma < 0.1:  # the step of the grid of noise
        raise ValueError(f"--distortion.sigma is {config.distortion.sigma}, expected at least a tenth of a pixel")
    for width in config.upright:
        if not 0 <= width < math.inf:
            raise ValueError(
                f"--upright has {width}, expected a positive number of pixels, or 0 for an image's own width"
            )
    if len(config.upright) not in (0, 1, config.ensemble):
        raise ValueError(
            f"--upright has {len(config.upright)} widths, {_short(config.upright)}, expected one, such as 0, or "
            f"one for each network of --ensemble {config.ensemble}"
        )
    if config.distortion == NO_DISTORTION and (config.views > 1 or config.soft_finish):
        raise ValueError(
            f"--views is {config.views} and --soft-finish {config.soft_finish}, but without a "
            "--distortion all views and epochs are the same"
        )
    for name, optimizer in (("momentum", "sgd"), ("weight_decay", "adamw")):
        if config.optimizer != optimizer and getattr(config, name) != getattr(Config, name):
            raise ValueError(
                f"{_flag(name)} is {getattr(config, name)}, a setting of --optimizer {optimizer}, but the "
                f"optimizer is {config.optimizer}"
            )
    if config.batch_size % config.accumulate:
        raise ValueError(
            f"--batch-size is {config.batch_size}, expected a multiple of --accumulate {config.accumulate}"
        )
    if config.mesh and config.ensemble > 1:
        raise ValueError("--mesh is for one network, and --ensemble trains several: give one of them")
    if config.validation == 0 and config.fold:
        raise ValueError(f"--fold is {config.fold} and --validation is 0: hold some images out")
    if config.validation == 0 and not config.test:
        raise ValueError("--no-test evaluates on the validation images, and --validation is 0: hold some images out")
    if config.validation == 0 and config.patience:
        raise ValueError(f"--patience is {config.patience} and --validation is 0: hold some images out")
    if config.resume is not None:
        check_same_run(config, config.resume)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
