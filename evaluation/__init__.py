"""Logits -> judgement: predictions, figures, calibration, pictures, report, export."""
