"""The command line: what it prints, what it exits with, and how it answers mistakes."""

import importlib.util
import io
import json
import multiprocessing
import subprocess
import sys
import tempfile

import pytest

from harness.analysis import reader
from harness.common import environment
from harness.common.errors import UserError
from harness.common.paths import CONF
from harness.experiment import overrides
from harness.experiment.config import RunConfig
from harness.run import main
from harness.tasks.lmeval.documents import _refuse_long_socket_path
from tests.conftest import ROOT

FAST = ("context=160", "samples=8", "draws=4", "masks=4")

MISTAKES = [
    (("maks=4",), "no option 'maks'", "Did you mean masks?"),
    (("attn.wieghts=rb",), "no option 'attn.wieghts'", "attn.weights"),
    (("model=mpt7b",), "no model=mpt7b", "Did you mean mpt-7b?"),
    (("attn=plhs",), "no attn=plhs", "Did you mean plsh?"),
    (("task=retreival",), "no task=retreival", "retrieval"),
    (("task.retrieval.haystak=noise",), "no option 'task.retrieval.haystak'", "task.retrieval.haystack"),
    (("+task.retrieval.haystak=noise",), "no option 'haystak'", "haystack"),
    (("+sampels=9",), "no option 'sampels'", "Did you mean samples?"),
    (("+attn.mask=9",), "no option 'attn.mask'", "attn.match"),
    (("masks=4,8",), "Ambiguous", "-m"),
    (("task.retrieval.haystack=nois",), "'nois' is not known", "Did you mean noise?"),
    (("task.retrieval.depths=[0,2]",), "depths must be numbers from 0 to 1", ""),
    (("task.retrieval.depths=deep",), "task.retrieval.depths", ""),
    (("task.retrieval.haystack=text",), "needs a file", "task.retrieval.text=FILE"),
    (("task=[]",), "No task is chosen", "task=retrieval"),
    (("attn.sampler=gama",), "'gama' is not known", "Did you mean gamma?"),
    (("attn.weights=cuont",), "'cuont' is not known", "Did you mean count?"),
    (("attn.sampler=fixed", "attn.weights=rb"), "rb needs random masks", "attn.sampler=gamma"),
    (("attn=window", "attn.match=fusd"), "'fusd' is not known", "Did you mean fused?"),
    (("attn=window", "attn.cutoff=-1"), "attn.cutoff must be a number of at least 0", ""),
    (("attn=window", "attn.cutoff=inf"), "attn.cutoff must be a number of at least 0", "attn=alibi"),
    (("attn.sinks=-1",), "attn.sinks must be from 0 to context=512", ""),
    (("attn=window", "attn.sinks=513"), "attn.sinks must be from 0 to context=512", ""),
    (("attn.near=-1",), "attn.near must be at least 0 tokens", "tile for 64"),
    (("attn.near=1.5",), "attn.near", "1.5"),
    (("attn=sliding", "attn.tokens=0"), "attn.tokens must be at least 1", ""),
    (("attn=sliding", "attn.sampler=fixed", "attn.match=fusd"), "'fusd' is not known", "fused"),
    (("attn.align=1",), "attn.align must be 0 or at least 2 tokens", ""),
    (("attn.align=64", "attn.weights=rb"), "attn.align is for counts", "attn.weights=count"),
    (("attn=window", "attn.align=64", "attn.sampler=fixed"), "attn.align needs random masks", "attn.sampler=gamma"),
    (("attn.align=100",), "would move no mask of tiny", "Use at most attn.align=72"),
    (("attn=alibi", "attn.evict=true"), "attn=alibi reaches all", ""),
    (("attn=stock", "attn.evict=true"), "attn=stock reaches all", ""),
    (("attn=alibi", "attn.sampler=bogus"), "'bogus' is not known", "gamma"),
    (("attn=window", "attn.cutoff=3", "attn.match=bogus"), "'bogus' is not known", "fused"),
    (("task=[retrieval,rular]",), "no task=rular", "retrieval"),
    (("seed=18446744073709551616",), "seed must be", "below 2**63"),
    (("masks=100000000",), "does not fit", "number of masks"),
    (("results=",), "results", ""),
    (("results=/proc/nowhere",), "cannot be written to", ""),
    (("model=mpt-7b", "model.path=harness/embedded/tiny"), "is not what model=mpt-7b says", "model=local"),
    (("model=local",), "names neither a path nor a repo", "model.path="),
    (("kernel=tritn",), "no kernel=tritn", "triton"),
    (("kernel=triton", "device=cpu"), "kernel=triton needs a CUDA GPU", "kernel=sdpa on the CPU"),
    (("masks=many",), "masks: Value 'many'", "could not be converted to Integer"),
    (("masks=0",), "masks must be at least 1", ""),
    (("context=30",), "context=30 leaves no room", "tokens with this tokenizer"),
    (("samples=0",), "samples must be at least 1", ""),
    (("draws=0",), "draws must be at least 1", ""),
    (("samples=4",), "cannot be spread over draws=8", "more samples or fewer draws"),
    (("seed=-1",), "seed must be at least 0", ""),
    (("dtype=float8",), "'float8' is not known", "float16"),
    (("device=gpu",), "is not a device", "cuda"),
    (("device=cuda:7",), "CUDA devices", "device=cpu"),
    (("references=al",), "'al' is not known", "compute"),
    (("references=[exact,sliding,pases]",), "'pases' is not known", "Did you mean passes?"),
    (("references=false",), "references=false is not known", "none or a list of names"),
    (("model.path=nowhere",), "no such folder", "model.path=nowhere"),
    (("kernel=exact", "context=60000"), "does not fit", "kernel=sdpa"),
    (("attn=stock", "context=8190"), "max_seq_len of 8192", "attn=alibi"),
    (("attn=stock", "model=mpt-7b", "context=4096"), "max_seq_len of 2048", "attn=alibi"),
    (("model=bloom-560m", "model.weights=random", "model.layers=2"), "random weights", "model.weights=checkpoint"),
    (("model.weights=randm",), "'randm' is not known", "Did you mean random?"),
    (("model.layers=3",), "model.layers must be from 1 to the model's 2", ""),
    (("model.init_seed=-1",), "model.init_seed must be at least 0", ""),
    (("model.device_map=al",), "'al' is not known", "auto"),
    (("model.device_map=auto", "device=cpu"), "spreads the model over CUDA devices", "Leave it out"),
    (("model.device_map=auto", "model.weights=random"), "spreads a checkpoint", "leave it out"),
    (("masks",), "could not be read", ""),
    (("model.path=/tmp/a=b",), "model.path=/tmp/a=b could not be read", "'model.path=\"/tmp/a=b\"'"),
    (("results=~/äöü",), "could not be read", "'results=\"~/äöü\"'"),
    (("model.path=/tmp/a,b",), "several values need -m", "'model.path=\"/tmp/a,b\"'"),
    (("tracking=null",), "no tracking=null", "disabled"),
    (("model=7",), "no model=7", "tiny"),
    (("attn=true",), "no attn=true", "plsh"),
    (("model=[tiny,local]",), "model is one at a time", "-m model=tiny,local"),
    (("task=[1,2]",), "no task=1", "retrieval"),
    (("task.retrieval=5",), "task.retrieval=5 is no option", "task.retrieval.OPTION=VALUE"),
    (("~tracking",), "~tracking takes away", "disabled"),
    (("~task=[retrieval]",), "takes away what a run needs", "retrieval"),
    (("~masks",), "takes away what a run needs", "masks=VALUE"),
    (("masks=null",), "masks needs a value", "cannot be null"),
    (("model.architecture={family:mpt,heads:8}",), "lacks layers, width, vocabulary", "or none"),
    (("model.architecture.heads=8",), "lacks family, layers, width, vocabulary", "or none"),
    (("+model.architecture.hads=8",), "no option", "model.architecture.heads"),
    (("-m", "--run"), "exclude each other", "leave out"),
    (("--resolve",), "--cfg job", ""),
    (("--multi-run",), "flag --multi-run is not known", "Did you mean --multirun?"),
]


@pytest.mark.parametrize(("arguments", "says", "hint"), MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
def test_mistakes_are_answered_before_a_model_is_loaded(run, monkeypatch, tmp_path, arguments, says, hint):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("harness.experiment.run_plan.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    code, document, _, err = run(*arguments)
    assert code == 2
    assert document["status"] == "invalid"
    assert says in document["message"]
    assert hint in document["message"]
    sentence = [line for line in err.splitlines() if not line.startswith("Memory:")]
    assert "Traceback" not in err
    assert len(sentence) <= 3
    assert not list(tmp_path.glob("*/*"))  # nothing was computed


@pytest.mark.skipif(importlib.util.find_spec("submitit") is not None, reason="hydra-submitit-launcher is installed")
def test_a_launcher_that_is_not_installed_is_named(run, tmp_path):
    code, document, _, err = run("-m", "hydra/launcher=slurm", "masks=2,4", f"results={tmp_path}")
    assert code == 2
    assert "hydra-submitit-launcher" in document["message"]
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_models_that_are_gone_name_the_way_out(run, tmp_path):
    code, document, _, _ = run("model=mpt-7b-storywriter", f"results={tmp_path}", "dtype=bfloat16", "context=256")
    said = document["message"]
    assert code == 2 or "does not fit" in said
    if "does not fit" not in said:  # on a machine with room for it, the missing repository is next
        for word in ("model.path=", "model.repo=", "mpt order", "alibi_bias_max 16"):
            assert word in said


def test_gone_repository_says_which_slopes_it_will_use(run, tmp_path):
    small = [f"model.architecture.{k}={v}" for k, v in {"layers": 2, "heads": 12, "width": 96, "bias_max": 16}.items()]
    code, document, _, _ = run("model=mpt-7b-storywriter", *small, f"results={tmp_path}", "context=256")
    assert code == 2
    for word in ("model.path=", "model.repo=", "12 slopes in mpt order", "alibi_bias_max 16"):
        assert word in document["message"]


def test_a_run_ends_with_its_table_and_one_json_line(tmp_path):
    """In a process of its own, from another folder: only results/ is created, stdout holds the
    table and the document."""
    command = [sys.executable, "-m", "harness.run", *FAST]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["results"]
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["status"] == "ok"
    assert document["tasks"] == {"retrieval": "ok"}
    assert set(document["references"]) == {"exact", "window", "sliding"}
    metric = document["metrics"]["retrieval/accuracy"]
    assert set(metric) == {"value", "low", "high", "n", "unit"}
    assert metric["n"] == 8
    for label in ("exact ALiBi", "PLSH S=4 gamma count", "window T=", "sliding window W="):
        assert label in done.stdout
    assert "samples" in done.stderr
    assert "Memory: about" in done.stderr
    assert "\x1b" not in done.stdout
    assert "%|" not in done.stderr  # no colours, no bars off a terminal


def test_every_cell_has_a_view_of_all_it_holds(run, tmp_path):
    _, document, _, _ = run(*FAST, f"results={tmp_path}")
    view = json.loads((tmp_path / document["cell_id"] / "result.json").read_text())
    assert view["tasks"][0]["metrics"] == document["metrics"]
    assert view["tasks"][0]["samples"] == 8
    assert view["identity"]["attn"]["masks"] == 4
    assert len(list(tmp_path.glob("*/result.json"))) == 4


def test_one_task_with_two_sets_of_options_is_two_records(run, tmp_path):
    _, noise, _, _ = run(*FAST, f"results={tmp_path}", "references=none")
    _, other, _, _ = run(*FAST, f"results={tmp_path}", "references=none", "task.retrieval.haystack=distractors")
    assert other["cell_id"] == noise["cell_id"]
    assert other["metrics"] != noise["metrics"]
    view = json.loads((tmp_path / noise["cell_id"] / "result.json").read_text())
    assert {t["options"]["haystack"] for t in view["tasks"]} == {"noise", "distractors"}
    assert run(*FAST, f"results={tmp_path}", "references=none")[1]["metrics"] == noise["metrics"]


def test_second_run_computes_nothing(run, monkeypatch, tmp_path):
    arguments = (*FAST, f"results={tmp_path}")
    first = run(*arguments)
    monkeypatch.setattr("harness.experiment.run_plan.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    again = run(*arguments)
    assert first[1].pop("rows_written") > 0
    assert again[1].pop("rows_written") == 0
    assert again[0] == 0
    assert again[1] == first[1]


def test_more_samples_extend_a_run(run, tmp_path):
    run(*FAST, f"results={tmp_path}", "references=none")
    before = {p: p.read_text() for p in tmp_path.glob("*/*/parts/*.jsonl")}
    _, document, _, _ = run(*FAST[:1], *FAST[2:], "samples=12", f"results={tmp_path}", "references=none")
    assert document["metrics"]["retrieval/accuracy"]["n"] == 12
    assert all(p.read_text() == text for p, text in before.items())  # the first eight were not computed again
    assert sum(len(p.read_text().splitlines()) for p in tmp_path.glob("*/*/parts/*.jsonl")) == 12


def test_rows_of_other_versions_are_not_extended_in_silence(run, monkeypatch, tmp_path):
    options = ("attn=alibi", "context=160", f"results={tmp_path}")
    monkeypatch.setitem(environment.describe.__globals__, "version", lambda name: f"1.0 of {name}")
    _, document, out, _ = run(*options, "samples=2")
    assert "other versions" not in out
    monkeypatch.setitem(
        environment.describe.__globals__, "version", lambda name: "2.0" if name == "datasets" else f"1.0 of {name}"
    )
    for samples in (4, 6):  # said as long as the rows are there
        _, document, out, _ = run(*options, f"samples={samples}")
        assert "datasets 1.0 of datasets (exact ALiBi) and 2.0 (exact ALiBi)" in out
        assert "lm-eval" not in out.split("other versions")[1].splitlines()[0]
    (record,) = reader.records(tmp_path, [document["cell_id"]])
    assert [p["datasets"] for p in record.environment.earlier_packages] == ["1.0 of datasets"]


def test_references_are_read_where_they_are_and_named_where_not(run, tmp_path):
    _, document, out, _ = run(*FAST, f"results={tmp_path}", "references=read")
    assert document["references"] == {}
    assert "Not in" in out
    assert "references=compute" in out
    run(*FAST, f"results={tmp_path}", "references=none", "attn=alibi")
    _, document, out, _ = run(*FAST, f"results={tmp_path}", "references=read")
    assert set(document["references"]) == {"exact"}
    assert "exact ALiBi" in out


def test_references_that_are_not_asked_for_are_shown_where_the_store_has_them(run, tmp_path):
    _, document, _, _ = run(*FAST, f"results={tmp_path}", "references=[passes]")
    assert set(document["references"]) == {"passes"}
    _, document, out, _ = run(*FAST, f"results={tmp_path}", "references=[exact,sliding]")
    assert set(document["references"]) == {"exact", "sliding", "passes"}
    assert out.count("window T=") >= 1
    assert "sliding window W=" in out


def test_multirun_prints_a_line_for_each_cell_and_one_for_all(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, last, out, _ = run("-m", *FAST[:3], "masks=2,4", "references=none")
    assert [p.name for p in tmp_path.iterdir()] == ["results"]
    documents = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert code == 0
    assert len(documents) == 3
    assert last["cells"] == [d["cell_id"] for d in documents[:2]]
    assert len(set(last["cells"])) == 2


@pytest.mark.parametrize("flag", [("-m",), ("hydra.mode=MULTIRUN",)])
def test_a_multirun_is_asked_for_between_the_overrides(run, tmp_path, flag):
    code, document, out, _ = run("attn=alibi", "context=160", *flag, "samples=1,2", f"results={tmp_path}")
    assert code == 0
    assert document["exit_codes"] == [0, 0]
    assert len(set(document["cells"])) == 1
    assert len([line for line in out.splitlines() if line.startswith("{")]) == 3


def test_odd_folders_are_written_and_read(run, tmp_path):
    folder = tmp_path / "a=b (1), {ö} #~"
    results = overrides.override_word("results", str(folder))
    code, document, _, err = run("attn=alibi", "context=160", "samples=1", results)
    assert code == 0, err
    assert [p.name for p in folder.glob("*/cell.json")]
    assert document["results"].startswith(str(folder))


def test_more_samples_than_the_machine_holds_are_refused_at_once(run, tmp_path):
    code, document, _, err = run("attn=alibi", "samples=1000000000", f"results={tmp_path}")
    assert code == 2
    assert "ask for fewer samples" in document["message"]
    assert "1,907 GiB" in document["message"]
    assert "making or reading up to 1,000,000,000 samples" in err
    assert len(err.splitlines()) <= 4


def test_a_team_s_project_is_no_mistake_where_nothing_is_sent(run, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_PROJECT", "team/proj")
    for off in ((), ("tracking=disabled",), ("tracking=disabled", "tracking.project=team/proj")):
        code, _, _, err = run("attn=alibi", "context=160", "samples=1", *off, f"results={tmp_path}")
        assert code == 0, err
    monkeypatch.delenv("WANDB_MODE")
    code, document, _, _ = run("attn=alibi", "context=160", "samples=1", f"results={tmp_path}")
    assert code == 2
    assert "is no W&B project" in document["message"]
    assert "WANDB_ENTITY" in document["message"]


def test_a_folder_for_temporary_files_that_no_socket_fits_into_is_named(monkeypatch, tmp_path):
    long = tmp_path / ("t" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setitem(multiprocessing.current_process()._config, "tempdir", None)
    with pytest.raises(UserError, match="set TMPDIR"):
        _refuse_long_socket_path()
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    monkeypatch.setitem(multiprocessing.current_process()._config, "tempdir", None)
    _refuse_long_socket_path()


def test_stdout_of_any_encoding_gets_the_table_and_the_document(monkeypatch, tmp_path):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    options = ["attn=alibi", "context=160", "samples=1", f"results={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["harness.run", *options])
    monkeypatch.setattr(sys, "stdout", out)
    assert main() == 0
    out.flush()
    lines = out.buffer.getvalue().decode("ascii").splitlines()
    assert json.loads(lines[-1])["status"] == "ok"
    assert any("retrieval" in line for line in lines[:-1])


def test_multirun_with_one_mistake_runs_the_rest(run, tmp_path):
    code, last, _, _ = run("-m", *FAST[:3], "masks=0,4", f"results={tmp_path}", "references=none")
    assert code == 2
    assert last["status"] == "invalid"
    assert last["exit_codes"] == [2, 0]


def test_a_reader_that_leaves_does_not_fail_the_run(tmp_path):
    command = f"{sys.executable} -m harness.run {' '.join(FAST)} results={tmp_path} references=none | head -n 1; "
    done = subprocess.run(["bash", "-c", command + "exit ${PIPESTATUS[0]}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


def test_help_explains_every_group_and_option(tmp_path):
    done = subprocess.run([sys.executable, "-m", "harness.run", "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    for group in ("model", "attn", "kernel", "task", "tracking"):
        for option in (CONF / group).glob("*.yaml"):
            assert option.stem in done.stdout
    for name in RunConfig.__dataclass_fields__:
        assert f"{name} " in done.stdout or f"{name}." in done.stdout or f"{name}:" in done.stdout
    assert not list(tmp_path.iterdir())


def test_window_of_the_issue(run, tmp_path):
    arguments = ("model=tiny-plain", "attn=window", "attn.match=fused", "masks=16", "context=256", "samples=8")
    code, document, out, _ = run(*arguments, f"results={tmp_path}")
    assert code == 0
    assert set(document["references"]) == {"exact"}
    assert "window T=" in out


def test_eviction_answers_the_same_from_less_memory(run, tmp_path):
    """A context of several chunks, of which the farthest head reaches 153 tokens back."""
    arguments = ("attn=window", "attn.cutoff=0.6", "attn.sinks=2", "context=1300", "samples=4", "batch=2")
    documents = [
        run(*arguments, f"attn.evict={evict}", f"results={tmp_path}", "references=none")[1] for evict in (False, True)
    ]
    whole, less = ([record_rows(tmp_path, d["cell_id"]), d["metrics"]] for d in documents)
    for row, other in zip(whole[0], less[0], strict=True):
        assert row["prediction"] == other["prediction"]
        assert abs(row["nll"] - other["nll"]) < 1e-3
    slot = 2 * 2 * 128 * 4  # bytes of a token: keys and values, 2 layers, width 128, float32
    size = {
        name: [m[f"retrieval/{name}"] for m in (whole[1], less[1])] for name in ("kv_allocated_bytes", "kv_used_bytes")
    }
    assert size["kv_allocated_bytes"][0] == {"value": 1316 * slot, "low": None, "high": None, "n": 4, "unit": "bytes"}
    assert size["kv_allocated_bytes"][1]["value"] == (2 + 153 + 16 + 512) * slot
    assert size["kv_used_bytes"][1]["value"] <= size["kv_allocated_bytes"][1]["value"]
    assert size["kv_used_bytes"][0]["value"] > 1300 * slot


def test_show_prints_a_record_again(run, tmp_path, capsys):
    from harness.show import main as show

    _, document, _, _ = run(*FAST, f"results={tmp_path}")
    assert show([document["cell_id"][:6], "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["tasks"][0]["metrics"] == document["metrics"]
    assert '"masks": 4' in out
    assert "packages" in out
    assert "exact ALiBi" in out
    assert show(["--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("160") == 4
    assert show(["feed", "--results", str(tmp_path)]) == 2
    assert "There is no cell" in capsys.readouterr().err
    assert show(["", "--results", str(tmp_path)]) == 2
    assert "'' matches 4 cells" in capsys.readouterr().err
    assert show(["--results", str(ROOT / "conf")]) == 2


def test_stock_stands_beside_exact_alibi_in_the_table(run, tmp_path):
    code, document, out, _ = run("attn=stock", *FAST[:2], f"results={tmp_path}")
    assert code == 0
    assert list(document["references"]) == ["exact"]
    assert "exact ALiBi" in out
    assert "stock (transformers' own)" in out
    cells = (document["cell_id"], document["references"]["exact"])
    assert cells[0] != cells[1]
    rows = [record_rows(tmp_path, cell) for cell in cells]
    assert len(rows[0]) == 8
    for stock, exact in zip(*rows, strict=True):  # stock MPT is right in float32, but for rounding
        assert stock["prediction"] == exact["prediction"]
        assert abs(stock["nll"] - exact["nll"]) < 1e-3


def record_rows(results, cell_id: str) -> list[dict]:
    return [row for _, row in sorted(reader.records(results, [cell_id])[0].lines.items())]
