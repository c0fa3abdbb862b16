"""Columns of a manifest become values of a graph; ids of tasks depend on them and on the graph."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
from diffusers import UNetSpatioTemporalConditionModel
from error_checks import check_facts, raises
from svd_stages import headless
from svd_stages.headless.batch.folder import RunFolder
from svd_stages.headless.batch.graph_binding import canonical_graph, without
from svd_stages.headless.batch.plan import PlannedRow, read_plan
from svd_stages.headless.batch.tasks import digest
from svd_stages.headless.engines.setting_checks import SETTING_INPUTS
from svd_stages.svd_core.checkpoints.library import EMBEDDED_FILE
from svd_stages.svd_core.checkpoints.model_metadata import VideoDefaults
from svd_stages.svd_core.errors import BatchError, CheckpointError, GraphError, SettingError, SVDStagesError
from svd_stages.svd_core.models.options import ModelOptions
from svd_stages.svd_core.runtime.runtime import RunWarning
from tiny import mini_checkpoint, save_tiny_folder

GRAPH = headless.open_graph(headless.PACKAGE / "example_workflows" / "quickstart_nano.json").prompt
CONDITIONING, SAMPLER, LOADER, RESIZE, IMAGE, SAVER = "8", "9", "2", "5", "3", "13"


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.png").write_text(name)
    return folder


def plan(
    photos: Path, rows: list[dict], graph: dict | None = GRAPH, models: Path | None = None, run: str = "run", **options
) -> list[PlannedRow]:
    (photos / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    request = headless.BatchRequest(photos.parent / run, photos / "m.jsonl", graph, **options)
    headless.plan_batch(request, headless.RunConfig(models=[] if models is None else [models]))
    return list(read_plan(RunFolder(photos.parent / run).plan_file))


def one(photos: Path, columns: dict, **options) -> PlannedRow:
    (row,) = plan(photos, [{"image": "a.png", **columns}], **options)
    return row


def ids(planned: list[PlannedRow]) -> dict[str, str]:
    return {each.task.image: each.task.id for each in planned if each.task is not None}


def changed(node_id: str, name: str, value: object, graph: dict = GRAPH) -> dict:
    graph = copy.deepcopy(graph)
    graph[node_id]["inputs"][name] = value
    return graph


def test_different_names_of_an_input_and_spellings_of_a_value_are_one_task(photos):
    assert GRAPH[CONDITIONING]["_meta"]["title"] == "SVD Micro-Conditioning"
    rows = [
        {f"{name}.motion_bucket_id": value}
        for name in (CONDITIONING, "SVDMicroConditioning", "SVD Micro-Conditioning")
        for value in (40, "40", 40.0, " 40 ")
    ]
    planned = plan(photos, [{"image": "a.png", **row} for row in rows])
    assert {each.message for each in planned} == {""}
    assert len({each.task.id for each in planned}) == 1
    assert planned[0].task.values[f"{CONDITIONING}.motion_bucket_id"] == 40
    status = headless.batch_status(photos.parent / "run")
    assert (status.rows, status.tasks, status.duplicates) == (12, 1, 11)


def test_values_have_the_type_that_the_input_declares(photos):
    columns = {
        f"{CONDITIONING}.fps": "12",
        f"{CONDITIONING}.noise_aug_strength": "0.5",
        f"{RESIZE}.fit": "pad",
        f"{SAVER}.lossless": "false",
        f"{SAVER}.filename_prefix": "7",
    }
    values = one(photos, columns).task.values
    assert [values[name] for name in columns] == [12, 0.5, "pad", False, "7"]
    assert [type(values[name]) for name in columns] == [int, float, str, bool, str]


@pytest.mark.parametrize(
    ("column", "value", "code"),
    [
        ("SVDMicroConditioning.fps", "many", "graph.setting"),
        ("SVDMicroConditioning.fps", "7.5", "graph.setting"),
        ("SVDMicroConditioning.fps", 7.5, "graph.setting"),
        ("SVDMicroConditioning.fps", "", None),
        ("SVDMicroConditioning.fps", True, "graph.setting"),
        ("SVDMicroConditioning.fps", [7], "graph.setting"),
        ("SVDMicroConditioning.fps", {"a": 7}, "graph.setting"),
        ("SVDMicroConditioning.fps", -1, "graph.value_smaller_than_min"),
        ("SVDMicroConditioning.fps", 10**9, "graph.value_bigger_than_max"),
        ("SVDMicroConditioning.fps", 10**400, "graph.value_bigger_than_max"),
        ("SVDMicroConditioning.noise_aug_strength", "nan", "graph.setting"),
        ("SVDMicroConditioning.noise_aug_strength", "inf", "graph.setting"),
        ("SVDMicroConditioning.noise_aug_strength", "x" * 100_000, "graph.setting"),
        ("SVDResizeImage.fit", "twist", "graph.value_not_in_list"),
        ("SaveAnimatedWEBP.lossless", "perhaps", "graph.setting"),
    ],
)
def test_an_invalid_value_is_a_faulty_row_that_names_node_and_input(photos, column, value, code):
    bad, good = plan(photos, [{"image": "a.png", column: value}, {"image": "b.png"}])
    assert good.task is not None
    if column.endswith(".fps") and value == "":
        code = "graph.setting"
    assert bad.task is None and bad.code == code
    node, _, name = column.partition(".")
    check_facts(bad.message, name, 1)
    assert GRAPH[_id(node)]["_meta"]["title"] in bad.message
    assert len(bad.message) < 1000


def _id(class_type: str) -> str:
    return next(node_id for node_id, node in GRAPH.items() if node["class_type"] == class_type)


@pytest.mark.parametrize("column", ["SVDMicroConditionin.fps", "SVDMicroConditioning.fsp", "99.fps", ".fps", "8.", "."])
def test_an_unknown_column_is_an_error_of_the_rows_that_have_it(photos, column):
    bad, good = plan(photos, [{"image": "a.png", column: 7}, {"image": "b.png", column: None}])
    assert good.task is not None and bad.code == "graph.setting"


def test_columns_for_linked_inputs_and_for_the_image_are_refused(photos):
    for column in ("CreateVideo.fps", "LoadImage.image"):
        refused = one(photos, {column: 7})
        assert refused.code == "graph.setting"
        check_facts(refused.message, column)


def test_two_columns_for_one_input_agree_or_are_refused(photos):
    assert one(photos, {"8.fps": 9, "SVDMicroConditioning.fps": "9"}).task.values["8.fps"] == 9
    assert one(photos, {"8.fps": 9, "SVDMicroConditioning.fps": 10}).code == "graph.setting"


def test_seeds_go_into_every_seed_of_the_graph(photos):
    two = copy.deepcopy(GRAPH)
    two["20"] = copy.deepcopy(two[SAMPLER])
    (decoder,) = [key for key, node in two.items() if node["class_type"] == "SVDTemporalVAEDecode"]
    two["21"] = {"class_type": "SVDTemporalVAEDecode", "inputs": {**two[decoder]["inputs"], "latent": ["20", 0]}}
    two["22"] = {"class_type": "SaveImage", "inputs": {"images": ["21", 0], "filename_prefix": "x"}}
    assert one(photos, {"seed": 11}, graph=two).task.values == {"9.seed": 11, "20.seed": 11}
    derived = one(photos, {}, graph=two).task
    assert derived.values == {"9.seed": derived.seed, "20.seed": derived.seed}
    assert derived.seed != one(photos, {"8.fps": 3}, graph=two).task.seed
    assert one(photos, {"20.seed": 12, "seed": 11}, graph=two).task.values == {"9.seed": 11, "20.seed": 12}
    partly = one(photos, {"20.seed": 12}, graph=two).task
    assert partly.values == {"9.seed": partly.seed, "20.seed": 12}
    by_columns = one(photos, {"9.seed": 5, "20.seed": 12}, graph=two).task
    assert by_columns.values == {"9.seed": 5, "20.seed": 12} and by_columns.seed == 5


def test_a_seed_that_is_linked_is_left_to_its_source(photos):
    linked = copy.deepcopy(GRAPH)
    linked["20"] = {"class_type": "PrimitiveInt", "inputs": {"value": 3}}
    linked[SAMPLER]["inputs"]["seed"] = ["20", 0]
    assert f"{SAMPLER}.seed" not in one(photos, {}, graph=linked).task.values


def test_ids_do_not_depend_on_order_folder_titles_or_the_graph_s_seed_and_image(photos, tmp_path):
    rows = [{"image": f"{name}.png", "SVDMicroConditioning.fps": 5 + number} for number, name in enumerate("abc")]
    first = ids(plan(photos, rows))
    assert len(set(first.values())) == 3
    assert ids(plan(photos, rows[::-1], run="reversed")) == first
    for node, name, value in ((SAMPLER, "seed", 99), (IMAGE, "image", "other.png")):
        assert ids(plan(photos, rows, changed(node, name, value), run=f"graph-{name}")) == first
    shutil.copytree(photos, tmp_path / "elsewhere" / "pictures")
    assert ids(plan(tmp_path / "elsewhere" / "pictures", rows)) == first
    untitled = {name: {**node, "_meta": {}} for name, node in reversed(GRAPH.items())}
    without_effect = {
        "look": {"class_type": "PreviewImage", "inputs": {"images": ["10", 0]}},
        "noise": {"class_type": "RandomNoise", "inputs": {"noise_seed": 5}},
    }
    assert ids(plan(photos, rows, {**untitled, **without_effect}, run="untitled")) == first


def test_ids_depend_on_other_values_of_the_graph(photos):
    first = one(photos, {}).task
    other = one(photos, {}, graph=changed(SAMPLER, "steps", 3), run="steps").task
    by_setting = one(photos, {}, settings=["SVDEulerSampler.steps=3"], run="set").task
    assert first.id != other.id == by_setting.id and first.seed == other.seed


def test_ids_depend_on_the_content_of_models(photos, tmp_path):
    for name in ("x", "y", "z"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        shutil.copy(EMBEDDED_FILE, tmp_path / name / "checkpoints" / "mine.safetensors")
    with (tmp_path / "z" / "checkpoints" / "mine.safetensors").open("ab") as stream:
        stream.write(b"\0")
    graph = changed(LOADER, "checkpoint", "mine.safetensors")
    x, y, z = (one(photos, {}, graph=graph, models=tmp_path / name, run=name).task for name in "xyz")
    assert x.id == y.id != z.id and x.seed == z.seed
    column = {"SVDCheckpointLoader.checkpoint": "mine.safetensors"}
    x, y, z = (one(photos, column, models=tmp_path / name, run=f"column-{name}").task for name in "xyz")
    assert x.id == y.id != z.id and x.seed == z.seed
    assert x.values[f"{LOADER}.checkpoint"] == "mine.safetensors"


def test_settings_of_the_video_are_those_of_animate(photos):
    expected = one(photos, {}, graph=None, run="default").task
    video = {each.name: each.default for each in fields(headless.VideoSettings)}
    seed = video.pop("seed")
    unset = [name for name, value in video.items() if value is None]
    assert len(unset) > 3
    assert one(photos, {}, graph=None, video=video).task == expected
    assert one(photos, {}, graph=None, video=dict.fromkeys([*unset, "decode_mode"])).task == expected
    assert one(photos, {}, graph=None, video={**video, "seed": seed}, run="seed").task.seed is None


@pytest.mark.parametrize("first", [{}, {"sigmas": "9,0", "compile": "full"}], ids=str)
def test_noise_levels_and_compile_of_a_run_can_be_set_again(photos, first):
    video = {"sigmas": [700, 4.2, 0], "compile": "regional"}
    expected = one(photos, {}, graph=None, video=video, run="new").task.id
    one(photos, {}, graph=None, video=first)
    for again in (video, {**video, "sigmas": "700, 4.2, 0"}, {"sigmas": None}, {}):
        assert one(photos, {}, graph=None, video=again).task.id == expected
    graph = (RunFolder(photos.parent / "run").read_settings() or {})["graph"]
    settings = headless.VideoSettings(preset="reference", **video)
    frames = headless.image_to_video_graph(settings, headless.RunConfig().runtime(), "image.png")
    assert graph == {**frames.prompt, "7": graph["7"]}


def test_steps_take_noise_levels_back(photos):
    expected = one(photos, {}, graph=None, video={"steps": 3}, run="new").task.id
    one(photos, {}, graph=None, video={"sigmas": "9,0"})
    assert one(photos, {}, graph=None, video={"steps": 3}).task.id == expected


@pytest.mark.parametrize(
    ("video", "kind", "code", "facts"),
    [
        ({"stesp": 3}, TypeError, None, ("'stesp'", "'steps'")),
        ({"generator": 3}, TypeError, None, ("'generator'", "help(svd_stages.animate)")),
        ({"fps": None}, TypeError, None, ("`fps`", "None")),
        ({"steps": 0}, SettingError, "graph.value_smaller_than_min", ("`steps`", 0, "1 to 10000")),
        ({"width": 100}, SettingError, "setting", ("`width`", 100, "64 or 128")),
        ({"sigmas": [1, 2]}, SettingError, "setting", ("`sigmas`", "1, 2")),
        ({"sigmas": "karras"}, SettingError, "setting", ("`sigmas`", "karras")),
        ({"compile": "foo"}, SettingError, "setting", ("`compile`", "foo", "full")),
    ],
    ids=str,
)
def test_an_invalid_setting_of_the_video_is_refused(photos, video, kind, code, facts):
    for run in ("new", "planned"):
        with raises(kind, code, *facts):
            one(photos, {}, graph=None, video=video, run=run)
        one(photos, {}, graph=None, video={"compile": "regional"}, run="planned")


def test_another_graph_has_no_settings_of_the_video(photos):
    one(photos, {})
    for graph in (GRAPH, None):  # None: that of the run
        with raises(SettingError, "setting", "`steps`", "`settings`"):
            one(photos, {}, graph=graph, video={"steps": 3})


@pytest.mark.parametrize(
    "damage", [{"seeds": 5}, {"sizes": 5}, {"shared": 5}, {"graph": {"1": {}}}, {"graph": 5}], ids=str
)
def test_a_damaged_field_of_a_run_is_no_crash(photos, damage):
    one(photos, {}, graph=None)
    folder = RunFolder(photos.parent / "run")
    settings = folder.read_settings() or {}
    folder.write_settings({**settings, **damage})
    with pytest.raises(SVDStagesError) if "graph" in damage else contextlib.nullcontext():
        one(photos, {}, graph=None, video={"steps": 3})
    assert one(photos, {}, graph=None, model="svd-nano", video={"steps": 3}).task is not None


def test_a_missing_model_is_an_error_of_the_graph_or_of_the_row(photos):
    with raises(SVDStagesError, "graph.custom_validation_failed", "gone.safetensors") as caught:
        plan(photos, [{"image": "a.png"}], changed(LOADER, "checkpoint", "gone.safetensors"))
    assert caught.value.exit_status == CheckpointError.exit_status
    bad = one(photos, {"SVDCheckpointLoader.checkpoint": "../../gone.safetensors"})
    assert bad.task is None and bad.code.startswith("checkpoint")


def test_shared_facts_name_each_model_of_the_rows(photos, tmp_path):
    (tmp_path / "models").mkdir()
    shutil.copy(EMBEDDED_FILE, tmp_path / "models" / "mine.safetensors")
    one(photos, {"SVDCheckpointLoader.checkpoint": "mine.safetensors"}, models=tmp_path / "models")
    settings = RunFolder(tmp_path / "run").read_settings()
    assert settings is not None and settings["models"] == ["mine.safetensors", "svd-nano"]
    assert settings["shared"].keys() == {"code", "model mine.safetensors", "model svd-nano"}


@pytest.mark.parametrize(
    ("graph", "code"),
    [
        ({}, "graph.images"),
        ({"1": {"class_type": "NoSuchNode", "inputs": {}}}, "graph.images"),
        ({**GRAPH, "77": {"class_type": "NoSuchNode", "inputs": {}}}, "graph.missing_node_type"),
        ({**GRAPH, "77": {"inputs": {}}}, "graph.missing_node_type"),
        ({**GRAPH, "77": {"class_type": "LoadImage"}}, "graph.invalid_prompt"),
        ({**GRAPH, "77": []}, "graph.invalid_prompt"),
        ({**GRAPH, "77": {"class_type": "LoadImage", "inputs": {"image": "x"}}}, "graph.images"),
        ({name: node for name, node in GRAPH.items() if name != IMAGE}, "graph.images"),
        ({name: node for name, node in GRAPH.items() if "Save" not in node["class_type"]}, "graph.prompt_no_outputs"),
        (
            {**GRAPH, "13": {"class_type": "PreviewImage", "inputs": {"images": ["10", 0]}}, "12": GRAPH["11"]},
            "graph.saves_nothing",
        ),
        ({**GRAPH, "77": {"class_type": "SaveImage", "inputs": {"images": ["nowhere", 0]}}}, "graph.some_outputs"),
    ],
)
def test_an_unsuitable_graph_is_refused(photos, graph, code):
    with raises(GraphError, code):
        plan(photos, [{"image": "a.png"}], graph)
    assert not RunFolder(photos.parent / "run").plan_file.exists()


def test_repeated_errors_are_cached(photos):
    """Messages list similar names, which takes a millisecond each time."""
    from svd_stages.headless.batch.graph_binding import ModelHashes, Values

    runtime = headless.RunConfig().runtime()
    values = Values(GRAPH, ModelHashes(GRAPH, runtime), f"{IMAGE}.image")
    seen = set()
    for number in range(20_000):
        for columns in ({"NoNode.x": number}, {"SVDMicroConditioning.fps": -1}):
            with pytest.raises(SVDStagesError) as caught:
                values(columns)
            seen.add(id(caught.value))
            depth, traceback = 0, caught.value.__traceback__
            while traceback is not None:
                depth, traceback = depth + 1, traceback.tb_next
            assert depth < 10
    assert len(seen) == 2


def test_a_run_folder_without_a_plan_is_refused(tmp_path):
    def run(folder: Path) -> None:
        headless.run_batch(headless.BatchRequest(folder), headless.RunConfig())

    for call in (headless.batch_status, headless.retry_batch, run):
        with raises(BatchError, "batch.no_plan", tmp_path / "run"):
            call(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_outside_of_the_folder_need_the_option_images(photos):
    (photos.parent / "other").mkdir()
    (photos.parent / "other" / "x.png").write_text("x")
    (photos / "link.png").symlink_to(photos.parent / "other" / "x.png")
    names = ["../other/x.png", str(photos.parent / "other" / "x.png"), "link.png"]
    rows = [{"image": name} for name in names]
    assert [each.code for each in plan(photos, rows)] == ["image.outside"] * 3
    planned = plan(photos, rows, images=photos.parent)
    assert {each.task.image for each in planned} == {"other/x.png"} and len(ids(planned)) == 1


def changes(photos: Path, folder: Path | None = None, precision: str = "auto", **options) -> list[RunWarning]:
    """Plan a run, and return the notes of its changed settings."""
    notes: list[RunWarning] = []
    run_config = headless.RunConfig(on_note=notes.append, precision=precision)
    headless.plan_batch(headless.BatchRequest(photos.parent / "run", folder or photos, **options), run_config)
    return notes


def test_a_changed_setting_of_a_run_is_noted_with_the_number_of_videos(photos, caplog):
    assert not changes(photos, video={"steps": 3, "width": 128})
    for same in ({}, {"video": {"steps": 3}}, {"settings": ["SVDEulerSampler.steps=3"]}, {"model": "svd-nano"}):
        assert not changes(photos, **same)
    video = {"steps": 4, "width": 192, "height": 128, "sigmas": "9,0", "seed": 5, "compile": "full"}
    (note,) = changes(photos, video=video, precision="bf16")
    assert note.code == "batch.settings_changed"
    assert note.facts["videos"] == 3
    assert note.facts["changed"] == {
        "steps": [3, 4],
        "width": [128, 192],
        "height": ["that of the image", 128],
        "sigmas": [None, "9, 0"],
        "seed": ["that of the row", 5],
        "compile": [None, "full"],
        "precision": ["auto", "bf16"],
    }
    check_facts(note.text, "`steps` from 3 to 4", "3 of 3 videos")
    assert note.text in caplog.text


def recorded(photos: Path, run: str = "run") -> dict:
    return RunFolder(photos.parent / run).read_settings() or {}


def values_of(photos: Path, run: str = "run") -> dict:
    """The values of the settings in the graph of a run."""
    nodes = recorded(photos, run)["graph"].values()
    return {
        name: node["inputs"][place[1]]
        for name, place in SETTING_INPUTS.items()
        for node in nodes
        if node["class_type"] == place[0]
    }


@pytest.fixture
def models(tmp_path) -> Path:
    """A models folder with the checkpoint `other`, of 25 frames and 320x192."""
    checkpoint = mini_checkpoint()
    unet = UNetSpatioTemporalConditionModel.from_config(checkpoint.model.unet.config, num_frames=25)
    model = replace(checkpoint.model, unet=unet, defaults=VideoDefaults(25, width=320, height=192))
    save_tiny_folder(tmp_path / "models" / "diffusers" / "other", replace(checkpoint, model=model))
    return tmp_path / "models"


def test_another_model_keeps_the_other_settings_of_the_run(photos, models):
    video = {"steps": 3, "motion_bucket_id": 40, "fit": "pad", "num_frames": 14, "max_guidance": 2.0, "sigmas": "9,0"}
    one(photos, {}, graph=None, models=models, video=video)
    before = values_of(photos)
    one(photos, {}, graph=None, models=models, model="other", run="other")
    defaults = values_of(photos, "other")
    assert before["num_frames"] == 14 != defaults["num_frames"] and before["max_guidance"] != defaults["max_guidance"]
    one(photos, {}, graph=None, models=models, model="other")
    after = values_of(photos)
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"model", "width", "height", "min_guidance"} and after["model"] == "other"
    assert after == {**before, **{name: defaults[name] for name in changed}}
    assert after["width"] == defaults["width"] != before["width"]
    assert any(node["class_type"] == "ManualSigmas" for node in recorded(photos)["graph"].values())
    one(photos, {}, graph=None, models=models, model="svd-nano")
    assert values_of(photos) == before


def test_what_the_checkpoint_chose_follows_another_model_and_what_was_set_does_not(photos, models):
    one(photos, {}, graph=None, models=models, video={"width": 192})
    assert len(recorded(photos)["of_checkpoint"]) == 3
    one(photos, {}, graph=None, models=models, model="other")
    one(photos, {}, graph=None, models=models, model="other", run="other")
    defaults, after = values_of(photos, "other"), values_of(photos)
    assert after == {**defaults, "width": 192} and after["num_frames"] == 25
    settings = recorded(photos)
    RunFolder(photos.parent / "run").write_settings({key: settings[key] for key in settings if key != "of_checkpoint"})
    one(photos, {}, graph=None, models=models, model="svd-nano")  # a run of before keeps what it recorded
    assert values_of(photos)["num_frames"] == 25


def test_a_model_is_no_setting_of_another_graph(photos):
    one(photos, {})
    for graph in (GRAPH, None):  # None: that of the run
        with raises(SettingError, "setting", "`model`", "`settings`"):
            one(photos, {}, graph=graph, model="svd-xt")


def test_the_precision_of_a_run_is_kept(photos):
    assert not changes(photos, precision="bf16")
    assert not changes(photos)
    assert recorded(photos)["precision"] == "bf16"
    (note,) = changes(photos, precision="fp16")
    assert note.facts["changed"] == {"precision": ["bf16", "fp16"]}


@pytest.mark.parametrize("options", [{"compile": "full"}, {"memory": "stream", "attention": "sdpa"}], ids=str)
@pytest.mark.parametrize("shipped", [True, False])
def test_options_that_change_no_video_change_no_id(photos, options, shipped):
    plain = recorded_graph(photos) if shipped else GRAPH
    first = one(photos, {}, graph=plain).task.id
    for run in ("run", "fresh"):
        assert one(photos, {}, graph=with_options(plain, options), run=run).task.id == first
        assert one(photos, {}, graph=plain, run=run).task.id == first


def test_compile_of_a_run_renders_nothing_again(photos):
    first = one(photos, {}, graph=None, video={"compile": "regional"}).task.id
    for video in ({"compile": "off"}, {}, {"compile": "full"}):
        assert one(photos, {}, graph=None, video=video).task.id == first
    assert one(photos, {}, graph=None, video={"steps": 3}).task.id != first
    assert one(photos, {}, graph=None, video={"steps": 25, "compile": "off"}).task.id == first


def test_a_run_of_before_that_counted_such_options_keeps_its_ids(photos):
    """Version 0.1 counted all nodes of the graph, and recorded no digest of it."""
    graph = with_options(GRAPH, {"memory": "stream"})
    one(photos, {}, graph=graph)
    folder = RunFolder(photos.parent / "run")
    settings = folder.read_settings() or {}
    counted = digest(without(canonical_graph(graph), [(IMAGE, "image"), (SAMPLER, "seed")]))
    assert settings["graph_digest"] != counted
    folder.write_settings({key: value for key, value in settings.items() if key != "graph_digest"})
    first = one(photos, {}, graph=graph).task.id
    assert recorded(photos)["graph_digest"] == counted
    for again in (GRAPH, with_options(GRAPH, {"memory": "resident"}), None, graph):
        assert one(photos, {}, graph=again).task.id == first
    assert one(photos, {}, graph=changed(SAMPLER, "steps", 3, graph)).task.id != first


@pytest.mark.parametrize("damage", [{"graph_digest": "x"}, {"image": ["3"]}, {"seeds": ["no.seed"]}], ids=str)
def test_a_damaged_digest_of_a_run_is_ignored(photos, damage):
    first = one(photos, {}).task.id
    folder = RunFolder(photos.parent / "run")
    folder.write_settings({**(folder.read_settings() or {}), **damage})
    assert one(photos, {}).task.id == first


def recorded_graph(photos: Path) -> dict:
    one(photos, {}, graph=None, run="shipped")
    return recorded(photos, "shipped")["graph"]


def with_options(graph: dict, options: dict) -> dict:
    """The graph with SVDModelOptions before its sampler."""
    graph = copy.deepcopy(graph)
    sampler = next(node for node in graph.values() if node["class_type"] == "SVDEulerSampler")
    inputs = {**vars(ModelOptions()), **options, "model": sampler["inputs"]["model"]}
    graph["fast"] = {"class_type": "SVDModelOptions", "inputs": inputs}
    sampler["inputs"]["model"] = ["fast", 0]
    return graph
