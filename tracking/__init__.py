"""What is remembered: MLflow, significance, reports. Knows no Optuna."""
