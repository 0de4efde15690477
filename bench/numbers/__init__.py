"""Random streams, statistics, losses and image quality: functions on tensors."""
