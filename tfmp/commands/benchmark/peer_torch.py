"""The peer's child process: the same training step in PyTorch. Needs torch, and imports no tfmp.

One JSON spec as its argument, one JSON line out, as `tfmp.commands.benchmark.ours`. The model is
torchvision's (timm's where torchvision has none of that name), in channels_last, or that of
`peer_gpt`; under autocast, with torch.compile where the spec says XLA, and a fused SGD with
Nesterov momentum or AdamW, as the recipe has it. Images are uint8 and are normalized on the device,
as in tfmp's models.
"""

import collections
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import re
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import kernels
import timing

# The names of the other files here are not for torch's own imports to find.
sys.path[:] = [path for path in sys.path if path != str(pathlib.Path(__file__).parent)]
try:
    import torch
    import torch.utils.data
except ImportError:
    sys.exit(f"error: torch is not installed for {sys.executable} (--peer_python)")
sys.path.insert(0, str(pathlib.Path(__file__).parent))
import peer_gpt  # noqa: E402 (behind torch)

sys.path.pop(0)

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
POOL_BYTES = 2**28  # of random images, as much as tfmp's synthetic data


# Of timm, which has the size of patches and images in their names.
VITS = ("vit_tiny", "vit_small", "vit_base")
DTYPES = {"mixed_float16": torch.float16, "mixed_bfloat16": torch.bfloat16}


class Loss(torch.nn.Module):
    """From uint8 images and labels to the loss: what torch.compile gets."""

    def __init__(self, model, dtype):
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.register_buffer("mean", 255 * torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(STD).view(1, 3, 1, 1))
        self.criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)

    def forward(self, images, labels):
        """Images are [batch, height, width, channels], which is channels_last as it lies there."""
        images = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype is not None):
            logits = self.model(images)
        return self.criterion(logits.float(), labels)


class TorchWork(timing.Work):
    """A training step of PyTorch."""

    def __init__(self, spec, device):
        dtype = DTYPES.get(spec["policy"])
        torch.manual_seed(0)
        self._forward = _loss(spec, dtype, device).train()
        self._weights = list(self._forward.parameters())
        self._optimizer = _optimizer(spec, self._weights)
        self._clip_norm = spec["clip_norm"]
        scaled = dtype is torch.float16 and spec["loss_scale"] == "recipe"
        self.scaler = torch.amp.GradScaler(device.type, init_scale=2.0**15, enabled=scaled)
        self._steps = torch.zeros((), dtype=torch.int64, device=device)
        if spec["jit_compile"]:
            self._forward = torch.compile(self._forward)
        batches = _batches(spec, device)
        self._repeated = itertools.repeat(next(batches))
        self._batches = self._repeated if spec["input"] == "device" else batches
        if spec["input"] == "device":
            batches.close()

    def _train(self, batch):
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._forward(*batch)
        self.scaler.scale(loss).backward()
        if self._clip_norm:
            self.scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self._weights, self._clip_norm)
        self.scaler.step(self._optimizer)
        self.scaler.update()
        self._steps += 1
        return loss.detach()

    def step(self):
        """One training step."""
        self._train(next(self._batches))

    def count(self):
        """Steps, counted on the device, in the same stream as the training."""
        return int(self._steps.item())

    def weight(self):
        """Squares of the last parameter, such as the bias of the logits, summed."""
        return float(self._weights[-1].detach().square().sum().item())

    def loss(self, steps):
        """The last step's loss."""
        for _ in range(steps - 1):
            self._train(next(self._repeated))
        return float(self._train(next(self._repeated)).item())


class _Pool:
    """Random uint8 images in the host's memory; an item is a whole batch."""

    def __init__(self, spec):
        side = spec["image_size"]
        count = max(min(POOL_BYTES // (side * side * 3), 2**15), 64)
        self.images = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8)
        self.labels = torch.randint(0, spec["classes"], (count,))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, chosen):
        chosen = torch.as_tensor(chosen)
        return self.images[chosen], self.labels[chosen]


def _batches(spec, device):
    """Endless (inputs, labels) on the device, through torch's own loader and pinned memory."""
    data = torch.utils.data
    pool = peer_gpt.Pool(spec) if spec["recipe"] == "gpt" else _Pool(spec)
    sampler = data.BatchSampler(
        data.RandomSampler(pool, replacement=True, num_samples=10**9), spec["batch_size"], True
    )
    loader = data.DataLoader(
        pool,
        sampler=sampler,
        batch_size=None,
        num_workers=min(8, os.cpu_count() or 1),
        pin_memory=device.type == "cuda",
        prefetch_factor=4,
    )
    for inputs, labels in loader:
        yield inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _optimizer(spec, weights):
    """The recipe's, fused; its weight decay is on all weights, which costs the same."""
    if spec["optimizer"] == "adamw":
        return torch.optim.AdamW(
            weights, spec["learning_rate"], weight_decay=spec["weight_decay"], fused=True
        )
    if spec["optimizer"] != "sgd":
        sys.exit(f"error: torch has no optimizer {spec['optimizer']}; --peer=torch: sgd or adamw")
    optimizer = torch.optim.SGD(
        weights, spec["learning_rate"], 0.9, nesterov=True, weight_decay=5e-5, fused=True
    )
    # PyTorch 2.14's fused SGD leaves these uninitialized where the first step overflows.
    for weight in weights:
        optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def _loss(spec, dtype, device):
    """The module from a batch to its loss, with the model in it."""
    if spec["recipe"] == "gpt":
        return peer_gpt.Loss(spec, dtype).to(device)
    model = _model(spec["model"], spec["classes"], spec["image_size"])
    return Loss(model.to(memory_format=torch.channels_last), dtype).to(device)


def _model(name, classes, image_size):
    try:
        import torchvision

        if name in torchvision.models.list_models():
            return torchvision.models.get_model(name, weights=None, num_classes=classes)
    except ImportError:
        pass
    try:
        import timm
    except ImportError:
        sys.exit(f"error: neither torchvision nor timm is installed with a model {name}")
    size = {}
    if name in VITS:
        name, size = f"{name}_patch16_224", {"img_size": image_size}
    if name not in timm.list_models():
        sys.exit(f"error: neither torchvision nor timm has a model {name}")
    return timm.create_model(name, pretrained=False, num_classes=classes, **size)


def _profile(work):
    """Runs some more steps under the profiler: the dicts of `kernels.summary`, for each GPU."""
    work.step()
    work.count()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(kernels.CALLS):
            work.step()
        work.count()
    found = collections.defaultdict(list)
    for event in profiler.events():
        on_gpu = event.device_type == torch.autograd.DeviceType.CUDA
        if not on_gpu or getattr(event, "is_user_annotation", False):  # which have kernels within
            continue
        begin, end = event.time_range.start / 1e3, event.time_range.end / 1e3  # from microseconds
        copy = re.match(r"Memcpy HtoD \((\w+) ", event.name)
        source = copy[1].lower() if copy else None
        found[event.device_index].append(kernels.Kernel(event.name, begin, end - begin, source))
    if not found:
        sys.exit("error: torch's profiler saw no kernels: CUPTI is missing or not permitted")
    steps = kernels.CALLS * work.steps_per_call
    return [kernels.summary(gpu, events, steps) for gpu, events in sorted(found.items())]


def main(spec):
    """Measures, and prints the dict of `timing.measure` with what was in force."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = spec["tf32"]
    torch.backends.cudnn.benchmark = True
    on_gpu = device.type == "cuda"
    if spec["profile"] and not on_gpu:
        sys.exit("error: --profile needs a GPU, and torch sees none")
    try:
        work = TorchWork(spec, device)
        prepared = time.monotonic() - spec["spawned_at"]
        measured = timing.measure(work, steps=spec["steps"], windows=spec["windows"])
        peak = torch.cuda.max_memory_allocated() if on_gpu else None
        profile = _profile(work) if spec["profile"] else None
    except torch.OutOfMemoryError as error:
        sys.exit(f"error: out of memory: {' '.join(str(error).split())[:200]}")
    measured |= {
        "to_first_step_s": prepared + measured["first_step_s"],
        "peak_memory_bytes": peak,
        "profile": profile,
        "jit_compile": spec["jit_compile"],
        "cpu_s": None,  # its loader's processes are not in it
        "loss_scale": work.scaler.get_scale() if work.scaler.is_enabled() else None,
        "device": {
            "kind": "gpu" if on_gpu else "cpu",
            "name": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        },
        "versions": _versions(),
    }
    print("\n" + json.dumps(measured), flush=True)


def _versions():
    found = {"python": platform.python_version(), "cuda": torch.version.cuda}
    found["cudnn"] = torch.backends.cudnn.version()
    for package in ("torch", "torchvision", "timm", "triton"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
