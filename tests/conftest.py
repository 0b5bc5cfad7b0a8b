"""The strict house: no promotion of ranks or dtypes, full precision, every warning an error, eight CPU devices."""

import contextlib
import ctypes
import gc
import importlib.util
import os
import platform
import signal
from pathlib import Path

from jaxlib.version import __version_info__ as jaxlib_version

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# Most programs of tests are over sooner than a compiler's best is ready. They compute the same, but for rounding; with
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 in the environment they are compiled as users' programs are.
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") != "0" and jaxlib_version < (0, 11):
    # Halves the time once more. A jaxlib that has lost this flag would end the process, so later ones go without it.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
# A program that was compiled once is read from there: by the next run, the other workers and the processes that tests
# start. Of each machine its own, since a program is made for one kind of processor.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "jax" / platform.node())
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several processes share an accelerator

import jax
import pytest

# The environment comes too late for a jax that a plugin has imported before.
jax.config.update("jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] != "0")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "highest")  # on accelerators float32 products are rounded to TF32

ABOUT_DEVICES = {"sharding.py", "test_sharding.py", "test_scaling.py", "test_checkpoints.py", "test_survival.py"}

# A script that starts the suite with & makes it deaf to Ctrl-C, and so would be the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """The name of a dtype, with what it needs switched on."""
    with enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture
def x64():
    with enable_x64(True):
        yield


def enable_x64(on):
    return jax.enable_x64(on) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64(on)


def held():
    """The bytes in memory, where the system shows them."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else 0


STAYS = [0]  # what was held after the last time that it was let go: the libraries, more than a gigabyte with PyTorch


def let_go():
    """What was compiled, and the memory: glibc keeps what is freed, gigabytes in small pieces."""
    jax.clear_caches()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    STAYS[0] = held()


@pytest.fixture(scope="module", autouse=True)
def after_a_file(request):
    """What it has compiled is of no use to the next one; doctests share theirs."""
    yield
    if request.path.parent == Path(__file__).parent:
        let_go()


@pytest.fixture(autouse=True)
def in_little_memory():
    """Also within a long file, from 1 GB on."""
    yield
    if held() > max(1e9, STAYS[0] + 2e8):
        let_go()


@pytest.fixture(autouse=True)
def on_eight_devices(request, monkeypatch):
    """Where an accelerator is the default, files about several devices take those of the CPU."""
    if jax.default_backend() == "cpu" or request.path.name not in ABOUT_DEVICES:
        yield
        return
    cpus = jax.devices("cpu")
    monkeypatch.setattr(jax, "devices", lambda *_: cpus)
    monkeypatch.setattr(jax, "device_count", lambda *_: len(cpus))
    with jax.default_device(cpus[0]):
        yield


@pytest.fixture
def optimized():
    """For whole epochs of MNIST it is quicker to compile as users do."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] != "0")


@pytest.fixture
def mnist():
    """The real MNIST, never downloaded by a test."""
    from funcnet import datasets

    folder = os.environ.get("FUNCNET_DATA")
    if not folder:
        pytest.skip("FUNCNET_DATA does not name the folder of the MNIST files")
    return datasets.load_mnist(folder)


def pytest_collection_modifyitems(items):
    """Warnings are errors within tests alone: those of other people's plugins, before the first test, are not ours."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("error"), append=False)  # before a test's own filters
    # PyTorch and ONNX are no part of the extra `test`: their wheels are large.
    for package in ("torch", "onnx"):
        if importlib.util.find_spec(package) is None:
            for item in items:
                if isinstance(item, pytest.DoctestItem) and package in item.name:
                    item.add_marker(pytest.mark.skip(reason="needs the extra `exchange`"))
