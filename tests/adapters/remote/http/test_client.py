"""What an API user relies on: answers arrive, nothing is paid twice, nothing wrong is believed, no key leaks."""

from __future__ import annotations

import gzip
import json
import logging
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from mergefront.adapters.remote.http.breaker import BreakerPolicy, ServerUnavailableError
from mergefront.adapters.remote.http.budget import Budget, BudgetExhaustedError, Price, Usage
from mergefront.adapters.remote.http.client import ClientPolicy, HttpClient, Reply, all_of
from mergefront.adapters.remote.http.endpoint import ApiKey
from mergefront.adapters.remote.http.json_answers import count, field, logprob
from mergefront.adapters.remote.http.retry import RetryPolicy
from mergefront.optimizer.errors import EvaluationError, SearchStoppedError
from mergefront.storage.database import Database
from mergefront.storage.responses import DatabaseResponses

sys.path.insert(0, str(Path(__file__).parent))
from servers import Answer, Received, as_json, faulty_proxy, serve

QUICK = RetryPolicy(attempts=10, first_wait=0.005, longest_wait=0.05)
KEY = "sk-test-9f8e7d6c5b4a39281706"


def policy(**changes: Any) -> ClientPolicy:
    return ClientPolicy(**{"retry": QUICK, "timeout": 10.0, "concurrency": 8, **changes})


def read_value(answer: Any) -> Reply[float]:
    value = field(answer, "value", kind=(int, float))
    return Reply(float(value), count(answer, "usage", "in"), count(answer, "usage", "out"))


def squares(request: Received) -> Answer:
    number = request.json["number"]
    return as_json({"value": number**2 + 0.5, "padding": "x" * 200, "usage": {"in": 3, "out": 2}})


def ask_all(client: HttpClient, count_: int) -> list[float]:
    return client.run(all_of(client.ask("POST", "/f", {"number": n}, read_value) for n in range(count_)))


def test_thirty_percent_of_calls_failing_changes_no_answer():
    with (
        serve(squares) as server,
        faulty_proxy(server.url, 0.3, seed=1) as proxy,
        HttpClient(proxy.url, policy()) as client,
    ):
        assert ask_all(client, 120) == [n**2 + 0.5 for n in range(120)]
    assert all(times > 0 for times in proxy.damaged.values()), proxy.damaged


def test_a_server_elsewhere_is_asked_like_one_on_this_machine(monkeypatch: pytest.MonkeyPatch):
    """Other machines are reached by way of proxies that the environment names, this one is not."""
    monkeypatch.setenv("NO_PROXY", "0.0.0.0")
    with serve(squares) as server:
        elsewhere = server.url.replace("127.0.0.1", "0.0.0.0")  # reaches this machine, but is no loopback address
        with HttpClient(elsewhere, policy()) as client:
            assert ask_all(client, 20) == [n**2 + 0.5 for n in range(20)]
        with faulty_proxy(server.url, 0.0) as proxy:
            monkeypatch.setenv("NO_PROXY", "")
            monkeypatch.setenv("http_proxy", proxy.url)
            with HttpClient("http://far.example", policy(retry=RetryPolicy(attempts=1))) as client:
                assert ask_all(client, 3) == [0.5, 1.5, 4.5]
            assert proxy.calls == 3


def test_equal_requests_are_sent_once_and_kept_for_the_next_run(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with serve(squares) as server:
        for _ in range(2):
            database = Database(url)
            with HttpClient(server.url, policy(), cache=DatabaseResponses(database), server="m") as client:
                assert client.run(
                    all_of(client.ask("POST", "/f", {"number": n % 3}, read_value) for n in range(30))
                ) == [(n % 3) ** 2 + 0.5 for n in range(30)]
            database.close()
        assert len(server.received) == 3


_RUN = """
import sys
from mergefront.adapters.remote.http.client import ClientPolicy, HttpClient, all_of
from mergefront.storage.database import Database
from mergefront.storage.responses import DatabaseResponses
sys.path.insert(0, sys.argv[3])
from test_client import read_value
database = Database(sys.argv[2])
with HttpClient(sys.argv[1], ClientPolicy(concurrency=4), cache=DatabaseResponses(database), server="m") as client:
    ask = lambda n: client.ask("POST", "/f", {"number": n}, read_value)
    print(client.run(all_of(ask(n) for n in range(60))))
"""


def test_nothing_is_paid_twice_after_kill_and_resume(tmp_path: Path):
    def slow_squares(request: Received) -> Answer:
        time.sleep(0.05)
        return squares(request)

    url = f"sqlite:///{tmp_path / 'study.db'}"
    with serve(slow_squares) as server:
        command = [sys.executable, "-c", _RUN, server.url, url, str(Path(__file__).parent)]
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while len(server.received) < 25:
            assert first.poll() is None
            time.sleep(0.01)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        time.sleep(0.2)
        before = len(server.received)
        assert before < 60
        second = subprocess.run(command, capture_output=True, text=True, check=True)
        assert json.loads(second.stdout) == [n**2 + 0.5 for n in range(60)]
        # When the process died, four requests were under way, and four answers at most were still being written.
        assert len(server.received) <= 60 + 4 + 4


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(body=b'{"value": 1'), "malformed response"),
        (Answer(body=b'{"value": NaN}'), "malformed response"),
        (Answer(body=b'{"value": "1.0"}'), "malformed response"),
        (Answer(body=b'{"value": true}'), "malformed response"),
        (Answer(body=b'{"other": 1}'), "malformed response"),
        (Answer(body=b"[" * 200_000), "malformed response"),
        (Answer(body=b'{"value": ' + b"9" * 10_000 + b"}"), "malformed response"),
        (Answer(body=b'\xff\xfe{"value": 1}'), "malformed response"),
        (Answer(body=b'\xff{"value": 1}', headers={"Content-Type": "a/b; charset=idna"}), "malformed response"),
        (Answer(body=b'\xff{"value": 1}', headers={"Content-Type": "a/b; charset=rot13"}), "malformed response"),
        (Answer(body=b""), "malformed response"),
        (Answer(body=gzip.compress(b'{"value": 1}')[:9], headers={"Content-Encoding": "gzip"}), "malformed response"),
        (Answer(body=gzip.compress(b" " * 10**6), headers={"Content-Encoding": "gzip"}), "response too large"),
        (Answer(body=b"<!doctype html><title>Sign in</title>"), "malformed response"),
        (Answer(body=b'data: {"value": 1}\n\ndata: [DONE]\n'), "malformed response"),
        (Answer(body=b'{"value": 1, "error": {"code": 400, "message": "no such model"}}'), "http 400"),
        (Answer(body=b'{"error": "model not loaded"}'), "error answer"),
        (Answer(body=b'{"object": "error", "message": "bad request"}'), "error answer"),
        (Answer(body=b'{"value": 1, "p": "' + b"x" * 50_000 + b'"}'), "response too large"),
        (Answer(404, b'{"error": "no such model"}'), "http 404"),
        (Answer(500, b"boom"), "http 500"),
        (Answer(302, b"", {"Location": "http://127.0.0.1:1/"}), "http 302"),
        (Answer(body=b'{"value": 1}', seconds_per_byte=0.2), "timeout"),
    ],
)
def test_a_hostile_answer_is_a_failed_evaluation_and_never_a_score(answer: Answer, kind: str):
    hostile = policy(retry=RetryPolicy(2, 0.001, 0.001), timeout=0.5, longest_response=300_000)
    if kind == "response too large":
        hostile = policy(longest_response=10_000)
    with serve(lambda _: answer) as server, HttpClient(server.url, hostile) as client:
        with pytest.raises(EvaluationError) as raised:
            client.run(client.ask("POST", "/f", {}, read_value))
        assert raised.value.kind == kind
        # The damaged answer was not kept either.
        with pytest.raises(EvaluationError):
            client.run(client.ask("POST", "/f", {}, read_value))


@pytest.mark.parametrize(
    "answer",
    [
        Answer(body=b'\xef\xbb\xbf{"value": 1}'),
        Answer(body=b'\r\n \n{"value": 1}\n\n '),
        Answer(body=gzip.compress(b'{"value": 1}'), headers={"Content-Encoding": "gzip"}),
        Answer(body=zlib.compress(b'{"value": 1}'), headers={"Content-Encoding": "deflate"}),
        Answer(body=b'{"value": 1, "error": null}'),
        Answer(201, b'{"value": 1}', {"Content-Type": "text/plain"}),
        Answer(body=b'{"value": 1}', headers={"Connection": "close"}),
        Answer(body='{"value": 1, "é": "é"}'.encode("latin-1"), headers={"Content-Type": "a/b; charset=iso-8859-1"}),
        Answer(body='{"value": 1, "é": "é"}'.encode(), headers={"Content-Type": "a/b; charset=iso-8859-1"}),
        Answer(body='{"value": 1}'.encode("utf-16"), headers={"Content-Type": "a/b; charset=utf-16"}),
    ],
)
def test_an_answer_in_an_odd_wrapping_is_an_answer(answer: Answer):
    """Proxies pad, compress and close; the number inside is paid for and right."""
    with serve(lambda _: answer) as server, HttpClient(server.url, policy()) as client:
        assert [client.run(client.ask("POST", "/f", {"n": n}, read_value)) for n in range(2)] == [1.0, 1.0]
        assert len(server.received) == 2


@pytest.mark.parametrize(
    "body",
    [
        {"other": 1},
        {"value": None},
        {"value": float("nan")},
        {"value": "1"},
        [],
        {"error": {"message": "no such model"}},
        {"error": {"code": 404, "message": "no such model"}},
        "data: {}\n\n",
    ],
)
def test_an_answer_that_can_be_read_is_asked_for_once_and_never_held_against_the_server(body: Any):
    """A server that answers every request would be called gone, and each answer paid for ten times."""
    unforgiving = policy(breaker=BreakerPolicy(threshold=2, pause=60, give_up=0.01))
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    with serve(lambda _: Answer(body=content)) as server, HttpClient(server.url, unforgiving) as client:
        for number in range(4):
            with pytest.raises(EvaluationError):
                client.run(client.ask("POST", "/f", {"n": number}, read_value))
        assert len(server.received) == 4


@pytest.mark.parametrize("where", ["top", "choice"])
def test_an_error_in_an_answer_of_status_200_counts_as_what_it_says(where: str):
    """Proxies have begun to answer before the model behind them fails: its overload is no wrong answer."""
    busy = {"code": 503, "message": "overloaded"}
    broken = {"error": busy} if where == "top" else {"choices": [{"error": busy}]}
    calls: list[int] = []

    def recovers(_: Received) -> Answer:
        calls.append(0)
        return as_json(broken) if len(calls) < 3 else as_json({"value": 1})

    with serve(recovers) as server, HttpClient(server.url, policy()) as client:
        assert client.run(client.ask("POST", "/f", {}, read_value)) == 1.0
        assert len(calls) == 3
    denied = {"error": {"code": 401, "message": "no access"}}
    with (
        serve(lambda _: as_json(denied)) as server,
        HttpClient(server.url, policy()) as client,
        pytest.raises(SearchStoppedError, match="refused access"),
    ):
        client.run(client.ask("POST", "/f", {}, read_value))


@pytest.mark.parametrize(("limit", "price"), [({"tokens": 1000}, {}), ({"money": 1.0}, {"input": 1.0})])
def test_a_limit_that_needs_unknown_tokens_stops_the_search(limit: dict[str, Any], price: dict[str, Any]):
    """Counted as 0, they would be spent without end."""
    limited = policy(budget=Budget(**limit), price=Price(**price))
    with (
        serve(lambda _: as_json({"value": 1})) as server,
        HttpClient(server.url, limited) as client,
        pytest.raises(SearchStoppedError, match=rf"budget\.{next(iter(limit))} cannot be kept.*tokenizer"),
    ):
        ask_all(client, 1)
    unlimited = policy(budget=Budget(requests=9, money=1.0), price=Price(request=0.001))
    with serve(lambda _: as_json({"value": 1})) as server, HttpClient(server.url, unlimited) as client:
        assert ask_all(client, 3) == [1.0] * 3


def test_a_null_log_probability_is_final_and_named():
    def read(answer: Any) -> Reply[float]:
        return Reply(logprob(answer, "logprob"))

    with serve(lambda _: as_json({"logprob": None})) as server, HttpClient(server.url, policy()) as client:
        with pytest.raises(EvaluationError, match="null") as raised:
            client.run(client.ask("POST", "/f", {}, read))
        assert raised.value.kind == "not finite"
        assert len(server.received) == 1


def test_a_server_that_asks_for_time_gets_it():
    arrivals: list[float] = []

    def busy_once(_: Received) -> Answer:
        arrivals.append(time.monotonic())
        return as_json({"value": 1}) if len(arrivals) > 1 else as_json({}, 429, **{"Retry-After": "0.4"})

    with serve(busy_once) as server, HttpClient(server.url, policy()) as client:
        assert client.run(client.ask("POST", "/f", {}, read_value)) == 1.0
    assert arrivals[1] - arrivals[0] >= 0.4


def test_a_server_that_asks_for_an_hour_stops_the_search():
    with (
        serve(lambda _: as_json({}, 429, **{"Retry-After": "3600"})) as server,
        HttpClient(server.url, policy()) as client,
        pytest.raises(SearchStoppedError, match="3600"),
    ):
        client.run(client.ask("POST", "/f", {}, read_value))


def test_a_budget_of_requests_is_kept_exactly_and_survives_a_restart(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path / 'study.db'}")
    cache = DatabaseResponses(database)
    with serve(squares) as server:
        for _ in range(2):
            with (
                HttpClient(server.url, policy(budget=Budget(requests=10)), cache=cache, server="m") as client,
                pytest.raises(BudgetExhaustedError, match=r"backend\.budget\.requests"),
            ):
                ask_all(client, 30)
        assert len(server.received) == 10
        with HttpClient(server.url, policy(budget=Budget(requests=30)), cache=cache, server="m") as client:
            assert len(ask_all(client, 20)) == 20
        assert len(server.received) <= 30
    database.close()


def test_budgets_of_tokens_and_money_count_what_answers_say_they_cost():
    price = Price(input=1e6, output=2e6)
    assert price.of(Usage(1, 3, 2)) == pytest.approx(7.0)
    for budget in (Budget(tokens=20), Budget(money=28.0)):
        with serve(squares) as server:
            limited = policy(budget=budget, price=price, concurrency=1)
            with HttpClient(server.url, limited) as client, pytest.raises(BudgetExhaustedError):
                ask_all(client, 30)
            assert len(server.received) == 4


def test_a_server_that_is_gone_stops_the_search_instead_of_failing_every_trial():
    breaker = BreakerPolicy(threshold=5, pause=0.02, longest_pause=0.05, give_up=0.3)
    with (
        serve(lambda _: Answer(503, b"")) as server,
        HttpClient(server.url, policy(breaker=breaker, retry=RetryPolicy(1000, 0.001, 0.01))) as client,
    ):
        with pytest.raises(ServerUnavailableError, match="resume"):
            ask_all(client, 8)
        # Left alone while open: a probe now and then instead of eight callers at full speed.
        assert len(server.received) < 100


def test_a_server_that_comes_back_is_used_again():
    calls: list[float] = []

    def ill_at_first(request: Received) -> Answer:
        calls.append(0.0)
        return Answer(503, b"") if len(calls) < 30 else squares(request)

    breaker = BreakerPolicy(threshold=5, pause=0.01, longest_pause=0.02, give_up=30)
    with (
        serve(ill_at_first) as server,
        HttpClient(server.url, policy(breaker=breaker, retry=RetryPolicy(1000, 0.001, 0.01))) as client,
    ):
        assert ask_all(client, 8) == [n**2 + 0.5 for n in range(8)]


def test_no_key_in_logs_database_messages_or_representations(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Servers echo the key in every way they can; it must come out nowhere."""
    monkeypatch.setenv("TEST_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    statuses = iter([500, 400, 401, 200, 200, 302])
    echoed: list[str] = []
    escaped = "".join(f"\\u{ord(sign):04x}" for sign in KEY)

    def echo(request: Received) -> Answer:
        echoed.append(request.headers["Authorization"])
        status = next(statuses, 200)
        content = {"value": 1 if status == 200 else KEY, "note": [request.headers["Authorization"], escaped]}
        return as_json(content, status, **{"X-Echo": request.headers["Authorization"], "Location": f"/{KEY}"})

    path = tmp_path / "study.db"
    database = Database(f"sqlite:///{path}")
    key = ApiKey.from_environment("TEST_API_KEY")
    messages = [repr(key), str(key), f"{key}"]
    with (
        serve(echo) as server,
        HttpClient(
            server.url, policy(retry=RetryPolicy(1, 0.001, 0.001)), api_key=key, cache=DatabaseResponses(database)
        ) as client,
    ):
        for number in range(6):
            try:
                client.run(client.ask("POST", "/f", {"number": number}, read_value))
            except (EvaluationError, SearchStoppedError) as error:
                messages += [str(error), repr(error)]
        messages += [repr(client), repr(client.policy), repr(vars(client))]
    database.close()
    assert f"Bearer {KEY}" in echoed
    assert len(messages) > 10
    for text in (*messages, caplog.text):
        assert KEY not in text and escaped not in text.replace("\\\\", "\\")
    from mergefront.storage.responses import responses

    database = Database(f"sqlite:///{path}")
    with database.transaction() as connection:
        rows = connection.execute(responses.select()).all()
    cache = DatabaseResponses(database)
    assert rows and all(KEY not in (found := cache.find(row.key) or "") and r"\u" not in found for row in rows)
    database.close()
    for file in tmp_path.iterdir():
        assert KEY.encode() not in file.read_bytes()


def test_the_api_path_loads_no_model_library():
    code = (
        "import sys, mergefront.adapters.remote.backend_types, mergefront.adapters.remote.llama_server.backend, "
        "mergefront.adapters.remote.ensemble.backend, mergefront.adapters.remote.openai.backend, "
        "mergefront.storage.responses, "
        "mergefront.adapters.evaluator, mergefront.adapters.tasks.task_types;"
        "print([name for name in ('torch', 'transformers', 'peft', 'botorch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
