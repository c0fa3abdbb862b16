"""What things cost, measured side by side in one run: ours, and stock diffusers as the yardstick."""
