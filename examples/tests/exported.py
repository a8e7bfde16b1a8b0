"""Exports small models and compares their scores in Python with those of `eval`: python3 exported.py INTERLOCK [FOLDER_OF_NANOGPT]

Needs torch, torchvision, transformers, timm and safetensors. For nanoGPT, name the folder with its model.py.
"""
import gzip
import json
import math
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

INTERLOCK = Path(sys.argv[1]).resolve()
NANOGPT = Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else None
DATA = Path(__file__).resolve().parents[2] / "models" / "data"
CONTEXT = 16


def interlock(*arguments):
    done = subprocess.run([INTERLOCK, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, arguments
    return done.stdout


def train(folder, *settings):
    sets = ["steps=5", "batch_size=8", "partition.stages=2", "heads={}", "devices=cpu", *settings]
    interlock("train", "--quiet", "--out", folder, *(part for text in sets for part in ("--set", text)))


def load(run, format):
    interlock("export", run, "--format", format)
    return runpy.run_path(str(run / format / "load.py"))


def score(logits, targets):
    logits = torch.cat(logits).reshape(-1, logits[0].shape[-1]).double()
    targets = torch.cat(targets).reshape(-1)
    hits = (logits.argmax(1) == targets).double().mean()
    return cross_entropy(logits, targets).item(), hits.item()


def compare(name, run, found):
    ours = json.loads(interlock("eval", run, "--json"))[-1]
    pairs = [(ours["loss"], found[0]), (ours["accuracy"], found[1])]
    figures = "; ".join(f"{a:.8f} {b:.8f}" for a, b in pairs)
    perplexity = f"; perplexity {ours['perplexity']:.6f} {math.exp(found[0]):.6f}" if "text" in name else ""
    print(f"{name}: loss and accuracy, here and there: {figures}{perplexity}")
    assert abs(pairs[0][0] - pairs[0][1]) <= 1e-5 * abs(pairs[0][1]), name
    assert abs(pairs[1][0] - pairs[1][1]) <= 1e-5, name


def windows(tokens):
    tokens = torch.tensor(tokens)
    count = (len(tokens) - 1) // CONTEXT
    return tokens[: count * CONTEXT].view(count, CONTEXT), tokens[1 : count * CONTEXT + 1].view(count, CONTEXT)


def texts(folder):
    text = gzip.open(DATA / "shakespeare" / "shakespeare.txt.gz", "rt", encoding="utf-8", newline="").read()
    (folder / "train.txt").write_text(text[:20_000], encoding="utf-8", newline="")
    valid = text[:8_000]
    (folder / "valid.txt").write_text(valid, encoding="utf-8", newline="")
    data = f'data={{kind="text", path="{folder}/train.txt", validation_path="{folder}/valid.txt", context={CONTEXT}, '
    for tokenizer in ("bytes", "chars"):
        for tied in ("false", "true"):
            run = folder / f"{tokenizer}-{tied}"
            model = f'model={{kind="transformer", width=24, heads=3, layers=2, tied={tied}}}'
            stages = ["partition.stages=1"] if tied == "true" else []
            train(run, data + f'tokenizer="{tokenizer}"}}', model, *stages)
            names = load(run, "hf")
            inputs, targets = windows(names["tokenizer"](valid).input_ids)
            with torch.no_grad():
                logits = [names["model"](part).logits for part in inputs.split(64)]
            compare(f"transformers, text as {run.name}", run, score(logits, targets.split(64)))
            if NANOGPT:
                sys.path.insert(0, str(NANOGPT))
                model = load(run, "torch")["model"]
                with torch.no_grad():
                    logits = [model(part, part)[0] for part in inputs.split(64)]
                compare(f"nanoGPT, text as {run.name}", run, score(logits, targets.split(64)))


def images(folder):
    def idx(name, skip):
        data = bytearray(gzip.open(DATA / "fashion-mnist" / f"{name}.gz").read()[skip:])
        return torch.frombuffer(data, dtype=torch.uint8)

    pixels = idx("t10k-images-idx3-ubyte", 16).view(-1, 1, 28, 28).float() / 255
    labels = idx("t10k-labels-idx1-ubyte", 8).long()
    cases = [
        ("torchvision", "torch", 'model={kind="resnet", block="basic", stem="cifar", planes=[4, 8], blocks=[1, 2]}'),
        ("torchvision", "torch", 'model={kind="resnet", block="bottleneck", stem="imagenet", planes=[4, 8], blocks=[1, 1]}'),
        ("torchvision", "torch", 'model={kind="resnet", preset="resnet18", stem="cifar"}'),
        ("torchvision", "torch", 'model={kind="resnet", preset="resnet18"}'),
        ("timm", "hf", 'model={kind="resnet", preset="resnet18"}'),
        ("a perceptron", "torch", 'model={kind="mlp", hidden=[20]}'),
    ]
    for number, (program, format, model) in enumerate(cases):
        run = folder / f"images-{number}"
        train(run, model)
        names = load(run, format)
        mean, std = (torch.tensor(names[key]).view(1, -1, 1, 1) for key in ("MEAN", "STD"))
        with torch.no_grad():
            logits = [names["model"](part) for part in ((pixels - mean) / std).split(100)]
        compare(f"{program}, {model[6:]}", run, score(logits, labels.split(100)))


with tempfile.TemporaryDirectory() as scratch:
    texts(Path(scratch))
    images(Path(scratch))
