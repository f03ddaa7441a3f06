"""Did anything run on the GPU? A backend may fall back to the CPU and still say, or believe, that it did not."""

from collections.abc import Callable

import torch


def on_device(device: str) -> Callable[[Callable[[], object]], bool]:
    """A judge of calls: whether a call started a kernel on `device`; always True for a CPU.

    The driver's own trace says so, whichever library in this process starts the kernels. Copies do not count.
    """
    return _any_kernel if device == "cuda" else lambda call: True


def _any_kernel(call: Callable[[], object]) -> bool:
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        call()
        torch.cuda.synchronize()
    events = (event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA)
    return any(not event.name.startswith(("Memcpy", "Memset")) for event in events)
