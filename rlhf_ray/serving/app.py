"""A service as an application of Ray Serve: `serve run rlhf_ray.serving.app:build model=runs/demo`."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from rlhf_ray.errors import UserError
from rlhf_ray.serving.config import ServingConfig
from rlhf_ray.serving.traffic import Policy


def build(args: dict[str, Any]) -> Any:
    """The application for a `ServingConfig` as a dictionary: what `rlhf-ray serve`, `serve run` and `deploy/serve.yaml`
    start. Values from a command line are text. `UserError` for a wrong one, `GateError` for a run that may not be
    served."""
    config = serving_config(args)
    return application(config, find_policies(config))


def serving_config(args: dict[str, Any]) -> ServingConfig:
    """`args` as a checked config; `UserError` names the key."""
    from rlhf_ray.config_file import explain

    try:
        return ServingConfig.model_validate(args)
    except ValidationError as error:
        raise UserError("; ".join(explain(error, ServingConfig))) from None


def find_policies(config: ServingConfig) -> list[Policy]:
    """The stable policy and, if there is one, the canary; checked, and their gates asked."""
    from rlhf_ray.serving.policies import find_policy

    found = [find_policy(source, config.force) for source in (config.model, config.canary) if source is not None]
    if len({policy.version for policy in found}) < len(found):
        raise UserError(f"canary {config.canary}: it has the same weights as {config.model}")
    return found


def application(config: ServingConfig, policies: list[Policy]) -> Any:
    """The Serve application of `policies`."""
    from rlhf_ray.serving.deployments import gateway

    return gateway(config, policies)
