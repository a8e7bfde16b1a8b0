"""Writes small models of other programs, with inputs and outputs: python3 make.py (needs torch, transformers, torchvision, safetensors).

Each safetensors file has a state dict as its program saves it, and the tensors `input` and `output` of an evaluation: logits of the model.
"""
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from transformers import GPT2Config, GPT2LMHeadModel

FOLDER = Path(__file__).parent


def random_parameters(model):
    with torch.no_grad():
        for name, parameter in model.state_dict().items():
            if parameter.is_floating_point():
                parameter.copy_(torch.randn_like(parameter) * 0.3)
                if name.endswith("running_var"):
                    parameter.abs_().add_(0.5)


def save(name, model, inputs, state):
    model.eval()
    with torch.no_grad():
        output = model(inputs)
    output = getattr(output, "logits", output)
    inputs = inputs.to(torch.int32) if inputs.dtype == torch.int64 else inputs
    tensors = {k: v.clone().contiguous() for k, v in state.items()}
    save_file({**tensors, "input": inputs, "output": output}, FOLDER / f"{name}.safetensors")


torch.manual_seed(1)
tokens = torch.randint(0, 13, (2, 6))
# A square: as wide as it has outputs, so that shapes do not tell which way a matrix lies.
gpt = GPT2LMHeadModel(GPT2Config(vocab_size=13, n_positions=8, n_embd=8, n_layer=2, n_head=2))
random_parameters(gpt)
save("gpt2-lm-head", gpt, tokens, {k: v for k, v in gpt.state_dict().items() if k != "lm_head.weight"})
save("gpt2-body", gpt, tokens, {**gpt.transformer.state_dict(), "h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool)})
# nanoGPT has the same names with the matrices of linear layers, and both names of the shared matrix.
nano = {}
for name, value in gpt.state_dict().items():
    linear = any(name.endswith(f"{layer}.weight") for layer in ("c_attn", "c_proj", "c_fc"))
    nano[f"_orig_mod.{name}"] = value.t() if linear else value
save("nanogpt-compiled", gpt, tokens, nano)


def small_resnet(block, planes, blocks, classes):
    model = ResNet(block, [1, 1, 1, 1])
    model.inplanes = planes[0]
    model.conv1 = nn.Conv2d(3, planes[0], 3, padding=1, bias=False)
    model.bn1 = nn.BatchNorm2d(planes[0])
    model.maxpool = nn.Identity()
    for at, (width, count) in enumerate(zip(planes, blocks)):
        setattr(model, f"layer{at + 1}", model._make_layer(block, width, count, stride=1 if at == 0 else 2))
    for at in range(len(planes), 4):
        setattr(model, f"layer{at + 1}", nn.Identity())
    model.fc = nn.Linear(model.inplanes, classes)
    return model


images = torch.randn(2, 3, 8, 8)
for name, block in [("resnet-basic", BasicBlock), ("resnet-bottleneck", Bottleneck)]:
    model = small_resnet(block, [4, 8], [1, 2], 5)
    random_parameters(model)
    state = {f"module.{k}": v for k, v in model.state_dict().items()} if block is Bottleneck else model.state_dict()
    save(name, model, images, state)
