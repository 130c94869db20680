import errno
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from lissome.core.errors import ArtifactError
from lissome.core.events import EventStream
from lissome.report.facts import RESULT, read_page, rows_of
from lissome.report.page import render, write_page, write_page_if_possible
from tests.report import samples

pytest.importorskip("plotly", reason="the page needs the extra `report`")


@pytest.fixture
def artifact(tmp_path):
    return samples.artifact(tmp_path / "made")


@pytest.fixture
def hostile(tmp_path):
    return samples.artifact(tmp_path / "it's <b>", name=samples.HOSTILE, base=samples.HOSTILE)


class Reader(HTMLParser):
    """Collects elements, what is loaded from elsewhere, and the text outside scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loaded, self.texts, self.handlers, self.data = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href", "data", "action")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        if self.tags[-1:] == ["script"]:
            self.data = self.data or data
        elif self.tags[-1:] != ["style"]:
            self.texts.append(data)


def test_the_page_says_what_came_out_and_how(artifact):
    page = Reader(render(read_page(artifact)))
    text = " ".join(" ".join(page.texts).split())
    for expected in (
        "smollm2-135m-small", "made from smollm2-135m", "Apache-2.0", "latency<=85%", "✓ met", "83.2 % [81.0 – 85.0]",
        "multipruner", "split auto", "torch 2.13.0", "3 min 33 s", "1.10 GB", "layers.5.mlp 1 → 0", "All 9 steps",
        "curve.jsonl",
    ):  # fmt: skip
        assert expected in text, expected


def test_the_script_gets_every_step(artifact):
    data = json.loads(Reader(render(read_page(artifact))).data)
    curve = samples.curve()
    assert [point["step"] for point in data["points"]] == [point.step for point in curve]
    for point, original in zip(data["points"], curve, strict=True):
        assert {**data["full"], **point["cut"]} == original.subnet
        assert point["figures"] == original.figures
    assert data["result"] == 8
    assert data["blocks"] == 6
    kinds = [point["kind"] for point in data["points"][:6]]
    assert kinds == ["original", "attention", "width", "width", "mlp", "groups"]
    assert data["limits"] == [{"name": "latency", "term": "latency<=85%", "share": 0.85, "value": 0.85}]
    assert "7".join(data["extract"]) == f"lissome explain {artifact} --extract 7 --out made-step7"


def test_nothing_is_loaded_and_only_our_scripts_may_run(artifact):
    html = render(read_page(artifact))
    page = Reader(html)
    assert page.loaded == []
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)[1]
    assert "default-src 'none'" in policy
    assert len(re.findall(r"'sha256-[A-Za-z0-9+/=]{44}'", policy)) == 2
    assert "unsafe-eval" not in policy
    assert re.search(r"script-src[^;]*unsafe-inline", policy) is None


def test_a_hostile_name_stays_a_name(hostile):
    html = render(read_page(hostile))
    page = Reader(html)
    assert "img" not in page.tags
    assert page.handlers == []
    assert page.tags.count("script") == 3
    assert "</script><img src=x onerror=alert(1)>" in " ".join(page.texts)
    assert "\x1b" not in html
    command = "3".join(json.loads(page.data)["extract"])
    assert command.startswith("lissome explain '")
    assert command.endswith(" --out 'it'\"'\"'s <b>-step'3")


def test_the_same_artifact_gives_the_same_bytes(artifact):
    assert render(read_page(artifact)) == render(read_page(artifact))


def test_an_artifact_without_curve_result_or_lineage_still_has_a_page():
    data = read_page_of(replace(samples.manifest(), lineage=(), subnet=None))
    page = Reader(render(data))
    assert "script" not in page.tags
    assert "smollm2-135m-small" in page.texts


def read_page_of(manifest):
    from lissome.report.facts import PageData

    return PageData(manifest=manifest)


def test_without_a_result_table_the_lineage_gives_the_rows():
    original, small = rows_of(samples.manifest())
    assert original["ppl"]["value"] == 29.0
    assert small["ppl"]["ratio"] == pytest.approx(37.2 / 29.0)


def test_a_damaged_result_table_is_named(artifact):
    (artifact / RESULT).write_text('{"rows": ["x"]}')
    with pytest.raises(ArtifactError, match=r"result\.json is not a result table"):
        write_page(artifact)
    assert not (artifact / "report.html").exists()


def test_without_plotly_a_job_still_ends_well(artifact, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    said = []
    write_page_if_possible(artifact, EventStream(lambda event: said.append(event.message)))
    assert "lissome[report]" in said[0]
    assert not (artifact / "report.html").exists()


def test_without_room_for_the_page_a_job_still_ends_well(artifact, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lissome.report.page.write_text", full)
    said = []
    write_page_if_possible(artifact, EventStream(lambda event: said.append(event.message)))
    assert said == [f"no report.html: [Errno 28] No space left on device (lissome report {artifact} writes it later)"]


def _chromium(page, *options):
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium here; make test-all installs it")
    command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *options]
    done = subprocess.run(
        [*command, "--virtual-time-budget=10000", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert said == []
    return done.stdout


@pytest.mark.peer
@pytest.mark.slow
def test_a_browser_draws_it_without_a_network(artifact, hostile):
    for folder in (artifact, hostile):
        shown = _chromium(write_page(folder), "--dump-dom", "--host-resolver-rules=MAP * ~NOTFOUND")
        assert shown.count('class="scatterlayer mlayer"') == 2  # both charts
        assert shown.count('class="layer"') == 6
        assert "Step 8 (this model): layers.3.mlp.width 1536 → 1280" in shown
        assert "--extract 8" in shown
        assert "onerror=alert" not in re.sub(r"(?s)<script.*?</script>|&lt;img[^<]*", "", shown)
