"""Every misspelt key of a serve config is told, at every level, with what may have been meant."""

from typing import Any

import pytest

from serve_app.config.lint import POLICY, lint

SETTINGS = "applications[0].args.settings"


def config(
    *,
    args: dict[str, Any] | None = None,
    application: dict[str, Any] | None = None,
    **top: Any,
) -> dict[str, Any]:
    """A serve config without a slip but those handed in."""
    ours = {"name": "aura", "import_path": "serve_app.app:build", "args": args or {}}
    return {"applications": [ours | (application or {})], **top}


def overriding(name: str, **options: Any) -> dict[str, Any]:
    """A config with an entry under `deployments`."""
    return config(application={"deployments": [{"name": name, **options}]})


def test_a_config_without_a_slip_has_none() -> None:
    args = {
        "ingress": {"min_replicas": 1, "max_replicas": 4},
        "combined": {"num_gpus": 0.5, "num_cpus": 2},
        "drain_seconds": 600,
        "settings": {"MODEL_DEVICE": "cpu", "MODEL_MAX_BATCH_SIZE": 2, "MODELS_FILE": ""},
    }
    top = {"proxy_location": "HeadOnly", "http_options": {"host": "127.0.0.1", "port": 4000}}
    assert list(lint(config(args=args, **top))) == []
    assert list(lint(overriding("Ingress", graceful_shutdown_timeout_s=900))) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            config(proxy_locaton="HeadOnly"),
            "proxy_locaton is unknown; did you mean proxy_location?",
        ),
        (config(http_option={}), "http_option is unknown; did you mean http_options?"),
        (config(port=4000), "port is unknown; it belongs under http_options"),
        (
            config(http_options={"prot": 4000}),
            "http_options.prot is unknown; did you mean port?",
        ),
        (
            config(http_options={"bind": "127.0.0.1"}),
            "http_options.bind is unknown; there is host, port, root_path, request_timeout_s, "
            "keep_alive_timeout_s, ssl_keyfile, ssl_certfile, ssl_keyfile_password, ssl_ca_certs",
        ),
        (config(grpc_options={"prot": 1}), "grpc_options.prot is unknown; did you mean port?"),
        (
            config(logging_config={"loglevel": "INFO"}),
            "logging_config.loglevel is unknown; did you mean log_level?",
        ),
        (
            config(application={"route_prefx": "/"}),
            "applications[0].route_prefx is unknown; did you mean route_prefix?",
        ),
        (
            config(application={"settings": {}}),
            "applications[0].settings is unknown; it belongs under args",
        ),
        (
            config(application={"logging_config": {"encodin": "JSON"}}),
            "applications[0].logging_config.encodin is unknown; did you mean encoding?",
        ),
        (
            config(args={"bsae": {}}),
            "applications[0].args.bsae is unknown; did you mean base?",
        ),
        (
            config(args={"num_gpus": 1}),
            "applications[0].args.num_gpus is unknown; it belongs under args.ingress or args.base "
            "or args.refiner or args.combined",
        ),
        (
            config(args={"MODEL_DEVICE": "cpu"}),
            "applications[0].args.MODEL_DEVICE is unknown; it belongs under args.settings",
        ),
        (
            config(args={"base": {"min_replica": 2}}),
            "applications[0].args.base.min_replica is unknown; did you mean min_replicas?",
        ),
        (
            config(args={"refiner": {"num_gpu": 1}}),
            "applications[0].args.refiner.num_gpu is unknown; did you mean num_gpus?",
        ),
        (
            config(args={"settings": {"MODEL_DEVISE": "cpu"}}),
            f"{SETTINGS}: MODEL_DEVISE is not a setting of this service. "
            "Did you mean MODEL_DEVICE?",
        ),
        (
            config(args={"settings": {"COLOUR": "red"}}),
            f"{SETTINGS}: COLOUR is not a setting of this service. See .env.example",
        ),
        (
            overriding("Ingress", max_ongoing_request=5),
            "applications[0].deployments[0].max_ongoing_request is unknown; did you mean "
            "max_ongoing_requests?",
        ),
        (
            overriding("Ingress", logging_config={"log_levl": "INFO"}),
            "applications[0].deployments[0].logging_config.log_levl is unknown; did you mean "
            "log_level?",
        ),
        (
            overriding("Ingres"),
            "applications[0].deployments[0].name is no deployment of this service; did you mean "
            "Ingress?",
        ),
    ],
    ids=lambda one: one.split(" is ")[0] if isinstance(one, str) else "",
)
def test_a_misspelt_key_is_told(wrong: dict[str, Any], said: str) -> None:
    assert list(lint(wrong)) == [said]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            config(http_options={"port": 0}),
            "http_options.port: Input should be greater than or equal to 1, got 0",
        ),
        (config(http_options=4000), "http_options must hold keys"),
        (
            config(args={"base": {"min_replicas": -1}}),
            "applications[0].args.base.min_replicas: Input should be greater than or equal to 0, "
            "got -1",
        ),
        (
            config(args={"base": {"min_replicas": 0, "max_replicas": 2}}),
            "applications[0].args.base: min_replicas must be at least 1: the refiner alone may go "
            "to 0",
        ),
        (
            config(args={"refiner": {"min_replicas": 0}}),
            "applications[0].args.refiner: min_replicas: 0 needs a max_replicas, of 1 or more",
        ),
        (
            config(args={"base": {"min_replicas": 3, "max_replicas": 2}}),
            "applications[0].args.base: max_replicas must not be below min_replicas",
        ),
        (
            config(args={"base": {"num_gpus": 1.5}}),
            "applications[0].args.base: num_gpus must be whole above 1: a replica can't have parts "
            "of two",
        ),
        (
            config(args={"base": {"num_gpus": float("inf")}}),
            "applications[0].args.base.num_gpus: Input should be a finite number, got inf",
        ),
        (config(args={"base": None}), "applications[0].args.base must hold keys"),
        (
            config(args={"combined": {}, "base": {}}),
            "applications[0].args: combined runs base and refiner on the same replicas, so it takes "  # noqa: E501
            "the place of the sections base and refiner: remove those, or combined",
        ),
        (
            config(args={"settings": {"MODEL_PRECISION": "fp8"}}),
            f"{SETTINGS}: MODEL_PRECISION=fp8: must be 'fp32', 'fp16' or 'bf16'",
        ),
        (
            config(args={"settings": {"MODEL_MAX_BATCH_SIZE": 0}}),
            f"{SETTINGS}: MODEL_MAX_BATCH_SIZE=0: must be at least 1",
        ),
        (
            overriding("BaseGenerator", num_replicas=2),
            "applications[0].deployments[0].num_replicas would put out what the args say: "
            "min_replicas, max_replicas, num_cpus and num_gpus stand in args.base",
        ),
        (
            overriding("Refiner", ray_actor_options={"num_gpus": 1}),
            "applications[0].deployments[0].ray_actor_options would put out what the args say: "
            "min_replicas, max_replicas, num_cpus and num_gpus stand in args.refiner",
        ),
        (
            overriding("Ingress", autoscaling_config={"max_replicas": 3}),
            "applications[0].deployments[0].autoscaling_config would put out what the args say: "
            "min_replicas, max_replicas, num_cpus and num_gpus stand in args.ingress",
        ),
        (
            overriding("Ledger", num_replicas=2),
            "applications[0].deployments[0].num_replicas would put out what the args say: the "
            "Ledger is one, and asks Ray for nothing",
        ),
    ],
    ids=lambda one: one.split(":")[0] if isinstance(one, str) else "",
)
def test_a_value_that_can_never_work_is_told(wrong: dict[str, Any], said: str) -> None:
    assert list(lint(wrong)) == [said]


VARYING = {"base": {"max_replicas": 3}, "refiner": {"min_replicas": 0, "max_replicas": 2}}


def scaled_by(policy: Any, args: Any = VARYING) -> dict[str, Any]:
    """A config whose replicas come and go, as its policy says."""
    return config(args=args, application={"autoscaling_policy": policy} if policy else {})


@pytest.mark.parametrize(
    ("policy", "args", "said"),
    [
        (None, VARYING, "is missing, and replicas of base and refiner come and go"),
        ({}, VARYING, "is missing, and replicas of base and refiner come and go"),
        (
            None,
            {"combined": {"max_replicas": 2}},
            "is missing, and replicas of combined come and go",
        ),
        ({"policy_function": "mine:policy"}, VARYING, "names mine:policy, and replicas of base"),
        ({"policy_functon": POLICY}, {}, ".policy_functon is unknown; did you mean policy_func"),
        (
            {"policy_function": POLICY, "policy_kwargs": {"target_drian_s": 5}},
            VARYING,
            ".policy_kwargs.target_drian_s is unknown; did you mean target_drain_s?",
        ),
        (
            {"policy_function": POLICY, "policy_kwargs": {"target_drain_s": 0}},
            VARYING,
            ".policy_kwargs.target_drain_s must be a number above 0, got 0",
        ),
        (
            {"policy_function": POLICY, "policy_kwargs": {"target_drain_s": "long"}},
            VARYING,
            ".policy_kwargs.target_drain_s must be a number above 0, got 'long'",
        ),
        ({"policy_function": POLICY, "policy_kwargs": 4}, VARYING, ".policy_kwargs must hold keys"),
    ],
)
def test_a_config_that_is_not_scaled_by_owed_work_is_told(
    policy: Any, args: Any, said: str
) -> None:
    (told,) = lint(scaled_by(policy, args))
    assert told.startswith("applications[0].autoscaling_policy")
    assert said in told
    assert ("come and go" in told) == told.endswith(
        "Say autoscaling_policy: { policy_function: serve_app.deployments.autoscaling:OwedWorkAutoscaler }"  # noqa: E501
    )


@pytest.mark.parametrize(
    ("policy", "args"),
    [
        (None, {}),
        (None, {"ingress": {"max_replicas": 4}}),  # whose requests are all alike
        ({"policy_function": POLICY}, {}),
        ({"policy_function": POLICY}, VARYING),
        (
            {
                "policy_function": POLICY,
                "policy_kwargs": {"target_drain_s": 5, "downscale_delay_s": 0.5},
            },
            VARYING,
        ),
    ],
)
def test_a_config_that_is_scaled_by_owed_work_or_not_at_all_has_no_slip(
    policy: Any, args: Any
) -> None:
    assert list(lint(scaled_by(policy, args))) == []


@pytest.mark.parametrize(
    ("applications", "said"),
    [
        ([], "applications has none with the import_path serve_app.app:build"),
        (
            [{"import_path": "serve_app.app:biuld", "args": {"anything": 1}}],
            "applications has none with the import_path serve_app.app:build; there is "
            "serve_app.app:biuld",
        ),
    ],
)
def test_a_config_of_another_service_is_told(applications: list[Any], said: str) -> None:
    assert list(lint({"applications": applications})) == [said]


def test_other_applications_may_be_beside_ours_with_args_of_their_own() -> None:
    other = {"name": "other", "import_path": "other:app", "route_prefix": "/o", "args": {"a": 1}}
    assert list(lint({"applications": [other, *config()["applications"]]})) == []
    slip = config(args={"bsae": {}})["applications"]
    (told,) = lint({"applications": [other, *slip]})
    assert told.startswith("applications[1].args.bsae is unknown")


@pytest.mark.parametrize("name", [None, 4, [], {}])
def test_a_deployment_with_no_name_at_all_is_told(name: Any) -> None:
    (told,) = lint(overriding(name))
    assert told.startswith("applications[0].deployments[0].name: Input should be a valid string")


def test_of_several_slips_each_is_told() -> None:
    wrong = config(args={"bsae": {}, "settings": {"MODEL_DEVISE": "x"}}, http_options={"prot": 1})
    assert len(list(lint(wrong))) == 3


@pytest.mark.parametrize("applications", [None, 4, {}, [None], [4], "one"])
def test_what_is_no_list_of_applications_is_told(applications: Any) -> None:
    assert any("applications" in told for told in lint({"applications": applications}))


@pytest.mark.parametrize("args", [None, [], 4])
@pytest.mark.parametrize("deployments", [None, 4, [4]])
def test_what_holds_no_keys_is_told(args: Any, deployments: Any) -> None:
    wrong = config(application={"args": args, "deployments": deployments})
    told = list(lint(wrong))
    assert "applications[0].args must hold keys" in told
    assert len(told) == 2
