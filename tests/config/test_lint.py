"""Every misspelt key of a serve config is reported, at every level, with a suggestion."""

from typing import Any

import pytest

from serve_app.config.lint import POLICY, lint

APPLICATION = "applications[0]"
ARGS = f"{APPLICATION}.args"
OVERRIDE = f"{APPLICATION}.deployments[0]"
SCALE_KEYS = "Set min_replicas, max_replicas, num_cpus and num_gpus in args"


def config(
    *,
    args: dict[str, Any] | None = None,
    application: dict[str, Any] | None = None,
    **top: Any,
) -> dict[str, Any]:
    """Return a serve config without a problem besides those passed in."""
    ours = {"name": "aura", "import_path": "serve_app.app:build", "args": args or {}}
    return {"applications": [ours | (application or {})], **top}


def overriding(name: Any, **options: Any) -> dict[str, Any]:
    """Return a config with an entry under `deployments`."""
    return config(application={"deployments": [{"name": name, **options}]})


def problems(wrong: dict[str, Any]) -> list[str]:
    return [str(problem) for problem in lint(wrong)]


def test_a_config_without_a_problem_has_none() -> None:
    args = {
        "ingress": {"min_replicas": 1, "max_replicas": 4},
        "combined": {"num_gpus": 0.5, "num_cpus": 2},
        "drain_seconds": 600,
        "settings": {"MODEL_DEVICE": "cpu", "MODEL_MAX_BATCH_SIZE": 2, "AURA_MODELS_FILE": ""},
    }
    top: dict[str, Any] = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": 4000},
    }
    assert problems(config(args=args, **top)) == []
    assert problems(overriding("Ingress", graceful_shutdown_timeout_s=900)) == []


@pytest.mark.parametrize(
    ("wrong", "key", "remedy"),
    [
        (config(proxy_locaton="HeadOnly"), "proxy_locaton", "Did you mean proxy_location?"),
        (config(http_option={}), "http_option", "Did you mean http_options?"),
        (config(port=4000), "port", "It belongs under http_options"),
        (config(route_prefix="/"), "route_prefix", "It belongs under applications"),
        (config(http_options={"prot": 4000}), "http_options.prot", "Did you mean port?"),
        (
            config(http_options={"bind": "127.0.0.1"}),
            "http_options.bind",
            "Known: host, port, root_path, request_timeout_s, keep_alive_timeout_s, ssl_keyfile, "
            "ssl_certfile, ssl_keyfile_password, ssl_ca_certs",
        ),
        (config(grpc_options={"prot": 1}), "grpc_options.prot", "Did you mean port?"),
        (
            config(controller_options={"runtime_env": {"pip": []}}),
            "controller_options.runtime_env.pip",
            "Known: env_vars",
        ),
        (
            config(logging_config={"loglevel": "INFO"}),
            "logging_config.loglevel",
            "Did you mean log_level?",
        ),
        (
            config(application={"route_prefx": "/"}),
            f"{APPLICATION}.route_prefx",
            "Did you mean route_prefix?",
        ),
        (config(application={"settings": {}}), f"{APPLICATION}.settings", "It belongs under args"),
        (
            config(application={"port": 1}),
            f"{APPLICATION}.port",
            "It belongs under http_options",
        ),
        (
            config(application={"logging_config": {"encodin": "JSON"}}),
            f"{APPLICATION}.logging_config.encodin",
            "Did you mean encoding?",
        ),
        (config(args={"bsae": {}}), f"{ARGS}.bsae", "Did you mean base?"),
        (
            config(args={"num_gpus": 1}),
            f"{ARGS}.num_gpus",
            "It belongs under args.ingress or args.base or args.refiner or args.combined",
        ),
        (
            config(args={"MODEL_DEVICE": "cpu"}),
            f"{ARGS}.MODEL_DEVICE",
            "It belongs under args.settings",
        ),
        (
            config(args={"base": {"min_replica": 2}}),
            f"{ARGS}.base.min_replica",
            "Did you mean min_replicas?",
        ),
        (
            config(args={"refiner": {"num_gpu": 1}}),
            f"{ARGS}.refiner.num_gpu",
            "Did you mean num_gpus?",
        ),
        (
            overriding("Ingress", max_ongoing_request=5),
            f"{OVERRIDE}.max_ongoing_request",
            "Did you mean max_ongoing_requests?",
        ),
        (
            overriding("Ingress", logging_config={"log_levl": "INFO"}),
            f"{OVERRIDE}.logging_config.log_levl",
            "Did you mean log_level?",
        ),
        (
            config(application={"autoscaling_policy": {"policy_functon": POLICY}}),
            f"{APPLICATION}.autoscaling_policy.policy_functon",
            "Did you mean policy_function?",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unknown_key_is_reported_with_what_may_be_meant(
    wrong: dict[str, Any], key: str, remedy: str
) -> None:
    assert problems(wrong) == [f"{key}: unknown key. {remedy}"]


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (
            config(args={"settings": {"MODEL_DEVISE": "cpu"}}),
            f"{ARGS}.settings: MODEL_DEVISE is not a setting of this service. "
            "Did you mean MODEL_DEVICE?",
        ),
        (
            config(args={"settings": {"COLOUR": "red"}}),
            f"{ARGS}.settings: COLOUR is not a setting of this service. See .env.example",
        ),
        (
            overriding("Ingres"),
            f"{OVERRIDE}.name: Ingres is not a deployment of this service. Did you mean Ingress?",
        ),
        (config(http_options={"port": 0}), "http_options.port: must be at least 1, got 0"),
        (
            config(http_options={"port": "four"}),
            "http_options.port: must be a whole number, got 'four'",
        ),
        (config(http_options=4000), "http_options: must be a section with keys, got 4000"),
        (
            config(proxy_location="Everywhere"),
            "proxy_location: must be one of Disabled, HeadOnly, EveryNode, got 'Everywhere'",
        ),
        (
            overriding("Ingress", max_queued_requests="many"),
            f"{OVERRIDE}.max_queued_requests: must be a whole number, got 'many'",
        ),
        (
            overriding("Ingress", backpressure_config={"retry_after_s": -1}),  # or null
            f"{OVERRIDE}.backpressure_config.retry_after_s: must be at least 0, got -1",
        ),
        (
            overriding("Ingress", request_router_config={"max_backoff_s": 0}),
            f"{OVERRIDE}.request_router_config.max_backoff_s: must be above 0, got 0",
        ),
        (
            config(args={"base": {"min_replicas": -1}}),
            f"{ARGS}.base.min_replicas: must be at least 0, got -1",
        ),
        (
            config(args={"base": {"min_replicas": 0, "max_replicas": 2}}),
            f"{ARGS}.base: min_replicas must be at least 1: only the refiner may have 0",
        ),
        (
            config(args={"refiner": {"min_replicas": 0}}),
            f"{ARGS}.refiner: min_replicas: 0 needs a max_replicas of at least 1",
        ),
        (
            config(args={"base": {"min_replicas": 3, "max_replicas": 2}}),
            f"{ARGS}.base: max_replicas must not be below min_replicas",
        ),
        (
            config(args={"base": {"num_gpus": 1.5}}),
            f"{ARGS}.base: num_gpus above 1 must be whole: a GPU can't be shared beside another",
        ),
        (
            config(args={"base": {"num_gpus": float("inf")}}),
            f"{ARGS}.base.num_gpus: must be a finite number, got inf",
        ),
        (config(args={"base": None}), f"{ARGS}.base: must be a section with keys"),
        (
            config(args={"combined": {}, "base": {}}),
            f"{ARGS}: combined runs base and refiner on the same replicas, so it can't stand "
            "beside the sections base and refiner: remove those, or combined",
        ),
        (
            config(args={"settings": {"MODEL_PRECISION": "fp8"}}),
            f"{ARGS}.settings: MODEL_PRECISION=fp8 must be 'fp32', 'fp16', 'bf16' or 'auto'",
        ),
        (
            config(args={"settings": {"MODEL_MAX_BATCH_SIZE": 0}}),
            f"{ARGS}.settings: MODEL_MAX_BATCH_SIZE=0 must be at least 1",
        ),
        (
            overriding("BaseGenerator", num_replicas=2),
            f"{OVERRIDE}.num_replicas: would override args.base. {SCALE_KEYS}.base",
        ),
        (
            overriding("Refiner", ray_actor_options={"num_gpus": 1}),
            f"{OVERRIDE}.ray_actor_options: would override args.refiner. {SCALE_KEYS}.refiner",
        ),
        (
            overriding("Ingress", autoscaling_config={"max_replicas": 3}),
            f"{OVERRIDE}.autoscaling_config: would override args.ingress. {SCALE_KEYS}.ingress",
        ),
        (
            overriding("Ledger", num_replicas=2),
            f"{OVERRIDE}.num_replicas: the Ledger has one replica and asks Ray for nothing. "
            "Remove this key",
        ),
    ],
    ids=lambda value: value.partition(":")[0] if isinstance(value, str) else "",
)
def test_a_value_that_can_never_work_is_reported(wrong: dict[str, Any], problem: str) -> None:
    assert problems(wrong) == [problem]


AUTOSCALED = {"base": {"max_replicas": 3}, "refiner": {"min_replicas": 0, "max_replicas": 2}}


def scaled_by(policy: Any, args: Any = AUTOSCALED) -> dict[str, Any]:
    """Return a config whose replicas a policy scales."""
    return config(args=args, application={"autoscaling_policy": policy} if policy else {})


@pytest.mark.parametrize(
    ("policy", "args", "problem"),
    [
        (None, AUTOSCALED, "is missing, but base and refiner autoscale"),
        ({}, AUTOSCALED, "is missing, but base and refiner autoscale"),
        (None, {"combined": {"max_replicas": 2}}, "is missing, but combined autoscale"),
        ({"policy_function": "mine:policy"}, AUTOSCALED, "names mine:policy, but base and"),
    ],
)
def test_replicas_that_serve_would_scale_by_requests_are_reported(
    policy: Any, args: Any, problem: str
) -> None:
    (found,) = problems(scaled_by(policy, args))
    assert found.startswith(f"{APPLICATION}.autoscaling_policy: {problem}")
    assert found.endswith(f"Set autoscaling_policy: {{ policy_function: {POLICY} }}")


@pytest.mark.parametrize(
    ("targets", "problem"),
    [
        ({"target_drian_s": 5}, ".target_drian_s: unknown key. Did you mean target_drain_s?"),
        ({"target_drain_s": 0}, ": target_drain_s must be a number above 0, got 0"),
        ({"target_drain_s": "long"}, ": target_drain_s must be a number above 0, got 'long'"),
        (4, ": must be a section with keys, got 4"),
    ],
)
def test_targets_of_the_policy_are_checked(targets: Any, problem: str) -> None:
    policy = {"policy_function": POLICY, "policy_kwargs": targets}
    at = f"{APPLICATION}.autoscaling_policy.policy_kwargs"
    assert problems(scaled_by(policy)) == [at + problem]


@pytest.mark.parametrize(
    ("policy", "args"),
    [
        (None, {}),
        (None, {"ingress": {"max_replicas": 4}}),  # whose requests are all alike
        ({"policy_function": POLICY}, {}),
        ({"policy_function": POLICY}, AUTOSCALED),
        (
            {
                "policy_function": POLICY,
                "policy_kwargs": {"target_drain_s": 5, "downscale_delay_s": 0.5},
            },
            AUTOSCALED,
        ),
    ],
)
def test_replicas_scaled_by_owed_work_or_not_at_all_have_no_problem(policy: Any, args: Any) -> None:
    assert problems(scaled_by(policy, args)) == []


@pytest.mark.parametrize(
    ("applications", "problem"),
    [
        ([], "applications: none has the import_path serve_app.app:build"),
        (
            [{"import_path": "serve_app.app:biuld", "args": {"anything": 1}}],
            "applications: none has the import_path serve_app.app:build; found serve_app.app:biuld",
        ),
    ],
)
def test_a_config_of_another_service_is_reported(applications: list[Any], problem: str) -> None:
    assert problems({"applications": applications}) == [problem]


def test_other_applications_may_stand_beside_ours_with_args_of_their_own() -> None:
    other = {"name": "other", "import_path": "other:app", "route_prefix": "/o", "args": {"a": 1}}
    assert problems({"applications": [other, *config()["applications"]]}) == []
    misspelt = config(args={"bsae": {}})["applications"]
    (problem,) = problems({"applications": [other, *misspelt]})
    assert problem.startswith("applications[1].args.bsae: unknown key")


@pytest.mark.parametrize("name", [None, 4, [], {}])
def test_a_deployment_without_a_name_is_reported(name: Any) -> None:
    (problem,) = problems(overriding(name))
    assert problem.startswith(f"{OVERRIDE}.name: must be a string")


def test_every_problem_is_reported() -> None:
    wrong = config(args={"bsae": {}, "settings": {"MODEL_DEVISE": "x"}}, http_options={"prot": 1})
    assert len(problems(wrong)) == 3


@pytest.mark.parametrize("applications", [None, 4, {}, [None], [4], "one"])
def test_applications_that_are_not_a_list_are_reported(applications: Any) -> None:
    assert any("applications" in problem for problem in problems({"applications": applications}))


@pytest.mark.parametrize("args", [None, [], 4])
@pytest.mark.parametrize("deployments", [None, 4, [4]])
def test_sections_of_another_type_are_reported(args: Any, deployments: Any) -> None:
    wrong = config(application={"args": args, "deployments": deployments})
    found = problems(wrong)
    assert any(f"{ARGS}: must be a section with keys" in problem for problem in found)
    assert len(found) == 2
