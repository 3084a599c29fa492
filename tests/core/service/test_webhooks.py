"""What a receiver is told of a job, how it knows the sender, and when it is told again."""

import json
from base64 import b64encode
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from serve_app.core.service.jobs import OWNER_LOST, Job, JobError, JobState, RunningJob
from serve_app.core.service.webhooks import (
    MAX_TRIES,
    WebhookReceiver,
    lost_job_wait,
    retry_pause,
    signature,
    webhook_of,
)

JOB = Job("job-1", "key:a", "owner-1", 1000.0, JobState.SUCCEEDED, webhook="https://example.org/")
SECRETS = (bytes(range(24)), b"\xff" * 64)


def test_a_message_tells_the_job_its_state_and_times_and_nothing_else() -> None:
    webhook = webhook_of(JOB, 1012.5)
    assert webhook is not None
    assert (webhook.job, webhook.url) == (JOB.id, JOB.webhook)
    assert json.loads(webhook.body) == {
        "type": "job.succeeded",
        "timestamp": "1970-01-01T00:16:52.500Z",
        "data": {
            "jobId": "job-1",
            "state": "succeeded",
            "createdAt": "1970-01-01T00:16:40.000Z",
            "endedAt": "1970-01-01T00:16:52.500Z",
            "errorCode": None,
        },
    }


def test_a_job_without_a_receiver_has_none() -> None:
    assert webhook_of(replace(JOB, webhook=None), 1012.5) is None


def test_of_an_error_the_code_is_sent_and_not_the_sentence() -> None:
    error = JobError("SAFETY_BLOCK", "the prompt has the word harbour")
    webhook = webhook_of(replace(JOB, state=JobState.FAILED, error=error), 1012.5)
    assert webhook is not None
    assert json.loads(webhook.body)["data"]["errorCode"] == "SAFETY_BLOCK"
    assert "harbour" not in webhook.body


def test_an_end_has_one_id_however_often_it_is_written_down_and_another_end_another() -> None:
    lost = replace(JOB, state=JobState.FAILED, error=OWNER_LOST)
    taken_over = replace(lost, owner="owner-2")
    ends = [webhook_of(job, 1.0) for job in (JOB, JOB, lost, taken_over)]
    ids = [webhook.id for webhook in ends if webhook is not None]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


@pytest.mark.parametrize("secret", SECRETS)
def test_the_signature_is_the_one_of_standard_webhooks(secret: bytes) -> None:
    now = int(datetime.now(UTC).timestamp())
    webhook = webhook_of(JOB, 1012.5)
    assert webhook is not None
    headers = {
        "webhook-id": webhook.id,
        "webhook-timestamp": str(now),
        "webhook-signature": signature(SECRETS, webhook.id, now, webhook.body),
    }
    verifier = Verifier("whsec_" + b64encode(secret).decode())
    verifier.verify(webhook.body, headers)
    for changed in (
        {"webhook-id": "msg_other"},
        {"webhook-timestamp": str(now + 1)},
        {"webhook-signature": signature([b"another secret of 24 byte"], webhook.id, now, "")},
    ):
        with pytest.raises(WebhookVerificationError):
            verifier.verify(webhook.body, headers | changed)


def test_a_lost_job_that_may_be_taken_up_again_is_reported_later() -> None:
    assert lost_job_wait(has_claim=False) == 60
    assert lost_job_wait(has_claim=True) == 900
    assert JOB.as_running == RunningJob("job-1", "owner-1", 1000.0)


def test_a_receiver_shows_no_secret() -> None:
    receiver = WebhookReceiver("https://example.org/", (b"a secret",))
    assert "secret" not in repr(receiver).replace("secrets", "")


def test_there_are_eight_tries_within_an_hour() -> None:
    pauses = [retry_pause(tries, 1.0) for tries in range(1, MAX_TRIES + 1)]
    assert len(pauses) == 8
    assert pauses[-1] is None
    seconds = [pause for pause in pauses if pause is not None]
    assert seconds == sorted(seconds)
    assert 3000 < sum(seconds) + 8 * 10 <= 3650
    assert retry_pause(1, 0.0) == 5.0
