"""The demo's page: what it keeps, what it refuses, and a person using it."""

import base64
import contextlib
import io
import os
import shutil
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import lite_jax
from lite_jax import UserError
from lite_jax.classify.demo import server, session
from lite_jax.classify.demo.server import make_app, serve
from lite_jax.classify.demo.session import Session
from lite_jax.run.configs import base_config
from lite_jax.run.train import train_and_evaluate

pytestmark = pytest.mark.usefixtures("as_users_run_it")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
COLOURS = {"moss": (40, 110, 50), "brick": (160, 60, 40), "sky": (90, 150, 230)}
OWN = {"x-lite-jax": "1"}


def photograph(colour, seed=0, size=(48, 36), kind="png"):
    """A file's content: a colour with noise."""
    rng = np.random.default_rng(seed)
    pixels = np.clip(np.array(colour) + rng.normal(0, 20, (*size[::-1], 3)), 0, 255)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory, as_users_run_it):
    """A run of no steps on raw pixels, so that colours tell."""
    folder = tmp_path_factory.mktemp("run")
    config = base_config()
    config.backbone.name, config.data.dataset = "pixels", "synthetic"
    config.train.steps, config.valid.tasks, config.test.tasks = 0, 0, 1
    train_and_evaluate(config, folder)
    return folder


@pytest.fixture(scope="module")
def learner(run):
    return lite_jax.load(run)


@pytest.fixture
def taught(learner):
    found = Session(learner)
    for name, colour in COLOURS.items():
        for seed in range(3):
            found.add(name, f"{name} {seed}.png", photograph(colour, seed))
    return found


@pytest.fixture
def client(taught):
    address = "http://127.0.0.1:8000"
    with TestClient(make_app(taught), address, raise_server_exceptions=False) as found:
        yield found


# ------------------------------------------------------------------------- session


def test_a_session_is_its_photographs(taught):
    found = taught.describe()
    assert [x["name"] for x in found["classes"]] == list(COLOURS)
    assert found["held_out"] == "leave-one-out: 9 of 9 right (100.0 %)"
    answer = taught.predict("new.png", photograph(COLOURS["brick"], 7))
    assert answer["classes"][0]["name"] == "brick"
    assert sum(x["probability"] for x in answer["classes"]) == pytest.approx(1)
    brick = [x["number"] for x in found["classes"][1]["photographs"]]
    assert sorted(answer["nearest"]) == brick


def test_removing_examples_changes_the_answer_at_once(taught):
    brick = taught.describe()["classes"][1]["photographs"]
    for photo in brick:
        taught.remove(photo["number"])
    found = taught.predict("new.png", photograph(COLOURS["brick"], 7))
    assert [x["name"] for x in found["classes"]] != []
    assert "brick" not in [x["name"] for x in found["classes"]]
    with pytest.raises(UserError, match="there is no photograph"):
        taught.remove(brick[0]["number"])
    taught.clear()
    with pytest.raises(UserError, match="two classes first"):
        taught.predict("new.png", photograph(COLOURS["brick"]))


def test_it_predicts_what_adapting_to_the_same_files_does(taught, learner):
    support = {
        name: [photograph(colour, seed) for seed in range(3)]
        for name, colour in COLOURS.items()
    }
    question = photograph((100, 100, 90), 5)
    (expected,) = learner.adapt(support).predict_proba([question])
    found = taught.predict("new.png", question)["classes"]
    shares = {x["name"]: x["probability"] for x in found}
    np.testing.assert_allclose([shares[x] for x in support], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["", "  ", "x" * 61])
def test_classes_need_a_name(taught, name):
    with pytest.raises(UserError, match="a name of 1 to 60 letters"):
        taught.add(name, "a.png", photograph((0, 0, 0)))


@pytest.mark.parametrize(
    "content", [b"", b"text", photograph((9, 9, 9))[:-60], b"<svg></svg>"]
)
def test_what_is_no_image_is_refused_and_changes_nothing(taught, content):
    before = taught.describe()
    with pytest.raises(UserError, match="'notes.txt' is no readable image"):
        taught.add("moss", "notes.txt", content)
    assert taught.describe() == before


def test_decompression_bombs_are_refused(taught):
    file = io.BytesIO()
    Image.new("1", (13_400, 13_400)).save(file, "png", compress_level=1)
    with pytest.raises(UserError, match="no readable image"):
        taught.add("moss", "bomb.png", file.getvalue())


def test_there_are_limits(learner, monkeypatch):
    monkeypatch.setattr(session, "MOST_PHOTOGRAPHS", 3)
    monkeypatch.setattr(session, "MOST_CLASSES", 2)
    found = Session(learner)
    for name in ("a", "b"):
        found.add(name, "x.png", photograph((0, 0, 0)))
    with pytest.raises(UserError, match="no more than 2 classes"):
        found.add("c", "x.png", photograph((0, 0, 0)))
    found.add("a", "x.png", photograph((0, 0, 0)))
    with pytest.raises(UserError, match="no more than 3 photographs"):
        found.add("a", "x.png", photograph((0, 0, 0)))


def test_many_hands_at_once_lose_nothing(learner):
    found = Session(learner)

    def teach(name):
        for seed in range(5):
            found.add(name, f"{seed}.png", photograph(COLOURS[name], seed))
            found.describe()

    hands = [threading.Thread(target=teach, args=[name]) for name in COLOURS]
    for hand in hands:
        hand.start()
    for hand in hands:
        hand.join()
    classes = found.describe()["classes"]
    assert sorted(len(x["photographs"]) for x in classes) == [5, 5, 5]


# -------------------------------------------------------------------------- server


def uploads(*contents, name="photo.png"):
    return [("files", (name, content)) for content in contents]


def test_photographs_go_in_and_come_out(client):
    found = client.post(
        "/api/photographs",
        data={"class_name": "snow"},
        files=uploads(photograph((240, 240, 250)), photograph((250, 250, 250), 1)),
        headers=OWN,
    ).json()
    assert found["problems"] == [] and found["classes"][-1]["name"] == "snow"
    number = found["classes"][-1]["photographs"][0]["number"]
    picture = client.get(f"/api/photographs/{number}.png")
    assert picture.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(picture.content)) as thumbnail:
        assert thumbnail.size == (48, 36)
    answer = client.post(
        "/api/predict", files=uploads(photograph((245, 245, 250), 9)), headers=OWN
    ).json()
    assert answer["classes"][0]["name"] == "snow" and number in answer["nearest"]
    removed = client.delete(f"/api/photographs/{number}", headers=OWN).json()
    assert len(removed["classes"][-1]["photographs"]) == 1
    assert client.delete("/api/photographs", headers=OWN).json()["classes"] == []


def test_readable_photographs_count_beside_others(client):
    found = client.post(
        "/api/photographs",
        data={"class_name": "snow"},
        files=uploads(b"text", photograph((240, 240, 250))),
        headers=OWN,
    ).json()
    assert found["problems"] == ["'photo.png' is no readable image"]
    assert len(found["classes"][-1]["photographs"]) == 1


def test_other_sites_and_hosts_are_refused(client):
    upload = {"files": uploads(photograph((0, 0, 0)))}
    assert client.post("/api/predict", **upload).status_code == 403
    assert client.delete("/api/photographs").status_code == 403
    elsewhere = OWN | {"host": "attacker.example"}
    assert client.get("/api/state", headers=elsewhere).status_code == 400
    assert client.get("/api/state").status_code == 200
    page = client.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "access-control-allow-origin" not in page.headers


def test_uploads_are_limited(client, monkeypatch):
    monkeypatch.setattr(server, "MOST_BYTES", 2**20)
    large = client.post("/api/predict", files=uploads(b"\0" * (2**20 + 1)), headers=OWN)
    assert large.status_code == 413 and "more than 1 MiB" in large.json()["error"]
    endless = client.post("/api/predict", content=iter([b"x"]), headers=OWN)
    assert endless.status_code == 411
    many = client.post("/api/predict", files=uploads(b"x", b"y"), headers=OWN)
    assert many.status_code == 400 and "Too many files" in many.json()["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py", "/static/%2e%2e/server.py", "/api/photographs/0.png",
        "/api/photographs/../../etc/passwd", "/nowhere", "/static//etc/passwd",
    ],
)  # fmt: skip
def test_nothing_else_is_served(client, path):
    assert client.get(path).status_code in (400, 404)


def test_names_from_the_browser_are_shown_and_used_for_nothing_else(
    client, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    name = "../../evil<b>.png"
    found = client.post(
        "/api/photographs",
        data={"class_name": "<i>snow</i>"},
        files=uploads(photograph((240, 240, 250)), name=name),
        headers=OWN,
    ).json()
    assert found["classes"][-1]["name"] == "<i>snow</i>"  # text, where it is shown
    assert list(tmp_path.rglob("*")) == []


def test_a_port_in_use_is_told(run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"port=\d+ cannot be used"):
            serve(run, taken.getsockname()[1])


# --------------------------------------------------------------------- in a browser


@contextlib.contextmanager
def served(run):
    """The address of the command, which runs for the time inside."""
    command = [sys.executable, "-m", "lite_jax.cli", "demo", f"--checkpoint={run}"]
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    with subprocess.Popen(
        [*command, "--port=0"], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@contextlib.contextmanager
def browsed(address, requests):
    """A page of headless Chromium; its requests go into the list."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        page = browser.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda told: requests.append(f"console: {told.text}"))
        page.on("pageerror", lambda error: requests.append(f"error: {error}"))
        page.goto(address)
        yield page
        browser.close()


DROP = """([selector, files]) => {
  const held = new DataTransfer();
  for (const [name, text] of files) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    held.items.add(new File([bytes], name, { type: "image/png" }));
  }
  const properties = { dataTransfer: held, bubbles: true, cancelable: true };
  document.querySelector(selector).dispatchEvent(new DragEvent("drop", properties));
}"""


WIDTHS = """(all) => Promise.all(
  all.map((picture) => picture.decode().then(() => picture.naturalWidth))
)"""


def drop(page, selector, *contents):
    files = [
        (f"dropped {i}.png", base64.b64encode(content).decode())
        for i, content in enumerate(contents)
    ]
    page.evaluate(DROP, [selector, files])


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
def test_a_person_teaches_asks_and_corrects(run, tmp_path):
    requests = []
    with served(run) as address, browsed(address, requests) as page:
        for name, colour in COLOURS.items():
            paths = []
            for seed in range(3):
                paths.append(tmp_path / f"{name} {seed}.png")
                paths[-1].write_bytes(photograph(colour, seed))
            page.fill("#class-name", name)
            page.set_input_files("#class-files", paths)
            page.wait_for_selector(f'.class[data-name="{name}"]')
        status = page.locator("#status")
        status.get_by_text("9 photographs of 3 classes").wait_for()
        assert "leave-one-out: 9 of 9 right" in status.inner_text()

        drop(page, "#ask", photograph(COLOURS["sky"], 9), photograph((150, 70, 50), 8))
        answers = page.locator(".answer strong")
        answers.nth(1).wait_for()
        assert sorted(answers.all_inner_texts()) == ["brick", "sky"]
        pictures = page.locator(".like img")
        assert pictures.count() == 6
        widths = pictures.evaluate_all(WIDTHS)
        assert all(width > 0 for width in widths)

        # What was called sky gets a class of its own, and the answer changes at once.
        page.fill("#class-name", "<b>dusk</b>")
        dusk = [photograph(COLOURS["sky"], seed) for seed in (20, 21)]
        drop(page, "#new-class", *dusk)
        page.locator(".class").nth(3).wait_for()
        page.locator(".class h3", has_text="<b>dusk</b>").wait_for()
        sky = page.locator('.class[data-name="sky"] figure button')
        for left in (2, 1, 0):
            sky.first.click()
            page.locator(f'.class[data-name="sky"] figure >> nth={left}').wait_for(
                state="detached"
            )
        page.locator(".answer strong", has_text="dusk").wait_for()
        # It may win while a photograph of sky is left; answers without sky follow.
        named_sky = page.locator("#answers li", has_text="sky")
        named_sky.first.wait_for(state="detached")
        assert "brick" in page.locator("#answers").inner_text()

        drop(page, '.class[data-name="moss"]', b"not an image")
        page.get_by_text("'dropped 0.png' is no readable image").wait_for()
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        page.click("#clear")
        page.get_by_text("Name a class and give it a few photographs").wait_for()
    own = address, f"blob:{address}"
    assert [x for x in requests if not x.startswith(own)] == []


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
def test_the_page_goes_on_while_answers_are_under_way(run):
    with served(run) as address, browsed(address, []) as page:
        for name in ("sky", "moss"):
            page.fill("#class-name", name)
            drop(page, "#new-class", photograph(COLOURS[name], 0))
            page.wait_for_selector(f'.class[data-name="{name}"]')
            assert page.input_value("#class-name") == ""

        held = []
        page.route("**/api/predict", lambda route: held.append(route))
        drop(page, "#ask", photograph(COLOURS["sky"], 9))
        page.fill("#class-name", "brick")
        drop(page, "#new-class", photograph(COLOURS["brick"], 0))
        page.wait_for_selector('.class[data-name="brick"]')
        page.fill("#class-name", "the next one")
        for _ in range(3000):  # half a minute at most
            if len(held) == 2:
                break
            page.wait_for_timeout(10)
        overtaken, current = held
        current.continue_()
        shares = page.locator("#answers li")
        shares.nth(2).wait_for()
        overtaken.fulfill(json={"classes": [], "nearest": []})
        page.wait_for_timeout(200)
        assert shares.count() == 3
        assert page.input_value("#class-name") == "the next one"
