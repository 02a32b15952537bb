"""What the experiments must hold: the values swept by each sweep, and the numbers of the published recipes."""

from __future__ import annotations

import re
from itertools import product

# The options of each sweep, and their values.
SWEEPS = {
    "ablation_orders": {
        "permutation": "raster zigzag center2out out2center stochastic stochastic_center attention attention_guided "
        "attention_center"
    },
    "ablation_targets": {"target": "pixels online ema dino clip"},
    "ablation_maps": {"semantic_map": "cls gap self"},
    "ablation_query_depth": {"model.query_depth": "1 3 6 12"},
    "ablation_head": {"model.head": "mlp linear"},
    "ablation_blur": {"target.blur_kernel_size": "9 0"},
    "ablation_loss": {"target.loss": "l2 l1"},
    "ablation_norm_pix": {"target.norm_pix": "true false"},
    "methods_equal_compute": {"method": "semaim saim igpt randsac mae simmim"},
    "segments": {"model.segments": "2 5 11 49 null", "permutation": "stochastic attention_center"},
    "semantic_masking": {
        "permutation": "stochastic attention attention_reversed attention_center center2out out2center"
    },
}


def points(name: str) -> list[list[str]]:
    """The options of each run of an experiment that differ: none, or those of its sweep."""
    swept = SWEEPS.get(name, {})
    values = product(*(each.split() for each in swept.values()))
    return [[f"{option}={value}" for option, value in zip(swept, each, strict=True)] for each in values]


# Values shared by the published recipes, then those specific to each.
ANY = {
    "data.image_size": 224,
    "data.patch_size": 16,
    "data.train_transform.scale": [0.2, 1.0],
    "data.train_transform.flip": 0.5,
    "data.eval_transform.crop_ratio": 0.875,
    **{f"data.{use}_transform.mean": [0.485, 0.456, 0.406] for use in ("train", "eval")},
    **{f"data.{use}_transform.std": [0.229, 0.224, 0.225] for use in ("train", "eval")},
    **{f"data.{use}_transform.image_size": 224 for use in ("train", "eval")},
    "trainer.accumulate": 1,
    "trainer.max_steps": None,
    "trainer.flops": None,
    "trainer.ema": False,
    "trainer.ema_decay": [0.999, 0.9999],  # of target=ema
    "trainer.ema_ramp_epochs": 100,
}
COSINE = {"optimizer.schedule._target_": "semaim.training.schedules.Cosine"}
PRETRAINING = {
    "task._target_": "semaim.tasks.pretrain.Pretraining",
    "model.image_size": 224,
    "model.patch_size": 16,
    "model.mlp_ratio": 4.0,
    "semantic_map.kind": "cls",
    "semantic_map.source": "auto",  # with pixels, the encoder in training
    "semantic_map.full_precision": False,  # a difference from the authors' code
    "optimizer.min_lr": 0.0,
    "optimizer.weight_decay": 0.05,
    "optimizer.optimizer._target_": "torch.optim.AdamW",
    "optimizer.groups._target_": "semaim.training.optimizers.parameter_groups",
}
RECIPE = (
    PRETRAINING
    | COSINE
    | {
        "trainer.warmup_epochs": 30,
        "trainer.batch_size": 2048,
        "trainer.clip_grad": 3.0,
        "optimizer.base_lr": 2e-4,
        "optimizer.optimizer.betas": [0.9, 0.95],
        "model.query_depth": 12,
        "model.head": "mlp",
        "model.segments": None,
        "model.skip_connections": False,
        "model.drop_path": 0.0,
    }
)
PIXELS = {
    "target._target_": "semaim.targets.Pixels",
    "target.patch_size": 16,
    "target.blur_kernel_size": 9,
    "target.blur_sigma": 1.0,
    "target.norm_pix": True,
    "target.loss": "l2",
}
SHARP = PIXELS | {"target.blur_kernel_size": 0}
RAW = SHARP | {"target.norm_pix": False, "target.loss": "l1"}
MAE = (
    PRETRAINING
    | SHARP
    | COSINE
    | {
        "model._target_": "semaim.models.mae.MAE",
        "model.visible": 0.25,
        "model.decoder_dim": 512,
        "model.decoder_depth": 8,
        "model.decoder_num_heads": 16,
        "model.drop_path": 0.0,
        "trainer.warmup_epochs": 40,
        "trainer.batch_size": 4096,
        "trainer.clip_grad": None,
        "optimizer.base_lr": 1.5e-4,
        "optimizer.optimizer.betas": [0.9, 0.95],
    }
)
SIMMIM = (
    PRETRAINING
    | RAW
    | {
        "model._target_": "semaim.models.simmim.SimMIM",
        "model.hidden": 0.6,
        "model.mask_unit": 32,
        "model.drop_path": 0.1,
        "data.train_transform.scale": [0.67, 1.0],
        "trainer.epochs": 800,
        "trainer.warmup_epochs": 10,
        "trainer.batch_size": 2048,
        "trainer.clip_grad": 5.0,
        "optimizer.base_lr": 5e-5,
        "optimizer.schedule._target_": "semaim.training.schedules.MultiStep",
        "optimizer.schedule.milestones": [0.875],
        "optimizer.schedule.gamma": 0.1,
        "optimizer.optimizer.betas": [0.9, 0.999],
    }
)
CLIP = {
    "target._target_": "semaim.teachers.Teacher",
    "target.model": "vit_base_patch16_clip_quickgelu_224.openai",
    "target.projection": True,
    "target.normalization": "teacher",
    "target.pretrained": True,
    "target.weights": None,
    "target.patch_size": 16,
    "target.mean": [0.485, 0.456, 0.406],  # of the data, to undo their normalisation
    "target.std": [0.229, 0.224, 0.225],
}
FINE_TUNING = COSINE | {
    "task._target_": "semaim.tasks.finetune.FineTuning",
    "task.pool": "mean",
    "task.mixup": 0.8,
    "task.cutmix": 1.0,
    "task.label_smoothing": 0.1,
    "task.train_transform.rand_augment": "rand-m9-mstd0.5-inc1",
    "task.train_transform.erase": 0.25,
    "task.train_transform._target_": "semaim.data.transforms.finetuning",
    "task.train_transform.flip": 0.5,
    "task.train_transform.scale": [0.08, 1.0],
    "task.eval_only": False,
    "task.evaluate_every_epochs": 1,
    "trainer.batch_size": 1024,
    "trainer.clip_grad": None,
    "optimizer.groups._target_": "semaim.training.optimizers.layer_decay_groups",
    "optimizer.optimizer._target_": "torch.optim.AdamW",
    "optimizer.min_lr": 1e-6,
    "optimizer.weight_decay": 0.05,
    "optimizer.optimizer.betas": [0.9, 0.999],
}
LINEAR_PROBE = COSINE | {
    "task._target_": "semaim.tasks.linprobe.LinearProbe",
    "task.features": ["cls", "mean"],
    "task.base_lrs": None,  # one learning rate, so nothing is held out
    "task.holdout": 0.1,
    "task.evaluate_every_epochs": 10,
    "task.train_transform._target_": "semaim.data.transforms.linear_probe",
    "task.train_transform.flip": 0.5,
    "optimizer.groups._target_": "semaim.models.heads.head_groups",
    "trainer.batch_size": 4096,
    "trainer.epochs": 90,
    "trainer.warmup_epochs": 0,
    "trainer.clip_grad": None,
    "optimizer.base_lr": 0.1,
    "optimizer.min_lr": 0.0,
    "optimizer.weight_decay": 0.0,
    "optimizer.optimizer._target_": "torch.optim.SGD",
    "optimizer.optimizer.momentum": 0.9,
}
BASE = {"model.embed_dim": 768, "model.depth": 12, "model.num_heads": 12}
LARGE = {"model.embed_dim": 1024, "model.depth": 24, "model.num_heads": 16}
SEMANTIC = {"permutation._target_": "semaim.permutations.AttentionCenter"}
RANDOM = {"permutation._target_": "semaim.permutations.Stochastic"}
BLOBS = {"permutation._target_": "semaim.permutations.RandomBlobs", "permutation.blobs": 11, "model.segments": 11}
RASTER = {"permutation._target_": "semaim.permutations.Raster"}
TRAINED = {
    "recipe": "published",
    "task.train_transform.image_size": 224,
    "task.train_transform.mean": [0.485, 0.456, 0.406],
    "task.train_transform.std": [0.229, 0.224, 0.225],
}
SAIM = {"trainer.clip_grad": None}
EQUAL_COMPUTE = {"trainer.epochs": None, "trainer.flops": 6.38e19}
ABLATION = {"trainer.epochs": 200, "then": ["knn", "linprobe"]}
# Options that do not change what a run computes, beside rounding, and objects without a choice.
NO_SETTING = re.compile(
    r".*\._partial_|(data|model|optimizer|semantic_map|trainer)\._target_"
    r"|data\.(source|root|num_workers|max_unreadable|val_|accept_|timeout_).*|optimizer\.optimizer\.fused"
    r"|trainer\.(precision|strategy|activation_checkpointing|compile|(log|save|keep|milestone|profile)_.*)"
    r"|data\.eval_transform\._target_|data\.train_transform\._target_|task\.(source\..*|data|optimizer|trainer|recipe|seed|batch_size)"
)
LENGTH, DECAY = ("trainer.epochs", "trainer.warmup_epochs"), "optimizer.groups.layer_decay"
OWN = {
    "semaim_vitb_800ep": RECIPE | BASE | SEMANTIC | PIXELS | {"trainer.epochs": 800},
    "semaim_vitb_400ep": RECIPE | BASE | SEMANTIC | PIXELS | {"trainer.epochs": 400},
    "semaim_vitl_800ep": RECIPE | LARGE | SEMANTIC | PIXELS | {"trainer.epochs": 800},
    "semaim_vitl_400ep": RECIPE | LARGE | SEMANTIC | PIXELS | {"trainer.epochs": 400},
    "semaim_clip_vitb_800ep": RECIPE | BASE | SEMANTIC | CLIP | {"trainer.epochs": 800},
    "semaim_clip_vitl_800ep": RECIPE | LARGE | SEMANTIC | CLIP | {"trainer.epochs": 800},
    "saim_vitb_800ep": RECIPE | BASE | RANDOM | PIXELS | SAIM | {"trainer.epochs": 800},
    "vit_igpt_raster_800ep": RECIPE | BASE | RASTER | PIXELS | SAIM | {"trainer.epochs": 800},
    "mae_vitb_1600ep": MAE | BASE | RANDOM | {"trainer.epochs": 1600},
    "mae_vitl_1600ep": MAE | LARGE | RANDOM | {"trainer.epochs": 1600},
    "simmim_vitb_800ep": SIMMIM | BASE | RANDOM,
    "randsac_vitb_1600ep": RECIPE | BASE | BLOBS | PIXELS | SAIM | {"trainer.epochs": 1600},
    **dict.fromkeys(SWEEPS, RECIPE | BASE | SEMANTIC | PIXELS | ABLATION),
    "methods_equal_compute": RECIPE | BASE | SEMANTIC | PIXELS | ABLATION | EQUAL_COMPUTE,
    "semantic_masking": MAE | BASE | RANDOM | ABLATION,
    "finetune_vitb": FINE_TUNING
    | TRAINED
    | BASE
    | {"optimizer.base_lr": 5e-4, DECAY: 0.65, "task.drop_path": 0.1}
    | dict(zip(LENGTH, (100, 20), strict=True)),
    "finetune_vitl_mae": FINE_TUNING
    | TRAINED
    | LARGE
    | {"optimizer.base_lr": 1e-3, DECAY: 0.75, "task.drop_path": 0.2}
    | dict(zip(LENGTH, (50, 5), strict=True)),
    "linprobe_vitb": LINEAR_PROBE | TRAINED | BASE,
}
