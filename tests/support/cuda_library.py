"""Libraries that have a CPU build of torch take tensors for CUDA's, compiled where a compiler is.

`GUARD`, loaded into this process: CUDA's device guard does nothing, which is enough for forward. `DEVICE`, which must
be loaded before torch (`LD_PRELOAD`): autograd too finds a device there, whose streams are always done. That a CPU
build has no accelerator is compiled into it, so the function that says which there is is put in its place.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import torch

__all__ = ["DEVICE", "GUARD", "CannotCompile", "compile_library"]

GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace { C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>) }
"""
DEVICE = """
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <optional>
using namespace c10;
namespace {
struct Guard : impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device getDevice() const override { return Device(DeviceType::CUDA, 0); }
  Device exchangeDevice(Device) const override { return getDevice(); }
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, getDevice()); }
  Stream exchangeStream(Stream stream) const noexcept override { return stream; }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
}
namespace at {
struct Hooks : CUDAHooksInterface {
  explicit Hooks(CUDAHooksArgs) {}
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
};
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, Hooks)
namespace accelerator { TORCH_API std::optional<DeviceType> getAccelerator(bool) { return DeviceType::CUDA; } }
}
"""


class CannotCompile(Exception):
    """Why there is no library."""


def compile_library(code: str, folder: Path) -> Path:
    """A library of `code` against this torch, in `folder`.

    Raises:
        CannotCompile: it cannot be had.
    """
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise CannotCompile("no C++ compiler")
    if torch.version.cuda is not None:
        raise CannotCompile("this torch has a device guard for CUDA of its own")
    root = Path(torch.__file__).parent
    source, library = folder / "library.cpp", folder / "library.so"
    source.write_text(code)
    paths = [f"-I{root / 'include'}", f"-L{root / 'lib'}", f"-Wl,-rpath,{root / 'lib'}", "-ltorch_cpu", "-lc10"]
    made = subprocess.run(
        [compiler, "-shared", "-fPIC", "-std=c++20", str(source), "-o", str(library), *paths],
        capture_output=True,
        text=True,
    )
    if made.returncode:
        raise CannotCompile(f"{compiler} cannot compile against torch: {made.stderr[-300:]}")
    return library
