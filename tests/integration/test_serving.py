"""A served model under OpenAI's own client, hundreds of requests at once, an end while texts run, and a browser."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
from collections.abc import Iterator

import httpx2
import openai
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import questlm
from helpers.serving import address, running_server, wait_until, web_client
from questlm.config import GenerationOptions, ModelConfig, QuantSpec
from questlm.export.pack import pack
from questlm.inference import PackedModel
from questlm.models import Llama
from questlm.serving import Limits, Server, Service
from questlm.serving.scheduler import Job

TEMPLATE = """{% for m in messages %}{{ m.role }}: {{ m.content }}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<|endoftext|>": 0, **{each: i + 1 for i, each in enumerate(alphabet)}}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    shape = ModelConfig(layers=1, hidden=32, heads=2, mlp_hidden=48, vocab_size=257)
    folder = tmp_path_factory.mktemp("served") / "tiny"
    prepared = questlm.prepare(Llama(shape).initialize(0), QuantSpec(embeddings="bf16"))
    pack(prepared, folder, tokenizer=tokenizer.to_str(), chat_template=TEMPLATE)
    return questlm.load(folder)


@pytest.fixture(scope="module")
def server(model: PackedModel) -> Iterator[Server]:
    with running_server(Service(model, "tiny", Limits(sequences=8, context=400, queue=250))) as server:
        yield server


def greedy(model: PackedModel, prompt: str, count: int) -> str:
    return model.generate(prompt, GenerationOptions(max_new_tokens=count, temperature=0, stop_at_end=False))


def test_the_official_client_reads_completions_chats_streams_models_and_errors(model: PackedModel, server) -> None:
    host, port = address(server)
    more = {"ignore_eos": True}
    with openai.OpenAI(base_url=f"http://{host}:{port}/v1", api_key="any", max_retries=0) as client:
        whole = client.completions.create(model="tiny", prompt="ab", max_tokens=9, temperature=0, extra_body=more)
        assert whole.choices[0].text == greedy(model, "ab", 9)
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 9
        pieces = client.completions.create(
            model="tiny", prompt="ab", max_tokens=9, temperature=0, stream=True, extra_body=more
        )
        assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
        messages = [{"role": "user", "content": "hi"}]
        asked = {"model": "tiny", "messages": messages, "max_tokens": 9, "temperature": 0, "extra_body": more}
        expected = greedy(model, "user: hi\nassistant:", 9)
        assert client.chat.completions.create(**asked).choices[0].message.content == expected
        parts = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == expected
        assert parts[-1].usage.completion_tokens == 9
        assert [each.id for each in client.models.list()] == ["tiny"]
        with pytest.raises(openai.BadRequestError, match="temperature = -1") as refused:
            client.completions.create(model="tiny", prompt="a", temperature=-1)
        assert refused.value.param == "temperature"
        with pytest.raises(openai.NotFoundError, match="not served here"):
            client.completions.create(model="gpt", prompt="a")


@pytest.mark.slow
def test_200_requests_at_once_get_their_texts_while_others_vanish(model: PackedModel, server: Server) -> None:
    """Short and long ones, whole and streamed; every seventh client leaves after the first piece."""
    jobs = [((f"{number} " * (1 + number % 60))[:350], 1 + 7 * number % 40) for number in range(200)]
    options = GenerationOptions(max_new_tokens=40, temperature=0, stop_at_end=False)
    ids = model.generate_ids([prompt for prompt, _ in jobs], options)
    expected = [model.decode(each[:count]) for each, (_, count) in zip(ids, jobs, strict=True)]

    async def ask(client: httpx2.AsyncClient, number: int) -> str | None:
        prompt, count = jobs[number]
        body = {"prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": True}
        if number % 7:
            reply = await client.post("/v1/completions", json=body)
            return reply.json()["choices"][0]["text"]
        async with client.stream("POST", "/v1/completions", json=body | {"stream": True, "max_tokens": 50}) as reply:
            async for _ in reply.aiter_raw():
                return None
        return None

    async def ask_all() -> list[str | None]:
        host, port = address(server)
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(
            base_url=f"http://{host}:{port}", timeout=60, limits=limits, trust_env=False
        ) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(200)))

    found = asyncio.run(ask_all())
    assert [text for text in found if text is not None] == [text for i, text in enumerate(expected) if i % 7]
    with web_client(server) as client:
        wait_until(lambda: "questlm_sequences_running 0.0" in client.get("/metrics").text)
        assert "questlm_sequences_waiting 0.0" in client.get("/metrics").text
    service = server._service
    gc.collect()
    assert not any(type(each) is Job for each in gc.get_objects())
    assert len(service.scheduler._batch) == 0
    assert service.scheduler._batch._cache.capacity == 256


@pytest.mark.parametrize("seconds", [0, 20])
def test_an_end_lets_running_texts_finish_in_time_or_says_that_it_does_not(model: PackedModel, seconds: int) -> None:
    service = Service(model, "tiny", Limits(sequences=1, context=3000, shutdown_seconds=seconds))
    replies: list[httpx2.Response] = []
    with running_server(service) as server, web_client(server) as client:
        body = {"prompt": "a", "max_tokens": 300 if seconds else 2900, "ignore_eos": True}
        thread = threading.Thread(target=lambda: replies.append(client.post("/v1/completions", json=body)))
        thread.start()
        wait_until(lambda: service.scheduler._running)
        server.should_exit = True
        thread.join(30)
        (reply,) = replies
        if seconds:
            assert reply.json()["usage"]["completion_tokens"] == 300
        else:
            assert reply.status_code == 503
            assert "the server is ending" in reply.json()["error"]["message"]
    assert not service.scheduler._thread.is_alive()


def _browser() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)


@pytest.mark.skipif(_browser() is None, reason="needs Chromium")
def test_the_page_generates_in_a_browser(model: PackedModel, server: Server) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    host, port = address(server)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=_browser(), args=["--no-sandbox"])
        page = browser.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda problem: problems.append(str(problem)))
        page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
        page.goto(f"http://{host}:{port}/")
        playwright.expect(page.locator("#size")).to_contain_text("packed in")
        assert page.locator("#name").inner_text() == "tiny"
        page.locator("#chat").uncheck()
        prompt = "<img src=x onerror=alert(1)> def"
        page.locator("#prompt").fill(prompt)
        page.locator("#temperature").fill("0")
        page.locator("#tokens").fill("20")
        page.locator("#send").click()
        playwright.expect(page.locator("#speed")).to_contain_text("tokens/s")
        assert page.locator("#answer img").count() == 0
        text = page.locator("#answer").evaluate("each => each.textContent")
        assert text.startswith(prompt)
        page.locator("#chat").check()
        page.locator("#tokens").fill("400")
        page.locator("#send").click()
        playwright.expect(page.locator("#speed")).to_contain_text("this server allows 400 in all")
        assert [each for each in problems if "400" not in each] == []
        browser.close()
