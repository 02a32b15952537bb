"""What the value of each option must be, for every component in conf/.

The values are judged when a command is composed: before torch is imported, which the components themselves need, and
before anything is written. Constructors check only what depends on several options, or on data. A component that is not
listed, such as one of the user's own, has its options compared with the kinds of their defaults.
"""

from __future__ import annotations

from semaim.config.kinds import (
    COLOUR,
    COLOUR_SCALE,
    FOLDER_NAME,
    NOT_NEGATIVE,
    NULL,
    PATH,
    POSITIVE,
    SEED,
    SHARE,
    SIDE,
    SIZE,
    TEXT,
    TRUTH,
    Kind,
    ascending,
    list_of,
    number,
    one_of,
    text,
    whole,
)

BATCH = whole(1)
EPOCHS = whole(1) | NULL  # between evaluations
COUNTS = list_of(whole(1), "a list of whole numbers above 0")
PATHS = PATH | list_of(PATH, "a list of paths") | NULL
RAND_AUGMENT = text(
    "RandAugment in timm's notation",
    r"(rand(-((m|n|p|mstd|mmax|inc)\d[\d.]*|t[a-z\d]*))*|augmix(-(m|w|d|a|b|mstd)\d[\d.]*)*"
    r"|(original|originalr|v0|v0r|3a)(-mstd\d[\d.]*)?)",
)
PART = number("a number above 0 and below 1", gt=0, lt=1)
RATE = number("a number from 0 to below 1", ge=0, lt=1)
UP_TO_ONE = number("a number above 0 and up to 1", gt=0, le=1)
CROP = ascending(list_of(number(gt=0, le=1), "two ascending numbers above 0 and up to 1, as a list", 2))
COLOURS = {"mean": COLOUR, "std": COLOUR_SCALE}
WIDTH, DEPTH = whole(4, 65_536), whole(1, 1000)  # of a transformer
ENCODER = {
    "image_size": SIZE,
    "patch_size": SIDE,
    "embed_dim": WIDTH,
    "depth": DEPTH,
    "num_heads": SIDE,
    "mlp_ratio": number("a number above 0 and up to 1000", gt=0, le=1000),
    "drop_path": RATE,
}

ORDERS = (
    "Raster", "Zigzag", "Stochastic", "Center2Out", "Out2Center", "StochasticCenter", "Attention", "AttentionReversed",
    "AttentionGuided", "AttentionCenter",
)  # fmt: skip

# Options at the top of the configuration.
TOP: dict[str, Kind | dict[str, Kind]] = {
    "seed": SEED,
    "device": one_of("auto", "cpu", "cuda"),
    "checkpoint": PATHS,
    "extend": PATH | NULL,
    "images": PATHS,
    "then": list_of(TEXT, "a list of evaluations, such as [knn,linprobe], or []", least=0),
    "parent_run": PATH | NULL,
    "runs_dir": PATH,
    "run_name": FOLDER_NAME,
    "run_dir": PATH,
    "sweep": {
        "name": FOLDER_NAME | NULL,
        "check": TRUTH,
        "wait": TRUTH,
        "snapshot": TRUTH | NULL,
        "restarts": whole(0),
    },
}

# Options of the launchers (hydra.launcher); those that submitit passes on to SLURM are judged there.
LAUNCHERS: dict[str, Kind] = {
    "nodes": whole(1, 100_000),
    "gpus_per_node": whole(0, 1024) | NULL,
    "tasks_per_node": whole(1, 4096) | NULL,
    "cpus_per_task": whole(1, 4096) | NULL,
    "mem_gb": POSITIVE | NULL,
    "partition": TEXT | NULL,
    "account": TEXT | NULL,
    "qos": TEXT | NULL,
    "constraint": TEXT | NULL,
    "timeout_min": whole(1, 10_000_000),
    "max_num_timeout": whole(0, 1_000_000),
    "signal_delay_s": whole(0, 65_535),
}

# Options of each `_target_`.
COMPONENTS: dict[str, dict[str, Kind]] = {
    "semaim.training.settings.TrainerSettings": {
        "epochs": whole(1),
        "warmup_epochs": NOT_NEGATIVE,
        "batch_size": BATCH,
        "accumulate": whole(1),
        "clip_grad": POSITIVE | NULL,
        "precision": one_of("auto", "bf16", "fp16", "float32"),
        "strategy": one_of("ddp", "fsdp"),
        "activation_checkpointing": TRUTH,
        "compile": TRUTH,
        "ema": TRUTH,
        "ema_decay": list_of(SHARE, "two numbers from 0 to 1, as a list", 2),
        "ema_ramp_epochs": NOT_NEGATIVE,
        "max_steps": whole(1) | NULL,
        "log_every_steps": whole(1),
        "save_every_epochs": whole(1),
        "save_every_steps": whole(1) | NULL,
        "keep_checkpoints": whole(1),
        "milestone_every_epochs": whole(1) | NULL,
        "profile_steps": whole(1) | NULL,
    },
    "semaim.training.optimizers.Optimization": {
        "base_lr": POSITIVE,
        "min_lr": NOT_NEGATIVE,
        "weight_decay": NOT_NEGATIVE,
    },
    "semaim.training.optimizers.parameter_groups": {},
    "semaim.training.optimizers.layer_decay_groups": {"layer_decay": UP_TO_ONE},
    "semaim.models.heads.head_groups": {},
    "torch.optim.AdamW": {"betas": list_of(RATE, "two numbers from 0 to below 1, as a list", 2), "fused": TRUTH | NULL},
    "torch.optim.SGD": {"momentum": RATE},
    "semaim.models.aim.AIM": {
        **ENCODER,
        "query_depth": DEPTH,
        "head": one_of("mlp", "linear"),
        "segments": whole(1) | NULL,
        "skip_connections": TRUTH,
    },
    "semaim.models.mae.MAE": {
        **ENCODER,
        "decoder_dim": WIDTH,
        "decoder_depth": DEPTH,
        "decoder_num_heads": SIDE,
        "visible": PART,
    },
    "semaim.models.simmim.SimMIM": {**ENCODER, "hidden": PART, "mask_unit": SIDE | NULL},
    "semaim.data.image_data.ImageData": {
        "root": PATH | NULL,
        "image_size": SIZE,
        "patch_size": SIDE,
        "num_workers": whole(0, 1024),
        "max_unreadable": whole(0),
        "val_fraction": PART | NULL,
        "val_seed": SEED,
        "accept_changes": TRUTH,
        "timeout_seconds": POSITIVE,
    },
    "semaim.data.sources.cifar10": {"download": TRUTH},
    "semaim.data.sources.stl10": {"download": TRUTH},
    "semaim.data.sources.digits": {"side": whole(1, 4096), "val_fraction": PART},
    "semaim.data.sources.image_folders": {
        "layout": one_of("auto", "splits", "classes", "flat"),
        "masks": PATH | NULL,
        "exif": TRUTH,
    },
    "semaim.data.shards.shards": {"exif": TRUTH | NULL},
    "semaim.data.shapes.shapes": {
        "side": whole(1, 4096),
        "train": whole(1, 10**7),
        "val": whole(1, 10**7),
        "seed": SEED,
    },
    "semaim.data.transforms.pretraining": {"image_size": SIZE, "scale": CROP, "flip": SHARE, **COLOURS},
    "semaim.data.transforms.evaluation": {"image_size": SIZE, "crop_ratio": UP_TO_ONE, **COLOURS},
    "semaim.data.transforms.linear_probe": {"image_size": SIZE, "flip": SHARE, **COLOURS},
    "semaim.data.transforms.finetuning": {
        "image_size": SIZE,
        "scale": CROP,
        "flip": SHARE,
        "rand_augment": RAND_AUGMENT | NULL,
        "erase": SHARE,
        **COLOURS,
    },
    **{f"semaim.permutations.{order}": {} for order in ORDERS},
    "semaim.permutations.RandomSquares": {"side": SIDE},
    "semaim.permutations.RandomBlobs": {"blobs": whole(1)},
    "semaim.semantics.SemanticMap": {
        "kind": one_of("cls", "gap", "self"),
        "source": one_of("auto", "online", "ema", "teacher"),
        "full_precision": TRUTH,
    },
    "semaim.targets.Pixels": {
        "patch_size": SIDE,
        "blur_kernel_size": whole(0, 1001),
        "blur_sigma": POSITIVE,
        "norm_pix": TRUTH,
        "loss": one_of("l1", "l2"),
    },
    "semaim.targets.EncoderFeatures": {"source": one_of("online", "ema"), "channels": SIDE},
    "semaim.teachers.Teacher": {
        "model": TEXT | NULL,
        "weights": PATH | NULL,
        "pretrained": TRUTH,
        "projection": TRUTH,
        "normalization": one_of("teacher", "data"),
        "patch_size": SIDE,
        **COLOURS,
    },
    "semaim.evaluation.online_knn.OnlineKNN": {
        "every_epochs": EPOCHS,
        "ks": COUNTS,
        "batch_size": BATCH,
        "max_bank": whole(1) | NULL,
        "max_queries": whole(1) | NULL,
    },
    "semaim.evaluation.online_linear.OnlineLinear": {
        "every_epochs": EPOCHS,
        "base_lr": POSITIVE,
        "batch_size": BATCH,
    },
    "semaim.visualization.online_pictures.OnlinePictures": {
        "every_epochs": EPOCHS,
        "images": whole(1),
        "drawn": whole(1),
        "palette": TEXT,
        **COLOURS,
    },
    "semaim.tracking.mlflow.MLflow": {
        "uri": TEXT,
        "experiment": TEXT,
        "flush_seconds": NOT_NEGATIVE,
        "system_metrics_seconds": NOT_NEGATIVE,
    },
    "semaim.tracking.mlflow.NoTracking": {},
    "semaim.tracking.tensorboard.TensorBoard": {
        "flush_seconds": NOT_NEGATIVE,
        "system_metrics_seconds": NOT_NEGATIVE,
    },
    "semaim.tracking.wandb.WandB": {
        "project": TEXT,
        "entity": TEXT | NULL,
        "mode": one_of("online", "offline", "disabled"),
        "flush_seconds": NOT_NEGATIVE,
        "system_metrics_seconds": NOT_NEGATIVE,
    },
    "semaim.checkpoints.encoder_source.EncoderSource": {
        "checkpoint": PATH | NULL,
        "ema": TRUTH,
        "num_heads": SIDE | NULL,
        "architecture": TEXT | NULL,
        "interpolate": TRUTH,
        "image_size": SIZE,
        "mean": COLOUR | NULL,
        "std": COLOUR_SCALE | NULL,
    },
    "semaim.tasks.pretrain.Pretraining": {"checkpoint": PATH | NULL},
    "semaim.tasks.knn.KNN": {"ks": COUNTS, "batch_size": BATCH, "features_dir": PATH | NULL, "mean_before_norm": TRUTH},
    "semaim.tasks.linprobe.LinearProbe": {
        "features": list_of(one_of("cls", "mean"), "[cls], [mean] or [cls,mean]"),
        "base_lrs": list_of(POSITIVE, "a list of numbers above 0") | NULL,
        "holdout": PART,
        "recipe": TEXT,
        "seed": SEED,
        "batch_size": BATCH,
        "evaluate_every_epochs": EPOCHS,
    },
    "semaim.tasks.finetune.FineTuning": {
        "recipe": TEXT,
        "pool": one_of("mean", "cls"),
        "drop_path": RATE,
        "mixup": NOT_NEGATIVE,
        "cutmix": NOT_NEGATIVE,
        "label_smoothing": RATE,
        "eval_only": TRUTH,
        "batch_size": BATCH,
        "evaluate_every_epochs": whole(1),
    },
    "semaim.tasks.fewshot.FewShot": {
        "shots": COUNTS,
        "repeats": whole(1),
        "ks": COUNTS,
        "C": POSITIVE,
        "batch_size": BATCH,
        "features_dir": PATH | NULL,
    },
    "semaim.tasks.features.ExportFeatures": {"format": one_of("npz", "safetensors"), "batch_size": BATCH},
    "semaim.tasks.visualize.Visualize": {
        "checkpoint": PATHS,
        "images": PATHS,
        "count": whole(1),
        "orders": list_of(TEXT, "a list of names of orders") | NULL,
        "predict_order": TEXT | NULL,
        "palette": TEXT,
        "formats": list_of(one_of("png", "svg"), "[png], [svg] or [png,svg]"),
    },
}
