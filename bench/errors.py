"""The errors a user can meet. Each message says where, what was expected, what came, what to do."""


class BenchError(Exception):
    """Base of every error that the harness raises on purpose."""


class ConfigError(BenchError, ValueError):
    """A suite file, option or parameter that cannot be used as given."""


class ContractError(BenchError, TypeError):
    """A victim, attack, defense, estimator or data set that breaks its contract."""


class VictimFailed(ContractError):
    """A victim whose own forward pass raises: nothing that attacks it is at fault."""


class EstimatorRefused(ContractError):
    """A gradient estimator that does not apply to a victim: nothing may stand in for it under its name."""


class BudgetExceeded(BenchError):
    """An attack asked for more passes than its threat model allows."""


class AccessDenied(BenchError):
    """An attack asked for something its access level does not show."""


class ThreatViolation(BenchError):
    """A returned tensor that is not a legal adversarial example."""


class ArtefactError(BenchError, OSError):
    """A file (weights, record, data) that is missing, unreadable or not what it claims to be."""


class ProtocolError(ArtefactError):
    """A record or bundle that is sound, but was measured under other rules than this version's."""
