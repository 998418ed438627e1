"""The configuration tree: reading, extending, overriding, explaining what is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from m2f_cli.config import presets as config
from m2f_cli.config.schema import Config, ResizeConfig
from m2f_cli.errors import ConfigError

PRESET = "coco-panoptic-swin-t"
SWIN_T = config.presets_dir() / "backbones" / "swin-t.yaml"


def write(folder, name, tree):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree))
    return path


def test_config_imports_no_torch():
    code = "import sys, m2f_cli.config.presets as c; c.load('coco-instance-r50'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- overrides --------------------------------------------------------------------------------------------------------


def test_overrides_win_over_the_file():
    before = config.load(PRESET)
    after = config.load(PRESET, ["test.object_threshold=0.25", "model.decoder.num_queries=7", "test.tasks=[semantic]"])
    assert (before.test.object_threshold, after.test.object_threshold) == (0.8, 0.25)
    assert after.model.decoder.options["num_queries"] == 7
    assert after.test.tasks == ("semantic",)
    assert after.model.decoder.options["dim"] == before.model.decoder.options["dim"] == 256


def test_an_override_may_state_an_optional_key_that_the_file_leaves_out():
    fixed = config.load(PRESET, ["test.resize={fixed: [384, 384]}"])
    assert fixed.test.resize == ResizeConfig(fixed=(384, 384))
    capped = config.load(PRESET, ["test.resize={short_edge: 800}", "test.resize.max_edge=900"])
    assert capped.test.resize == ResizeConfig(short_edge=800, max_edge=900)


def test_another_component_by_override_drops_the_options_of_the_first():
    changed = config.load(PRESET, ["model.backbone.name=resnet", "model.backbone.depth=50"])
    assert changed.model.backbone.options == {"depth": 50}


def test_options_of_another_component_by_override_may_look_alike():
    options = ["dim=32", "mask_dim=16", "num_layers=2"]
    changed = config.load(PRESET, ["model.decoder.name=mine", *(f"model.decoder.{pair}" for pair in options)])
    assert changed.model.decoder.options == {"dim": 32, "mask_dim": 16, "num_layers": 2}


def test_the_same_component_by_override_keeps_its_options():
    kept = config.load(PRESET, ["model.backbone.name=swin"])
    assert kept == config.load(PRESET)


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("test.object_treshold=0.5", ["test.object_treshold", "object_threshold"]),
        ("model.decoder.num_queris=5", ["model.decoder.num_queris", "num_queries"]),
        ("test.object_threshold=2", ["test.object_threshold", "2", "less than or equal to 1"]),
        ("test.object_threshold=much", ["test.object_threshold", "much"]),
        ("test.tasks=[stuff]", ["test.tasks.0", "stuff"]),
        ("task.name=x", ["task", "no keys below"]),
        ("no-equals-sign", ["no-equals-sign", "key=value"]),
        ("task=[", ["task=[", "not valid YAML"]),
        ("test.resize.fixed=[384, 384]", ["test.resize", "either"]),
        ("weights=[{format: m2f, licence: x}]", ["weights.0", "either url or hub"]),
    ],
)
def test_a_wrong_override_is_explained(pair, words):
    with pytest.raises(ConfigError) as caught:
        config.load(PRESET, [pair])
    for word in words:
        assert word in str(caught.value)


# --- files ------------------------------------------------------------------------------------------------------------


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="cityscapes-swin-l"):
        config.load("cityscape-swin-l")


def test_a_missing_file_and_a_file_that_is_no_yaml(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1, 2")
    with pytest.raises(ConfigError, match="not valid YAML"):
        config.load(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match="not list"):
        config.load(tmp_path / "list.yaml")


def test_a_missing_key_and_an_unknown_key_are_named(tmp_path):
    tree = yaml.safe_load(config.dump(config.load(PRESET)))
    del tree["test"]["top_k"]
    with pytest.raises(ConfigError, match=r"test\.top_k"):
        config.load(write(tmp_path, "missing.yaml", tree))
    tree["test"] |= {"top_k": 100, "topk": 5}
    with pytest.raises(ConfigError, match=r"unknown key 'test\.topk'.*top_k"):
        config.load(write(tmp_path, "unknown.yaml", tree))


def test_a_tree_is_frozen():
    loaded = config.load(PRESET)
    with pytest.raises(ValueError, match="frozen"):
        loaded.task = "semantic"
    with pytest.raises(ValueError, match="frozen"):
        loaded.model.backbone.name = "resnet"


def test_dump_and_load_are_inverse(tmp_path):
    loaded = config.load(PRESET, ["summary='on: off, 1e-4 #'", "model.decoder.num_queries=3"])
    path = tmp_path / f"{PRESET}.yaml"
    path.write_text(config.dump(loaded))
    assert config.load(path) == loaded
    path.write_text(config.dump(loaded, named=False))
    assert "name: coco" not in path.read_text()
    assert config.load(path) == loaded
    assert "depths: [2, 2, 6, 2]" in path.read_text()


# --- extends ----------------------------------------------------------------------------------------------------------


def test_a_file_of_the_user_may_extend_a_preset(tmp_path):
    path = write(tmp_path, "mine.yaml", {"extends": PRESET, "model": {"decoder": {"num_queries": 50}}})
    mine, base = config.load(path), config.load(PRESET)
    assert mine.model.decoder.options == base.model.decoder.options | {"num_queries": 50}
    assert (mine.model.backbone, mine.weights) == (base.model.backbone, base.weights)


def test_what_was_measured_is_not_inherited(tmp_path):
    write(tmp_path, "base.yaml", yaml.safe_load(config.dump(config.load(PRESET))))
    mine = config.load(write(tmp_path, "mine.yaml", {"extends": "base"}))
    assert (mine.name, mine.summary, mine.published) == ("mine", "", ())
    assert config.load(tmp_path / "base.yaml").published


def test_another_component_replaces_the_one_below(tmp_path):
    resnet = {"name": "resnet", "depth": 50}
    path = write(tmp_path, "mine.yaml", {"extends": PRESET, "model": {"backbone": resnet}})
    assert config.load(path).model.backbone.options == {"depth": 50}
    assert config.load(PRESET).model.backbone.options["embed_dim"] == 96


def test_merge_leaves_its_arguments_alone():
    base, top = {"a": {"name": "x", "k": 1}, "l": [1, 2]}, {"a": {"k": 2}, "l": [3]}
    assert config.merge(base, top) == {"a": {"name": "x", "k": 2}, "l": [3]}
    assert base == {"a": {"name": "x", "k": 1}, "l": [1, 2]}
    assert config.merge(base, {"a": {"name": "y"}})["a"] == {"name": "y"}


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("recipes/coco-panoptics", "recipes/coco-panoptic"),
        (["recipes/coco-panoptic", "backbones/swin-x"], "backbones/swin-"),
        (3, "not 3"),
        (["recipes/coco-panoptic", 3], "not \\['recipes"),
        ({"recipes": "coco"}, "not {'recipes"),
    ],
)
def test_an_unknown_base_is_explained(tmp_path, base, words):
    with pytest.raises(ConfigError, match=words):
        config.load(write(tmp_path, "mine.yaml", {"extends": base}))


def test_a_file_of_the_user_may_extend_a_recipe_and_a_backbone(tmp_path):
    path = write(tmp_path, "mine.yaml", {"extends": ["recipes/coco-panoptic", "backbones/swin-t"]})
    assert config.load(path).model == config.load(PRESET).model
    alone = write(tmp_path, "alone.yaml", {"extends": ["recipes/coco-panoptic"], **yaml.safe_load(SWIN_T.read_text())})
    assert config.load(alone).model == config.load(PRESET).model


def test_an_option_that_is_null_is_written_and_read_back(tmp_path):
    """Left out, it would be the default of its part, which may be another value."""
    mine = config.load(PRESET, ["model.backbone.patch_norm=null"])
    assert mine.model.backbone.options["patch_norm"] is None
    text = config.dump(mine)
    assert "patch_norm: null" in text and "lora" not in text
    (tmp_path / "mine.yaml").write_text(text)
    assert config.load(tmp_path / "mine.yaml") == mine


@pytest.mark.parametrize("key", [3, 1.5, None, True])
def test_keys_that_are_no_names_are_refused_where_options_are_open(tmp_path, key):
    """JSON has only texts as keys: the configuration in a checkpoint would be another one."""
    step = {"name": "resize_choice", "short_edges": [256, {key: 1}], "max_edge": 512}
    with pytest.raises(ConfigError, match=f"short_edges has the key {key}, where names are needed"):
        config.load(write(tmp_path, "mine.yaml", {"extends": PRESET, "train": {"augment": [step]}}))


@pytest.mark.parametrize("length", [300, 5000])
def test_a_base_whose_name_is_too_long_for_a_file_is_one_short_sentence(tmp_path, length):
    with pytest.raises(ConfigError, match=r"There is no recipe, backbone or preset .* named 'x{200}…'\.") as error:
        config.load(write(tmp_path, "mine.yaml", {"extends": "x" * length}))
    assert len(str(error.value)) < 500


def test_later_names_in_extends_win_and_the_file_wins_over_all(tmp_path):
    for name, queries, size in (("a", 1, 10), ("b", 2, 20)):
        tree = {"model": {"decoder": {"num_queries": queries}}, "test": {"top_k": size}}
        write(tmp_path, f"{name}.yaml", tree)
    tree = {"extends": [PRESET, "a", "b"], "test": {"top_k": 30}}
    mine = config.load(write(tmp_path, "mine.yaml", tree))
    assert (mine.model.decoder.options["num_queries"], mine.test.top_k) == (2, 30)
    mine = config.load(write(tmp_path, "mine.yaml", {**tree, "extends": [PRESET, "b", "a"]}))
    assert mine.model.decoder.options["num_queries"] == 1
    assert mine.model.decoder.options["dim"] == 256


def test_a_name_in_extends_is_looked_up_beside_the_file_before_the_shipped_ones(tmp_path):
    write(tmp_path, "backbones/swin-t.yaml", {"model": {"backbone": {"name": "resnet", "depth": 18}}})
    own = config.load(write(tmp_path, "mine.yaml", {"extends": [PRESET, "backbones/swin-t"]}))
    assert own.model.backbone.options == {"depth": 18}


def test_a_backbone_replaces_the_whole_backbone_and_drops_weights_of_another(tmp_path):
    path = write(tmp_path, "mine.yaml", {"extends": ["maskformer-ade20k-r101c", "backbones/r50"]})
    mine = config.load(path)
    assert mine.model.backbone == config.load("coco-panoptic-r50").model.backbone
    assert (mine.weights, mine.task) == ((), "semantic")


def test_what_several_files_extend_is_resolved_for_each_of_them(tmp_path):
    write(tmp_path, "base.yaml", {"extends": PRESET, "test": {"top_k": 1}})
    write(tmp_path, "left.yaml", {"extends": "base", "test": {"top_k": 2}})
    write(tmp_path, "right.yaml", {"extends": "base", "test": {"object_threshold": 0.5}})
    mine = config.load(write(tmp_path, "mine.yaml", {"extends": ["left", "right"]}))
    assert (mine.test.top_k, mine.test.object_threshold) == (1, 0.5)


def test_files_that_double_at_each_level_are_read_once_and_endless_chains_are_refused(tmp_path):
    for i in range(40):
        write(tmp_path, f"{i}.yaml", {"extends": [f"{i + 1}", f"{i + 1}"]})
    write(tmp_path, "40.yaml", {"extends": PRESET})
    assert config.load(tmp_path / "0.yaml").model == config.load(PRESET).model
    write(tmp_path, "40.yaml", {"extends": "41"})
    for i in range(41, 100):
        write(tmp_path, f"{i}.yaml", {"extends": f"{i + 1}"})
    with pytest.raises(ConfigError, match=r"0\.yaml: extends more than 50 files"):
        config.load(tmp_path / "0.yaml")


def test_files_that_extend_each_other_are_refused(tmp_path):
    write(tmp_path, "a.yaml", {"extends": "b"})
    write(tmp_path, "b.yaml", {"extends": "a"})
    write(tmp_path, "c.yaml", {"extends": ["recipes/coco-panoptic", "c"]})
    for name in ("a", "c"):
        with pytest.raises(ConfigError, match="extends this file again"):
            config.load(tmp_path / f"{name}.yaml")


# --- iterations or epochs ---------------------------------------------------------------------------------------------


def test_the_later_of_iterations_and_epochs_holds(tmp_path):
    def length(*files: dict, overrides=()) -> tuple[int, float | None]:
        for i, train in enumerate(files):
            write(tmp_path, f"{i}.yaml", {"extends": f"{i - 1}" if i else PRESET, "train": train})
        train = config.load(tmp_path / f"{len(files) - 1}.yaml", overrides).train
        return train.iterations, train.epochs

    published = config.load(PRESET).train.iterations
    assert length({"epochs": 3}) == (published, 3)
    assert length({"epochs": 3}, {"batch": 8}) == (published, 3)
    assert length({"epochs": 3}, {"iterations": 7}) == (7, None)
    assert length({"iterations": 7}, {"epochs": 3}) == (7, 3)
    assert length({"epochs": 3}, overrides=["train.iterations=9"]) == (9, None)
    assert length({"iterations": 7}, overrides=["train.epochs=2"]) == (7, 2)
    assert config.overridden(config.load(PRESET, ["train.epochs=2"]), ["train.iterations=9"]).train.epochs is None


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ({"epochs": 3, "iterations": 7}, "train.epochs = 3 and train.iterations = 7 are both set. Set one of them"),
        (
            {"epochs": 3, "schedule": {"steps": [5]}},
            "train.schedule.steps counts iterations, whose number train.epochs",
        ),
    ],
)
def test_one_file_or_command_line_has_one_length(tmp_path, train, says):
    write(tmp_path, "both.yaml", {"extends": PRESET, "train": train})
    with pytest.raises(ConfigError, match=f"both.yaml: {says}"):
        config.load(tmp_path / "both.yaml")
    flat = {"schedule.steps": train["schedule"]["steps"], "epochs": 3} if "schedule" in train else train
    with pytest.raises(ConfigError, match=f"--set: {says}"):
        config.load(PRESET, [f"train.{key}={value}" for key, value in flat.items()])


def test_differences_are_dotted_keys_with_both_values():
    before = config.load(PRESET)
    after = config.load(PRESET, ["train.batch=3", "train.best_metric=sq", "data.ignore_index=7"])
    assert config.differences(before, before) == {}
    assert config.differences(before, after) == {
        "data.ignore_index": (None, 7),
        "train.batch": (16, 3),
        "train.best_metric": (None, "sq"),
    }


# --- bounds -----------------------------------------------------------------------------------------------------------

HUGE = [
    "model.decoder.num_queries=5000000000",
    "model.decoder.num_layers=100000",
    "model.decoder.dim=1000000000",
    "model.decoder.ffn_dim=100000000000",
    "model.decoder.num_heads=10000000",
    "model.pixel_decoder.num_points=1000000",
    "model.pixel_decoder.mask_dim=-5",
    "model.pixel_decoder.dim=.inf",
    "model.backbone.depths=[2, 2, 1000000, 2]",
    "model.backbone.depths=[400, 400, 400, 400]",
    "model.backbone.window_size=100000",
    "model.backbone.embed_dim=.nan",
    "model.backbone={name: timm, model: convnext_atto, drop_path_rate: 48}",
    "model.pixel_decoder.dropout=1.5",
    "model.decoder.anneal_power=-1",
    "data.scenes={train: 1, val: 1, size: [16384, 64], objects: [1, 3], difficulty: 0}",
    "data.scenes={train: 1, val: 1, size: [64, 64], objects: [1, 10000], difficulty: 0}",
    "test.resize.short_edge=100000000",
    "test.resize.max_edge=100000000",
    "test.size_divisor=1000000000",
    "test.top_k=100000000000",
    "test.tta={short_edges: [100000000]}",
    "test.tta={scales: [100000.0]}",
    "test.slide={crop: [100000000, 64], stride: [64, 64]}",
    "test.slide={crop: [64, 64], stride: [1, 1]}",
    "input.std=[0, 1, 1]",
    "input.mean=[.nan, 1, 1]",
    "train.iterations=100000000000000",
    "train.batch=1000000000",
    "train.loss.num_points=1000000000000",
    "train.loss.oversample_ratio=1e9",
    "train.loss.class_weight=.inf",
    "train.optimizer.learning_rate=.inf",
    "data.ignore_index=100000000000000000000",
    "train.seed=99999999999999999999999",
]


@pytest.mark.parametrize("pair", HUGE)
def test_numbers_have_bounds(pair):
    with pytest.raises(ConfigError):
        config.load("coco-panoptic-swin-t", [pair])


def test_products_of_numbers_have_bounds():
    pairs = ["model.decoder.dim=8192", "model.decoder.ffn_dim=65536", "model.decoder.num_layers=100"]
    for pair in pairs:
        config.load("coco-panoptic-swin-t", [pair])
    with pytest.raises(ConfigError, match="parameters or more"):
        config.load("coco-panoptic-swin-t", pairs)


def test_every_field_has_a_description():
    """The page of the configuration is made of them."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(Config).json_schema()
    nodes = {**schema["$defs"], "Config": schema}
    fields = {f"{name}.{key}": field for name, node in nodes.items() for key, field in node["properties"].items()}
    assert len(nodes) == 19 and len(fields) > 100
    wrong = [name for name, field in fields.items() if not field.get("description", "").endswith(".")]
    assert wrong == []
    assert [name for name, node in nodes.items() if not node.get("description")] == []


def test_every_number_of_the_tree_has_bounds():
    """A field without them lets a file that came from anywhere ask for whatever it likes."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(Config).json_schema()
    open_ended = []

    def visit(place, node):
        if isinstance(node, list):
            for each in node:
                visit(place, each)
        if not isinstance(node, dict):
            return
        most = {"maximum", "exclusiveMaximum"} & set(node)
        if node.get("type") in ("integer", "number") and not most:
            open_ended.append(place)
        for key, below in node.items():
            visit(f"{place}.{key}" if isinstance(below, dict) and key not in ("items", "anyOf") else place, below)

    visit("", schema["$defs"] | {"Config": schema["properties"]})
    # Of these, figures are compared only, layers has its bound beside "all", means and deviations are finite.
    spared = ("Published", "label_map", "layers", "mean", "std")
    assert [place for place in open_ended if not any(name in place for name in spared)] == []


def test_a_model_has_a_task():
    with pytest.raises(ConfigError, match=r"test\.tasks"):
        config.load("tiny", ["test.tasks=[]"])


def test_pilots_need_a_loss():
    pairs = ["train.loss={masks: per_pixel, class_weight: 1.0, mask_weight: 0, dice_weight: 0, no_object_weight: 0}"]
    with pytest.raises(ConfigError, match="per_pixel has no loss for pilots"):
        config.load("tiny-mpformer", pairs)
