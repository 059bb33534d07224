"""What is trained on histories: heads, LoRA, prefixes."""
