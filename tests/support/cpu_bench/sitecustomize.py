"""Lets what GPUs use run on the CPU test bench: put this folder first on PYTHONPATH.

`HOLDFAST_BENCH_ASYNC=1` forces asynchronous scheduling, which the host's CPU platform switches off, and
stands in for the CUDA streams and events that it takes. `HOLDFAST_BENCH_V2=1` lets Model Runner V2 run
through Triton's interpreter. Real code of the host either way; only the device is pretended.
"""

import contextlib
import importlib.abc
import importlib.util
import os
import sys


class _AfterImport(importlib.abc.MetaPathFinder):
    """Run `then(module)` once, right after `name` was imported."""

    def __init__(self, name, then):
        self._name, self._then = name, then

    def find_spec(self, name, path, target=None):
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_then(module):
            execute(module)
            self._then(module)

        spec.loader.exec_module = execute_then
        return spec


def _force_async(platform):
    original = platform.CpuPlatform.check_and_update_config.__func__

    def check_and_update_config(cls, config):
        original(cls, config)
        config.scheduler_config.async_scheduling = True

    platform.CpuPlatform.check_and_update_config = classmethod(check_and_update_config)
    _pretend_streams()


def _pretend_streams():
    import torch

    class Event:
        def __init__(self, *args, **kwargs): ...
        def record(self, *args): ...
        def synchronize(self): ...
        def wait(self, *args): ...
        def query(self):
            return True

    class Stream:
        def __init__(self, *args, **kwargs):
            self.device = torch.device("cpu")

        def wait_stream(self, *args): ...
        def wait_event(self, *args): ...
        def synchronize(self): ...

    torch.cuda.Event = torch.Event = Event
    torch.cuda.Stream = Stream
    torch.cuda.current_stream = lambda *args, **kwargs: Stream()
    torch.cuda.stream = lambda stream: contextlib.nullcontext()


def _add_cpu_backend(backends):
    class Driver:
        @staticmethod
        def is_active():
            return True

    class Backend:
        driver = Driver
        compiler = None

    backends.backends["cpu"] = Backend


if os.environ.get("HOLDFAST_BENCH_ASYNC") == "1":
    sys.meta_path.insert(0, _AfterImport("vllm.platforms.cpu", _force_async))
if os.environ.get("HOLDFAST_BENCH_V2") == "1":
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    sys.meta_path.insert(0, _AfterImport("triton.backends", _add_cpu_backend))


def _raise_where_told(runner):
    """Make the next draft or encoding raise once a file appears; the name of the file is in the environment."""
    flag = os.environ["HOLDFAST_BENCH_RAISE"]

    def told(function):
        def run(*args, **kwargs):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(flag)
                raise RuntimeError(f"injected fault in {function.__name__}")
            return function(*args, **kwargs)

        return run

    for name in ("_execute_mm_encoder", "propose_draft_token_ids"):
        setattr(runner.GPUModelRunner, name, told(getattr(runner.GPUModelRunner, name)))


if os.environ.get("HOLDFAST_BENCH_RAISE"):
    sys.meta_path.insert(0, _AfterImport("vllm.v1.worker.gpu_model_runner", _raise_where_told))
