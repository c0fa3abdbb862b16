"""The remote engine against a server that answers as ComfyUI does, and against servers that do not."""

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
from answering import Peer, serving
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
    """A peer on which the graph runs and gives a file."""
    return Peer(
        events=list(RUN), outputs={"2": RESULT}, files={("output", "sub", "x_00001_.png"): b"pixels"}, **changes
    )


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SVD_STAGES_MODELS", raising=False)
    (tmp_path / "input").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "input" / "picture.png")
    return tmp_path


def engine(peer: Peer) -> RemoteEngine:
    return RemoteEngine(RunConfig(), peer.url, QUICK, timeout=5)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class EventListener:
    """Notes what it is told."""

    def __init__(self):
        self.told: list[tuple[str, dict[str, Any]]] = []

    def event(self, name: str, **values: Any) -> None:
        self.told.append((name, values))

    def report(self, stage: str, done: int, total: int, unit: str, node: str | None = None) -> None:
        self.told.append(("progress", {"stage": stage, "done": done, "total": total, "node": node}))


def run(peer: Peer) -> tuple[headless.Report, EventListener]:
    remote, watcher = engine(peer), EventListener()
    return remote.run(Graph(GRAPH, {"nodes": []}), EventTranslator(GRAPH, remote.table, watcher)), watcher


def test_pictures_go_there_and_results_come_here_byte_for_byte(here):
    with serving(success()) as peer:
        report, _ = run(peer)
    assert report.files == [Path("output/sub/x_00001_.png")] and report.files[0].read_bytes() == b"pixels"
    assert report.ui == {"2": RESULT}
    ((name, content),) = peer.uploads.items()
    assert content == (here / "input" / "picture.png").read_bytes()
    assert name.startswith("svd-stages/") and name.endswith("/picture.png")
    (body,) = peer.bodies("/prompt")
    assert body["prompt"]["1"]["inputs"] == {"image": name} and body["prompt"]["2"] == GRAPH["2"]
    assert body["extra_data"]["extra_pnginfo"]["workflow"] == {"nodes": []}
    assert GRAPH["1"]["inputs"]["image"] == "picture.png"
    assert files(here / "output") == ["sub/x_00001_.png"]


def test_events_are_those_of_every_engine(here):
    with serving(success()) as peer:
        _, watcher = run(peer)
        prompt_id = peer.prompt["prompt_id"]
    load = {"stage": "Load Image", "total": 2, "node": "1"}
    assert watcher.told == [
        ("queued", {"prompt_id": prompt_id}),
        ("cached", {"nodes": []}),
        ("executing", {"node": "1", "class_type": "LoadImage", "title": "Load Image"}),
        ("progress", {**load, "done": 0}),
        ("progress", {**load, "done": 1}),
        ("executing", {"node": "2", "class_type": "SaveImage", "title": "S"}),
        ("executed", {"node": "2", "class_type": "SaveImage", "files": ["output/sub/x_00001_.png"]}),
    ]


def test_a_name_that_is_taken_here_is_not_written_over(here):
    for _ in range(2):
        with serving(success()) as peer:
            report, _ = run(peer)
    assert report.files == [Path("output/sub/x_00002_.png")]
    assert report.ui["2"]["images"][0]["filename"] == "x_00002_.png"
    assert files(here / "output") == ["sub/x_00001_.png", "sub/x_00002_.png"]


def test_a_socket_that_drops_is_opened_again(here):
    with serving(success(hangs_up_after=3)) as peer:
        report, watcher = run(peer)
    assert sum(path == "/ws" for _, path, _, _ in peer.requests) == 2
    assert report.files and [name for name, _ in watcher.told].count("executing") == 2


def test_without_a_websocket_the_history_is_enough(here):
    with serving(success(answers={"/ws": (404, b"")})) as peer:
        report, watcher = run(peer)
    assert report.files[0].read_bytes() == b"pixels"
    assert [name for name, _ in watcher.told] == ["queued"]


def test_what_others_run_is_not_told(here):
    theirs = {"node": "9", "display_node": "9", "prompt_id": "of somebody else"}
    told = []
    with serving(success()) as peer:
        peer.events[2:2] = [("executing", theirs), ("execution_error", theirs), ("execution_success", theirs)]
        report = engine(peer).run(Graph(GRAPH), lambda event, data: told.append((event, data.get("node"))))
    assert told.count(("executing", "1")) == 1 and "9" not in [node for _, node in told] and report.files


def test_a_server_cannot_make_up_events_of_ours(here, capsys):
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
def test_a_gateway_that_is_away_for_a_moment_ends_nothing(here, status):
    with serving(success(failures={"/history": [status] * 2, "/queue": [status], "/view": [status]})) as peer:
        assert run(peer)[0].files
    assert peer.bodies("/interrupt") == []


def test_a_gateway_that_stays_away_is_an_error_and_the_run_is_stopped(here):
    with serving(success(ends=False, failures={"/history": [502] * 1000})) as peer, pytest.raises(ServerError) as error:
        run(peer)
    assert "502" in str(error.value) and peer.bodies("/interrupt") == [{"prompt_id": peer.prompt["prompt_id"]}]


def test_a_stop_waits_for_no_silent_server(here):
    def stop(event: str, _: Any) -> None:
        peer.slow["/queue"] = 10.0
        raise KeyboardInterrupt

    with serving(success(ends=False)) as peer:
        remote = RemoteEngine(RunConfig(), peer.url, PollPolicy(stop=0.3), timeout=60)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            remote.run(Graph(GRAPH), stop)
        assert time.monotonic() - began < 9


def fault(kind: str, name: str, value: Any) -> dict[str, Any]:
    extra = {"input_name": name, "received_value": value, "input_config": None}
    return {"type": kind, "message": "No", "details": f"{name}: {value}", "extra_info": extra}


def refused(*faults: dict[str, Any]) -> tuple[int, bytes]:
    errors = {"1": {"errors": list(faults), "dependent_outputs": ["2"], "class_type": "LoadImage"}}
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
def test_a_refusal_is_a_graph_error_with_the_exit_status_of_its_fault(here, faults, status):
    with serving(Peer(answers={"/prompt": refused(*faults)})) as peer, pytest.raises(GraphError) as error:
        engine(peer).run(Graph(GRAPH))
    assert error.value.exit_status == status
    assert not faults or list(error.value.node_errors) == ["1"]
    assert files(here) == ["input/picture.png"]


def test_an_unknown_class_is_refused_with_the_nearest_names(here):
    said = {"error": {"type": "invalid_prompt", "message": "node SaveImages does not exist"}, "node_errors": {}}
    graph = {**GRAPH, "2": {**GRAPH["2"], "class_type": "SaveImages"}}
    answers = {"/prompt": (400, json.dumps(said).encode())}
    with serving(Peer(answers=answers)) as peer, raises(GraphError, "graph.missing_node_type", "SaveImage") as error:
        engine(peer).run(Graph(graph))
    assert error.value.exit_status == 2 and list(error.value.node_errors) == ["2"]


def failing(event: str, **data: Any) -> Peer:
    about = {"node_id": "1", "node_type": "LoadImage", "executed": [], **data}
    status = {"status_str": "error", "completed": False, "messages": [["execution_start", {}], [event, about]]}
    return Peer(events=[*RUN[:3], (event, about)], status=status)


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
def test_a_failed_node_is_named_with_the_exit_status_of_its_error(here, kind, status, code):
    peer = failing("execution_error", exception_type=kind, exception_message="it is broken\n", traceback=["line"])
    with serving(peer), raises(NodeError, code, "LoadImage", "broken") as error:
        run(peer)
    assert (kind.rpartition(".")[2] in str(error.value)) == (code == "node")
    assert (error.value.node_id, error.value.class_type, error.value.exit_status) == ("1", "LoadImage", status)
    assert files(here) == ["input/picture.png"]


def test_a_run_that_is_stopped_there_is_interrupted(here):
    with serving(failing("execution_interrupted")) as peer, pytest.raises(Interrupted):
        run(peer)


def test_a_blocked_node_ends_nothing(here, caplog):
    with serving(success()) as peer:
        blocked = {"node_id": "1", "exception_type": "ExecutionBlocked", "exception_message": "Execution Blocked: no"}
        peer.events.insert(3, ("execution_error", blocked))
        report, _ = run(peer)
    assert report.files and blocked["exception_message"] in caplog.text


@pytest.mark.parametrize("begins", [True, False], ids=["running", "queued"])
@pytest.mark.parametrize("raised", [KeyboardInterrupt, Interrupted, RuntimeError, GraphError])
def test_whatever_is_raised_here_stops_the_run_there(here, begins, raised):
    def stop(event: str, _: Any) -> None:
        if event == ("executing" if begins else "queued"):
            raise raised("it ends")

    with serving(success(begins=begins, ends=False)) as peer:
        with raises(raised, None, "ends"):
            engine(peer).run(Graph(GRAPH), stop)
        prompt_id = peer.prompt["prompt_id"]
        assert peer.stopped
    assert peer.bodies("/queue")[0] == {"delete": [prompt_id]}
    assert peer.bodies("/interrupt") == ([{"prompt_id": prompt_id}] if begins else [])
    assert files(here) == ["input/picture.png"]


HOSTILE_NAMES = [
    ("", "../x.png"), ("", "/tmp/x.png"), ("..", "x.png"), ("a/../../b", "x.png"), ("/etc", "x.png"), ("", ".."),
    ("", "."), ("", ""), ("a\\..\\..", "x.png"), ("", "a\nb.png"), ("", "a\0b.png"), ("", "x" * 300), ("out", "x.png"),
    ("", "\x1b[2J.png"), (" . ", "x.png"), ("", "a/b.png"),
]  # fmt: skip


@pytest.mark.parametrize(("subfolder", "name"), HOSTILE_NAMES, ids=ascii)
def test_a_server_cannot_name_a_file_outside_the_output_folder(here, subfolder, name):
    (here / "output").mkdir()
    (here / "outside").mkdir()
    (here / "output" / "out").symlink_to(here / "outside", target_is_directory=True)
    result = {"images": [{"filename": name, "subfolder": subfolder, "type": "output"}]}
    peer = Peer(outputs={"2": result}, files={("output", subfolder, name): b"evil"}, answers={"/ws": (404, b"")})
    with serving(peer), pytest.raises(OutputError) as error:
        engine(peer).run(Graph(GRAPH))
    assert error.value.code == "output.outside"
    assert files(here) == ["input/picture.png"]


def test_files_of_the_input_folder_there_are_no_results(here):
    peer = Peer(outputs={"2": {"images": [{"filename": "a.png", "subfolder": "", "type": "input"}]}})
    with serving(peer):
        assert engine(peer).run(Graph(GRAPH)).files == []


def test_a_result_that_breaks_off_leaves_nothing(here):
    peer = success(answers={"/view": (200, b"half")}, headers={"/view": {"Content-Length": "9"}})
    with serving(peer), raises(ServerError, "server.unreachable", 4, 9):
        run(peer)
    assert files(here) == ["input/picture.png"]


def test_a_result_that_is_too_large_leaves_nothing(here, monkeypatch):
    monkeypatch.setattr(client, "MAX_FILE", 5)
    with serving(success()) as peer, raises(ServerError, "server.size", 5):
        run(peer)
    assert files(here) == ["input/picture.png"]


def test_a_result_that_is_not_there_is_an_error(here):
    peer = success()
    peer.files.clear()
    with serving(peer), raises(ServerError, "server.result", "x_00001_.png", 404):
        run(peer)


def test_a_server_that_forgot_the_run_is_an_error(here):
    with serving(success(forgets=True)) as peer, pytest.raises(ServerError) as error:
        run(peer)
    assert error.value.code == "server.lost"


def test_nobody_there_is_status_3_with_a_way_out(here, capsys):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        url = f"http://me:secret@127.0.0.1:{probe.getsockname()[1]}"
    (here / "graph.json").write_text(json.dumps(GRAPH))
    for command in ("run", "validate"):
        assert main([command, "graph.json", "--server", url, "--debug", "--json"]) == 3
        said = capsys.readouterr()
        assert json.loads(said.out)["code"] == "server.unreachable"
        check_facts(said.err, url.rpartition("@")[2])
        assert "secret" not in said.err + said.out


def test_the_login_goes_to_every_route_and_into_no_message(here):
    with serving(success()) as peer:
        url = peer.url.replace("//", "//me%40home:p%3Ass@")
        remote = RemoteEngine(RunConfig(), url, QUICK)
        remote.run(Graph(GRAPH))
        assert "p:ss" not in repr(vars(remote)) and "cDpzcw" not in repr(vars(remote))
    assert {headers.get("Authorization") for _, _, headers, _ in peer.requests} == {"Basic bWVAaG9tZTpwOnNz"}
    assert {path for _, path, _, _ in peer.requests} >= {"/ws", "/object_info", "/prompt", "/view", "/upload/image"}


def test_a_redirect_to_another_place_is_not_followed(here):
    with serving(Peer()) as other, serving(Peer(answers={"/object_info": (302, b"")})) as peer:
        peer.headers["/object_info"] = {"Location": f"{other.url}/object_info"}
        with pytest.raises(ServerError) as error:
            RemoteEngine(RunConfig(), peer.url.replace("//", "//me:secret@"), QUICK).run(Graph(GRAPH))
    assert error.value.code == "server.redirect" and "secret" not in str(error.value)
    assert other.requests == []


@pytest.mark.parametrize("place", ["http://[", "http://[::1", "http://host:port/", "//[x]/"])
def test_a_redirect_to_no_place_is_a_typed_error(here, place):
    peer = Peer(answers={"/object_info": (302, b"")}, headers={"/object_info": {"Location": place}})
    with serving(peer), pytest.raises(ServerError) as error:
        engine(peer).check(Graph(GRAPH))
    assert error.value.code in ("server.redirect", "server.unreachable")


def test_a_redirect_within_the_server_is_followed(here):
    with serving(success(answers={"/object_info": (302, b"")})) as peer:
        peer.headers["/object_info"] = {"Location": "/queue"}
        with pytest.raises(GraphError) as error:  # what stands there is no description of nodes
            engine(peer).run(Graph(GRAPH))
    assert error.value.code == "graph.object_info"


STRANGE = {
    "a page": ((200, b"<html>hello</html>"), "server.answer"),
    "a list": ((200, b"[]"), "server.answer"),
    "deep": ((200, b"[" * 200_000), "server.answer"),
    "not found": ((404, b"nothing here"), "server.answer"),
    "broken": ((500, b"{}"), "server.answer"),
    "a login": ((401, b""), "server.login"),
    "forbidden": ((403, b""), "server.login"),
    "huge": ((200, b" " * 2000), "server.size"),
    "no nodes": ((200, b'{"LoadImage": 3}'), "graph.object_info"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_what_no_comfyui_answers_is_a_typed_error(here, monkeypatch, case):
    answer, code = STRANGE[case]
    monkeypatch.setattr(client, "MAX_JSON", 1000 if case == "huge" else client.MAX_JSON)
    with serving(Peer(answers={"/object_info": answer})) as peer, pytest.raises((ServerError, GraphError)) as error:
        engine(peer).check(Graph(GRAPH))
    assert error.value.code == code


def test_an_input_of_no_kind_is_a_typed_error_where_a_workflow_is_converted(here, capsys):
    described = {"X": {"input": {"required": {"x": [{}]}}, "output": []}}
    workflow = {"nodes": [{"id": 1, "type": "X", "inputs": [], "outputs": [], "widgets_values": [1]}], "links": []}
    for name, value in (("info.json", described), ("ui.json", workflow)):
        (here / name).write_text(json.dumps(value))
    assert main(["convert", "ui.json", "-o", "api.json", "--object-info", "info.json", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["code"] == "graph.object_info"


@pytest.mark.parametrize("key", ["output", "output_name", "output_is_list"])
def test_outputs_that_are_no_list_are_a_typed_error(here, key):
    described = json.dumps({"X": {"input": {}, "output": ["IMAGE"], key: 5}}).encode()
    peer = Peer(answers={"/object_info": (200, described)})
    with serving(peer), raises(GraphError, "graph.object_info", key):
        engine(peer).check(Graph(GRAPH))


@pytest.mark.parametrize("name", ["\0", "\ud800", ""])
def test_a_class_may_have_any_name(here, name):
    described = json.dumps({name: {"input": {}, "output": []}}).encode()
    with serving(Peer(answers={"/object_info": (200, described)})) as peer:
        assert list(engine(peer).table.classes) == [name]


def test_a_refusal_that_is_nested_deeply_is_a_typed_error(here):
    with serving(Peer(answers={"/prompt": (400, b"[" * 500_000)})) as peer, pytest.raises(ServerError):
        engine(peer).run(Graph(GRAPH))


@pytest.mark.parametrize("class_type", [[], {}, None, 5])
def test_a_refusal_that_names_no_class_is_a_graph_error(here, class_type):
    status, body = refused(fault("value_not_in_list", "image", "gone"))
    said = json.loads(body)
    said["node_errors"]["1"]["class_type"] = class_type
    with serving(Peer(answers={"/prompt": (status, json.dumps(said).encode())})) as peer, pytest.raises(GraphError):
        engine(peer).run(Graph(GRAPH))


@pytest.mark.parametrize("length", ["\u00b2", "9" * 5000, "-1", "x"])
def test_a_length_that_is_no_number_ends_nothing(here, length):
    peer = success(answers={"/view": (200, b"pixels")}, headers={"/view": {"Content-Length": length}})
    with serving(peer):
        assert run(peer)[0].files[0].read_bytes() == b"pixels"


NUMBERS = {"huge": 10**400, "below": -(10**400), "inf": float("inf"), "nan": float("nan"), "text": "1", "none": None}


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
def test_progress_that_nobody_can_count_is_not_told(here, number):
    with serving(success()) as peer:
        peer.events[3:3] = [
            ("progress", {"node": "1", **{"value": 1, "max": 2, key: number}}) for key in ("value", "max")
        ]
        _, watcher = run(peer)
    assert [values["done"] for name, values in watcher.told if name == "progress"] == [0, 1]


@contextlib.contextmanager
def dripping(head: bytes, drops: int) -> Iterator[str]:
    """The address of a server that says `head` at once, and then a byte every 0.05 s."""

    def drip() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(head)
            for _ in range(drops):
                time.sleep(0.05)
                connection.sendall(b"1")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"])
def test_an_answer_that_drips_is_not_waited_for(head):
    with dripping(head, 60) as url:
        began = time.monotonic()
        with raises(ServerError, "server.unreachable"):
            client.Server.at(url, timeout=0.3).get("/queue")
        assert time.monotonic() - began < 1.5


def test_a_result_may_take_as_long_as_it_comes(tmp_path):
    with dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n", 16) as url:
        client.Server.at(url, timeout=0.3).download("/view", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"1" * 16


@pytest.mark.parametrize("answer", [b"", b"{}", b'{"prompt_id": "another"}', b"[1]"])
def test_a_strange_answer_to_a_prompt_is_a_typed_error(here, answer):
    with serving(Peer(answers={"/prompt": (200, answer)})) as peer, pytest.raises(ServerError):
        engine(peer).run(Graph(GRAPH))


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
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ServerError) as error:
        RemoteEngine(RunConfig(), url)
    assert error.value.code == "server.url" and "sec" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("localhost:8188", "http://localhost:8188"),
        ("https://host/comfy/", "https://host/comfy"),
        ("http://[::1]:8188/", "http://[::1]:8188"),
    ],
)
def test_an_address_may_be_written_as_people_do(url, address):
    assert client.Server.at(url).address == address


def test_what_only_the_server_chooses_is_refused_here():
    for given in ({"models": ["m"]}, {"device": "cpu"}, {"precision": "fp16"}, {"vram": 1}):
        with raises(SettingError, "setting", f"--{next(iter(given))}"):
            RemoteEngine(RunConfig(**given), "localhost")


def test_validation_takes_a_picture_that_is_here_and_says_who_decides(here):
    with serving(Peer()) as peer:
        checked = engine(peer).check(Graph(GRAPH))
        assert checked.outputs == ["2"] and peer.url in checked.notes[-1]
        missing = {**GRAPH, "1": {"class_type": "LoadImage", "inputs": {"image": "gone.png"}}}
        with raises(GraphError, "graph.value_not_in_list", "gone.png") as error:
            engine(peer).check(Graph(missing))
    assert error.value.exit_status == 3
    assert peer.uploads == {} and peer.bodies("/prompt") == []


@pytest.mark.parametrize("node", [5, {"class_type": "LoadImage", "inputs": None}, {"class_type": []}])
def test_validation_of_what_is_no_graph_is_a_graph_error(here, node):
    with serving(Peer()) as peer, pytest.raises(GraphError) as error:
        engine(peer).check(Graph({**GRAPH, "1": node}))
    assert error.value.code == "graph.invalid_prompt"


def test_only_plain_files_inside_the_input_folder_are_uploaded(here):
    (here / "secret.png").write_bytes(b"secret")
    (here / "input" / "link.png").symlink_to(here / "secret.png")
    (here / "input" / "folder.png").mkdir()
    for name in ("../secret.png", str(here / "secret.png"), "link.png", "folder.png", "x.png [output]", "a\0.png", ""):
        graph = {**GRAPH, "1": {"class_type": "LoadImage", "inputs": {"image": name}}}
        with serving(success()) as peer:
            engine(peer).run(Graph(graph))
        assert peer.uploads == {} and peer.bodies("/prompt")[0]["prompt"] == graph


def test_the_command_line_runs_on_a_server(here, capsys):
    (here / "graph.json").write_text(json.dumps(GRAPH))
    with serving(success()) as peer:
        arguments = ["run", "graph.json", "--server", peer.url, "--set", "SaveImage.filename_prefix=y", "--json"]
        assert main(arguments) == 0
        assert main(["validate", "graph.json", "--server", peer.url]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()[:-1]]
    assert [line["event"] for line in lines][-2:] == ["executed", "result"]
    assert lines[-1]["files"] == ["output/sub/x_00001_.png"]
    assert peer.bodies("/prompt")[0]["prompt"]["2"]["inputs"]["filename_prefix"] == "y"
