"""Test the remote engine against a server that answers like ComfyUI, and against servers that do not."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from answering import Peer, RecordingListener, serving
from error_checks import check_facts, raises
from PIL import Image
from svd_stages import headless
from svd_stages.headless import EventTranslator, Graph, RunConfig
from svd_stages.headless.cli.console import JsonConsole
from svd_stages.headless.cli.main import main
from svd_stages.headless.engines.remote import client
from svd_stages.headless.engines.remote.engine import PollPolicy, RemoteEngine
from svd_stages.svd_core.errors import GraphError, Interrupted, NodeError, OutputError, ServerError, SettingError

GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "picture.png"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}, "_meta": {"title": "S"}},
}
RESULT = {"images": [{"filename": "x_00001_.png", "subfolder": "sub", "type": "output"}]}
RUN = [
    ("execution_start", {}),
    ("execution_cached", {"nodes": []}),
    ("executing", {"node": "1", "display_node": "1"}),
    ("progress", {"node": "1", "value": 1, "max": 2}),
    ("executing", {"node": "2", "display_node": "2"}),
    ("executed", {"node": "2", "display_node": "2", "output": RESULT}),
    ("execution_success", {}),
]
QUICK = PollPolicy(ask=0.1, unreachable=0.5, stop=2.0)


def success(**changes: Any) -> Peer:
    """A peer on which the graph runs and writes a file."""
    options = {"files": {("output", "sub", "x_00001_.png"): b"pixels"}, **changes}
    return Peer(events=list(RUN), outputs={"2": RESULT}, **options)


def failing(event: str, **data: Any) -> Peer:
    """A peer on which node 1 ends the run with `event`."""
    data = {"node_id": "1", "node_type": "LoadImage", "executed": [], **data}
    status = {"status_str": "error", "completed": False, "messages": [["execution_start", {}], [event, data]]}
    return Peer(events=[*RUN[:3], (event, data)], status=status)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SVD_STAGES_MODELS", raising=False)
    (tmp_path / "input").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "input" / "picture.png")
    return tmp_path


def engine(peer: Peer) -> RemoteEngine:
    return RemoteEngine(RunConfig(), peer.url, QUICK, timeout=5)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def load_image(name: str) -> dict[str, Any]:
    return {**GRAPH, "1": {"class_type": "LoadImage", "inputs": {"image": name}}}


def run(peer: Peer) -> tuple[headless.Report, RecordingListener]:
    remote, listener = engine(peer), RecordingListener()
    return remote.run(Graph(GRAPH, {"nodes": []}), EventTranslator(GRAPH, remote.table, listener)), listener


def test_images_are_uploaded_and_results_downloaded_byte_for_byte(folder):
    with serving(success()) as peer:
        report, _ = run(peer)
    assert report.files == [Path("output/sub/x_00001_.png")] and report.files[0].read_bytes() == b"pixels"
    assert report.ui == {"2": RESULT}
    ((name, content),) = peer.uploads.items()
    assert content == (folder / "input" / "picture.png").read_bytes()
    assert name.startswith("svd-stages/") and name.endswith("/picture.png")
    (body,) = peer.bodies("/prompt")
    assert body["prompt"]["1"]["inputs"] == {"image": name} and body["prompt"]["2"] == GRAPH["2"]
    assert body["extra_data"]["extra_pnginfo"]["workflow"] == {"nodes": []}
    assert GRAPH["1"]["inputs"]["image"] == "picture.png"
    assert files(folder / "output") == ["sub/x_00001_.png"]


def test_events_are_those_of_every_engine(folder):
    with serving(success()) as peer:
        _, listener = run(peer)
        prompt_id = peer.prompt["prompt_id"]
    load = {"stage": "Load Image", "total": 2, "node": "1"}
    assert listener.events == [
        ("queued", {"prompt_id": prompt_id}),
        ("cached", {"nodes": []}),
        ("executing", {"node": "1", "class_type": "LoadImage", "title": "Load Image"}),
        ("progress", {**load, "done": 0}),
        ("progress", {**load, "done": 1}),
        ("executing", {"node": "2", "class_type": "SaveImage", "title": "S"}),
        ("executed", {"node": "2", "class_type": "SaveImage", "files": ["output/sub/x_00001_.png"]}),
    ]


def test_an_existing_result_is_not_overwritten(folder):
    for _ in range(2):
        with serving(success()) as peer:
            report, _ = run(peer)
    assert report.files == [Path("output/sub/x_00002_.png")]
    assert report.ui["2"]["images"][0]["filename"] == "x_00002_.png"
    assert files(folder / "output") == ["sub/x_00001_.png", "sub/x_00002_.png"]


def test_a_lost_websocket_is_opened_again(folder):
    with serving(success(hangs_up_after=3)) as peer:
        report, listener = run(peer)
    assert sum(path == "/ws" for _, path, _, _ in peer.requests) == 2
    # events of a run that ended meanwhile are not waited for
    assert report.files and "executing" in [name for name, _ in listener.events]


def test_results_arrive_without_a_websocket(folder):
    with serving(success(answers={"/ws": (404, b"")})) as peer:
        report, listener = run(peer)
    assert report.files[0].read_bytes() == b"pixels"
    assert [name for name, _ in listener.events] == ["queued"]


def test_events_of_other_runs_are_ignored(folder):
    other = {"node": "9", "display_node": "9", "prompt_id": "of somebody else"}
    events = []
    with serving(success()) as peer:
        peer.events[2:2] = [("executing", other), ("execution_error", other), ("execution_success", other)]
        report = engine(peer).run(Graph(GRAPH), lambda event, data: events.append((event, data.get("node"))))
    assert events.count(("executing", "1")) == 1 and "9" not in [node for _, node in events] and report.files


def test_a_server_cannot_forge_this_packages_events(folder, capsys):
    forged = {"event": "result", "files": ["/etc/passwd"]}
    with serving(success()) as peer:
        peer.events[2:2] = [("queued", forged), ("executing", {**forged, "node": "1"})]
        console = JsonConsole()
        engine(peer).run(Graph(GRAPH), EventTranslator(GRAPH, engine(peer).table, console))
        console.event("executed", **forged)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines].count("queued") == 1 and "result" not in [line["event"] for line in lines]
    assert all("files" not in line for line in lines if line["event"] != "executed")


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_short_failure_of_a_proxy_does_not_end_the_run(folder, status):
    with serving(success(failures={"/history": [status] * 2, "/queue": [status], "/view": [status]})) as peer:
        assert run(peer)[0].files
    assert peer.bodies("/interrupt") == []


def test_a_lasting_failure_of_a_proxy_is_an_error_and_stops_the_run(folder):
    with serving(success(ends=False, failures={"/history": [502] * 1000})) as peer, raises(ServerError, None, 502):
        run(peer)
    assert peer.bodies("/interrupt") == [{"prompt_id": peer.prompt["prompt_id"]}]


def test_stopping_does_not_wait_for_a_silent_server(folder):
    def stop(event: str, _: Any) -> None:
        peer.slow["/queue"] = 10.0
        raise KeyboardInterrupt

    with serving(success(ends=False)) as peer:
        remote = RemoteEngine(RunConfig(), peer.url, PollPolicy(stop=0.3), timeout=60)
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            remote.run(Graph(GRAPH), stop)
        assert time.monotonic() - start < 9


def fault(kind: str, name: str, value: Any) -> dict[str, Any]:
    extra = {"input_name": name, "received_value": value, "input_config": None}
    return {"type": kind, "message": "No", "details": f"{name}: {value}", "extra_info": extra}


def rejection(*faults: Any, class_type: Any = "LoadImage") -> tuple[int, bytes]:
    errors = {"1": {"errors": list(faults), "dependent_outputs": ["2"], "class_type": class_type}}
    error = {"type": "prompt_outputs_failed_validation", "message": "Failed", "details": "", "extra_info": {}}
    return 400, json.dumps({"error": error, "node_errors": errors if faults else {}}).encode()


@pytest.mark.parametrize(
    ("faults", "status"),
    [
        ([fault("custom_validation_failed", "image", "gone.png")], 3),
        ([fault("value_not_in_list", "ckpt_name", "gone.safetensors")], 3),
        ([fault("value_not_in_list", "sampler", "warp")], 2),
        ([fault("value_not_in_list", "ckpt_name", "gone.safetensors"), fault("value_bigger_than_max", "steps", 9)], 2),
        ([{"type": "made_up"}, "nonsense"], 2),
        ([], 2),
    ],
)
def test_a_rejected_graph_has_the_exit_status_of_its_faults(folder, faults, status):
    with serving(Peer(answers={"/prompt": rejection(*faults)})) as peer, pytest.raises(GraphError) as error:
        engine(peer).run(Graph(GRAPH))
    assert error.value.exit_status == status
    assert not faults or list(error.value.node_errors) == ["1"]
    assert files(folder) == ["input/picture.png"]


@pytest.mark.parametrize("class_type", [[], {}, None, 5])
def test_a_rejection_without_a_class_is_a_graph_error(folder, class_type):
    answer = rejection(fault("value_not_in_list", "image", "gone"), class_type=class_type)
    with serving(Peer(answers={"/prompt": answer})) as peer, pytest.raises(GraphError):
        engine(peer).run(Graph(GRAPH))


def test_the_error_for_an_unknown_class_names_the_nearest_class(folder):
    answer = {"error": {"type": "invalid_prompt", "message": "node SaveImages does not exist"}, "node_errors": {}}
    graph = {**GRAPH, "2": {**GRAPH["2"], "class_type": "SaveImages"}}
    peer = Peer(answers={"/prompt": (400, json.dumps(answer).encode())})
    with serving(peer), raises(GraphError, "graph.missing_node_type", "SaveImage") as error:
        engine(peer).run(Graph(graph))
    assert error.value.exit_status == 2 and list(error.value.node_errors) == ["2"]


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("ValueError", 4, "node"),
        ("/srv/custom_nodes/SVD_x_0.svd_core.errors.CheckpointError", 3, "checkpoint"),
        ("svd_core.errors.SettingError", 2, "setting"),
        ("svd_core.errors.NodeError", 4, "node"),
        ("svd_core.errors.Iterable", 4, "node"),
    ],
)
def test_a_failed_node_is_named_with_the_exit_status_of_its_error(folder, kind, status, code):
    peer = failing("execution_error", exception_type=kind, exception_message="it is broken\n", traceback=["line"])
    with serving(peer), raises(NodeError, code, "LoadImage", "broken") as error:
        run(peer)
    assert (kind.rpartition(".")[2] in str(error.value)) == (code == "node")
    assert (error.value.node_id, error.value.class_type, error.value.exit_status) == ("1", "LoadImage", status)
    assert files(folder) == ["input/picture.png"]


def test_a_blocked_node_does_not_end_the_run(folder, caplog):
    with serving(success()) as peer:
        blocked = {"node_id": "1", "exception_type": "ExecutionBlocked", "exception_message": "Execution Blocked: no"}
        peer.events.insert(3, ("execution_error", blocked))
        report, _ = run(peer)
    assert report.files and blocked["exception_message"] in caplog.text


@pytest.mark.parametrize("begins", [True, False], ids=["running", "queued"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, Interrupted, RuntimeError, GraphError])
def test_an_exception_in_a_callback_stops_the_run_on_the_server(folder, begins, error):
    def stop(event: str, _: Any) -> None:
        if event == ("executing" if begins else "queued"):
            raise error("it ends")

    with serving(success(begins=begins, ends=False)) as peer:
        with raises(error, None, "ends"):
            engine(peer).run(Graph(GRAPH), stop)
        prompt_id = peer.prompt["prompt_id"]
        assert peer.stopped
    assert peer.bodies("/queue")[0] == {"delete": [prompt_id]}
    assert peer.bodies("/interrupt") == ([{"prompt_id": prompt_id}] if begins else [])
    assert files(folder) == ["input/picture.png"]


HOSTILE_NAMES = [
    ("", "../x.png"), ("", "/tmp/x.png"), ("..", "x.png"), ("a/../../b", "x.png"), ("/etc", "x.png"), ("", ".."),
    ("", "."), ("", ""), ("a\\..\\..", "x.png"), ("", "a\nb.png"), ("", "a\0b.png"), ("", "x" * 300), ("out", "x.png"),
    ("", "\x1b[2J.png"), (" . ", "x.png"), ("", "a/b.png"),
]  # fmt: skip


@pytest.mark.parametrize(("subfolder", "name"), HOSTILE_NAMES, ids=ascii)
def test_a_server_cannot_name_a_file_outside_the_output_folder(folder, subfolder, name):
    (folder / "output").mkdir()
    (folder / "outside").mkdir()
    (folder / "output" / "out").symlink_to(folder / "outside", target_is_directory=True)
    result = {"images": [{"filename": name, "subfolder": subfolder, "type": "output"}]}
    peer = Peer(outputs={"2": result}, files={("output", subfolder, name): b"evil"}, answers={"/ws": (404, b"")})
    with serving(peer), raises(OutputError, "output.outside"):
        engine(peer).run(Graph(GRAPH))
    assert files(folder) == ["input/picture.png"]


def test_files_in_the_servers_input_folder_are_not_results(folder):
    peer = Peer(outputs={"2": {"images": [{"filename": "a.png", "subfolder": "", "type": "input"}]}})
    with serving(peer):
        assert engine(peer).run(Graph(GRAPH)).files == []


HALF = {"answers": {"/view": (200, b"half")}, "headers": {"/view": {"Content-Length": "9"}}}
FAILED_RUNS = {
    "stopped on the server": (failing("execution_interrupted"), "interrupted"),
    "incomplete result": (success(**HALF), "server.unreachable", 4, 9),
    "too large result": (success(), "server.size", 5),
    "missing result": (success(files={}), "server.result", "x_00001_.png", 404),
    "forgotten run": (Peer(forgets=True), "server.lost"),
    "deep rejection": (Peer(answers={"/prompt": (400, b"[" * 500_000)}), "server.answer"),
    "empty answer": (Peer(answers={"/prompt": (200, b"")}), "server.answer"),
    "no prompt id": (Peer(answers={"/prompt": (200, b"{}")}), "server.answer"),
    "a list": (Peer(answers={"/prompt": (200, b"[1]")}), "server.answer"),
    "another prompt id": (Peer(answers={"/prompt": (200, b'{"prompt_id": "another"}')}), "server.answer"),
}
"""Peer, error code, facts in the message."""


@pytest.mark.parametrize("case", FAILED_RUNS)
def test_a_failed_run_is_a_typed_error_and_leaves_no_result(folder, monkeypatch, case):
    peer, *expected = FAILED_RUNS[case]
    monkeypatch.setattr(client, "MAX_FILE", 5 if case == "too large result" else client.MAX_FILE)
    with serving(peer), raises((ServerError, Interrupted), *expected):
        run(peer)
    assert files(folder) == ["input/picture.png"]


def test_an_unreachable_server_is_exit_status_3(folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        url = f"http://me:secret@127.0.0.1:{probe.getsockname()[1]}"
    (folder / "graph.json").write_text(json.dumps(GRAPH))
    for command in ("run", "validate"):
        assert main([command, "graph.json", "--server", url, "--debug", "--json"]) == 3
        output = capsys.readouterr()
        assert json.loads(output.out)["code"] == "server.unreachable"
        check_facts(output.err, url.rpartition("@")[2])
        assert "secret" not in output.err + output.out


def test_the_login_is_sent_to_every_route_and_is_in_no_message(folder):
    with serving(success()) as peer:
        url = peer.url.replace("//", "//me%40home:p%3Ass@")
        remote = RemoteEngine(RunConfig(), url, QUICK)
        remote.run(Graph(GRAPH))
        assert "p:ss" not in repr(vars(remote)) and "cDpzcw" not in repr(vars(remote))
    assert {headers.get("Authorization") for _, _, headers, _ in peer.requests} == {"Basic bWVAaG9tZTpwOnNz"}
    assert {path for _, path, _, _ in peer.requests} >= {"/ws", "/object_info", "/prompt", "/view", "/upload/image"}


def redirecting(location: str) -> Peer:
    return success(answers={"/object_info": (302, b"")}, headers={"/object_info": {"Location": location}})


def test_a_redirect_to_another_server_is_refused(folder):
    with (
        serving(Peer()) as other,
        serving(redirecting(f"{other.url}/object_info")) as peer,
        raises(ServerError, "server.redirect") as error,
    ):
        RemoteEngine(RunConfig(), peer.url.replace("//", "//me:secret@"), QUICK).run(Graph(GRAPH))
    assert "secret" not in str(error.value) and other.requests == []


@pytest.mark.parametrize("location", ["http://[", "http://[::1", "http://host:port/", "//[x]/"])
def test_a_redirect_to_an_invalid_address_is_a_typed_error(folder, location):
    with serving(redirecting(location)) as peer, pytest.raises(ServerError) as error:
        engine(peer).check(Graph(GRAPH))
    assert error.value.code in ("server.redirect", "server.unreachable")


def test_a_redirect_within_the_server_is_followed(folder):
    with serving(redirecting("/queue")) as peer, raises(GraphError, "graph.object_info"):  # the queue holds no nodes
        engine(peer).run(Graph(GRAPH))


STRANGE = {
    "a page": (200, b"<html>hello</html>", "server.answer"),
    "a list": (200, b"[]", "server.answer"),
    "deep": (200, b"[" * 200_000, "server.answer"),
    "not found": (404, b"nothing here", "server.answer"),
    "broken": (500, b"{}", "server.answer"),
    "a login": (401, b"", "server.login"),
    "forbidden": (403, b"", "server.login"),
    "huge": (200, b" " * 2000, "server.size"),
    "no nodes": (200, b'{"LoadImage": 3}', "graph.object_info"),
    "output": (200, b'{"X": {"input": {}, "output": 5}}', "graph.object_info"),
    "output_name": (200, b'{"X": {"input": {}, "output": ["IMAGE"], "output_name": 5}}', "graph.object_info"),
    "output_is_list": (200, b'{"X": {"input": {}, "output": ["IMAGE"], "output_is_list": 5}}', "graph.object_info"),
}
"""HTTP status, body, error code. An invalid node description is named by its key."""


@pytest.mark.parametrize("case", STRANGE)
def test_an_answer_unlike_comfyuis_is_a_typed_error(folder, monkeypatch, case):
    status, body, code = STRANGE[case]
    monkeypatch.setattr(client, "MAX_JSON", 1000 if case == "huge" else client.MAX_JSON)
    peer = Peer(answers={"/object_info": (status, body)})
    with serving(peer), raises((ServerError, GraphError), code, *([case] if case.startswith("output") else [])):
        engine(peer).check(Graph(GRAPH))


def test_an_input_without_a_type_is_a_typed_error_when_a_workflow_is_converted(folder, capsys):
    described = {"X": {"input": {"required": {"x": [{}]}}, "output": []}}
    workflow = {"nodes": [{"id": 1, "type": "X", "inputs": [], "outputs": [], "widgets_values": [1]}], "links": []}
    for name, value in (("info.json", described), ("ui.json", workflow)):
        (folder / name).write_text(json.dumps(value))
    assert main(["convert", "ui.json", "-o", "api.json", "--object-info", "info.json", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["code"] == "graph.object_info"


@pytest.mark.parametrize("name", ["\0", "\ud800", ""])
def test_a_class_may_have_any_name(folder, name):
    described = json.dumps({name: {"input": {}, "output": []}}).encode()
    with serving(Peer(answers={"/object_info": (200, described)})) as peer:
        assert list(engine(peer).table.classes) == [name]


@pytest.mark.parametrize("length", ["\u00b2", "9" * 5000, "-1", "x"])
def test_an_invalid_content_length_is_ignored(folder, length):
    with serving(success(answers={"/view": (200, b"pixels")}, headers={"/view": {"Content-Length": length}})) as peer:
        assert run(peer)[0].files[0].read_bytes() == b"pixels"


NUMBERS = {"huge": 10**400, "below": -(10**400), "inf": float("inf"), "nan": float("nan"), "text": "1", "none": None}


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
def test_progress_that_is_not_a_count_is_ignored(folder, number):
    bars = [{"value": number, "max": 2}, {"value": 1, "max": number}]
    with serving(success()) as peer:
        peer.events[3:3] = [("progress", {"node": "1", **bar}) for bar in bars]
        _, listener = run(peer)
    assert [values["done"] for name, values in listener.events if name == "progress"] == [0, 1]


@contextlib.contextmanager
def dripping(head: bytes, count: int) -> Iterator[str]:
    """Yield the address of a server that sends `head` at once, and then one of `count` bytes every 0.05 s."""

    def drip() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(head)
            for _ in range(count):
                time.sleep(0.05)
                connection.sendall(b"1")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"])
def test_a_slow_json_answer_is_a_timeout(head):
    with dripping(head, 60) as url:
        start = time.monotonic()
        with raises(ServerError, "server.unreachable"):
            client.Server.at(url, timeout=0.3).get("/queue")
        assert time.monotonic() - start < 1.5


def test_a_slow_result_is_not_a_timeout(tmp_path):
    with dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n", 16) as url:
        client.Server.at(url, timeout=0.3).download("/view", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"1" * 16


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://host",
        "http://",
        "http://host:port",
        "http://host/?a=b",
        "http://ho st",
        "http://me:sec@",
        "http://a..b",
        f"http://{'a' * 70}",
        "http://me:12/sec@host",
        "http://me:sec/x@host",
        "http://me:1?sec@host",
        "http://me:1/sec@host/@x",
    ],
)
def test_an_invalid_address_is_refused(url):
    with raises(ServerError, "server.url") as error:
        RemoteEngine(RunConfig(), url)
    assert "sec" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("localhost:8188", "http://localhost:8188"),
        ("https://host/comfy/", "https://host/comfy"),
        ("http://[::1]:8188/", "http://[::1]:8188"),
    ],
)
def test_common_forms_of_an_address_are_accepted(url, address):
    assert client.Server.at(url).address == address


@pytest.mark.parametrize(
    "setting", [{"models": ["m"]}, {"device": "cpu"}, {"precision": "fp16"}, {"vram": "1G"}], ids=str
)
def test_settings_of_the_server_are_refused(setting):
    with raises(SettingError, "setting", f"--{next(iter(setting))}"):
        RemoteEngine(RunConfig(**setting), "localhost")


def test_validation_accepts_a_local_image_and_names_the_server_in_a_note(folder):
    with serving(Peer()) as peer:
        validation = engine(peer).check(Graph(GRAPH))
        assert validation.outputs == ["2"] and peer.url in validation.notes[-1]
        with raises(GraphError, "graph.value_not_in_list", "gone.png") as error:
            engine(peer).check(Graph(load_image("gone.png")))
        (missing,) = headless.find_missing(load_image("gone.png"), engine(peer), RunConfig())
    assert error.value.exit_status == 3
    assert (missing.kind, missing.name) == ("input", "gone.png") and "server" in missing.folder
    assert peer.uploads == {} and peer.bodies("/prompt") == []


@pytest.mark.parametrize("node", [5, {"class_type": "LoadImage", "inputs": None}, {"class_type": []}])
def test_validation_of_a_malformed_graph_is_a_graph_error(folder, node):
    with serving(Peer()) as peer, raises(GraphError, "graph.invalid_prompt"):
        engine(peer).check(Graph({**GRAPH, "1": node}))


def test_only_plain_files_in_the_input_folder_are_uploaded(folder):
    (folder / "secret.png").write_bytes(b"secret")
    (folder / "input" / "link.png").symlink_to(folder / "secret.png")
    (folder / "input" / "folder.png").mkdir()
    absolute = str(folder / "secret.png")
    for name in ("../secret.png", absolute, "link.png", "folder.png", "x.png [output]", "a\0.png", ""):
        with serving(success()) as peer:
            engine(peer).run(Graph(load_image(name)))
        assert peer.uploads == {} and peer.bodies("/prompt")[0]["prompt"] == load_image(name)


def test_the_command_line_runs_on_a_server(folder, capsys):
    (folder / "graph.json").write_text(json.dumps(GRAPH))
    with serving(success()) as peer:
        arguments = ["run", "graph.json", "--server", peer.url, "--set", "SaveImage.filename_prefix=y", "--json"]
        assert main(arguments) == 0
        assert main(["validate", "graph.json", "--server", peer.url]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()[:-1]]
    assert [line["event"] for line in lines][-3:] == ["executed", "wrote", "result"]
    assert lines[-1]["files"] == ["output/sub/x_00001_.png"]
    assert peer.bodies("/prompt")[0]["prompt"]["2"]["inputs"]["filename_prefix"] == "y"
