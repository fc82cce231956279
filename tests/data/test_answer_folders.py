"""Folders of texts with answers as O-LoRA and TRACE lay them out: what becomes a task, and what is refused."""

import json

import pytest

from clbench.config import DataConfig
from clbench.data.answer_folders import INSTRUCTIONS, KINDS, MOST_ANSWERS
from clbench.errors import ConfigError, DataError
from clbench.registry import SOURCES
from clbench.set_up import set_up
from clbench.testing.small_runs import composed


@pytest.fixture
def write(tmp_path):
    def put(path, content):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
        return file

    return put


def stream(tmp_path, *overrides):
    """The scenario of a run, read byte by byte by a small network."""
    return set_up(
        composed(*overrides, f"data.root={tmp_path}", "model=text_encoder", "model.frozen=0", "data.tokenizer=null",
                 "data.cache_prefix=false", "data.length=200", "strategy=finetune", "device=cpu", "evaluator.subset=2")
    ).scenario  # fmt: skip


@pytest.fixture
def olora(write):
    """Two of O-LoRA's sets; they share a label."""
    for place, labels in (("TC/agnews", ["World", "good"]), ("SC/yelp", ["very bad", "good"])):
        write(f"CL_Benchmark/{place}/labels.json", labels)
        for split in ("train", "dev", "test"):
            rows = [{"sentence": f"Title: {split} {n}\nText: {place}", "label": labels[n % 2]} for n in range(4)]
            write(f"CL_Benchmark/{place}/{split}.json", rows)


def test_a_set_is_a_task_whose_labels_are_classes_of_its_own(olora, tmp_path):
    scenario = stream(tmp_path, "scenario=text_cl", "scenario.superclasses=[yelp,agnews]")
    assert scenario.task_names == ["yelp", "agnews"]
    assert scenario.task_classes == [[0, 1], [2, 3]]
    assert scenario.answers == (" very bad", " good", " World", " good")
    assert scenario.class_names == ["yelp: very bad", "yelp: good", "agnews: World", "agnews: good"]
    assert [len(scenario.train.ids(task)) for task in (0, 1)] == [4, 4]
    tokens, labels, _ = scenario.test.take(scenario.test.ids(1))
    texts = {
        bytes(int(t) - 1 for t in row if t).decode(): int(label) for row, label in zip(tokens, labels, strict=True)
    }
    assert texts[f"{INSTRUCTIONS['TC']} Options: World, good.\nTitle: test 1 Text: TC/agnews\nAnswer:"] == 3


def test_a_kind_of_ones_own_is_asked_in_general_words(olora, write, tmp_path):
    write("CL_Benchmark/mine/birds/labels.json", ["owl", "gull"])
    for split in ("train", "test"):
        write(
            f"CL_Benchmark/mine/birds/{split}.json",
            [{"sentence": "hoot", "label": "owl"}, {"sentence": "kee", "label": "gull"}],
        )
    data = SOURCES["text_cl"](DataConfig(root=str(tmp_path)))
    assert "Which of the options fits this text? Options: owl, gull.\nhoot\nAnswer:" in data.train.texts
    assert data.superclass_names == ["yelp", "agnews", "birds"]


def test_a_set_that_is_not_there_is_named_with_its_place(olora, tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"superclasses names dbpedia, which is not at .*CL_Benchmark/TC/dbpedia\. Valid choices: yelp, agnews",
    ):
        stream(tmp_path, "scenario=text_cl")


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        (
            "TC/agnews/train.json",
            [{"sentence": "a", "label": "Moon"}],
            "the answer 'Moon' in .*agnews is none of its 2: World, good",
        ),
        (
            "TC/agnews/test.json",
            [{"sentence": "a", "label": 1}],
            "entry 1 of .*test.json is not an object with a text under 'sentence'",
        ),
        ("TC/agnews/test.json", {"sentence": "a"}, "test.json is not a list of objects with 'sentence' and 'label'"),
        ("TC/agnews/labels.json", {}, "labels.json is not a list of labels"),
        ("TC/agnews/train.json", "[{", "train.json cannot be read as JSON: "),
        ("SC/agnews/labels.json", ["World", "good"], "train.json: put the texts of that split there"),
    ],
)
def test_what_is_wrong_in_a_folder_is_said_in_a_sentence(path, content, message, olora, write, tmp_path):
    write(f"CL_Benchmark/{path}", content)
    with pytest.raises(DataError, match=message) as error:
        SOURCES["text_cl"](DataConfig(root=str(tmp_path)))
    assert "\n" not in str(error.value)


def test_two_sets_of_one_name_are_refused(olora, write, tmp_path):
    for name in ("labels", "train", "test"):
        write(
            f"CL_Benchmark/SC/agnews/{name}.json",
            json.loads((tmp_path / f"CL_Benchmark/TC/agnews/{name}.json").read_text()),
        )
    with pytest.raises(DataError, match="has two sets called agnews"):
        SOURCES["text_cl"](DataConfig(root=str(tmp_path)))


@pytest.mark.parametrize("order", range(1, 7))
def test_the_orders_are_of_the_papers_sets(order):
    sets = composed("scenario=text_cl" + (f"_order{order}" if order > 1 else "")).scenario.superclasses
    assert len(set(sets)) == len(sets) == (4 if order < 4 else 15)
    assert set(sets) <= KINDS.keys()


@pytest.fixture
def traced(write):
    """Three of TRACE's sets; the answers of one are free text."""
    for split, n in (("train", 60), ("test", 6)):
        write(
            f"TRACE/FOMC/{split}.json",
            [{"prompt": f"{split} {i}\nStance:", "answer": f"{'abc'[i % 3]}\n"} for i in range(n)],
        )
        write(
            f"TRACE/C-STANCE/{split}.json",
            [{"prompt": f"态度 {split} {i}：", "answer": "支持反"[i % 3]} for i in range(n)],
        )
        write(
            f"TRACE/MeetingBank/{split}.json",
            [{"prompt": f"{split} {i}", "answer": f"they met {i} times"} for i in range(n)],
        )


def test_sets_of_trace_with_few_answers_have_classes(traced, tmp_path):
    scenario = stream(tmp_path, "scenario=trace_classes")
    assert scenario.task_names == ["C-STANCE", "FOMC"]
    assert scenario.answers[3:] == (" a", " b", " c")
    assert [len(scenario.train.ids(task)) for task in (0, 1)] == [60, 60]
    assert "free text cannot be learned yet, left out are MeetingBank (60 + 6)" in scenario.note


def test_sets_of_trace_come_in_its_order_and_others_after_them(traced, write, tmp_path):
    for name in ("20Minuten", "alone"):
        for split in ("train", "test"):
            write(f"TRACE/{name}/{split}.json", [{"prompt": "which", "answer": "this"}])
    data = SOURCES["trace"](DataConfig(root=str(tmp_path)))
    assert data.superclass_names == ["C-STANCE", "FOMC", "20Minuten", "alone"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MeetingBank", "whose 60 different answers .* are free text, which cannot be learned yet"),
        ("Py150", r"which is not at .*TRACE/Py150"),
    ],
)
def test_a_set_of_trace_that_cannot_be_learned_is_refused_in_one_sentence(name, reason, traced, tmp_path):
    with pytest.raises(ConfigError, match=f"superclasses names {name}, {reason}") as error:
        stream(tmp_path, "scenario=trace_classes", f"scenario.superclasses=[FOMC,{name}]")
    assert str(error.value).endswith("Valid choices: C-STANCE, FOMC")


@pytest.mark.parametrize(("n", "fits"), [(MOST_ANSWERS, True), (MOST_ANSWERS + 1, False)])
def test_a_choice_has_at_most_so_many_answers(n, fits, write, tmp_path):
    for split in ("train", "test"):
        write(f"TRACE/letters/{split}.json", [{"prompt": "which", "answer": f"option {i}"} for i in range(n)])
    if fits:
        assert len(SOURCES["trace"](DataConfig(root=str(tmp_path))).class_names) == n
    else:
        with pytest.raises(
            DataError, match=r"holds no set of texts that can be learned: free text .* letters \(27 \+ 27\)"
        ):
            SOURCES["trace"](DataConfig(root=str(tmp_path)))


def test_ag_news_of_olora_is_read_where_it_lies(real_data, tmp_path):
    """The set at hand, in a folder as the benchmark has it."""
    source = real_data / "text_more" / "ag_news" / "olora"
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    (tmp_path / "CL_Benchmark" / "TC").mkdir(parents=True)
    (tmp_path / "CL_Benchmark" / "TC" / "agnews").symlink_to(source)
    data = SOURCES["text_cl"](DataConfig(root=str(tmp_path), length=64))
    assert (len(data.train), len(data.test)) == (4000, 7600)
    assert data.answers == (" World", " Sports", " Business", " Science or Technology")
