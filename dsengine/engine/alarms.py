"""What a run warns of: features that no longer tell samples apart. A function of one logged record; it stops nothing."""

SPREAD = 0.05  # std of unit features times sqrt(D): healthy encoders lie above 0.3, random ones included
ONE_LINE = 1.05  # effective rank


def collapsed(record: dict) -> str:
    """What has collapsed in `record`, such as "feature_std 0.004"; "" when nothing has."""
    low = {name: SPREAD if name.endswith("_std") else ONE_LINE for name in record if name.endswith(("_std", "_rank"))}
    return ", ".join(f"{name} {record[name]:.3g}" for name, limit in low.items() if record[name] < limit)
