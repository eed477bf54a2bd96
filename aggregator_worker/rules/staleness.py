"""How weight falls with staleness (FedAsync, Xie, Koyejo & Gupta 2019, section 5.2): 1 when fresh, and never rising."""

from shared.plan import StalenessRule


def staleness_weight(rule: StalenessRule, staleness: float) -> float:
    """constant: 1; polynomial: (1+s)^-exponent; hinge: 1 up to the threshold, then 1/(slope (s - threshold) + 1)."""
    match rule.function:
        case "constant":
            return 1.0
        case "polynomial":
            return float((1.0 + staleness) ** -rule.exponent)
        case "hinge":
            late = staleness - rule.hinge_threshold
            return 1.0 if late <= 0 else 1.0 / (rule.hinge_slope * late + 1.0)
