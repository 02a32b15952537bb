"""What a run can do: pretrain a model, or evaluate one."""
