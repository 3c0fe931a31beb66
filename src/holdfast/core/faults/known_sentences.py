"""Sentences of the system that are kept in the text of an exception: a closed list.

What a group of a pattern captures is held back, unless it is a name of the code. Everything else that a pattern
matches is spelled out in the pattern, apart from numbers of bounded length.
"""

from __future__ import annotations

import re
from collections.abc import Collection

HELD_BACK = "<...>"

_N = r"\d{1,9}"
_GIB = r"\d{1,6}(?:\.\d{1,3})? (?:bytes|[KMGT]iB)"
_CUDA = (
    "an illegal memory access was encountered|device-side assert triggered|unspecified launch failure|out of memory|"
    "the launch timed out and was terminated|an illegal instruction was encountered|misaligned address|"
    "uncorrectable ECC error encountered|uncorrectable NVLink error detected during the execution|invalid argument|"
    "hardware stack error|invalid program counter|invalid device ordinal|invalid device function|unknown error|"
    "invalid configuration argument|no kernel image is available for execution on the device|initialization error|"
    "operation not supported on global/shared address space|context is destroyed|all CUDA-capable devices are busy or "
    "unavailable|CUDA driver version is insufficient for CUDA runtime version|too many resources requested for launch"
)
_GLOO = (
    r"\[(?:\.\./)*third_party/gloo/gloo/(?:transport/(?:tcp|uv)|common|rendezvous)/"
    r"(?:pair|unbound_buffer|context|store|file_store|device|listener|socket|buffer)\.(?:cc|h):\d{1,5}\] "
)

_SENTENCES = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        # of Holdfast
        r"injected fault",
        # of CUDA, NCCL, gloo
        rf"CUDA error: (?:{_CUDA})",
        r"CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
        r"incorrect\.",
        r"For debugging consider passing CUDA_LAUNCH_BLOCKING=1\.?",
        r"Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions\.",
        r"(?:CUDA|HIP|XPU) out of memory\.?",
        rf"Tried to allocate {_GIB}\.?",
        rf"GPU \d{{1,3}} has a total capacity of {_GIB} of which {_GIB} is free\.",
        rf"(?:Process \d{{1,9}} has|Including non-PyTorch memory, this process has) {_GIB} memory in use\.",
        rf"Of the allocated memory {_GIB} is allocated by PyTorch, and {_GIB} is reserved by PyTorch but unallocated\.",
        r"If reserved but unallocated memory is large try setting PYTORCH_(?:CUDA_)?ALLOC_CONF="
        r"expandable_segments:True to avoid fragmentation\.",
        r"\[enforce fail at alloc_cpu\.cpp:\d{1,5}\]",
        rf"DefaultCPUAllocator: can't allocate memory: you tried to allocate {_N} bytes\.",
        r"NCCL (?:error|failure): (?:unhandled cuda error|unhandled system error|internal error|invalid argument|"
        r"invalid usage|remote process exited or there was a network error)",
        r"NCCL communicator was aborted",
        rf"{_GLOO}(?:Connection closed by peer|Read error|Write error|Timed out waiting)",
        # of torch
        rf"mat1 and mat2 shapes cannot be multiplied \({_N}x{_N} and {_N}x{_N}\)",
        rf"The size of tensor a \({_N}\) must match the size of tensor b \({_N}\) at non-singleton dimension {_N}",
        r"index out of range in self",
        rf"index (-?\d+) is out of bounds for (?:dimension|axis) {_N} with size {_N}",
        rf"shape '\[-?{_N}(?:, -?{_N}){{0,7}}\]' is invalid for input of size {_N}",
        r"Expected all tensors to be on the same device, but found at least two devices, "
        r"(?:cpu|cuda:\d{1,3}) and (?:cpu|cuda:\d{1,3})!",
        # of Python
        r"(?:list|tuple|string|bytearray|deque) (?:assignment )?index out of range",
        r"pop from (?:an )?empty (?:list|deque|set|dict)",
        r"(?:dictionary|Set) changed size during iteration",
        r"(?:integer )?(?:division(?: or modulo)?|modulo) by zero|float division by zero",
        r"maximum recursion depth exceeded(?: while calling a Python object| in comparison)?",
        r"can't start new thread",
        r"timed out",
        rf"not enough values to unpack \(expected (?:at least )?{_N}, got {_N}\)",
        rf"too many values to unpack \(expected {_N}\)",
        rf"invalid literal for int\(\) with base {_N}: (.+)",
        r"could not convert string to float: (.+)",
        r"'([^']*)' object has no attribute '([^']*)'",
        r"type object '([^']*)' has no attribute '([^']*)'",
        r"module '([^']*)' has no attribute '([^']*)'",
        r"name '([^']*)' is not defined",
        r"cannot access local variable '([^']*)' where it is not associated with a value",
        r"'([^']*)' object is not (?:callable|iterable|subscriptable)",
        r"unsupported operand type\(s\) for (?:[-+*/%@&|^]|//|\*\*|<<|>>)=?: '([^']*)' and '([^']*)'",
        r"No module named '([^']*)'",
        rf"((?:[\w<>]+\.)*)(\w+)\(\) missing {_N} required (?:positional|keyword-only) arguments?: (.+)",
        rf"((?:[\w<>]+\.)*)(\w+)\(\) takes (?:from {_N} to )?{_N} positional arguments? but {_N} (?:was|were) given",
        r"((?:[\w<>]+\.)*)(\w+)\(\) got an unexpected keyword argument '([^']*)'",
    )
)
_NAMES_OF_TYPES = frozenset(
    {"NoneType", "int", "str", "list", "dict", "tuple", "float", "bool", "bytes", "set", "Tensor", "function", "type"}
)
_OF_ERRNO = {  # of Linux
    1: "Operation not permitted",
    2: "No such file or directory",
    3: "No such process",
    4: "Interrupted system call",
    5: "Input/output error",
    6: "No such device or address",
    9: "Bad file descriptor",
    10: "No child processes",
    11: "Resource temporarily unavailable",
    12: "Cannot allocate memory",
    13: "Permission denied",
    14: "Bad address",
    16: "Device or resource busy",
    17: "File exists",
    18: "Invalid cross-device link",
    19: "No such device",
    20: "Not a directory",
    21: "Is a directory",
    22: "Invalid argument",
    23: "Too many open files in system",
    24: "Too many open files",
    25: "Inappropriate ioctl for device",
    26: "Text file busy",
    27: "File too large",
    28: "No space left on device",
    29: "Illegal seek",
    30: "Read-only file system",
    31: "Too many links",
    32: "Broken pipe",
    33: "Numerical argument out of domain",
    36: "File name too long",
    39: "Directory not empty",
    40: "Too many levels of symbolic links",
    88: "Socket operation on non-socket",
    90: "Message too long",
    95: "Operation not supported",
    97: "Address family not supported by protocol",
    98: "Address already in use",
    99: "Cannot assign requested address",
    100: "Network is down",
    101: "Network is unreachable",
    103: "Software caused connection abort",
    104: "Connection reset by peer",
    105: "No buffer space available",
    106: "Transport endpoint is already connected",
    107: "Transport endpoint is not connected",
    110: "Connection timed out",
    111: "Connection refused",
    112: "Host is down",
    113: "No route to host",
    114: "Operation already in progress",
    115: "Operation now in progress",
    116: "Stale file handle",
    122: "Disk quota exceeded",
    125: "Operation canceled",
}
_ERRNO = re.compile(r"\[Errno (\d{1,3})\] ")


def known_sentence(text: str, names: Collection[str], *, by_code: bool) -> str:
    """Return a text that begins with known sentences, without the rest; empty when the text does not.

    Args:
        names: those of the code that raised, which are kept.
        by_code: Python code made the text, perhaps of user data that looks like a sentence: no number is kept.
    """
    said = _errno_sentence(text)
    at = len(said)
    while at < len(text):
        found = next((m for m in (s.match(text, at) for s in _SENTENCES) if m and m.end() > at), None)
        if found is None:
            break
        said += _without_values(found, names, by_code)
        at = found.end()
        if text[at : at + 1] == " ":
            said, at = said + " ", at + 1
    return said + HELD_BACK if said and at < len(text) else said


def _errno_sentence(text: str) -> str:
    """Return the beginning of a text that is an error of the system by number; else empty."""
    numbered = _ERRNO.match(text)
    said = _OF_ERRNO.get(int(numbered[1])) if numbered else None
    sentence = f"{numbered[0]}{said}" if numbered and said else ""
    return sentence if text.startswith(sentence) else ""


def _without_values(found: re.Match[str], names: Collection[str], by_code: bool) -> str:
    text, at = "", found.start()
    for group in range(1, found.re.groups + 1):
        start, stop = found.span(group)
        is_name = not found[group] or found[group] in names or found[group] in _NAMES_OF_TYPES
        text += found.string[at:start] + (found[group] if is_name else HELD_BACK)
        at = stop
    text += found.string[at : found.end()]
    return re.sub(r"\d+", HELD_BACK, text) if by_code else text
