"""Runs in the format of the published repository: four YAML files with interpolations, and a .pt."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tests.golden import rebuild

_EMBEDDING = "model.backbone_info.ResidualSharedBiMambaBackbone.EmbeddingModule"


def yaml_trees(input_c=3200, emb_c=512, num_classes=20, neck="FPNIdentity") -> dict[str, dict[str, Any]]:
    """The published settings, for a model of other widths where asked for."""
    block = {"emb_c": f"${{{_EMBEDDING}.emb_c}}", "kernel_size": 4, "drop_path_rate": 0.3}
    neck_block = {"in_channels": emb_c, "out_channel": emb_c, "with_ln": True, "scale_factor": 2}
    head = {"input_dim": emb_c, "feat_dim": emb_c, "num_layers": 3, "kernel_size": 3, "with_ln": True}
    embedding = {
        "input_c": input_c,
        "emb_c": emb_c,
        "kernel_size": 3,
        "stride": 1,
        "padding": f"${{floordiv:${{{_EMBEDDING}.kernel_size}}, 2}}",
        "dilation": 1,
        "groups": 1,
        "bias": False,
        "padding_mode": "zeros",
    }
    model = {
        "backbone_info": {
            "name": "ResidualSharedBiMambaBackbone",
            "ResidualSharedBiMambaBackbone": {
                "EmbeddingModule": embedding,
                "StemModule": {"block_n": 1, **block, "recurrent": 4},
                "BranchModule": {"block_n": 5, **block},
            },
        },
        "neck_info": {"name": neck, "FPNIdentity": dict(neck_block), "FPN1D": dict(neck_block)},
        "generator_info": {
            "name": "PointGenerator",
            "PointGenerator": {
                "max_seq_len": 2304,
                "max_buffer_len_factor": 6.0,
                "scale_factor": 2,
                "fpn_levels": None,
                "regression_range": [[0, 4], [4, 8], [8, 16], [16, 32], [32, 64], [64, 10000]],
            },
        },
        "head_info": {
            "name": ["PtTransformerClsHead", "PtTransformerRegHead"],
            "PtTransformerClsHead": {"num_classes": num_classes, "prior_prob": 0.01, "empty_cls": [], **head},
            "PtTransformerRegHead": {"fpn_levels": None, **head},
        },
    }
    meta = {
        "feat_stride": 4,
        "downsample_rate": 1,
        "num_frames": 16,
        "default_fps": None,
        "max_seq_len": 2304,
        "trunc_thresh": 0.5,
        "crop_ratio": [0.9, 1.0],
    }
    dataset = {
        "bench_info": {"num_classes": num_classes},
        "anno_info": {"format": {"file_path": ""}},
        "feat_info": {"format": {"dir_path": "", "prefix": None, "type": "", "ext": ""}, "meta": meta},
        "loader": {
            "pin_memory": False,
            "num_workers": 20,
            "seed": 1234567891,
            "batch_size": 2,
            "max_seq_len": "${dataset.feat_info.meta.max_seq_len}",
            "padding_value": 0.0,
            "max_div_factor": 1,
        },
    }
    engine = {
        "max_epochs": 50,
        "clip_grad_l2norm": 1.0,
        "print_freq": 5,
        "center_sample": "radius",
        "nms_method": "soft",
        "ext_score_file": None,
        "criterion": {"name": "loss1"},
        "optimizer": {"name": "AdamW", "AdamW": {"lr": 1.0e-4, "weight_decay": 5.0e-2}},
        "scheduler": {
            "name": "LinearWarmupCosineAnnealingLR",
            "LinearWarmupCosineAnnealingLR": {
                "T_max": "${engine.max_epochs}",
                "T_warmup": 5,
                "warmup_start_lr": 0.0,
                "eta_min": 1e-8,
            },
        },
    }
    run = {
        "args": {"benchmark": "THUMOS14", "model": "RDFA-S6", "mode": "train", "exp_name": "first", "gpuid": "0"},
        "log_path": "logs/${args.exp_name}/",
        "engine": "some/path/engine",
        "dataset": "some/path/dataset",
        "model": "some/path/model",
        "wandb": {
            "login": {"key": "secret-key"},
            "init": {
                "entity": "",
                "name": "${args.benchmark}-${args.model}-${args.exp_name}",
                "tags": ["${args.benchmark}", "${args.model}"],
                "group": None,
                "dir": "${log_path}/",
                "magic": None,
            },
        },
        "hydra": {"run": {"dir": "${log_path}/outputs"}},
        "job": {"name": "${args.exp_name}", "num": None},
        "loguru": {"handlers": [{"sink": "${log_path}/loguru.log", "level": "DEBUG"}]},
    }
    return {"model": {"model": model}, "dataset": {"dataset": dataset}, "engine": {"engine": engine}, "run": run}


def write_yaml(folder: Path, trees: dict[str, dict[str, Any]]) -> dict[str, Path]:
    paths = {}
    for name, tree in trees.items():
        paths[name] = folder / f"{name}.yaml"
        paths[name].write_text(yaml.safe_dump(tree, sort_keys=False))
    return paths


def profiler_keys() -> list[str]:
    listing = json.loads((rebuild.FOLDER / "model_full_parameters.json").read_text())
    return listing["extra_keys_in_checkpoint_model"]["keys"]


def write_pt(path: Path, model: dict[str, torch.Tensor], model_ema: dict[str, torch.Tensor], **changes) -> None:
    """What the published engine saves: profiler buffers among the weights, a numpy scalar, an optimiser's state."""
    stray = {name: torch.zeros(1, dtype=torch.float64) for name in profiler_keys()}
    first = next(iter(model.values()))
    optimizer = {
        "state": {0: {"step": torch.tensor(7.0), "exp_avg": torch.zeros_like(first), "exp_avg_sq": torch.ones(2)}},
        "param_groups": [{"lr": 1e-4, "weight_decay": 0.05, "params": [0]}],
    }
    content = {
        "epoch": 37,
        "model": {**stray, **model},
        "model_ema": model_ema,
        "optimizer": optimizer,
        "scheduler": {"T_max": 50, "last_epoch": 3700, "_last_lr": [1e-4]},
        "mAP": np.float64(0.744),
    }
    torch.save(content | changes, path)
