"""Compile every Triton kernel for several GPUs, none of which need be here: registers, spills and shared memory.

    python benchmarks/compile_kernels.py [--arch 80 90 100] [--only closest]

Each kernel is compiled as it is launched, for each of its data types. Prints a Markdown table for docs/performance.md; ends
with 1 where a kernel spills registers or needs more shared memory than the GPU has.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from facetrain.kernels import mining_triton, over_classes_triton

SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # of a block, at most
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
POINTER = re.compile(r"_ptr$")


class Case(NamedTuple):
    """A kernel as it is launched: element types of its pointers, and its constants."""

    name: str
    kernel: Any
    pointers: dict[str, str]
    constants: dict[str, Any]


def cases() -> Iterator[Case]:
    yield from mining_cases()
    yield from head_cases()


def head_cases() -> Iterator[Case]:
    """Every form of a head, exact and in TF32; and the ones with most in registers with three sub-centres."""
    pointers = dict.fromkeys(("rows", "weight", "inverse", "bias", "bound", "numbers", "lse", "grad"), "fp32")
    pointers |= dict.fromkeys(("shares", "sums", "best"), "fp32") | {"labels": "i64", "nearest": "i64"}
    pointers = {f"{name}_ptr": kind for name, kind in pointers.items()}
    for precision in ("ieee", "tf32"):
        for form, (normalised, hard, sub_centers) in {
            "cosines": (True, False, 1),
            "plain logits": (False, False, 1),
            "hard classes": (True, True, 1),
            "hard classes, 3 sub-centres": (True, True, 3),
        }.items():
            constants = {"NORMALISED": normalised, "BIAS": not normalised, "HARD": hard}
            for name, gradient in (("others", False), ("shares", True)):
                kernel = getattr(over_classes_triton, f"_{name}_kernel")
                constants = constants | over_classes_triton._blocks(
                    precision, 512, sub_centers, gradient=gradient
                )
                label = "fp32" if precision == "ieee" else precision
                yield Case(f"{name}, {form}, {label}", kernel, pointers, constants)


def mining_cases() -> Iterator[Case]:
    for dtype, precision in (
        (torch.float32, "ieee"),
        (torch.float32, "tf32"),
        (torch.bfloat16, "tf32"),
        (torch.float16, "tf32"),
    ):
        kind = TYPES[dtype]
        label = precision if kind == "fp32" and precision == "tf32" else kind
        mining = {"x_ptr": kind, "labels_ptr": "i64", "squares_ptr": "fp32"}
        blocks = {**mining_triton._blocks(dtype, precision, 512), "PRECISION": precision}
        out = {"distance_ptr": "fp32", "column_ptr": "i32"}
        yield Case(f"closest, {label}", mining_triton._closest_kernel, mining | out, blocks)
        window = {"low_ptr": "fp32", "high_ptr": "fp32", "found_ptr": "i64", "seed_ptr": "i32"}
        for choice in ("RANDOM", "CLOSEST"):
            of_window = mining_triton._blocks(dtype, precision, 512, window=True)
            constants = {**of_window, "PRECISION": precision, "CHOICE": getattr(mining_triton, choice)}
            yield Case(
                f"window, {choice.lower()}, {label}", mining_triton._window_kernel, mining | window, constants
            )
        if precision == "ieee" or kind != "fp32":
            listed = {"x_ptr": kind, "other_ptr": "i64", "distance_ptr": "fp32"}
            yield Case(
                f"listed distances, {label}",
                mining_triton._pair_distances_kernel,
                listed,
                {"BLOCK_A": 16, "BLOCK_D": 128, "enable_fp_fusion": True},
            )
    gradient = {
        "x_ptr": "fp32",
        "other_ptr": "i64",
        "weight_ptr": "fp32",
        "begin_ptr": "i64",
        "out_ptr": "fp32",
    }
    yield Case(
        "pair gradient, fp32",
        mining_triton._pair_gradient_kernel,
        gradient,
        {"BLOCK_D": 256, "enable_fp_fusion": True},
    )


def compiled(case: Case, arch: int) -> Any:
    options = {
        name: case.constants[name]
        for name in ("num_warps", "num_stages", "enable_fp_fusion")
        if name in case.constants
    }
    constants = {name: value for name, value in case.constants.items() if name not in options}
    constants = {name: getattr(value, "value", value) for name, value in constants.items()}
    signature, aligned = {}, {}
    for place, name in enumerate(case.kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif POINTER.search(name):
            signature[name] = f"*{case.pointers[name]}"
            aligned[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
            if name in ("dim", "stride_row", "stride_batch"):
                aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(case.kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def registers_and_spills(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and how many instructions go to local memory, which is where registers are spilt to."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", "--dump-sass", str(file)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    used = re.search(r"REG:(\d+)", said)
    assert used is not None, said
    return int(used.group(1)), len(re.findall(r"\b(?:LDL|STL)\b", said))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--arch", type=int, nargs="*", default=list(SHARED_BYTES), help="compute capability × 10"
    )
    parser.add_argument("--only", default="", help="kernels whose name holds this; 1 if there is none")
    arguments = parser.parse_args()
    print(f"triton {triton.__version__}\n")
    gpus = ", ".join(f"sm_{arch}" for arch in arguments.arch)
    print(f"| kernel, for {gpus} | registers | instructions that spill | shared memory, KB |")
    print("|---|---:|---:|---:|")
    chosen = [case for case in cases() if arguments.only in case.name]
    fits = bool(chosen)
    for case in chosen:
        found = []
        for arch in arguments.arch:
            kernel = compiled(case, arch)
            registers, spilt = registers_and_spills(kernel.asm["cubin"])
            shared = kernel.metadata.shared
            good = spilt == 0 and shared <= SHARED_BYTES[arch]
            fits &= good
            found.append((f"{registers}", f"{spilt}", f"{shared / 1024:.0f}{'' if good else ' ✗'}"))
        print(
            "|",
            case.name,
            *("| " + ", ".join(column) for column in zip(*found, strict=True)),
            "|",
            flush=True,
        )
    sys.exit(0 if fits else 1)


if __name__ == "__main__":
    main()
