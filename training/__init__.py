"""How a run goes: arguments, run folder, one epoch, augmentation."""
