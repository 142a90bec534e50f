"""From our config to the arguments of transformers' Trainer, alike for every kind of run."""

from __future__ import annotations

from typing import Any

from rlhf_ray.config import LoraConfig, OfflineConfig


def training_arguments(config: OfflineConfig, dtype: str, in_group: bool) -> dict[str, Any]:
    """Keyword arguments for any `TrainingArguments`. `dtype` is the compute type, `float32` or `bfloat16`; `in_group`
    says that this process is a rank of a Ray Train group, which trains with DeepSpeed."""
    train = config.train
    share = train.batch_size // train.num_workers
    micro = train.microbatch_size or share
    gpu = train.gpus_per_worker > 0
    return {
        "output_dir": "trainer",  # nothing is written there: commits go to the run directory
        "deepspeed": deepspeed_config(config, dtype) if in_group else None,
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": share // micro,
        "num_train_epochs": train.epochs,
        "max_steps": train.max_steps or -1,
        "learning_rate": train.learning_rate,
        "weight_decay": train.weight_decay,
        # In a group DeepSpeed clips, or at ZeRO-0 `Committed`; transformers checks that the two settings agree.
        "max_grad_norm": _deepspeed_clipping(config) if in_group else train.deepspeed.gradient_clipping,
        "optim": "adamw_torch",
        "lr_scheduler_type": "cosine",
        "warmup_steps": train.warmup_fraction,
        "eval_strategy": "steps" if train.eval_every else "no",
        "eval_steps": train.eval_every,
        "save_strategy": "no",  # `Steering` decides when to commit
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # a loss that is not finite must be seen
        "gradient_checkpointing": train.gradient_checkpointing,
        "use_cpu": not gpu,
        "bf16": False,  # through DeepSpeed's autocast, which leaves the weights in float32
        "fp16": False,
        "ddp_backend": ("nccl" if gpu else "gloo") if in_group else None,
        "seed": config.seed,
        "disable_tqdm": True,
        "report_to": [],
    }


def deepspeed_config(config: OfflineConfig, dtype: str) -> dict[str, Any]:
    """DeepSpeed's own configuration. No optimizer section: torch's AdamW is handed over, because DeepSpeed's is
    compiled at first use."""
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": _deepspeed_clipping(config),
        "zero_optimization": {"stage": config.train.deepspeed.zero_stage, "overlap_comm": False},
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "torch_autocast": {"enabled": dtype != "float32", "dtype": dtype},
        "steps_per_print": 1_000_000_000,
    }


def _deepspeed_clipping(config: OfflineConfig) -> float:
    return config.train.deepspeed.gradient_clipping if config.train.deepspeed.zero_stage else 0.0


def lora_config(lora: LoraConfig | None) -> Any:
    """peft's configuration of adapters for a causal model, or None."""
    if lora is None:
        return None
    from peft import LoraConfig as PeftLoraConfig

    return PeftLoraConfig(
        task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules="all-linear"
    )
