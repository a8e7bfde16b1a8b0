#!/usr/bin/env python3
"""The training step of `interlock bench step`, as one would write it in PyTorch: to compare with, on the same device.

    torch_step.py WORKLOAD [--stages K] [--width N] [--devices cuda:0 cuda:1 | cpu] [--mode sequential|threads]
                  [--precision f32|bf16] [--tf32] [--layout nchw|nhwc] [--threads T] [--steps S] [--json]

The same models, cuts, heads, losses and optimizers. Stage k lies on device k mod their number. Stages are cut off from each other; each loss is
pulled through a stage once, to what is asked of it: to the parameters of the stage that follows it, and to the stage's input where a stage
before follows it too. Numbers are read only after the clock has stopped.

sequential  one thread runs the stages one after another; a GPU is given work ahead, so stages on several GPUs overlap as far as that goes
threads     a thread and a CUDA stream for each stage, with queues between them, over which activations and gradients go one hop at a time
bf16        torch.autocast, which needs no loss scaling; parameters and optimizer stay in f32

With --json prints one line with the keys of `interlock bench step --json` where they mean the same. Needs torch.
"""
import argparse
import contextlib
import json
import math
import queue
import resource
import threading
import time

import torch
from torch import nn
from torch.nn import functional as F

WARM_UP = 2  # steps before the clock starts
BATCHES = 4  # different ones; longer runs see them again

WORKLOADS = {
    "resnet32": dict(batch=128, shape=(3, 32, 32), classes=10, planes=(16, 32, 64), blocks=5, cuts=((17,), (8, 9), (4, 4, 5, 4))),
    "resnet18": dict(batch=32, shape=(3, 64, 64), classes=100, planes=(64, 128, 256, 512), blocks=2, cuts=((10,), (5, 5), (3, 2, 2, 3))),
    "gpt": dict(batch=16, shape=(128,), classes=256, width=256, heads=8, layers=6, cuts=((8,), (4, 4), (2, 2, 2, 2))),
}


# Models: lists of units, each with the width of what it gives.

def normed(inputs, outputs, kernel, stride=1):
    """A convolution that keeps the centre, and its batch norm."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs))


class ResidualBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first, self.second = normed(inputs, outputs, 3, stride), normed(outputs, outputs, 3)
        self.shortcut = nn.Identity() if inputs == outputs and stride == 1 else normed(inputs, outputs, 1, stride)

    def forward(self, x):
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


def resnet(w):
    planes, imagenet = w["planes"], len(w["planes"]) == 4
    stem = [*normed(w["shape"][0], planes[0], 7 if imagenet else 3, 2 if imagenet else 1), nn.ReLU()]
    units, width = [(nn.Sequential(*stem, *[nn.MaxPool2d(3, 2, 1)] * imagenet), planes[0])], planes[0]
    for group, outputs in enumerate(planes):
        for index in range(w["blocks"]):
            units.append((ResidualBlock(width, outputs, 2 if group and not index else 1), outputs))
            width = outputs
    units.append((nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, w["classes"])), w["classes"]))
    for unit, _ in units:
        for layer in unit.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return units


class TokensAndPositions(nn.Module):
    def __init__(self, vocabulary, context, width):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)

    def forward(self, tokens):
        return self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]


class TransformerBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.mix = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, x):
        heads = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(*heads.unbind(0), is_causal=True)
        x = x + self.mix(seen.transpose(1, 2).flatten(2))
        return x + self.perceptron(x)


def gpt(w):
    width = w["width"]
    units = [TokensAndPositions(w["classes"], w["shape"][0], width)]
    units += [TransformerBlock(width, w["heads"]) for _ in range(w["layers"])]
    units.append(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, w["classes"], bias=False)))
    for unit in units:
        for name, layer in unit.named_modules():
            if isinstance(layer, (nn.Linear, nn.Embedding)):
                to_residual = name in ("mix", "perceptron.3")
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * w["layers"]) if to_residual else 0.02)
                if getattr(layer, "bias", None) is not None:
                    nn.init.zeros_(layer.bias)
    return [(unit, width) for unit in units]


def auxiliary_head(workload, width, classes):
    if workload == "resnet32":  # conv16_bn_gbpl_fc
        image = [nn.Conv2d(width, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
        nn.init.kaiming_normal_(image[0].weight, mode="fan_out", nonlinearity="relu")
        return nn.Sequential(*image, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))
    if workload == "resnet18":  # gbpl_fc
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    projection = nn.Linear(width, classes, bias=False)  # ln_fc
    nn.init.normal_(projection.weight, std=0.02)
    return nn.Sequential(nn.LayerNorm(width), projection)


def random_batch(w, number):
    """Images of mean 0 and variance 1, or tokens; another for another number."""
    source = torch.Generator().manual_seed(8_000 + number)
    if len(w["shape"]) == 1:
        return tuple(torch.randint(w["classes"], (w["batch"], *w["shape"]), generator=source) for _ in "xt")
    images = (torch.rand((w["batch"], *w["shape"]), generator=source) * 2 - 1) * math.sqrt(3)
    return images, torch.randint(w["classes"], (w["batch"],), generator=source)


class Stage:
    """Units on a device, the head behind them, and what is asked of each loss here."""

    def __init__(self, units, head, device, number, plan, options):
        self.number, self.device, self.layers, self.head = number, device, units.to(device), head and head.to(device)
        if options.layout == "nhwc":
            for module in filter(None, (self.layers, self.head)):
                module.to(memory_format=torch.channels_last)
        self.autocast = options.precision == "bf16"
        self.parameters = list(self.layers.parameters())
        self.head_parameters = list(self.head.parameters()) if self.head else []
        self.follows, before = plan[number], plan[:number]
        # The losses that are pulled back here, from the nearest on: the farthest is the one that this stage follows.
        self.passing = sorted({loss for loss in plan[: number + 1] if loss >= number})
        self.relayed = {loss for loss in before if loss >= number}
        everything = self.parameters + self.head_parameters
        fused = device.type == "cuda"
        if len(options.w["shape"]) == 1:
            self.optimizer = torch.optim.AdamW(everything, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=fused)
        else:
            self.optimizer = torch.optim.SGD(everything, lr=0.1, momentum=0.9, weight_decay=2e-4, fused=fused)
        self.stream, self.events = None, []
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device) if options.mode == "threads" else torch.cuda.default_stream(device)

    def here(self):
        """Work that is given within is this stage's."""
        return torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext()

    def mark(self):
        """Notes when the stage's stream comes to here."""
        if self.stream:
            self.events.append(torch.cuda.Event(enable_timing=True))
            self.events[-1].record(self.stream)

    def seconds(self):
        """From the first mark to the last, by the device's clock."""
        return self.events[0].elapsed_time(self.events[-1]) / 1e3 if self.events else None

    def narrow(self):
        """A new autocast each time: it forgets casts of parameters when it ends, before they change."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)

    def forward(self, x):
        self.x = x.detach()
        if self.relayed:
            self.x.requires_grad_()
        with self.narrow():
            self.y = self.layers(self.x)
        return self.y.detach()

    def loss(self, targets):
        """This stage's loss, and the gradient at its output where one is wanted."""
        if not self.head and self.number not in self.passing:
            return None, None
        y = self.y.detach().requires_grad_(self.number in self.passing)
        with self.narrow():
            logits = self.head(y) if self.head else y
            loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten())
        wanted = [y] * y.requires_grad + self.head_parameters
        gradients = list(torch.autograd.grad(loss, wanted))
        at_output = gradients.pop(0) if y.requires_grad else None
        for parameter, gradient in zip(self.head_parameters, gradients):
            parameter.grad = gradient
        return loss.detach(), at_output

    def pull_back(self, loss, at_output):
        """Takes the gradient of `loss` from the output to the parameters, the input, or both; gives the input's."""
        wanted = [self.x] * (loss in self.relayed) + self.parameters * (loss == self.follows)
        gradients = list(torch.autograd.grad(self.y, wanted, at_output, retain_graph=loss != self.passing[-1]))
        at_input = gradients.pop(0) if loss in self.relayed else None
        for parameter, gradient in zip(self.parameters, gradients):
            parameter.grad = gradient
        return at_input

    def update(self):
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.x = self.y = None


def move(tensor, device):
    """Without waiting for a GPU; a copy to the CPU must have arrived when it is used."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def inputs_of(batch, device, layout):
    inputs = move(batch[0], device)
    return inputs.contiguous(memory_format=torch.channels_last) if layout == "nhwc" else inputs


def run_sequential(stages, batches, options):
    """All stages in this thread: forward through all, then the losses from the last stage down. Gives each step's last loss."""
    losses = []
    for batch in batches:
        x, at_output = inputs_of(batch, stages[0].device, options.layout), {}
        for stage in stages:
            x = stage.forward(move(x, stage.device))
        for stage in reversed(stages):
            loss, own = stage.loss(move(batch[1], stage.device))
            at_output[stage.number] = own
            if stage is stages[-1]:
                losses.append(loss)
            for number in stage.passing:
                at_input = stage.pull_back(number, at_output.pop(number))
                if at_input is not None:
                    at_output[number] = move(at_input, stages[stage.number - 1].device)
            stage.update()
    return losses


class Way:
    """A queue from a stage to a neighbour. Tensors of GPUs cross on streams of their own, behind the events that say when they are written."""

    def __init__(self, sender, receiver):
        self.queue, self.receiver = queue.Queue(), receiver
        devices = [stage.device for stage in (sender, receiver) if stage.stream]
        self.streams = [torch.cuda.Stream(device) for device in devices] if sender.device != receiver.device else []

    def send(self, loss, tensor):
        written = None
        if tensor.is_cuda:
            written = torch.cuda.current_stream(tensor.device).record_event()
        if self.streams:
            with contextlib.ExitStack() as stack:
                for stream in self.streams:
                    stack.enter_context(torch.cuda.stream(stream))
                if written:
                    self.streams[0].wait_event(written)
                    tensor.record_stream(self.streams[0])
                tensor = move(tensor, self.receiver.device)
                written = self.streams[-1].record_event() if tensor.is_cuda else None
        self.queue.put((loss, tensor, written))

    def receive(self):
        loss, tensor, written = self.queue.get()
        if tensor is not None and written:
            self.receiver.stream.wait_event(written)
            tensor.record_stream(self.receiver.stream)
        return loss, tensor


def run_threads(stages, batches, options):
    """A thread for each stage; gives each step's last loss. The first failure of any is raised here."""
    forward = [Way(a, b) for a, b in zip(stages, stages[1:])]
    backward = [Way(b, a) for a, b in zip(stages, stages[1:])]
    losses, failures = [], []

    def steps(stage):
        k, last = stage.number, stage is stages[-1]
        for batch in batches:
            x = forward[k - 1].receive()[1] if k else inputs_of(batch, stage.device, options.layout)
            if x is None:
                return
            y = stage.forward(x)
            if not last:
                forward[k].send(None, y)
            loss, own = stage.loss(move(batch[1], stage.device))
            if last:
                losses.append(loss)
            for expected in stage.passing:
                number, at_output = (k, own) if expected == k else backward[k].receive()
                if at_output is None:
                    return
                at_input = stage.pull_back(number, at_output)
                if at_input is not None:
                    backward[k - 1].send(number, at_input)
            stage.update()

    def work(stage):
        try:
            with stage.here():
                steps(stage)
        except BaseException as failure:
            failures.append(failure)
            for way in forward + backward:  # so that nobody waits for what will not come
                way.queue.put((None, None, None))

    threads = [threading.Thread(target=work, args=(stage,)) for stage in stages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return losses


def synchronize(devices):
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--stages", type=int, default=2, help="1, 2 or 4")
    parser.add_argument("--width", type=int, default=2, help="interlock width; below the number of stages every head is trained")
    parser.add_argument("--devices", nargs="+", default=["cuda:0" if torch.cuda.is_available() else "cpu"])
    parser.add_argument("--mode", choices=["sequential", "threads"], default="sequential")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--tf32", action="store_true", help="let products of f32 be rounded to tf32 on GPUs")
    parser.add_argument("--layout", choices=["nchw", "nhwc"], default="nchw", help="how images lie in memory")
    parser.add_argument("--threads", type=int, help="of the CPU, for each operation")
    parser.add_argument("--batch", type=int, help="examples a step; the workload's own number where none is given")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args()
    options.w = dict(WORKLOADS[options.workload])
    cuts = {len(cut): cut for cut in options.w["cuts"]}
    if options.stages not in cuts:
        parser.error(f"--stages: there is no cut of {options.workload} into {options.stages}; use 1, 2 or 4")
    if not 1 <= options.width <= options.stages:
        parser.error(f"--width: use 1 to {options.stages}, the number of stages")
    if options.batch is not None:
        if options.batch < 1:
            parser.error("--batch: use 1 or more")
        options.w["batch"] = options.batch
    if options.steps < 1:
        parser.error("--steps: use 1 or more")
    if options.layout == "nhwc" and len(options.w["shape"]) == 1:
        parser.error("--layout nhwc: texts have no layout; leave it out")
    if options.tf32 and options.precision == "bf16":
        parser.error("--tf32: products are of bf16; leave it out")
    options.cut = cuts[options.stages]
    return options


def build(options, devices):
    torch.manual_seed(7)
    units = (gpt if len(options.w["shape"]) == 1 else resnet)(options.w)
    k, n = options.stages, options.width
    plan = [min(stage + n - 1, k - 1) for stage in range(k)]  # the loss that each stage follows
    stages = []
    for number, count in enumerate(options.cut):
        mine, units = units[:count], units[count:]
        head = auxiliary_head(options.workload, mine[-1][1], options.w["classes"]) if number + 1 < k and n < k else None
        layers = nn.Sequential(*[unit for unit, _ in mine])
        stages.append(Stage(layers, head, devices[number % len(devices)], number, plan, options))
    return stages


def main():
    options = arguments()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    torch.backends.cudnn.benchmark = True  # shapes stay the same
    if options.threads:
        torch.set_num_threads(options.threads)
    devices = [torch.device(name) for name in options.devices]
    resident = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    idle = resident()
    stages = build(options, devices)
    used = list(dict.fromkeys(stage.device for stage in stages))
    gpus = [device for device in used if device.type == "cuda"]
    batches = [random_batch(options.w, number) for number in range(BATCHES)]
    if gpus:
        batches = [tuple(part.pin_memory() for part in batch) for batch in batches]
    run = {"sequential": run_sequential, "threads": run_threads}[options.mode]
    losses = run(stages, batches[:WARM_UP], options)
    synchronize(used)
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)  # without what choosing algorithms took
    for stage in stages:
        stage.mark()
    start = time.perf_counter()
    run(stages, [batches[step % BATCHES] for step in range(options.steps)], options)
    for stage in stages:
        stage.mark()
    synchronize(used)
    step_seconds = (time.perf_counter() - start) / options.steps
    by_events = [seconds for stage in stages if (seconds := stage.seconds()) is not None]
    result = {
        "workload": options.workload,
        "batch": options.w["batch"],
        "width": options.width,
        "stages": options.stages,
        "threads": None if gpus else torch.get_num_threads(),
        "devices": [str(stage.device) for stage in stages],
        "mode": options.mode,
        "precision": options.precision,
        "tf32": options.tf32,
        "layout": options.layout,
        "step_seconds": step_seconds,
        "examples_per_second": options.w["batch"] / step_seconds,
        # By CUDA events: from the first work to the last of the stream that took longest.
        "event_step_seconds": max(by_events) / options.steps if by_events else None,
        "peak_memory_mib": resident() - idle,
        "device_peak_memory_mib": {str(gpu): torch.cuda.max_memory_allocated(gpu) / 2**20 for gpu in gpus},
        "losses": [loss.item() for loss in losses],
        "parameters": [sum(p.numel() for p in stage.parameters) for stage in stages],
        "head_parameters": [sum(p.numel() for p in stage.head_parameters) for stage in stages],
        "torch": torch.__version__,
        "gpus": [torch.cuda.get_device_name(gpu) for gpu in gpus],
    }
    if options.json:
        print(json.dumps(result))
    else:
        on = ", ".join(result["devices"])
        print(f"{options.workload}: {options.stages} stages on {on}, width {options.width}: {step_seconds * 1e3:.1f} ms a step, "
              f"{result['examples_per_second']:.1f} examples/s")


if __name__ == "__main__":
    main()
