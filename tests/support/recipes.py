"""What the experiments must hold: the values swept by each sweep, and the numbers of the published recipes."""

from __future__ import annotations

import re

SWEEPS = {
    "ablation_orders": (
        "permutation",
        "raster zigzag center2out out2center stochastic stochastic_center attention attention_guided attention_center",
    ),
    "ablation_targets": ("target", "pixels online ema dino clip"),
    "ablation_maps": ("semantic_map", "cls gap self"),
    "ablation_query_depth": ("model.query_depth", "1 3 6 12"),
    "ablation_head": ("model.head", "mlp linear"),
    "ablation_blur": ("target.blur_kernel_size", "9 0"),
    "ablation_loss": ("target.loss", "l2 l1"),
    "ablation_norm_pix": ("target.norm_pix", "true false"),
}

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
    "trainer.ema": False,
    "trainer.ema_decay": [0.999, 0.9999],  # of target=ema
    "trainer.ema_ramp_epochs": 100,
}
RECIPE = {
    "task._target_": "semaim.tasks.pretrain.Pretraining",
    "trainer.warmup_epochs": 30,
    "trainer.batch_size": 2048,
    "trainer.clip_grad": 3.0,
    "optimizer.base_lr": 2e-4,
    "optimizer.min_lr": 0.0,
    "optimizer.weight_decay": 0.05,
    "optimizer.optimizer._target_": "torch.optim.AdamW",
    "optimizer.optimizer.betas": [0.9, 0.95],
    "optimizer.groups._target_": "semaim.training.optimizers.parameter_groups",
    "model.image_size": 224,
    "model.patch_size": 16,
    "model.query_depth": 12,
    "model.head": "mlp",
    "model.mlp_ratio": 4.0,
    "model.drop_path": 0.0,
    "semantic_map.kind": "cls",
    "semantic_map.source": "auto",  # with pixels, the encoder in training
    "semantic_map.full_precision": False,  # a difference from the authors' code
}
PIXELS = {
    "target._target_": "semaim.targets.Pixels",
    "target.patch_size": 16,
    "target.blur_kernel_size": 9,
    "target.blur_sigma": 1.0,
    "target.norm_pix": True,
    "target.loss": "l2",
}
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
FINE_TUNING = {
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
LINEAR_PROBE = {
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
RASTER = {"permutation._target_": "semaim.permutations.Raster"}
TRAINED = {
    "recipe": "published",
    "task.train_transform.image_size": 224,
    "task.train_transform.mean": [0.485, 0.456, 0.406],
    "task.train_transform.std": [0.229, 0.224, 0.225],
}
SAIM = {"trainer.clip_grad": None}
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
    **dict.fromkeys(SWEEPS, RECIPE | BASE | SEMANTIC | PIXELS | ABLATION),
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
