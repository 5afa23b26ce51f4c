"""What a run warns of: features that no longer tell samples apart. A function of one logged record; it stops nothing.

Measured on a Siamese method (ResNet18, 96 synthetic patches, 48 steps of 16): the effective rank of its projections ends at 2 in a sound run, at 1.3 and
falling without the stopped gradient, at 1.01 with a learning rate 100 times too high. The std falls little in any of them, as long as a
BatchNorm holds it up; it is what shows features that have become constant.
"""

SPREAD = 0.05  # std of unit features times sqrt(D)
ONE_LINE = 1.3  # effective rank


def collapsed(record: dict) -> str:
    """What has collapsed in `record`, such as "feature_std 0.004"; "" when nothing has."""
    limits = {name: SPREAD if name.endswith("_std") else ONE_LINE for name in record if name.endswith(("_std", "_rank"))}
    return ", ".join(f"{name} {record[name]:.3g}" for name, limit in limits.items() if record[name] < limit)
