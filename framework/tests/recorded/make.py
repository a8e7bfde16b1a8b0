"""Records what PyTorch's optimizers, gradient clipping and learning-rate schedules compute, for `framework/tests/recorded.rs`.

    pip install torch numpy
    python make.py

It draws 200 settings. `values.json` has them and what `torch.optim` and `torch.nn.utils.clip_grad_norm_` made of them:

- `schedules`: the learning rate of each step, in float64. Step, multi-step and cosine schedules are StepLR, MultiStepLR and, with warm-up, LinearLR
  followed by CosineAnnealingLR (SequentialLR).
- `plateaus`: that of ReduceLROnPlateau (threshold_mode="rel", cooldown 0, eps 0) after each of `losses`.
- `optimizers`: the parameters after each step, computed in float32 from the given gradients, with clipping and a schedule in some of them. Numbers of
  float32 are written with the digits that tell them apart.
"""

import json
from pathlib import Path

import numpy as np
import torch

random = np.random.default_rng(20)


def draw(low, high, digits=3):
    """Returns a number with few digits, so that it is the same in a configuration."""
    return float(f"{np.exp(random.uniform(np.log(low), np.log(high))):.{digits}g}")


def short(tensor):
    return [float(np.format_float_scientific(value, unique=True)) for value in tensor.detach().numpy()]


def schedule_of(optimizer, config, steps):
    """Returns the schedule of PyTorch that a table [lr_schedule] stands for."""
    if config["kind"] == "constant":
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    if config["kind"] == "step":
        return torch.optim.lr_scheduler.StepLR(optimizer, config["every"], config["gamma"])
    if config["kind"] == "multi_step":
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, config["milestones"], config["gamma"])
    warmup, base = config["warmup_steps"], optimizer.param_groups[0]["lr"]
    end = config.get("total_steps", steps)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, end - warmup, config["final_fraction"] * base)
    if warmup < 2:
        # A warm-up of one step has the whole rate in its only step.
        return cosine if warmup == 0 else torch.optim.lr_scheduler.SequentialLR(
            optimizer, [torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 1), cosine], [1])
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, 1.0, warmup - 1)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, cosine], [warmup])


def draw_schedule(steps):
    kind = random.choice(["step", "multi_step", "cosine"])
    if kind == "step":
        return {"kind": "step", "every": int(random.integers(1, 8)), "gamma": draw(0.05, 1.5)}
    if kind == "multi_step":
        milestones = sorted(int(step) for step in random.integers(1, steps, random.integers(1, 5)))
        return {"kind": "multi_step", "milestones": milestones, "gamma": draw(0.05, 1.5)}
    # The end of the run, or a step before it, after which the rate stays: PyTorch's cosine would rise again.
    warmup = int(random.integers(0, steps // 2))
    config = {"kind": "cosine", "warmup_steps": warmup, "final_fraction": float(random.choice([0.0, 0.1, 0.25, 1.0]))}
    if random.random() < 0.4:
        config["total_steps"] = int(random.integers(warmup + 2, steps + 20))
    return config


def schedules(count):
    recorded = []
    for _ in range(count):
        steps, base = int(random.integers(10, 40)), draw(1e-4, 1.0)
        config = draw_schedule(steps)
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=base)
        schedule = schedule_of(optimizer, config, steps)
        rates = []
        for step in range(min(steps, config.get("total_steps", steps)) + 1):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            schedule.step()
        recorded.append({"lr": base, "steps": steps, "schedule": config, "rates": rates})
    return recorded


def plateaus(count):
    recorded = []
    for _ in range(count):
        base = draw(1e-4, 1.0)
        config = {"kind": "reduce_on_plateau", "factor": draw(0.05, 0.9), "patience": int(random.integers(0, 4)),
                  "threshold": float(random.choice([0.0, 1e-4, 0.01, 0.1])), "min_fraction": float(random.choice([0.0, 0.01, 0.2]))}
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=base)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, "min", config["factor"], config["patience"], config["threshold"], "rel", 0,
            config["min_fraction"] * base, 0.0)
        # Losses that fall and then mostly stay, some of them the same to the bit.
        losses = [round(float(2 * np.exp(-at / 4) + 0.05 * random.normal() + 0.5), int(random.integers(1, 4))) for at in range(25)]
        rates = []
        for loss in losses:
            schedule.step(loss)
            rates.append(float(optimizer.param_groups[0]["lr"]))
        recorded.append({"lr": base, "schedule": config, "losses": losses, "rates": rates})
    return recorded


def draw_optimizer():
    decay = float(random.choice([0.0, 1e-4, 0.01, 0.1, 0.5]))
    if random.random() < 0.5:
        momentum = float(random.choice([0.0, 0.5, 0.9, 0.99]))
        nesterov = bool(momentum > 0 and random.random() < 0.5)
        return {"kind": "sgd", "lr": draw(1e-3, 0.5), "weight_decay": decay, "momentum": momentum, "nesterov": nesterov}
    betas = [float(random.choice([0.0, 0.5, 0.9, 0.95])), float(random.choice([0.9, 0.95, 0.99, 0.999]))]
    return {"kind": "adamw", "lr": draw(1e-4, 0.1), "weight_decay": decay, "betas": betas,
            "eps": float(random.choice([1e-8, 1e-6, 1e-3]))}


def optimizers(count):
    recorded = []
    for _ in range(count):
        config, steps = draw_optimizer(), int(random.integers(10, 16))
        # The second parameter may have settings of its own.
        own = {"weight_decay": 0.0, "lr_scale": draw(0.1, 2.0)} if random.random() < 0.5 else None
        schedule_config = draw_schedule(steps) if random.random() < 0.5 else {"kind": "constant"}
        schedule_config.pop("total_steps", None)
        clip = draw(0.1, 5.0) if random.random() < 0.5 else None
        numbers = random.normal(size=(1 + steps, 6)).astype(np.float32).round(4)
        numbers[1:] *= np.exp(random.uniform(-2, 2, (steps, 1))).astype(np.float32).round(3)
        numbers = numbers.astype(np.float32)
        weight = torch.nn.Parameter(torch.from_numpy(numbers[0, :4].copy()))
        bias = torch.nn.Parameter(torch.from_numpy(numbers[0, 4:].copy()))
        settings = {key: value for key, value in config.items() if key != "kind"}
        groups = [{"params": [weight]}, {"params": [bias]}]
        if own is not None:
            groups[1] |= {"lr": config["lr"] * own["lr_scale"], "weight_decay": own["weight_decay"]}
        # The plain loops, which are the definition.
        make = torch.optim.SGD if config["kind"] == "sgd" else torch.optim.AdamW
        optimizer = make(groups, foreach=False, **settings)
        schedule = schedule_of_groups(optimizer, schedule_config, steps)
        values = []
        for step in range(steps):
            weight.grad = torch.from_numpy(numbers[1 + step, :4].copy())
            bias.grad = torch.from_numpy(numbers[1 + step, 4:].copy())
            if clip is not None:
                torch.nn.utils.clip_grad_norm_([weight, bias], clip)
            optimizer.step()
            schedule.step()
            values.append(short(weight) + short(bias))
        recorded.append({"optimizer": config, "bias": own, "schedule": schedule_config, "clip": clip,
                         "initial": short(torch.from_numpy(numbers[0])),
                         "gradients": [short(torch.from_numpy(row)) for row in numbers[1:]], "values": values})
    return recorded


def schedule_of_groups(optimizer, config, steps):
    """The same schedule for groups with different rates: the factors of a rate of 1."""
    one = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule, factors = schedule_of(one, config, steps), []
    for _ in range(steps + 1):
        factors.append(float(one.param_groups[0]["lr"]))
        one.step()
        schedule.step()
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factors[step])


if __name__ == "__main__":
    recorded = {"torch": torch.__version__, "schedules": schedules(60), "plateaus": plateaus(40), "optimizers": optimizers(100)}
    text = json.dumps(recorded, separators=(",", ":")).replace('},{"', '},\n{"')
    (Path(__file__).parent / "values.json").write_text(text + "\n")
