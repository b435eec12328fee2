"""`run` and `load` are the commands `harness.run` and `harness.collect`, and leave the program
around them alone."""

import json
import shlex
import signal
import subprocess
import sys

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer

import harness
from harness import collect
from harness.common.errors import UserError
from harness.experiment.compose import compose_config, option_words
from harness.experiment.plan import to_run_config
from tests.conftest import ROOT

SMALL = {"model": "tiny", "masks": 4, "context": 128, "samples": 8, "draws": 2, "tracking": "disabled"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def found(results):
    return harness.run(attn={"name": "plsh", "weights": "rb", "sinks": 4}, results=results, **SMALL)


class TestRun:
    def test_it_is_the_cell_of_the_command_line(self, found, results, run):
        words = [f"{name}={value}" for name, value in SMALL.items()]
        code, document, out, _ = run(*words, "attn.weights=rb", "attn.sinks=4", f"results={results}")
        assert code == 0
        assert document["rows_written"] == 0
        assert found.cell_id == document["cell_id"]
        assert str(found.folder) == document["results"]
        assert {name: metric.as_dict() for name, metric in found.metrics.items()} == document["metrics"]
        assert {role: r["retrieval"].cell_id for role, r in found.references.items()} == document["references"]
        assert str(found).splitlines() == out.splitlines()[:-1]

    def test_the_record_says_what_was_asked_and_how_it_was_made(self, found, results):
        record = found.tasks["retrieval"]
        assert found.status == record.status == "ok"
        assert len(record.rows) == 8
        assert record.attention.weights == "rb"
        assert record.attention.more["sinks"] == 4
        scores = [row.score for row in record.rows.values()]
        assert found.metrics["retrieval/accuracy"].value == pytest.approx(sum(scores) / 8)
        command = shlex.split(record.environment.command)
        assert command[:3] == ["python", "-m", "harness.run"]
        assert f"results={results}" in command
        again = to_run_config(compose_config(command[3:]))
        assert (again.masks, again.attn.weights, again.attn.sinks, again.draws) == (4, "rb", 4, 2)

    def test_words_of_the_command_line_are_options_too(self, found, results):
        again = harness.run("attn.weights=rb", "attn.sinks=4", results=results, **SMALL)
        assert again.cell_id == found.cell_id

    def test_its_frame_has_the_cell_first_and_its_references(self, found):
        frame = found.frame()
        assert list(frame["cell_id"])[0] == found.cell_id
        assert frame["attn.name"][1] == "alibi"
        assert set(frame["cell_id"][1:]) == {r["retrieval"].cell_id for r in found.references.values()}

    def test_nothing_is_printed_to_stdout(self, results, capsys):
        harness.run(attn="alibi", results=results, **SMALL)
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize(
        "options",
        [{"masks": 0}, {"attn": "plhs"}, {"weights": "rb"}, {"task": "retreival"}, {"masks": "many"}],
        ids=str,
    )
    def test_a_mistake_is_the_sentence_of_the_command_line(self, options, run, tmp_path):
        code, document, _, _ = run(*option_words(options), f"results={tmp_path}")
        with pytest.raises(UserError) as refused:
            harness.run(results=tmp_path, **options)
        assert code == 2
        assert str(refused.value) == document["message"]

    def test_a_flag_is_no_option(self):
        with pytest.raises(UserError, match="-m is a flag"):
            harness.run("-m", "masks=4,16")

    def test_a_task_that_fails_is_a_status(self, tmp_path, monkeypatch):
        def broken(*_, **__):
            raise ValueError("broken on purpose")

        monkeypatch.setattr("harness.experiment.run_plan.load_model", broken)
        found = harness.run(references="none", results=tmp_path, **SMALL)
        assert found.status == "failed"
        assert found.tasks["retrieval"].outcome.message == "broken on purpose"

    def test_a_signal_is_a_keyboard_interrupt_and_the_same_call_goes_on(self, tmp_path, monkeypatch):
        from harness.tasks.retrieval.task import Retrieval

        whole = Retrieval.run

        def stopped(self, options, context):
            for rows in whole(self, options, context):
                yield rows
                signal.raise_signal(signal.SIGINT)

        options = {**SMALL, "batch": 2, "references": "none", "results": tmp_path}
        with monkeypatch.context() as patched:
            patched.setattr(Retrieval, "run", stopped)
            with pytest.raises(KeyboardInterrupt, match="the same call resumes it"):
                harness.run(**options)
        (record,) = harness.load(tmp_path).to_dict("records")
        assert record["status"] == "stopped"
        assert 0 < record["samples"] < 8
        assert harness.run(**options).status == "ok"


class TestLoad:
    def test_the_columns_and_rows_of_the_csv(self, found, results, tmp_path, capsys):
        frame = harness.load(results)
        assert collect.main([str(results), "--out", str(tmp_path / "results.csv")]) == 0
        written = pd.read_csv(tmp_path / "results.csv")
        assert list(frame.columns) == list(written.columns)
        assert len(frame) == len(written) >= 4
        pd.testing.assert_series_equal(frame["retrieval/accuracy"], written["retrieval/accuracy"])
        own = frame[frame["cell_id"] == found.cell_id].iloc[0]
        assert own["retrieval/accuracy"] == found.metrics["retrieval/accuracy"].value
        assert own["attn.weights"] == "rb"

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(UserError, match="There is no folder"):
            harness.load(tmp_path / "none")


class TestAround:
    def test_hydra_of_the_program_around_is_as_it_was(self, tmp_path, monkeypatch):
        monkeypatch.setattr(ConfigStore.instance(), "repo", dict(ConfigStore.instance().repo))
        monkeypatch.setattr(BaseContainer, "_resolvers", dict(BaseContainer._resolvers))
        (tmp_path / "app.yaml").write_text("defaults: [schema, _self_]\nrate: 2\nwhen: ${now:x}\n")
        ConfigStore.instance().store(name="schema", node={"rate": 1, "when": None})
        with initialize_config_dir(str(tmp_path), version_base="1.2"):
            OmegaConf.register_new_resolver("now", lambda _: "theirs", replace=True)
            theirs = GlobalHydra.instance().hydra
            assert compose_config(["masks=7"]).masks == 7
            with pytest.raises(UserError):
                compose_config(["maks=7"])
            assert GlobalHydra.instance().hydra is theirs
            assert compose("app") == {"rate": 2, "when": "theirs"}
        assert not GlobalHydra.instance().is_initialized()

    def test_python_values_are_read_back_by_hydra(self):
        options = {"results": "/a=b (1), {ö} #~", "dtype": None, "attn": {"name": "plsh", "evict": True}, "seed": 3}
        options |= {"task": {"ruler": {"names": ["ruler_vt", "niah_single_1"]}, "retrieval": None}}
        options |= {"model.revision": "83e2010", "lease": 0.5}
        found = to_run_config(compose_config(option_words(options)))
        assert (found.results, found.dtype, found.seed, found.lease) == (options["results"], None, 3, 0.5)
        assert found.attn.evict is True
        assert found.model.revision == "83e2010"
        assert list(found.task) == ["ruler", "retrieval"]
        assert found.task["ruler"]["names"][1] == "niah_single_1"

    def test_importing_the_package_imports_nothing_else(self):
        code = (
            "import json, sys; before = set(sys.modules); import harness\n"
            "print(json.dumps(sorted({m.split('.')[0] for m in set(sys.modules) - before})))\n"
            "from harness import run; import harness.run as command; assert run is command and harness.run is run\n"
            "print(json.dumps([m for m in ('transformers', 'lm_eval', 'pandas') if m in sys.modules]))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        first, second = map(json.loads, done.stdout.splitlines())
        assert set(first) - sys.stdlib_module_names == {"harness"}
        assert second == []

    def test_the_package_has_what_it_names_and_nothing_else(self):
        assert all(callable(getattr(harness, name)) for name in harness.__all__)
        with pytest.raises(AttributeError, match="lod"):
            harness.lod  # noqa: B018
