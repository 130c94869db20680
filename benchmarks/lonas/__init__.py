"""The claim on LoNAS: one run for all widths, beside a run of LoRA for each."""
