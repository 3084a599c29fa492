"""Set-ups with a broken setting, config or machine."""

from tests.support.setup_problems import Break, Problem
from tests.support.setups import SetUp


def misspelt(setup: SetUp) -> list[Problem]:
    setup.set(MODEL_PRECISON="fp16")
    message = "MODEL_PRECISON is not a setting of this service; did you mean MODEL_PRECISION?"
    return [
        ("settings", "FAIL", message, "sed -i.bak 's/MODEL_PRECISON=/MODEL_PRECISION=/' .env.local")
    ]


def misspelt_and_exported(setup: SetUp) -> list[Problem]:
    setup.export(MODEL_DEVISE="cpu")
    message = "MODEL_DEVISE is not a setting of this service; did you mean MODEL_DEVICE?"
    return [
        ("settings", "FAIL", message, 'export MODEL_DEVICE="$MODEL_DEVISE"; unset MODEL_DEVISE')
    ]


def illegal_value(setup: SetUp) -> list[Problem]:
    setup.set(MODEL_PRECISION="fp8")
    message = "MODEL_PRECISION=fp8 must be 'fp32', 'fp16', 'bf16' or 'auto'"
    return [("settings", "FAIL", message, "MODEL_PRECISION=")]


def every_origin(setup: SetUp) -> list[Problem]:
    setup.export(ALLOWED_ORIGINS="*")
    message = "ALLOWED_ORIGINS=* must name the origins that may call: * would let every web page in"
    return [("settings", "FAIL", message, "unset ALLOWED_ORIGINS")]


def settings_in_utf_16(setup: SetUp) -> list[Problem]:
    (setup.folder / ".env.local").write_text("MODEL_DEVICE=cpu\r\n", encoding="utf-16")
    message = ".env.local is not UTF-8 text (invalid start byte): PowerShell's > writes UTF-16"
    fix = "iconv -f UTF-16 -t UTF-8 .env.local > .env.local.utf8 && mv .env.local.utf8 .env.local"
    return [("settings", "FAIL", message, fix)]


def misspelt_key_in_the_config(setup: SetUp) -> list[Problem]:
    setup.edit_config("base: { min_replicas", "base: { min_replica")
    message = (
        "serve_config.yaml: applications[0].args.base.min_replica: unknown key. Did you mean "
        "min_replicas?"
    )
    return [("config", "FAIL", message, '"${EDITOR:-vi}" serve_config.yaml')]


def no_config(setup: SetUp) -> list[Problem]:
    (setup.folder / "serve_config.yaml").unlink()
    setup.export(BACKEND_PORT=setup.port)
    message = (
        "serve_config.yaml does not exist: run this in the folder that has it, or name another"
    )
    return [("config", "FAIL", message, "aura doctor --config PATH")]


def base_url_with_another_port(setup: SetUp) -> list[Problem]:
    setup.export(IMAGE_SERVICE_BASE_URL="http://localhost:3999")
    message = (
        f"IMAGE_SERVICE_BASE_URL=http://localhost:3999, but the service listens on port "
        f"{setup.port}: a frontend that uses this URL gets no answer"
    )
    fix = f"export IMAGE_SERVICE_BASE_URL=http://localhost:{setup.port}"
    return [("address", "WARN", message, fix)]


def metrics_on_the_port_of_the_service(setup: SetUp) -> list[Problem]:
    setup.export(METRICS_PORT=setup.port)
    message = f"METRICS_PORT={setup.port} can't be used (it is the port of the service)"
    return [("metrics port", "FAIL", message, f"METRICS_PORT={setup.port + 1} aura up")]


def metrics_on_a_port_that_ray_takes(setup: SetUp) -> list[Problem]:
    setup.export(METRICS_PORT=52365)
    other = max(52365, setup.port) + 1
    message = "METRICS_PORT=52365 can't be used (Ray's dashboard agent takes it)"
    return [("metrics port", "FAIL", message, f"METRICS_PORT={other} aura up")]


def metrics_on_a_port_that_is_none(setup: SetUp) -> list[Problem]:
    setup.set(METRICS_PORT=65536)
    message = "METRICS_PORT=65536 must be at most 65535"
    return [("settings", "FAIL", message, "METRICS_PORT=")]


def service_on_a_port_that_ray_takes(setup: SetUp) -> list[Problem]:
    setup.set(BACKEND_PORT=8265, MODEL_CHECKPOINT_DIR="")
    base = (
        "MODEL_CHECKPOINT_DIR is not set, so the demo model draws plain shapes, in spite of the "
        "settings in .env.local"
    )
    message = "BACKEND_PORT=8265 can't be used (Ray's dashboard takes it)"
    return [
        ("base", "WARN", base, "aura download"),
        ("port", "FAIL", message, "BACKEND_PORT=8266 aura up"),
    ]


def host_of_another_machine(setup: SetUp) -> list[Problem]:
    setup.export(HOST="203.0.113.7", API_KEYS="k" * 24)
    message = "HOST=203.0.113.7 is not an address of this machine"
    return [("port", "FAIL", message, "export HOST=127.0.0.1")]


def vite_on_the_same_port(setup: SetUp) -> list[Problem]:
    setup.export(VITE_PORT=setup.port)
    message = (
        f"VITE_PORT={setup.port} is the port of this service: the frontend's development server "
        "needs another one"
    )
    return [("origins", "FAIL", message, "export VITE_PORT=5173")]


def no_ray_at_ray_address(setup: SetUp) -> list[Problem]:
    setup.export(RAY_ADDRESS=f"127.0.0.1:{setup.port}")
    message = f"RAY_ADDRESS=127.0.0.1:{setup.port}, but no Ray responds at this address"
    return [("ray", "FAIL", message, "unset RAY_ADDRESS")]


def ray_without_tokens(setup: SetUp) -> list[Problem]:
    setup.export(RAY_AUTH_MODE="disabled")
    message = (
        "RAY_AUTH_MODE=disabled: anyone who reaches the ports of the service's own Ray can run "
        "code on this machine"
    )
    return [("ray ports", "WARN", message, "unset RAY_AUTH_MODE")]


def ledger_is_a_folder(setup: SetUp) -> list[Problem]:
    setup.export(LEDGER_FILE=setup.folder)
    message = f"{setup.folder} is a folder, and must be a file"
    return [("ledger", "FAIL", message, "unset LEDGER_FILE")]


def ledger_under_a_file(setup: SetUp) -> list[Problem]:
    setup.export(LEDGER_FILE=setup.folder / "serve_config.yaml/ledger.sqlite")
    file = setup.folder / "serve_config.yaml"
    message = f"{file}/ledger.sqlite can't be created: {file} is not a folder"
    return [("ledger", "FAIL", message, "unset LEDGER_FILE")]


def ledger_is_something_else(setup: SetUp) -> list[Problem]:
    (setup.folder / "notes.txt").write_text("milk, bread and sixteen eggs")
    setup.export(LEDGER_FILE=setup.folder / "notes.txt")
    file = setup.folder / "notes.txt"
    message = f"{file} is not a ledger: it is not an SQLite database"
    return [("ledger", "FAIL", message, f"mv {file} {file}.other")]


def no_word_list(setup: SetUp) -> list[Problem]:
    setup.export(SAFETY_WORDS_FILE=setup.folder / "words.txt")
    file = setup.folder / "words.txt"
    message = f"SAFETY_WORDS_FILE={file} can't be read: No such file or directory"
    return [("filters", "FAIL", message, "unset SAFETY_WORDS_FILE")]


def no_checker(setup: SetUp) -> list[Problem]:
    checker = setup.folder / "checker"
    setup.export(SAFETY_CHECKER_DIR=checker)
    message = f"SAFETY_CHECKER_DIR={checker} lacks config.json"
    fix = f"hf download CompVis/stable-diffusion-safety-checker --local-dir {checker}"
    return [("filters", "FAIL", message, fix)]


def half_precision_on_the_cpu(setup: SetUp) -> list[Problem]:
    setup.export(MODEL_PRECISION="fp16")
    message = (
        "MODEL_PRECISION=fp16 on the CPU, where convolutions are many times slower than in fp32"
    )
    return [("precision", "WARN", message, "export MODEL_PRECISION=fp32")]


def cuda_without_a_gpu(setup: SetUp) -> list[Problem]:
    setup.set(MODEL_DEVICE="cuda")
    (setup.folder / ".env.local").rename(setup.folder / ".env")
    base = (
        "MODEL_CHECKPOINT_DIR is not set, so the demo model draws plain shapes, in spite of the "
        "settings in .env"
    )
    message = "MODEL_DEVICE=cuda, but torch sees no GPU"
    return [
        ("base", "WARN", base, "aura download"),
        ("device", "FAIL", message, "MODEL_DEVICE=auto"),
    ]


def public_host_without_a_key(setup: SetUp) -> list[Problem]:
    setup.edit_config("host: 127.0.0.1", "host: 0.0.0.0")
    message = "host 0.0.0.0 of the serve config lets other machines in, and API_KEYS is empty"
    return [("keys", "FAIL", message, NEW_KEY)]


def short_keys(setup: SetUp) -> list[Problem]:
    setup.export(API_KEYS="secret")
    message = "1 of 1 API_KEYS can be guessed: they have fewer than 16 characters"
    return [("keys", "WARN", message, f"unset API_KEYS; {NEW_KEY}")]


NEW_KEY = (
    "python -c \"import secrets; print('\\nAPI_KEYS=' + secrets.token_urlsafe(24))\" >> .env.local"
)


BROKEN_SETTINGS: list[Break] = [
    misspelt,
    misspelt_and_exported,
    illegal_value,
    every_origin,
    settings_in_utf_16,
    misspelt_key_in_the_config,
    no_config,
    base_url_with_another_port,
    metrics_on_the_port_of_the_service,
    metrics_on_a_port_that_ray_takes,
    metrics_on_a_port_that_is_none,
    service_on_a_port_that_ray_takes,
    host_of_another_machine,
    vite_on_the_same_port,
    no_ray_at_ray_address,
    ray_without_tokens,
    ledger_is_a_folder,
    ledger_under_a_file,
    ledger_is_something_else,
    no_word_list,
    no_checker,
    half_precision_on_the_cpu,
    cuda_without_a_gpu,
    public_host_without_a_key,
    short_keys,
]
FIXED_SETTINGS: list[Break] = [
    misspelt,
    misspelt_and_exported,
    illegal_value,
    every_origin,
    settings_in_utf_16,
    base_url_with_another_port,
    vite_on_the_same_port,
    no_ray_at_ray_address,
    ray_without_tokens,
    ledger_is_a_folder,
    ledger_is_something_else,
    no_word_list,
    half_precision_on_the_cpu,
    cuda_without_a_gpu,
    public_host_without_a_key,
    short_keys,
]
