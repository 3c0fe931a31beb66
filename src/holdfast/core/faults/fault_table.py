"""Built-in table of faults: observation -> class, each row with its reason in words. Data, tried in this order.

Sources: CUDA's runtime API reference (error handling), NCCL's types, NVIDIA's XID errors, signal(7).
"""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.core.faults.faults import FaultClass


@dataclass(frozen=True)
class Row:
    """Row of the table. Matches an exception by type (whole name) or message (anywhere), or the end of a process."""

    fault_class: FaultClass
    reason: str
    error_type: str | None = None
    message: str | None = None
    exit_code: int | None = None
    signal: str | None = None
    is_own: bool = False  # an operator's

    @property
    def is_exit(self) -> bool:
        return self.exit_code is not None or self.signal is not None


_COMMUNICATOR, _TRANSIENT, _NUMERICAL, _UNKNOWN = (
    FaultClass.COMMUNICATOR,
    FaultClass.TRANSIENT,
    FaultClass.NUMERICAL,
    FaultClass.UNKNOWN,
)
_DEVICE, _LOST, _UNRESPONSIVE = FaultClass.DEVICE, FaultClass.WORKER_LOST, FaultClass.UNRESPONSIVE

OF_THE_PROCESS = (_LOST, _DEVICE)  # what the end of a process may be


def _device(text: str, number: int, name: str, driver: str, reason: str, of: FaultClass = _DEVICE) -> Row:
    """Return the row of a CUDA error: by text, by names in runtime and driver, and by number."""
    numbered = rf"\bCUDA (?:runtime |driver )?(?:error|failure)(?: code)?[ :=(]{{1,3}}{number}\b"
    said = "|".join(filter(None, (text, rf"\b{name}\b", rf"\b{driver}\b", numbered)))
    return Row(of, reason, message=said)


_STICKY = "sticky: the context of this process is lost with it"
_DEVICE_ROWS = (
    _device("illegal memory access", 700, "cudaErrorIllegalAddress", "CUDA_ERROR_ILLEGAL_ADDRESS", _STICKY),
    _device("launch timed out", 702, "cudaErrorLaunchTimeout", "CUDA_ERROR_LAUNCH_TIMEOUT", _STICKY),
    _device("context is destroyed", 709, "cudaErrorContextIsDestroyed", "CUDA_ERROR_CONTEXT_IS_DESTROYED", _STICKY),
    _device("device-side assert", 710, "cudaErrorAssert", "CUDA_ERROR_ASSERT", _STICKY),
    _device("hardware stack error", 714, "cudaErrorHardwareStackError", "CUDA_ERROR_HARDWARE_STACK_ERROR", _STICKY),
    _device("illegal instruction", 715, "cudaErrorIllegalInstruction", "CUDA_ERROR_ILLEGAL_INSTRUCTION", _STICKY),
    _device("misaligned address", 716, "cudaErrorMisalignedAddress", "CUDA_ERROR_MISALIGNED_ADDRESS", _STICKY),
    _device(
        "global/shared address space",
        717,
        "cudaErrorInvalidAddressSpace",
        "CUDA_ERROR_INVALID_ADDRESS_SPACE",
        _STICKY,
    ),
    _device("invalid program counter", 718, "cudaErrorInvalidPc", "CUDA_ERROR_INVALID_PC", _STICKY),
    _device("unspecified launch failure", 719, "cudaErrorLaunchFailure", "CUDA_ERROR_LAUNCH_FAILED", _STICKY),
    _device(
        "uncorrectable ECC",
        214,
        "cudaErrorECCUncorrectable",
        "CUDA_ERROR_ECC_UNCORRECTABLE",
        "memory of the device is damaged: what this process has there is not to be trusted",
    ),
    _device(
        "uncorrectable NVLink error",
        220,
        "cudaErrorNvlinkUncorrectable",
        "CUDA_ERROR_NVLINK_UNCORRECTABLE",
        "a link between devices failed, and with it this process's context",
    ),
    _device(
        "device is (?:lost|in an unrecoverable state)|GPU has fallen off the bus|GPU is lost",
        999,
        "cudaErrorUnknown",
        "CUDA_ERROR_DEVICE_UNAVAILABLE",
        "the device is not there any more for this process",
    ),
    _device(
        "CUDA out of memory|out of memory on device",
        2,
        "cudaErrorMemoryAllocation",
        "CUDA_ERROR_OUT_OF_MEMORY",
        "an allocation failed and nothing else: what was there before is intact",
        _TRANSIENT,
    ),
    Row(
        _DEVICE,
        "a kernel of cuBLAS, cuDNN or cuSPARSE did not run: almost always an earlier sticky error",
        message=r"\bCU(?:BLAS|DNN|SPARSE|SOLVER)_STATUS_(?:EXECUTION_FAILED|MAPPING_ERROR)\b",
    ),
)

# Of the driver's log; only those after which this process's context is gone.
_XIDS = {
    13: "a kernel of this process raised an exception on the device",
    31: "a kernel of this process read or wrote where it may not",
    43: "the device stopped this process's channel",
    45: "the device's work for this process was removed",
    48: "an uncorrectable error in the device's memory",
    62: "the device's own processor halted; it may need a reset",
    64: "a damaged row of memory could not be recorded",
    74: "a link between devices failed",
    79: "the device has fallen off the bus; a new process finds it only after a reset",
    94: "an uncorrectable memory error that only this process has to end for",
    95: "an uncorrectable memory error that every process on the device has to end for",
    119: "the device's system processor does not answer; it may need a reset",
    120: "the device's system processor failed; it may need a reset",
    140: "uncorrectable memory errors beyond what can be mapped away",
}
_XID_ROWS = tuple(
    Row(
        _DEVICE,
        f"XID {xid}: {why}",
        message=rf"\bXid (?:\(PCI:[0-9a-f:.]{{1,20}}\): )?{xid}\b|\bXID[ :=]{{1,2}}{xid}\b",
    )
    for xid, why in _XIDS.items()
)

_NUMBERED_NCCL = r"\bNCCL (?:error|failure)(?: code)?[ :=(]{{1,3}}{}\b"
_NCCL_ROWS = (
    Row(
        _COMMUNICATOR,
        "NCCL lost a peer or a connection: somebody else failed first",
        message="|".join(
            [
                "NCCL communicator was aborted|ncclRemoteError|ncclSystemError|remote process exited",
                _NUMBERED_NCCL.format("[26]"),
            ]
        ),
    ),
    Row(
        _UNKNOWN,
        "NCCL met an error of CUDA and does not say which: the communicator is broken, the context may be",
        message="ncclUnhandledCudaError|unhandled cuda error|" + _NUMBERED_NCCL.format("1"),
    ),
    Row(
        _UNKNOWN,
        "an error inside of NCCL",
        message="ncclInternalError|ncclInvalid(?:Argument|Usage)|" + _NUMBERED_NCCL.format("[345]"),
    ),
)

# What a rank says whose collective a peer left or who met nobody, and one that was told to take no further step.
_LEFT_ALONE = (
    r"gloo/|connection closed by peer|connection reset by peer|socket closed|broken pipe|is fenced since|"
    r"the rendezvous of epoch \d+|of epoch \d+ did not meet"
)

# By name only: whoever reports an exception sends no type. With torch's and the standard library's own.
_PYTHON = (
    "ArithmeticError|AssertionError|AttributeError|BufferError|EOFError|Empty|FileNotFoundError|FloatingPointError|"
    "Full|ImportError|IndexError|InvalidStateError|JSONDecodeError|KeyError|LookupError|MemoryError|"
    "ModuleNotFoundError|NameError|NotImplementedError|OSError|OverflowError|PermissionError|RecursionError|"
    "ReferenceError|RuntimeError|StopIteration|TimeoutError|TypeError|UnboundLocalError|UnicodeDecodeError|"
    "UnicodeEncodeError|ValidationError|ValueError|ZeroDivisionError|ConnectionError|BrokenPipeError|"
    "ConnectionResetError|OutOfMemoryError"
)
_OWN = "InjectedFault|WorkerFailed|RecoveryFailed|HookNotAttached|BadConfiguration|BadCommand"

ERROR_ROWS: tuple[Row, ...] = (
    Row(_UNRESPONSIVE, "a rank did not answer within its bound", error_type="PeerSilent"),
    Row(
        _UNRESPONSIVE,
        "the host waited for a rank's reply until its own bound was over",
        message=r"^RPC call to [^\n]{0,200} timed out",
    ),
    Row(
        _NUMERICAL,
        "a step computed what is no number: its KV is suspect, the process is not",
        error_type="NonFiniteLogits",
    ),
    Row(
        _NUMERICAL,
        "the host's own check found what is no number in the logits",
        message="NaNs? detected in logits|NaN or infinite logits",
    ),
    *_DEVICE_ROWS,
    *_XID_ROWS,
    Row(_COMMUNICATOR, "it was told to take no further step", error_type="RankFenced"),
    *_NCCL_ROWS,
    Row(_COMMUNICATOR, "a peer left a collective: somebody else failed first", message=_LEFT_ALONE),
    Row(
        _COMMUNICATOR,
        "ranks did not come together, or lost each other",
        error_type="DistBackendError|DistNetworkError|DistStoreError",
    ),
    Row(
        _UNKNOWN,
        "an error of the device that no row names: it may be a sticky one",
        message=r"\b(?:CUDA|HIP|cuBLAS|cuDNN) (?:runtime |driver )?(?:error|failure)\b|\bCU(?:BLAS|DNN)_STATUS_",
    ),
    Row(_UNKNOWN, "an error of the device that no row names: it may be a sticky one", error_type="AcceleratorError"),
    Row(_TRANSIENT, "an exception of Python code: the process and its memory are intact", error_type=_PYTHON),
    Row(_TRANSIENT, "an exception of a step or of a recovery: the process and its memory are intact", error_type=_OWN),
)

UNKNOWN_ERROR = Row(
    _UNKNOWN, "no row names it: most exceptions leave a process intact, and nobody knows whether this one did"
)

SIGNAL_NUMBERS = {
    "SIGHUP": 1,
    "SIGINT": 2,
    "SIGQUIT": 3,
    "SIGILL": 4,
    "SIGTRAP": 5,
    "SIGABRT": 6,
    "SIGBUS": 7,
    "SIGFPE": 8,
    "SIGKILL": 9,
    "SIGUSR1": 10,
    "SIGSEGV": 11,
    "SIGUSR2": 12,
    "SIGPIPE": 13,
    "SIGALRM": 14,
    "SIGTERM": 15,
    "SIGXCPU": 24,
    "SIGXFSZ": 25,
    "SIGSYS": 31,
}

EXIT_ROWS: tuple[Row, ...] = (
    Row(_LOST, "killed from outside: by somebody, or by the kernel because memory ran out", signal="SIGKILL"),
    Row(_LOST, "native code read or wrote where it may not", signal="SIGSEGV"),
    Row(_LOST, "native code gave up: a failed assertion, a C++ exception, a watchdog such as NCCL's", signal="SIGABRT"),
    Row(_LOST, "memory that was promised is not there: often a full /dev/shm", signal="SIGBUS"),
    Row(_LOST, "an instruction that this processor does not have", signal="SIGILL"),
    Row(_LOST, "native code computed what cannot be: a division by zero", signal="SIGFPE"),
    Row(_LOST, "told to end from outside", signal="SIGTERM"),
    Row(_LOST, "told to end from outside", signal="SIGINT"),
    Row(_LOST, "told to end from outside, or its terminal went", signal="SIGHUP"),
    Row(_LOST, "it used up its limit on processor time", signal="SIGXCPU"),
    Row(_LOST, "a system call that is forbidden here", signal="SIGSYS"),
    Row(_LOST, "it ended as if it were done, which nobody asked for", exit_code=0),
    Row(_LOST, "an exception that nobody caught", exit_code=1),
    Row(_LOST, "called in a wrong way", exit_code=2),
    Row(_LOST, "killed as by SIGKILL (128 + 9), perhaps because memory ran out", exit_code=137),
    Row(_LOST, "native code gave up (128 + SIGABRT)", exit_code=134),
    Row(_LOST, "native code read or wrote where it may not (128 + SIGSEGV)", exit_code=139),
    Row(_LOST, "told to end (128 + SIGTERM)", exit_code=143),
)
OTHER_EXIT = Row(_LOST, "its process is gone; its exit code says nothing that is known")
OTHER_SIGNAL = Row(_LOST, "its process was ended by a signal")
