"""No credential is shown in any of the forms it may take; what only looks a little like one is."""

from __future__ import annotations

import pytest

from shoal.record.masking import MASK, flat_masked, has_secret, mask_text, masked

SECRET = "HUNTER2"


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://u:{SECRET}@h/db",
        f"postgresql://u:{SECRET[:3]}/{SECRET}@h/db",
        f"could not connect to postgresql://u:12/{SECRET}@h:5432/db (timeout)",
        f"http://u:a/{SECRET}@h:5000/x",
        f"postgresql://u:ab@{SECRET}@h/db",
        f"mysql://u:a {SECRET}@h/db",
        f"postgresql://u:a\n{SECRET}@h/db",
        f"HTTPS://u:{SECRET}@h",
        f"two of them: redis://:{SECRET}@h and redis://:{SECRET}@i",
        f"RuntimeError: password={SECRET} is refused",
        f'url: a: {{"x": "token={SECRET}"}}',
        f"mysql://h/db?password={SECRET}",
        f"mssql://h/db?pwd={SECRET}&x=1",
        f"postgresql://h/db?user=u&pass={SECRET}",
        f"postgresql://h/db?sslpassword={SECRET}",
        f"https://a.blob/x?sv=1&sig={SECRET}",
        f"https://h/x#access_token={SECRET}",
        f"mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3D{SECRET}",
        f"DefaultEndpointsProtocol=https;AccountKey={SECRET};EndpointSuffix=x",
        f"host=h user=u password='{SECRET} x'",
        f"Authorization: Bearer {SECRET}",
        f"curl -H 'x-api-key: {SECRET}'",
        f"login failed, the password: {SECRET}",
        f"  token: {SECRET}\n",
        f"- {{token: {SECRET}, x: 1}}",
        f"Cookie: a=1; session={SECRET}",
        f"https://hooks.slack.com/services/T0/{SECRET}",
        f"u:{SECRET}@h/db",
        f"databricks://{SECRET}",
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
        f"shoal train job.yaml workload.api_key={SECRET}",
        f"--hub-token {SECRET}",
        f'{{"password": "{SECRET} and more", "x": 1}}',
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----",
        f"key AKIA{SECRET}AAAAAAAAA was refused",
    ],
)
def test_no_form_of_a_credential_in_a_text_is_shown(text: str) -> None:
    shown = mask_text(text)
    assert SECRET not in shown
    assert MASK in shown
    assert mask_text(shown) == shown
    assert has_secret(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/some@thing/corpus",
        "http://host:5000/users/me@x?tab=1",
        "https://h/p?tokens=5&max_tokens=4",
        "http://[::1]:5000/x",
        "sqlite:////data/me@work/mlflow.db",
        "shoal_workloads.pretrain:Pretrain",
        "Worker cell0/stage0/shard1@node2 of cell 0 died on node2 during step 7 (connection closed).",
        "ghcr.io/x/ray:2.60@sha256:0123abcd",
        "git@github.com:org/repo.git",
        "no password given, no token found: sign in",
        'a cluster is here but wants its token: eval "$(shoal cluster env)"',
        "unexpected token: }, the pin: 5",
        "one pass over the data, tokens 512, lr=1e-3",
        "",
    ],
)
def test_other_texts_are_shown_as_they_are(text: str) -> None:
    assert mask_text(text) == text


@pytest.mark.parametrize(
    "key",
    ["pwd", "pass", "hf_tokens", "access_key_id", "credential_file", "auth", "authorization", "bearer", "ssh_key",
     "signing_key", "connection_string", "connectionString", "dsn", "pin", "cookie", "webhook", "sas", "token_value",
     "password1", "passwords", "secrets", "AUTH_HEADER", "sslpassword"],
)  # fmt: skip
def test_a_key_named_like_a_credential_hides_its_value(key: str) -> None:
    assert flat_masked({"a": {key: SECRET}}) == {f"a.{key}": MASK}
    assert masked([{key: [SECRET]}]) == [{key: MASK}]


def test_a_bare_key_is_a_credential_unless_it_is_a_plain_word() -> None:
    assert masked({"key": SECRET}) == {"key": MASK}
    assert masked({"key": "lm_loss"}) == {"key": "lm_loss"}


@pytest.mark.parametrize("key", ["eos_token", "sort_key", "author", "passes", "pin_memory", "signatures_checked"])
def test_other_keys_show_theirs(key: str) -> None:
    assert masked({key: "plain"}) == {key: "plain"}


def test_settings_keep_their_shape() -> None:
    settings = {"a": [{"password": 5}, "redis://:x@h"], "https://u:p@h": None, "use_auth": True, "n": 3, 4: "x"}
    assert masked(settings) == {
        "a": [{"password": MASK}, "redis://***@h"], "https://***@h": None, "use_auth": True, "n": 3, 4: "x",
    }  # fmt: skip
