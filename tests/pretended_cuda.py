"""A CUDA device that is not there, so that a machine without one shows what code forgets on one.

    python tests/pretended_cuda.py [pytest arguments]     # default: tests/test_gpu.py, but for what is compiled

As a pytest plugin it makes ``torch.cuda.is_available()`` true. From then on a tensor on "cuda" is an :class:`OnDevice`: it says
``cuda:0`` to Python and to C++, and its numbers lie in a tensor of the CPU. So whole runs compute real values, by CUDA's autocast
lists and ``is_cuda`` branches. A dispatch mode sees every operation and refuses what a GPU refuses:

* tensors of two devices in one operation (but numbers without dimensions in pointwise operations, and indices of the CPU);
* a generator of another device than what is drawn;
* ``.numpy()`` of a tensor on the device;
* under ``torch.cuda.set_sync_debug_mode("error")`` whatever makes the host wait for the device: values that are read, copies that
  block, results whose size depends on values. Which operations those are is known from torch's sources, not from a GPU.

It shows nothing of a GPU's rounding, memory, speed, races, missing kernels, fused attention, compiled code or CUDA graphs.

How it is possible: autograd asks CUDA for streams, which a build for CUDA without a driver cannot answer, so that a library of
one function (:data:`SHIM`), loaded before all others, sends that question to hooks in Python. All this hangs on private parts of
torch: :func:`why_not` says what keeps it from working, as does another version of torch than :data:`KNOWN`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

KNOWN = ("2.14.1",)
"""Versions of torch, built for CUDA, that this has been seen to work with."""

SHIM = """
// at::accelerator::getAccelerator(checked): the kind of the device, in the lower byte of an optional that holds a value. Whoever
// asks unchecked wants a name for the device (CUDA, 1); whoever asks checked looks for its hooks (PrivateUse1, 20: ours).
extern "C" short _ZN2at11accelerator14getAcceleratorEb(bool checked) { return 0x100 | (checked ? 20 : 1); }
"""

DEVICE = torch.device("cuda:0")

BETWEEN_DEVICES = {"copy_", "_to_copy", "set_", "lift_fresh", "lift"}
"""Operations whose very sense is to take tensors of two devices."""

BY_INDEX = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}

FILLS = {"fill_", "masked_fill", "masked_fill_"}
"""They take a number without dimensions from either device, and carry no tag that says so."""

WAITS = {
    "_linalg_check_errors": "checks whether a factorisation succeeded",
    "_linalg_eigh": "looks at the eigenvalues' status",
    "_linalg_svd": "looks at the singular values' status",
    "_local_scalar_dense": "reads a value",
    "_unique2": "the size of the result depends on values",
    "bincount": "the size of the result depends on values",
    "equal": "reads whether all are equal",
    "histc": "reads the range",
    "linalg_eig": "is computed on the host",
    "linalg_lstsq": "looks at the solver's status",
    "masked_select": "the size of the result depends on values",
    "multinomial": "checks the probabilities",
    "nonzero": "the size of the result depends on values",
    "repeat_interleave": "the size of the result depends on values",
    "unique_consecutive": "the size of the result depends on values",
    "unique_dim": "the size of the result depends on values",
}
"""Operations for which the host waits, and why."""


# ---- tensors and generators -------------------------------------------------------------------------------------------


class OnDevice(Tensor):
    """A tensor on the pretended device. Its numbers are those of ``inner``, a tensor on the CPU of the same layout."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnDevice":
        return Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return carried_out(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()  # which is seen as a copy

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy: use Tensor.cpu() first")

    __array__ = numpy

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnDevice":
        copy = memo[id(self)] = OnDevice(self.inner.clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copy._is_param = True
        return copy

    @property
    def data(self) -> Tensor:
        return OnDevice(self.inner.detach())

    @data.setter
    def data(self, other: "OnDevice") -> None:
        self.take_shape_of(other)
        self.inner = other.inner

    def take_shape_of(self, other: "OnDevice") -> None:
        """Say to C++ what ``other`` says; which numbers it stands for stays the same."""
        Tensor.data.__set__(self, other)  # type: ignore[attr-defined]


class Generator(torch.Generator):
    """A generator that knows which device it draws for.

    Operations see another Python object for the same generator, so that its address is what it is known by.
    """

    devices: dict[int, str] = {}  # noqa: RUF012

    def __new__(cls, device: torch.device | str = "cpu") -> "Generator":
        generator = super().__new__(cls, "cpu")
        cls.devices[generator._cdata] = torch.device(device).type
        _KEPT.append(generator)  # an address that were freed could be that of a generator for another device
        return generator

    @property
    def device(self) -> torch.device:
        return torch.device(self.devices[self._cdata])


_KEPT: list[torch.Generator] = []


# ---- operations -------------------------------------------------------------------------------------------------------


class PretendedDevice(TorchDispatchMode):
    """Sees every operation; holds what ``torch.cuda`` knows of the device."""

    def __init__(self) -> None:
        super().__init__()
        self.sync_debug_mode = 0
        self.random_state = torch.Generator().get_state()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return carried_out(func, args, kwargs or {})

    def seed(self, seed: int) -> None:
        """Seed the device's own generator."""
        self.random_state = torch.Generator().manual_seed(seed).get_state()


THE_DEVICE = PretendedDevice()


def carried_out(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The result of an operation, which is refused where a GPU would refuse it."""
    if torch.is_inference_mode_enabled():
        # Composite operations arrive there as a whole; sent round again, they arrive in parts, as in any other mode.
        with torch.inference_mode(False), torch.no_grad(), THE_DEVICE:
            return func(*args, **kwargs)
    operation = Operation(func, args, {name: value for name, value in kwargs.items() if name != "pin_memory"})
    if not operation.concerns_the_device:
        return func(*args, **operation.kwargs)
    if _is_composite(
        func
    ):  # made of others, which the rules are about; only what was made in inference mode is seen so
        with THE_DEVICE:
            return func.decompose(*args, **kwargs)
    operation.refuse_mixed_devices()
    operation.refuse_foreign_generators()
    reason = operation.why_the_host_waits()
    if reason and THE_DEVICE.sync_debug_mode == 2:
        raise RuntimeError(f"called a synchronizing CUDA operation: {operation.name} ({reason})")
    return operation.result()


class Operation:
    """One call of an ATen operator, in which tensors of the device may occur."""

    def __init__(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        self.name: str = func._schema.name.split("::")[1]
        self._values, self._structure = tree_flatten((args, kwargs))
        self.tensors = [value for value in self._values if isinstance(value, Tensor)]
        asked_for = kwargs.get("device")
        self.asked_for = None if asked_for is None else torch.device(asked_for).type
        takes_from_device = any(isinstance(tensor, OnDevice) for tensor in self.tensors)
        self._generators = [value for value in self._values if isinstance(value, torch._C.Generator)]
        draws_on_device = any(Generator.devices.get(generator._cdata) == "cuda" for generator in self._generators)
        self.concerns_the_device = takes_from_device or draws_on_device or self.asked_for == "cuda"
        self.gives_to_device = self.asked_for == "cuda" if self.asked_for else takes_from_device

    # ---- rules ----

    def refuse_mixed_devices(self) -> None:
        """Raise where tensors of both devices meet that may not."""
        if len({isinstance(tensor, OnDevice) for tensor in self.tensors}) < 2 or self.name in BETWEEN_DEVICES:
            return
        if self.name in BY_INDEX:
            target, value = self.args[0], self.args[2] if len(self.args) > 2 else None
            allowed = isinstance(target, OnDevice) and (value is None or isinstance(value, OnDevice) or not value.dim())
        else:
            numbers_only = all(isinstance(tensor, OnDevice) or not tensor.dim() for tensor in self.tensors)
            written = [tensor for tensor in self._written() if isinstance(tensor, Tensor)]
            allowed = numbers_only and _is_pointwise(self.name) and all(isinstance(t, OnDevice) for t in written)
        if not allowed:
            found = ", ".join(f"{tensor.device} {tuple(tensor.shape)}" for tensor in self.tensors)
            raise RuntimeError(f"Expected all tensors to be on the same device in {self.name}, but found {found}")

    def refuse_foreign_generators(self) -> None:
        """Raise where a generator is of another device than what it draws."""
        expected = "cuda" if self.gives_to_device else "cpu"
        if any(Generator.devices.get(generator._cdata, "cpu") != expected for generator in self._generators):
            raise RuntimeError(f"Expected a '{expected}' device type for the generator of {self.name}")

    def why_the_host_waits(self) -> str | None:
        """Why the host waits for the device here, or None."""
        if self.name in BY_INDEX:
            return self._why_an_index_waits()
        if self.name in ("masked_fill", "masked_fill_") and isinstance(self.args[2], OnDevice):
            return "reads the value to fill in"
        if self.name in ("copy_", "_to_copy") and self._crosses() and not self._is_queued():
            return "a copy between host and device that blocks"
        if self.kwargs.get("output_size") is not None:  # repeat_interleave that is told the size
            return None
        return WAITS.get(self.name) if any(isinstance(tensor, OnDevice) for tensor in self.tensors) else None

    def _why_an_index_waits(self) -> str | None:
        indices = [index for index in self.args[1] if index is not None]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            value = self.args[2] if len(self.args) > 2 else None
            is_filled = value is not None and not isinstance(value, OnDevice) and value.numel() == 1
            return None if is_filled and len(indices) == 1 else "the size depends on a mask"
        return "indices are copied to the device" if not all(isinstance(i, OnDevice) for i in indices) else None

    def _crosses(self) -> bool:
        """Whether a copy goes from one device to the other."""
        if self.name == "copy_":
            return isinstance(self.args[0], OnDevice) != isinstance(self.args[1], OnDevice)
        return self.asked_for is not None and isinstance(self.args[0], OnDevice) != (self.asked_for == "cuda")

    def _is_queued(self) -> bool:
        """Whether a copy does not keep the host waiting: ``non_blocking``, or nothing to copy."""
        asked = self.args[2] if self.name == "copy_" and len(self.args) > 2 else self.kwargs.get("non_blocking")
        return bool(asked) or not self.args[0].numel()

    # ---- computing ----

    def result(self) -> Any:
        """The operation on the CPU, its results where they belong."""
        args, kwargs = tree_unflatten(
            [value.inner if isinstance(value, OnDevice) else value for value in self._values], self._structure
        )
        if self.asked_for:
            kwargs["device"] = torch.device("cpu")
        if self.name in ("_softmax", "_log_softmax") and args[2]:  # from half to single precision: CUDA's alone
            args = (args[0].float(), args[1], False)
        draws = self.gives_to_device and torch.Tag.nondeterministic_seeded in self.func.tags
        found = _drawing_on_the_device(self.func, args, kwargs) if draws else self.func(*args, **kwargs)
        written = self._written()
        if written and all(_is_written(returned) for returned in self.func._schema.returns):  # in place
            for tensor in written:
                if isinstance(tensor, OnDevice) and tensor.shape != tensor.inner.shape:  # squeeze_ and the like
                    tensor.take_shape_of(OnDevice(tensor.inner))
            returns = self.func._schema.returns
            return written[0] if len(returns) == 1 else tuple(written) if returns else found
        return _on_device(found) if self.gives_to_device else found

    def _written(self) -> list[Any]:
        """The arguments that the operation changes."""
        return [
            self.kwargs.get(argument.name) if argument.kwarg_only else self.args[position]
            for position, argument in enumerate(self.func._schema.arguments)
            if _is_written(argument)
        ]


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _on_device(found: Any) -> Any:
    return tree_map(lambda t: OnDevice(t) if isinstance(t, Tensor) and not isinstance(t, OnDevice) else t, found)


def _drawing_on_the_device(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The result of an operation that draws from the device's own generator, for which that of the CPU stands in."""
    of_host = torch.get_rng_state()
    torch.set_rng_state(THE_DEVICE.random_state)
    try:
        return func(*args, **kwargs)
    finally:
        THE_DEVICE.random_state = torch.get_rng_state()
        torch.set_rng_state(of_host)


@cache
def _is_composite(func: Any) -> bool:
    return func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


@cache
def _is_pointwise(name: str) -> bool:
    """Whether an operator, or the one it does in place or for lists of tensors, works element by element."""
    bare = name.rstrip("_")
    packets = [getattr(torch.ops.aten, n, None) for n in (name, bare, bare.removeprefix("_foreach_"))]
    overloads = [getattr(packet, overload) for packet in packets if packet for overload in packet.overloads()]
    return name in FILLS or any(torch.Tag.pointwise in overload.tags for overload in overloads)


# ---- the device in its place ------------------------------------------------------------------------------------------


def why_not() -> str | None:
    """Why there can be no pretended device here, a clause; None where there can."""
    version = torch.__version__.partition("+")[0]
    if sys.platform != "linux":
        return "its library is made for Linux"
    if version not in KNOWN:
        return f"it hangs on private parts of torch, and is known to work with {', '.join(KNOWN)}, not with {version}"
    if torch.version.cuda is None:
        return "torch is built without CUDA"
    if torch.cuda.is_available():
        return "there is a real one"
    return None if shutil.which("g++") else "it takes g++"


def install() -> None:
    """Put the device in place, for the rest of the process. :data:`SHIM` has to be loaded already."""
    _answer_for_cuda()
    _answer_for_autograd()
    _keep_parameters_in_place()
    _save_and_load()
    THE_DEVICE.__enter__()


def _answer_for_cuda() -> None:
    """Let ``torch.cuda`` speak of the device."""
    cuda: Any = torch.cuda

    def nothing(*_: Any, **__: Any) -> None:
        return None

    answers: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: "no GPU",
        "mem_get_info": lambda *_: (2**36, 2**36),
        "max_memory_allocated": lambda *_: 0,
        "memory_allocated": lambda *_: 0,
        "manual_seed": THE_DEVICE.seed,
        "manual_seed_all": THE_DEVICE.seed,
        "get_rng_state": lambda *_: THE_DEVICE.random_state.clone(),
        "set_rng_state": lambda state, *_: setattr(THE_DEVICE, "random_state", state.clone()),
        "get_sync_debug_mode": lambda: THE_DEVICE.sync_debug_mode,
        "set_sync_debug_mode": _set_sync_debug_mode,
        **dict.fromkeys(("_lazy_init", "synchronize", "empty_cache", "reset_peak_memory_stats"), nothing),
    }
    for name, answer in answers.items():
        setattr(cuda, name, answer)
    torch.Generator = Generator  # type: ignore[misc]
    torch.backends.cudnn.enabled = False
    Tensor.pin_memory = lambda tensor, *_: tensor  # type: ignore[method-assign]  # which takes a driver
    for kind in ("flash", "mem_efficient", "cudnn"):  # attention by products and softmax: what a CPU has kernels for
        getattr(torch.backends.cuda, f"enable_{kind}_sdp")(False)


def _set_sync_debug_mode(mode: int | str) -> None:
    THE_DEVICE.sync_debug_mode = {"default": 0, "warn": 1, "error": 2}[mode] if isinstance(mode, str) else mode


def _answer_for_autograd() -> None:
    """Let C++ find a guard for CUDA's devices, and hooks that say there is no context: so autograd asks for no streams."""
    from torch.utils.backend_registration import _DummyPrivateUse1Hook, _setup_privateuseone_for_python_backend

    class Hooks(_DummyPrivateUse1Hook):
        def has_primary_context(self, _index: int) -> bool:
            return False

    torch._C._ensureCUDADeviceGuardSet()
    _setup_privateuseone_for_python_backend("pretended", hook=Hooks())
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device="cuda") becomes a copy, which the mode sees


def _keep_parameters_in_place() -> None:
    """Let a module's parameters stay the same objects in ``.to``, as they do on a GPU."""
    move, future = torch.nn.Module._apply, torch.__future__

    def moved(module: torch.nn.Module, fn: Callable[..., Any], recurse: bool = True) -> torch.nn.Module:
        before = future.get_swap_module_params_on_conversion()
        future.set_swap_module_params_on_conversion(True)
        try:
            return move(module, fn, recurse)
        finally:
            future.set_swap_module_params_on_conversion(before)

    torch.nn.Module._apply = moved  # type: ignore[method-assign]


def _save_and_load() -> None:
    """Let files hold what tensors hold. A file remembers of a tensor on which device it was, as torch's do."""
    save, load = torch.save, torch.load

    def saved(state: Any, file: Any, **more: Any) -> None:
        save(
            tree_map(lambda t: _Saved(t.detach().inner).plain() if isinstance(t, OnDevice) else t, state), file, **more
        )

    def loaded(file: Any, map_location: Any = None, **more: Any) -> Any:
        state = load(file, map_location="cpu", **more)
        target = None if map_location is None else torch.device(map_location).type

        def placed(value: Any) -> Any:
            if isinstance(value, dict) and value.keys() == {_Saved.KEY}:
                return value[_Saved.KEY] if target == "cpu" else OnDevice(value[_Saved.KEY])
            return OnDevice(value) if isinstance(value, Tensor) and target == "cuda" else value

        return tree_map(placed, state, is_leaf=lambda v: isinstance(v, dict) and v.keys() == {_Saved.KEY})

    torch.save, torch.load = saved, loaded


class _Saved:
    """How a tensor of the device lies in a file."""

    KEY = "on the pretended device"

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def plain(self) -> dict[str, Tensor]:
        return {self.KEY: self.inner}


def pytest_configure(config: Any) -> None:
    """Being named as a plugin puts the device in place."""
    install()


def command_for(arguments: Sequence[str], folder: Path) -> tuple[list[str], dict[str, str]]:
    """The command and the environment in which pytest has the device; its library is built in ``folder``."""
    library = folder / "shim.so"
    subprocess.run(["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", library], input=SHIM, text=True, check=True)
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(paths)}
    plugins = ["-p", "pretended_cuda", "-p", "no:xdist", "-p", "no:cacheprovider"]
    return [sys.executable, "-m", "pytest", *plugins, *arguments], environment


if __name__ == "__main__":
    reason = why_not()
    if reason:
        sys.exit(f"no pretended CUDA device: {reason}")
    chosen = sys.argv[1:] or ["tests/test_gpu.py", "-k", "not compiled"]
    with tempfile.TemporaryDirectory() as temporary:
        command, surroundings = command_for(chosen, Path(temporary))
        sys.exit(subprocess.run(command, env=surroundings).returncode)
