#!/usr/bin/env python3
"""Let a CUDA build of torch run on a machine without CUDA, by empty libraries in the place of those it was linked with.

Usage: stub_cuda.py DIR_OF_TORCH_LIBRARIES

The package index has torch for this platform with CUDA only, and the real libraries are gigabytes that a CPU never calls.
Each library that is missing is made from the symbols that torch's own libraries want of it, under the version names they
want; every function in it answers "no device". Needs a C compiler and binutils.
"""
import collections
import glob
import os
import re
import subprocess
import sys
import tempfile

CUDA_LIBRARY = re.compile(r"lib(cu|nv|nccl)")
NO_DEVICE = 100


def wanted_libraries(library):
    """Libraries that this one names, and for each of its versions of symbols the library that has it."""
    text = subprocess.run(["objdump", "-p", library], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"^\s+NEEDED\s+(\S+)", text, re.M)
    owner_of_version, owner = {}, None
    for line in text.partition("Version References:")[2].splitlines():
        required = re.match(r"\s+required from (\S+):", line)
        owner = required.group(1) if required else owner
        version = re.match(r"\s+0x\w+ 0x\w+ \d+ (\S+)", line)
        if version:
            owner_of_version[version.group(1)] = owner
    return needed, owner_of_version


def symbols(library, kind):
    text = subprocess.run(["nm", "-D", f"--{kind}-only", library], capture_output=True, text=True, check=True).stdout
    return [line.split()[-1] for line in text.splitlines() if line.split()]


def gather(libraries):
    """Missing CUDA libraries, and the (symbol, version) pairs that each has to offer."""
    present = {os.path.basename(library) for library in libraries}
    needed, owners, undefined, defined = set(), {}, set(), set()
    for library in libraries:
        names, owner_of_version = wanted_libraries(library)
        needed.update(names)
        owners.update(owner_of_version)
        undefined.update(symbols(library, "undefined"))
        defined.update(symbol.partition("@")[0] for symbol in symbols(library, "defined"))
    missing = {name for name in needed if CUDA_LIBRARY.match(name) and name not in present}
    offers = collections.defaultdict(set, {name: set() for name in missing})
    for symbol in undefined:
        name, _, version = symbol.replace("@@", "@").partition("@")
        if version and owners.get(version) in missing:
            offers[owners[version]].add((name, version))
        elif not version and name not in defined and re.match(r"(__)?(cu|nccl|nv)", name):
            offers[min(missing)].add((name, ""))  # any library will do for a symbol without a version
    return offers


def write_stub(path, offers):
    """One shared library with these functions. __cuda* register fat binaries and give out a pointer."""
    with tempfile.TemporaryDirectory() as work:
        source, script = os.path.join(work, "stub.c"), os.path.join(work, "stub.map")
        with open(source, "w", encoding="utf-8") as file:
            for name, _ in sorted(offers):
                answer = "static char table[256]; return table;" if name.startswith("__cuda") else f"return (void *){NO_DEVICE};"
                file.write(f"void *{name}(void) {{ {answer} }}\n")
        command = ["cc", "-w", "-fno-builtin", "-shared", "-fPIC", "-o", path, f"-Wl,-soname,{os.path.basename(path)}", source]
        versions = sorted({version for _, version in offers if version})
        if versions:
            with open(script, "w", encoding="utf-8") as file:
                for version in versions:
                    names = "".join(f" {name};" for name, of in sorted(offers) if of == version)
                    file.write(f"{version} {{ global:{names} }};\n")
            command.append(f"-Wl,--version-script,{script}")
        subprocess.run(command, check=True)


def main(directory):
    libraries = sorted(glob.glob(os.path.join(directory, "*.so*")))
    if not libraries:
        sys.exit(f"{directory} has no libraries")
    for name, offers in sorted(gather(libraries).items()):
        write_stub(os.path.join(directory, name), offers)


if __name__ == "__main__":
    main(*sys.argv[1:])
