"""Check that the tests notice wrong code: make small mistakes in a copy, one at a time, and run tests on each.

    python scripts/checks/mutations.py                   check all mistakes, about ten minutes on one core
    python scripts/checks/mutations.py voc-crowd auto    check those whose names begin with one of these
    python scripts/checks/mutations.py --list            list their names, files and tests

The copy is in a temporary folder and contains the files that git tracks, with local edits; the checkout is not changed.
First the tests must pass on the unchanged copy. Then only the tests that should notice a mistake are run on it. They
use generated images, even if sample images are available.

Each line reports ``caught`` if a test fails, ``SURVIVED`` if none does, and ``error`` if the tests cannot run or take
too long. The exit code is 0 only if all mistakes are caught.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Mutation(NamedTuple):
    """A mistake that tests must notice.

    Attributes:
        name: its name on the command line.
        file: the file that is changed.
        old: the right code, which occurs exactly once in the file.
        new: the wrong code.
        tests: the pytest ids of the tests that should notice it.
    """

    name: str
    file: str
    old: str
    new: str
    tests: Sequence[str]


ENGINE = "tests/training/test_engine.py::test_"
RECORDER = "tests/training/test_recorder.py::test_"
RESULT = "tests/runs/test_result.py::test_"
PLACEMENT = "tests/models/test_placement.py::test_"
FAST = "tests/models/test_fused.py::test_the_default_backend_fuses_the_norm_with_its_attention_on_a_cpu"
MMDET = "tests/models/test_mmdet.py::test_"
WARM = "tests/models/test_warm_start.py::test_"
COMPOSER = "tests/reports/test_composer.py::test_"
PYTORCH_SSD = "tests/models/test_pytorch_ssd.py::test_"
AUGMENT = "tests/data/test_pytorch_ssd_augment.py::test_"
ELSEWHERE = "tests/runs/test_elsewhere.py::test_"
PAIRED = "tests/reports/test_paired_tests.py::test_"
PREDICT = "tests/runs/test_predict.py::test_"
ANSWERS = "tests/training/test_answers.py::test_"
DETECTION = "tests/training/test_detection_metrics.py::test_"
SHARDS = "tests/data/test_shard_formats.py::test_"
FETCH = "tests/data/test_fetching.py::test_"
PARQUET = "tests/data/test_parquet.py::test_"

MUTATIONS = [
    # Attention's fast path
    Mutation(
        "auto-is-the-reference", "attnbench/models/fused.py",
        "return fused(site, x) if x.is_cpu else reference(site, x)",
        "return reference(site, x)",
        [FAST],
    ),
    Mutation(
        "auto-is-the-reference-in-evaluation", "attnbench/models/fused.py",
        "else by.apply(z, *coefficients)",
        "else reference(site, z)",
        [FAST],
    ),
    Mutation(
        "auto-is-the-reference-in-training", "attnbench/models/fused.py",
        "norm.training != torch.is_grad_enabled()):\n        return reference",
        "True):\n        return reference",
        [FAST],
    ),
    Mutation(
        "auto-is-never-chosen-by-a-run", "attnbench/runs/run.py",
        'fused.choose(model, config.tree["runtime"]["tail"])',
        "fused",
        [f"{RESULT}every_site_of_a_run_takes_the_fast_way"],
    ),
    Mutation(
        "dyconv-is-not-folded", "attnbench/models/folding.py",
        'startswith("attnbench.models.attention.")',
        'startswith("attnbench.attention.")',
        ["tests/models/test_folding.py::test_weights_kept_in_autocasts_precision_change_no_bit"
         "[mobilenetv2_cifar-dyconv-placement9]"],
    ),
    # Speeds
    Mutation(
        "images-per-second-twice", "attnbench/training/engine.py",
        '"images_per_s": images / seconds',
        '"images_per_s": 2 * images / seconds',
        [f"{ENGINE}images_a_second_are_those_of_training_without_evaluation"],
    ),
    Mutation(
        "images-per-second-with-evaluation", "attnbench/training/engine.py",
        "**evaluate(), **speed}",
        "**evaluate(), **clock.read()}",
        [f"{ENGINE}images_a_second_are_those_of_training_without_evaluation"],
    ),
    Mutation(
        "images-per-second-of-whole-epochs", "attnbench/training/engine.py",
        "images = self.train.samples * steps / len(self.train)",
        "images = self.train.samples",
        [f"{ENGINE}images_a_second_of_a_continued_epoch_are_of_the_steps_that_were_done_since"],
    ),
    Mutation(
        "waiting-in-seconds", "attnbench/training/engine.py",
        '"data_time_share": waited / seconds',
        '"data_time_share": waited',
        [f"{ENGINE}images_a_second_are_those_of_training_without_evaluation"],
    ),
    Mutation(
        "validation-speed-in-batches", "attnbench/training/engine.py",
        "val.samples / (time.perf_counter() - began)",
        "len(val) / (time.perf_counter() - began)",
        [f"{ENGINE}an_evaluation_is_of_the_averaged_weights_in_the_runs_precision"],
    ),
    Mutation(
        "speeds-are-the-fastest-epochs", "attnbench/runs/run.py",
        "statistics.median(values)",
        "max(values)",
        [f"{RESULT}speeds_are_the_median_epochs"],
    ),
    Mutation(
        "speeds-are-the-slowest-epochs", "attnbench/runs/run.py",
        "statistics.median(values)",
        "min(values)",
        [f"{RESULT}speeds_are_the_median_epochs"],
    ),
    Mutation(
        "speed-of-all-steps", "attnbench/training/recorder.py",
        "return (step - self.first) * self.batch / max(",
        "return step * self.batch / max(",
        [f"{RECORDER}the_speed_of_a_continued_epoch_is_of_the_steps_that_were_done_since"],
    ),
    Mutation(
        "time-left-of-this-epoch", "attnbench/training/recorder.py",
        "self.steps * (self.epochs - self.number) - step",
        "self.steps - step",
        [f"{RECORDER}a_line_inside_a_long_epoch_has_its_speed_and_the_time_left"],
    ),
    # The loop
    Mutation(
        "rate-after-the-step", "attnbench/training/engine.py",
        "            pace(state, progress, schedule.rate(progress, batch_size, done))\n"
        "            state.loss_sum += step(batch)\n",
        "            state.loss_sum += step(batch)\n"
        "            pace(state, progress, schedule.rate(progress, batch_size, done))\n",
        [f"{ENGINE}the_rate_is_set_before_each_step_and_so_is_what_anneals"],
    ),
    Mutation(
        "rate-of-the-epochs-beginning", "attnbench/training/engine.py",
        "schedule.rate(progress, batch_size, done)",
        "schedule.rate(epoch, batch_size, done)",
        [f"{ENGINE}the_rate_is_set_before_each_step_and_so_is_what_anneals"],
    ),
    Mutation(
        "nothing-anneals", "attnbench/training/engine.py",
        "anneal(progress)",
        "anneal(0.0)",
        [f"{ENGINE}the_rate_is_set_before_each_step_and_so_is_what_anneals"],
    ),
    Mutation(
        "training-in-evaluation-mode", "attnbench/training/engine.py",
        "network.train()",
        "network.training",
        [f"{ENGINE}the_network_trains_in_every_step_also_after_an_evaluation"],
    ),
    Mutation(
        "training-without-autocast", "attnbench/training/step.py",
        "with self.process.autocast():",
        "with torch.enable_grad():",
        [f"{ENGINE}the_loss_is_computed_in_the_runs_precision"],
    ),
    Mutation(
        "average-not-updated", "attnbench/training/engine.py",
        "state.average.update_parameters(state.model)",
        "pass",
        [f"{ENGINE}the_average_takes_in_the_weights_of_each_step"],
    ),
    Mutation(
        "epoch-begun-anew", "attnbench/training/engine.py",
        "train.epoch(epoch, start=state.step)",
        "train.epoch(epoch)",
        [f"{ENGINE}a_run_goes_on_after_the_last_step_that_it_did"],
    ),
    Mutation(
        "stop-not-looked-for", "attnbench/training/engine.py",
        "saver.after_step(state)",
        "pass",
        [f"{ENGINE}every_step_is_recorded_and_every_epoch_is_evaluated_recorded_and_saved"],
    ),
    Mutation(
        "epoch-not-saved", "attnbench/training/engine.py",
        "state.next_epoch()\n        self.save(state)",
        "state.next_epoch()",
        [f"{ENGINE}every_step_is_recorded_and_every_epoch_is_evaluated_recorded_and_saved"],
    ),
    Mutation(
        "step-not-recorded", "attnbench/training/engine.py",
        "recorder.step(state)",
        "pass",
        [f"{ENGINE}every_step_is_recorded_and_every_epoch_is_evaluated_recorded_and_saved"],
    ),
    Mutation(
        "mean-loss-over-a-step-more", "attnbench/training/state.py",
        "float(self.loss_sum) / max(1, self.step)",
        "float(self.loss_sum) / (self.step + 1)",
        [f"{ENGINE}an_epochs_loss_is_the_mean_of_its_steps",
         "tests/training/test_state.py::test_the_mean_loss_is_over_the_steps_that_were_done"],
    ),
    Mutation(
        "loss-sum-of-all-epochs", "attnbench/training/state.py",
        "self.loss_sum.zero_()",
        "pass",
        [f"{ENGINE}an_epochs_loss_is_the_mean_of_its_steps"],
    ),
    Mutation(
        "loss-that-is-no-number", "attnbench/training/state.py",
        "if loss - loss != 0:",
        "if loss - loss > 0:",
        [f"{ENGINE}a_loss_that_is_not_a_number_ends_the_run_before_anything_of_it_is_kept"],
    ),
    # The best epoch, and a run's time
    Mutation(
        "best-epoch-is-the-last-of-equals", "attnbench/training/engine.py",
        '> state.best.get(self.metric, float("-inf"))',
        '>= state.best.get(self.metric, float("-inf"))',
        [f"{ENGINE}the_best_epoch_is_the_first_that_no_later_one_exceeds"],
    ),
    Mutation(
        "best-weights-are-not-the-average", "attnbench/training/engine.py",
        "save_best(state.evaluated.state_dict()",
        "save_best(state.model.state_dict()",
        [f"{ENGINE}the_best_weights_are_those_that_were_evaluated"],
    ),
    Mutation(
        "seconds-of-the-last-save-only", "attnbench/training/engine.py",
        "state.seconds, self.began = state.seconds + now - self.began, now",
        "state.seconds, self.began = now - self.began, now",
        [f"{ENGINE}seconds_add_up_over_saves_and_starts"],
    ),
    Mutation(
        "seconds-counted-again-at-each-save", "attnbench/training/engine.py",
        "state.seconds, self.began = state.seconds + now - self.began, now",
        "state.seconds = state.seconds + now - self.began",
        [f"{ENGINE}seconds_add_up_over_saves_and_starts"],
    ),
    Mutation(
        "seconds-of-this-start-only", "attnbench/training/state.py",
        'self.seconds, self.best = state["seconds"], dict(state["best"])',
        'self.best = dict(state["best"])',
        [f"{ENGINE}seconds_add_up_over_saves_and_starts"],
    ),
    Mutation(
        "result-of-the-first-epoch", "attnbench/runs/run.py",
        "last = metrics[-1]",
        "last = metrics[0]",
        [f"{RESULT}accuracies_are_the_last_epochs_and_the_best_one_is_named"],
    ),
    # Evaluation
    Mutation(
        "evaluation-without-autocast", "attnbench/training/engine.py",
        "with process.autocast():\n        metrics",
        "with torch.no_grad():\n        metrics",
        [f"{ENGINE}an_evaluation_is_of_the_averaged_weights_in_the_runs_precision"],
    ),
    Mutation(
        "evaluation-of-the-last-weights", "attnbench/training/engine.py",
        "folded(state.evaluated, process.reduced)",
        "folded(state.model, process.reduced)",
        [f"{ENGINE}an_evaluation_is_of_the_averaged_weights_in_the_runs_precision"],
    ),
    Mutation(
        "eval-command-without-autocast", "attnbench/runs/evaluate.py",
        "with opened.process.autocast():",
        "with torch.no_grad():",
        ["tests/runs/test_evaluation.py::test_the_precision_is_the_one_that_is_asked_for"],
    ),
    Mutation(
        "centre-crop-rounded-down", "attnbench/data/images/crops.py",
        "corner = round((resized[0] - self.size) / 2), round((resized[1] - self.size) / 2)",
        "corner = (resized[0] - self.size) // 2, (resized[1] - self.size) // 2",
        ["tests/data/test_imagefolder.py::test_evaluation_equals_torchvision",
         "tests/data/test_imagefolder.py::test_a_folder_is_evaluated_as_by_torchvision"],
    ),
    Mutation(
        "longer-side-rounded", "attnbench/data/images/crops.py",
        "return int(self.resize * width / height), self.resize",
        "return round(self.resize * width / height), self.resize",
        ["tests/data/test_imagefolder.py::test_evaluation_equals_torchvision"],
    ),
    Mutation(
        "voc-crowd-is-an-object", "attnbench/training/metrics/voc_ap.py",
        "& ~image.difficult & ~image.crowd)",
        "& ~image.difficult)",
        [f"{DETECTION}what_is_found_in_a_crowd_counts_for_nothing_and_a_crowd_need_not_be_found",
         f"{DETECTION}ground_truth_against_itself_gives_100"],
    ),
    Mutation(
        "voc-crowd-is-not-exempt", "attnbench/training/metrics/voc_ap.py",
        "exempt = (image.difficult | image.crowd)[",
        "exempt = image.difficult[",
        [f"{DETECTION}what_is_found_in_a_crowd_counts_for_nothing_and_a_crowd_need_not_be_found"],
    ),
    # Schedules, configurations, placements
    Mutation(
        "drops-an-epoch-late", "attnbench/training/optim.py",
        "sum(epoch >= at for at in period)",
        "sum(epoch > at for at in period)",
        ["tests/training/test_optim.py::test_a_list_of_drops_is_of_the_epochs_after_which_the_rate_is_lower"],
    ),
    Mutation(
        "update-of-a-configuration-not-checked", "attnbench/config/configuration.py",
        "checked_node(self.tree[group] | dict(new), group)",
        "self.tree[group] | dict(new)",
        ["tests/config/test_config.py::test_a_configuration_that_is_changed_is_checked_as_one_that_is_typed"],
    ),
    Mutation(
        "update-of-a-configuration-not-coherent", "attnbench/config/configuration.py",
        "coherent(replace(self, tree=self.tree | nodes, weights=kept))",
        "replace(self, tree=self.tree | nodes, weights=kept)",
        ["tests/config/test_config.py::test_a_configuration_that_is_changed_is_checked_as_one_that_is_typed"],
    ),
    # Precision of maps, and attention in front of a norm
    Mutation(
        "signal-not-rounded", "attnbench/models/insertion.py",
        "return COMBINE[site.combine](y, signal.to(y.dtype))",
        "return COMBINE[site.combine](y, signal)",
        ["tests/models/attention/test_precision.py::test_no_map_is_float32_on_a_cpu"],
    ),
    Mutation(
        "softmax-of-autocast", "attnbench/models/attention/aa.py",
        "torch.softmax(logits, dim=3, dtype=logits.dtype)",
        "torch.softmax(logits, dim=3)",
        ["tests/models/attention/test_precision.py::test_no_map_is_float32_on_a_gpu"],
    ),
    Mutation(
        "float16-sums-overflow", "attnbench/models/ops/fused_norm_kernels.py",
        "torch.float32 if x.dtype == torch.float16 else None",
        "None",
        ["tests/models/attention/test_precision.py::test_pooled_sums_of_float16_do_not_overflow"],
    ),
    Mutation(
        "moments-without-the-shift", "attnbench/models/fused.py",
        "else (m + s, v)",
        "else (m, v)",
        ["tests/models/test_fused.py::test_attention_in_front_of_a_norm_equals_the_reference"],
    ),
    # Initial weights, and rows that stand on rows
    Mutation(
        "start-without-the-weights", "attnbench/models/factory.py",
        "    if weights:\n        warm_start.start(model, config)",
        "    if False:\n        warm_start.start(model, config)",
        [f"{WARM}a_run_starts_from_a_run_of_its_own_seed_and_records_its_digest"],
    ),
    Mutation(
        "detector-without-the-weights", "attnbench/models/factory.py",
        'if config.tree["backbone"].get("weights"):',
        "if False:",
        ["tests/models/test_detectors.py::test_a_detector_starts_from_a_classification_run"],
    ),
    Mutation(
        "start-from-another-seed", "attnbench/config/initial_weights.py",
        'for found in (path, path / f"seed{seed}"):',
        'for found in (path, path / "seed0"):',
        [f"{WARM}a_run_starts_from_a_run_of_its_own_seed_and_records_its_digest"],
    ),
    Mutation(
        "start-from-an-unfinished-run", "attnbench/models/checkpoint.py",
        'if files.read_json(run / "result.json") is None:',
        "if False:",
        [f"{WARM}an_unfinished_run_is_no_start"],
    ),
    Mutation(
        "file-named-by-its-path", "attnbench/config/initial_weights.py",
        'return f"sha256:{digest(path)[:16]}"',
        "return weights",
        ["tests/config/test_initial_weights.py::test_a_file_is_called_by_its_contents"],
    ),
    Mutation(
        "attention-of-a-file-left-out", "attnbench/models/warm_start.py",
        "if names and not names & kept.keys()]",
        "if names]",
        [f"{WARM}a_released_eca_net_starts_a_detector"],
    ),
    Mutation(
        "other-weights-not-noticed", "attnbench/runs/initial_weights.py",
        'if then["sha256"] != now["sha256"]:',
        "if False:",
        [f"{WARM}a_finished_run_is_not_shown_for_other_weights_of_the_same_name"],
    ),
    Mutation(
        "detector-before-its-backbone", "attnbench/reports/rows.py",
        "return [groups[length] for length in sorted(groups)]",
        "return [groups[length] for length in sorted(groups, reverse=True)]",
        [f"{COMPOSER}runs_are_ordered_after_those_that_they_start_from"],
    ),
    Mutation(
        "changed-source-not-in-the-title", "attnbench/reports/composer.py",
        "return source.config.hash != composition.compose(_network(row.weights)).hash",
        "return False",
        [f"{COMPOSER}a_change_of_the_weights_is_a_change_of_the_protocol"],
    ),
    Mutation(
        "unfit-file-not-in-the-title", "attnbench/reports/composer.py",
        "lacking = fits(config)",
        'lacking = ""',
        [f"{COMPOSER}a_file_keeps_the_title_only_if_it_fits"],
    ),
    Mutation(
        "run-after-a-failed-start", "attnbench/cli/table.py",
        "if run.start and run.start.path in failed:",
        "if False:",
        [f"{COMPOSER}a_run_whose_start_fails_fails_with_it"],
    ),
    Mutation(
        "norm-batch-ignored", "attnbench/training/engine.py",
        "parts = number(schedule.accumulate, process.runtime.norm_batch, batch_size, process.world_size)",
        "parts = schedule.accumulate",
        ["tests/training/test_parts.py::test_a_run_computes_batch_norm_over_the_parts_and_says_so"],
    ),
    Mutation(
        "norm-of-another-size-not-in-the-title", "attnbench/reports/report.py",
        "for _, trace in made.traces if PAPERS in trace.norm]",
        "for _, trace in made.traces if not trace.norm]",
        ["tests/reports/test_report.py::test_batch_norm_over_other_images_than_the_papers_is_a_change_of_the_protocol"],
    ),
    Mutation(
        "best-difference-of-the-last", "attnbench/reports/report.py",
        "best_difference=best.mean - printed",
        "best_difference=ours.mean - printed",
        ["tests/reports/test_report.py::test_the_last_and_the_best_epoch_stand_side_by_side"],
    ),
    # Names of runs, and their data
    Mutation(
        "name-of-restated-defaults", "attnbench/config/naming.py",
        "if key not in declared or declared[key] != value}",
        "if True}",
        ['tests/config/test_names.py::test_neither_a_moved_module_nor_a_new_default_renames_a_run'],
    ),
    Mutation(
        "name-without-values", "attnbench/config/naming.py",
        '"values": {first_key(key): value for key, value in values.items()},',
        '"values": {},',
        ['tests/config/test_config.py::test_the_hash_tells_everything_else_apart'],
    ),
    Mutation(
        "name-without-revisions", "attnbench/config/naming.py",
        '"revisions": dict(revised),',
        '"revisions": {},',
        ['tests/config/test_names.py::test_a_revised_option_names_another_run'],
    ),
    Mutation(
        "name-of-present-keys", "attnbench/config/renamed.py",
        "return KEYS.get(key, (key,))[0]",
        "return key",
        ['tests/config/test_names.py::test_a_run_of_a_renamed_key_and_option_is_found'],
    ),
    Mutation(
        "former-name-of-later-values", "attnbench/config/naming.py",
        'if any(f"{group}.{key}" in deviations for key in later):',
        "if False:",
        ['tests/config/test_names.py::test_neither_a_moved_module_nor_a_new_default_renames_a_run'],
    ),
    Mutation(
        "former-name-of-revised-options", "attnbench/config/naming.py",
        "if revised or later_root_keys or",
        "if later_root_keys or",
        ['tests/config/test_names.py::test_a_revised_option_names_another_run'],
    ),
    Mutation(
        "later-keys-are-differences", "attnbench/config/stored.py",
        "same = key in config.choices or usual.get(key, ...) == here[key]",
        "same = False",
        ['tests/config/test_names.py::test_an_unfinished_run_of_the_first_release_goes_on'],
    ),
    Mutation(
        "other-defaults-not-refused", "attnbench/runs/status.py",
        "if differ := stored.differences(config, stored.read(run).identity):",
        "if differ := {}:",
        ['tests/config/test_names.py::test_a_default_that_changed_without_a_revision_is_refused'],
    ),
    Mutation(
        "contents-not-compared", "attnbench/data/record.py",
        "self.contents != now.contents:",
        "False:",
        ['tests/runs/test_same_data.py::test_data_changed_in_place_are_other_data[repainted]'],
    ),
    Mutation(
        "stamp-without-time-of-change", "attnbench/data/record.py",
        " {found.st_mtime_ns} {found.st_ctime_ns}",
        " {found.st_mtime_ns}",
        ['tests/runs/test_same_data.py::test_a_stamp_sees_every_change_and_survives_loops'],
    ),
    Mutation(
        "data-of-unfinished-runs-not-compared", "attnbench/runs/data.py",
        '    return of_result or from_dict(files.read_json(run / "data.json"))',
        "    return of_result",
        ['tests/runs/test_same_data.py::test_an_unfinished_run_does_not_go_on_with_other_data'],
    ),
    Mutation(
        "data-of-old-checkpoints-not-compared", "attnbench/runs/run.py",
        "    if difference := then.difference(now):\n        raise other_data(config, difference)\n",
        "",
        ['tests/runs/test_same_data.py::test_an_unfinished_run_does_not_go_on_with_other_data'],
    ),
    Mutation(
        "data-in-reports-not-compared", "attnbench/runs/status.py",
        '    except OtherData as other:\n        return RunStatus("other data", str(other))\n',
        "",
        ['tests/runs/test_same_data.py::test_data_changed_in_place_are_other_data[more]'],
    ),
    Mutation(
        "data-of-members-not-compared", "attnbench/launch/executor.py",
        "result = finished(member.config, data_check) if",
        "result = member.folder.result() if",
        ['tests/runs/test_same_data.py::test_a_sweep_over_two_folders_trains_one_and_refuses_the_other'],
    ),
    Mutation(
        "shufflenet-projects-without-activation", "attnbench/models/placement.py",
        'Layer("branch2.5", "branch2.6", "branch2.7")',
        'Layer("branch2.5", "branch2.6")',
        [f"{PLACEMENT}what_shufflenet_has_around_each_of_its_convolutions",
         f"{PLACEMENT}a_layer_is_a_convolution_with_the_norm_and_the_activation_that_follow_it[shufflenetv2]"],
    ),
    Mutation(
        "shufflenet-shortcut-without-activation", "attnbench/models/placement.py",
        'Layer("branch1.2", "branch1.3", "branch1.4")',
        'Layer("branch1.2", "branch1.3")',
        [f"{PLACEMENT}what_shufflenet_has_around_each_of_its_convolutions"],
    ),
    # What a run records, and what reports make of it
    Mutation(
        "gauges-of-a-sample", "attnbench/training/recorder.py",
        "values.std(correction=0)",
        "values.std(correction=1)",
        [f"{RECORDER}gauges_are_the_channels_mean_spread_and_ends"],
    ),
    Mutation(
        "gauges-counted-from-zero", "attnbench/training/recorder.py",
        '_append(self.gauges_path, {"epoch": epoch + 1, **read})',
        '_append(self.gauges_path, {"epoch": epoch, **read})',
        [f"{RECORDER}epochs_are_counted_from_one_in_both_files"],
    ),
    Mutation(
        "epochs-counted-from-zero", "attnbench/training/recorder.py",
        'line = {"epoch": epoch + 1, **metrics}',
        'line = {"epoch": epoch, **metrics}',
        [f"{RECORDER}epochs_are_counted_from_one_in_both_files"],
    ),
    Mutation(
        "last-epoch-dropped-by-a-resume", "attnbench/training/recorder.py",
        'if line["epoch"] <= epochs',
        'if line["epoch"] < epochs',
        [f"{RECORDER}a_run_that_goes_on_drops_the_epochs_that_it_repeats_and_no_other"],
    ),
    Mutation(
        "lambda-beyond-the-shortest-seed", "attnbench/reports/figures/lambdas.py",
        "epochs = min(len(lines) for lines in recorded)",
        "epochs = max(len(lines) for lines in recorded)",
        ["tests/reports/test_figures_inside.py::test_learned_lambda_is_a_mean_over_seeds_as_far_as_all_of_them_have_come"],
    ),
    Mutation(
        "lambda-of-the-first-epoch", "attnbench/reports/figures/lambdas.py",
        "lines[epochs - 1][path][name]",
        "lines[0][path][name]",
        ["tests/reports/test_figures_inside.py::test_learned_lambda_is_a_mean_over_seeds_as_far_as_all_of_them_have_come"],
    ),
    Mutation(
        "best-map-is-another-measure", "attnbench/reports/report.py",
        '"mAP": "best_mAP"',
        '"mAP": "best_AP"',
        ["tests/reports/test_report.py::"
         "test_a_cell_has_the_last_and_the_best_epochs_value_of_its_own_measure"],
    ),
    Mutation(
        "epochs-of-a-trace", "attnbench/reports/report.py",
        'result.get("epochs"),',
        "None,",
        ["tests/reports/test_report.py::test_a_trace_says_how_long_its_run_was_and_what_made_it"],
    ),
    Mutation(
        "baseline-in-the-alphabet", "attnbench/reports/comparison.py",
        '[run.value("attention") != "none", *(',
        "[*(",
        ["tests/reports/test_compare.py::test_the_plain_network_is_the_baseline_and_first_whatever_its_name"],
    ),
    Mutation(
        "baseline-with-attention", "attnbench/reports/comparison.py",
        'bool(group.at("attention") == "none")',
        'bool(group.at("attention") != "none")',
        ["tests/reports/test_compare.py::test_the_plain_network_is_the_baseline_and_first_whatever_its_name"],
    ),
    # Files and members
    Mutation(
        "file-not-flushed", "attnbench/base/files.py",
        "os.fsync(file.fileno())",
        "pass",
        ["tests/base/test_storage.py::"
         "test_contents_reach_the_disk_before_their_name_does_and_the_name_reaches_it_too"],
    ),
    Mutation(
        "folder-not-flushed", "attnbench/base/files.py",
        "os.fsync(descriptor)",
        "pass",
        ["tests/base/test_storage.py::"
         "test_contents_reach_the_disk_before_their_name_does_and_the_name_reaches_it_too"],
    ),
    Mutation(
        "busy-member-tried-at-once", "attnbench/launch/executor.py",
        "time.monotonic() + executor.patience",
        "time.monotonic()",
        ["tests/launch/test_executor.py::"
         "test_a_member_that_is_busy_is_tried_again_after_a_while_and_holds_up_no_other"],
    ),
    Mutation(
        "waiting-member-tried-early", "attnbench/launch/executor.py",
        "[m for m in waiting if m.not_before <= time.monotonic()]",
        "list(waiting)",
        ["tests/launch/test_executor.py::"
         "test_a_member_that_is_busy_is_tried_again_after_a_while_and_holds_up_no_other"],
    ),
    Mutation(
        "pool-without-patience", "attnbench/launch/pool.py",
        "patience = 2.0",
        "patience = 0.0",
        ["tests/launch/test_executor.py::test_a_busy_member_does_not_keep_a_core_busy_with_tries"],
    ),
    # Data of a run
    Mutation(
        "fingerprint-of-the-training-images", "attnbench/data/in_memory/resident.py",
        "_fingerprint(*train, *val)",
        "_fingerprint(*train)",
        ["tests/data/test_data.py::test_fingerprint_follows_pixels_and_labels"],
    ),
    # Detectors by MMDetection's protocol; clipping and warm-up
    Mutation(
        "mmdet-beta-of-regions", "attnbench/models/detection/mmdet.py",
        "RPN_BETA, REGION_BETA = 1 / 9, 1.0",
        "RPN_BETA, REGION_BETA = 1 / 9, 1 / 9",
        [f"{MMDET}the_loss_of_a_residual_of_a_tenth"],
    ),
    Mutation(
        "mmdet-beta-of-proposals", "attnbench/models/detection/mmdet.py",
        "RPN_BETA, REGION_BETA = 1 / 9, 1.0",
        "RPN_BETA, REGION_BETA = 1.0, 1.0",
        [f"{MMDET}the_proposal_networks_losses_are_means_over_the_samples_of_the_batch"],
    ),
    Mutation(
        "mmdet-samples-of-an-empty-image", "attnbench/models/detection/mmdet.py",
        ".clamp(min=1).sum()",
        ".sum()",
        [f"{MMDET}the_proposal_networks_losses_are_means_over_the_samples_of_the_batch"],
    ),
    Mutation(
        "mmdet-border", "attnbench/models/detection/mmdet.py",
        "(boxes[:, 2] <= width)",
        "(boxes[:, 2] <= width + 1)",
        [f"{MMDET}an_anchor_that_crosses_the_border_does_not_train"],
    ),
    Mutation(
        "mmdet-border-before-the-assignment", "attnbench/models/detection/mmdet.py",
        "chosen = [boxes[where] for boxes, where in zip(anchors, inside, strict=True)]\n"
        "        found = super().assign_targets_to_anchors(chosen, targets)",
        "whole = super().assign_targets_to_anchors(anchors, targets)\n"
        "        found = [[part[where] for part, where in zip(one, inside, strict=True)] for one in whole]",
        [f"{MMDET}anchors_are_assigned_by_the_rule"],
    ),
    Mutation(
        "mmdet-least-overlap", "attnbench/models/detection/mmdet.py",
        "chosen = (match_quality_matrix == most) & (most >= self.least)",
        "chosen = match_quality_matrix == most",
        [f"{MMDET}the_best_anchor_of_an_object_needs_an_overlap_of_three_tenths"],
    ),
    Mutation(
        "mmdet-best-region-stays", "attnbench/models/detection/mmdet.py",
        "matches.copy_(torch.where(last >= 0, last, matches))",
        "matches.copy_(torch.where((last >= 0) & (matches < 0), last, matches))",
        [f"{MMDET}a_region_that_overlaps_one_object_most_may_belong_to_another"],
    ),
    Mutation(
        "mmdet-objects-compete", "attnbench/models/detection/mmdet.py",
        "found = [part[: len(part) - len(boxes)] for",
        "found = [part for",
        [f"{MMDET}regions_are_assigned_by_the_rule"],
    ),
    Mutation(
        "mmdet-anchors-at-the-corner", "attnbench/models/detection/mmdet.py",
        "middle = (stride - 1) / 2",
        "middle = -0.5",
        [f"{MMDET}the_anchors_of_a_small_image_are_those_of_a_hand"],
    ),
    Mutation(
        "mmdet-anchors-end-inside", "attnbench/models/detection/mmdet.py",
        "(middle + reach).round() + 1",
        "(middle + reach).round()",
        [f"{MMDET}the_anchors_of_a_small_image_are_those_of_a_hand"],
    ),
    Mutation(
        "mmdet-strides-are-quotients", "attnbench/models/detection/mmdet.py",
        "steps = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]",
        "steps = [[torch.tensor(image_list.tensors.shape[2 + a] // g[a]) for a in (0, 1)] for g in grids]",
        [f"{MMDET}the_anchors_of_a_small_image_are_those_of_a_hand"],
    ),
    Mutation(
        "mmdet-soft-masks", "attnbench/models/detection/mmdet.py",
        "return (values >= 0.5 - ROUNDING).float()",
        "return values",
        [f"{MMDET}mask_targets_are_crops_resized_and_rounded"],
    ),
    Mutation(
        "mmdet-no-xavier-in-the-pyramid", "attnbench/models/detection/mmdet.py",
        "    xavier(network.backbone.fpn)\n",
        "",
        [f"{MMDET}every_layer_of_the_heads_begins_as_in_mmdetection"],
    ),
    Mutation(
        "mmdet-no-initial-boxes", "attnbench/models/detection/mmdet.py",
        "bbox_pred.weight, std=0.001",
        "bbox_pred.weight, std=0.01",
        [f"{MMDET}every_layer_of_the_heads_begins_as_in_mmdetection"],
    ),
    Mutation(
        "retinanet-padding-trains", "attnbench/models/detection/retinanet.py",
        "objects[valid] = -1 if not len(boxes) else self.proposal_matcher(box_iou(boxes, anchors[valid]))",
        "objects[:] = -1 if not len(boxes) else self.proposal_matcher(box_iou(boxes, anchors))",
        [f"{MMDET}retinanets_losses_are_sums_over_the_batch_by_the_number_of_its_objects"],
    ),
    Mutation(
        "retinanet-labels-of-data-sets", "attnbench/models/detection/retinanet.py",
        'target["labels"] - 1}',
        'target["labels"] - 0}',
        [f"{MMDET}retinanets_losses_are_sums_over_the_batch_by_the_number_of_its_objects"],
    ),
    Mutation(
        "retinanet-beta", "attnbench/models/detection/retinanet.py",
        "BETA = 2.0, 0.25, 0.11",
        "BETA = 2.0, 0.25, 1 / 9",
        [f"{MMDET}retinanets_losses_are_sums_over_the_batch_by_the_number_of_its_objects"],
    ),
    Mutation(
        "retinanet-coarse-maps-with-relu", "attnbench/models/detection/retinanet.py",
        "self.p7(p6)]",
        "self.p7(p6.relu())]",
        [f"{MMDET}retinanets_coarsest_maps"],
    ),
    Mutation(
        "retinanet-candidates-by-score", "attnbench/models/detection/retinanet.py",
        "best = [one.amax(2)",
        "best = [one.sum(2)",
        [f"{MMDET}retinanet_decodes_the_anchors_with_the_highest_scores"],
    ),
    Mutation(
        "clip-the-scaled-gradients", "attnbench/training/step.py",
        "self.state.scaler.unscale_(self.state.optimizer)  # the limit",
        "# the limit",
        ["tests/training/test_update.py::test_gradients_are_clipped_to_a_norm_over_all_parameters"],
    ),
    Mutation(
        "clip-before-the-packs-gradients", "attnbench/runs/packed.py",
        "    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:\n"
        "        self._complete()\n",
        "    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:\n",
        ["tests/runs/test_pack.py::test_runs_that_differ_in_values_are_what_they_are_alone"],
    ),
    Mutation(
        "warmup-of-every-epoch", "attnbench/training/engine.py",
        "done = epoch * len(train) + state.step",
        "done = state.step",
        [f"{ENGINE}a_warmup_in_steps_counts_the_steps_of_all_epochs"],
    ),
    Mutation(
        "warmup-from-zero", "attnbench/training/optim.py",
        "return self.warmup_from + (1.0 - self.warmup_from) * risen",
        "return risen",
        ["tests/training/test_optim.py::test_the_rates_of_the_eca_papers_detectors_are_those_of_mmdetection"],
    ),
    # What the rows and experiments train
    Mutation(
        "cbams-norm-from-one", "attnbench/models/attention/cbam.py",
        "    nn.init.zeros_(released.weight)\n",
        "",
        ["tests/models/attention/test_cbam.py::test_the_released_norm_starts_with_a_spatial_gate_of_one_half_and_moves_slowly"],
    ),
    Mutation(
        "dropout-after-the-norm", "attnbench/models/attention/branch.py",
        'self.norm1(self._dropped(hidden, "linear"))',
        'self._dropped(self.norm1(hidden), "linear")',
        ["tests/models/attention/test_sb_and_se.py::test_dropout_acts_where_it_is_said_to_and_nowhere_else"],
    ),
    Mutation(
        "no-decay-decays", "attnbench/training/optim.py",
        '({"weight_decay": 0.0} if free else {})',
        "{}",
        ["tests/training/test_optim.py::test_weight_decay_spares_the_named_parameters_and_no_other"],
    ),
    Mutation(
        "another-stage-is-strided", "attnbench/models/backbones/mobilenetv2_cifar.py",
        "STRIDED = 1 ",
        "STRIDED = 2 ",
        ["tests/models/test_backbones.py::test_the_strides_of_mobilenetv2_for_cifar"],
    ),
    Mutation(
        "pytorch-ssd-hue-of-negatives",
        "attnbench/data/detection/hsv.py",
        "np.float32(saturation) * np.sign(value)",
        "np.float32(saturation) * np.ones_like(value)",
        [f"{AUGMENT}colours_change_by_opencvs_formulas_for_any_floats"],
    ),
    Mutation(
        "pytorch-ssd-hue-turned-back",
        "attnbench/data/detection/hsv.py",
        "+ np.float32(degrees / 60)",
        "- np.float32(degrees / 60)",
        [f"{AUGMENT}colours_change_by_opencvs_formulas_for_any_floats"],
    ),
    Mutation(
        "pytorch-ssd-permutation",
        "attnbench/data/detection/box_augment.py",
        "int(random.random() * len(PERMUTATIONS))",
        "int(random.random() * 5)",
        [f"{AUGMENT}channels_are_permuted_with_probability_one_half_by_one_of_six"],
    ),
    Mutation(
        "pytorch-ssd-permuted-always",
        "attnbench/data/detection/box_augment.py",
        "    if _half(random):\n        pixels = pixels[:, :, PERM",
        "    if True:\n        pixels = pixels[:, :, PERM",
        [f"{AUGMENT}channels_are_permuted_with_probability_one_half_by_one_of_six"],
    ),
    Mutation(
        "pytorch-ssd-clipped",
        "attnbench/data/detection/box_augment.py",
        "    return pixels, objects\n\n\ndef expand",
        "    return pixels.clip(0, 255), objects\n\n\ndef expand",
        [f"{AUGMENT}pixels_are_neither_clipped_nor_rounded"],
    ),
    Mutation(
        "pytorch-ssd-expanded-bytes",
        "attnbench/data/detection/box_augment.py",
        "FILL, dtype=image.dtype",
        "FILL, dtype=np.uint8",
        [f"{AUGMENT}an_image_is_placed_on_grey_of_one_to_four_times_its_sides"],
    ),
    Mutation(
        "pytorch-ssd-seven-crops",
        "attnbench/data/detection/box_augment.py",
        "CHOICES = 6",
        "CHOICES = 7",
        [f"{AUGMENT}one_crop_in_six_is_the_whole_image_whatever_an_object_overlaps"],
    ),
    Mutation(
        "pytorch-ssd-crop-from-zero",
        "attnbench/data/detection/box_augment.py",
        "(free + (1 - free) * random.random() for free",
        "(free * random.random() for free",
        [f"{AUGMENT}crops_are_those_of_the_rule"],
    ),
    Mutation(
        "pytorch-ssd-crop-sides",
        "attnbench/data/detection/box_augment.py",
        "    w, h = (side * (0.3 + 0.7 * random.random())",
        "    w, h = (side * (0.4 + 0.6 * random.random())",
        [f"{AUGMENT}crops_are_those_of_the_rule"],
    ),
    Mutation(
        "pytorch-ssd-antialiased",
        "attnbench/data/detection/box_augment.py",
        'mode="bilinear", align_corners=False)',
        'mode="bilinear", align_corners=False, antialias=True)',
        [f"{AUGMENT}images_are_resized_between_the_nearest_pixels"],
    ),
    Mutation(
        "pytorch-ssd-colours-lost",
        "attnbench/data/detection/box_augment.py",
        "pixels = recoloured(pixels, saturation, degrees)",
        "pixels = recoloured(pixels, 1.0, degrees)",
        [f"{AUGMENT}saturation_and_hue_are_those_of_the_colour"],
    ),
    Mutation(
        "pytorch-ssd-mirror-lost",
        "attnbench/data/detection/box_augment.py",
        "any_crop, mirror, partial",
        "any_crop, partial",
        [f"{AUGMENT}images_are_mirrored_half_of_the_time"],
    ),
    Mutation(
        "pytorch-ssd-first-object",
        "attnbench/models/detection/pytorch_ssd.py",
        'objects, "amax")',
        'objects, "amin", include_self=False)',
        [f"{PYTORCH_SSD}boxes_are_assigned_by_hand"],
    ),
    Mutation(
        "pytorch-ssd-positives-twice",
        "attnbench/models/detection/pytorch_ssd.py",
        "losses.masked_fill(positive, -torch.inf)",
        "losses",
        [f"{PYTORCH_SSD}losses_are_sums_over_an_images_hardest_negatives"],
    ),
    Mutation(
        "pytorch-ssd-negatives-of-batch",
        "attnbench/models/detection/pytorch_ssd.py",
        "positive.sum(1, keepdim=True)",
        "positive.sum() / len(positive)",
        [f"{PYTORCH_SSD}losses_are_sums_over_an_images_hardest_negatives"],
    ),
    Mutation(
        "pytorch-ssd-divided-by-sampled",
        "attnbench/models/detection/pytorch_ssd.py",
        "count = positive.sum().clamp(min=1)",
        "count = sampled.sum().clamp(min=1)",
        [f"{PYTORCH_SSD}losses_are_sums_over_an_images_hardest_negatives"],
    ),
    Mutation(
        "pytorch-ssd-candidates",
        "attnbench/models/detection/pytorch_ssd.py",
        "CANDIDATES = 200",
        "CANDIDATES = 400",
        [f"{PYTORCH_SSD}two_hundred_candidates_of_each_class_and_no_limit_over_classes"],
    ),
    Mutation(
        "pytorch-ssd-suppression",
        "attnbench/models/detection/pytorch_ssd.py",
        '"nms_thresh": 0.45',
        '"nms_thresh": 0.5',
        [f"{PYTORCH_SSD}suppression_score_and_borders_by_hand"],
    ),
    Mutation(
        "pytorch-ssd-score",
        "attnbench/models/detection/pytorch_ssd.py",
        '"score_thresh": 0.01',
        '"score_thresh": 0.0',
        [f"{PYTORCH_SSD}suppression_score_and_borders_by_hand"],
    ),
    Mutation(
        "pytorch-ssd-xaviers-biases",
        "attnbench/models/detection/pytorch_ssd.py",
        "            layer.reset_parameters()\n",
        "            layer.reset_parameters()\n            layer.register_parameter('bias', None)\n",
        [f"{PYTORCH_SSD}every_kind_of_layer_begins_as_in_train_ssd"],
    ),
    Mutation(
        "pytorch-ssd-xavier-always",
        "attnbench/models/detection/pytorch_ssd.py",
        'if init == "xavier":',
        "if init:",
        [f"{PYTORCH_SSD}every_kind_of_layer_begins_as_in_train_ssd"],
    ),
    Mutation(
        "pytorch-ssd-no-biases",
        "attnbench/models/detection/ssd.py",
        "            pytorch_ssd.give_biases(head)",
        "            pass",
        [f"{PYTORCH_SSD}the_network_has_as_many_parameters_as_pytorch_ssds"],
    ),
    Mutation(
        "pytorch-ssd-rounded-widths",
        "attnbench/models/backbones/imagenet.py",
        "max(1, int(c * width)) / factor",
        "max(1, round(c * width)) / factor",
        [f"{PYTORCH_SSD}the_widths_are_whole_numbers_of_channels_cut_off"],
    ),
    Mutation(
        "pytorch-ssd-feed-in-place",
        "attnbench/training/feed.py",
        "floats = images.contiguous().to(torch.float32, copy=True)",
        "floats = images.contiguous().to(torch.float32)",
        [f"{PYTORCH_SSD}the_feed_keeps_floats_outside_of_bytes_and_leaves_the_batch_alone"],
    ),
    # The use of a finished run
    Mutation(
        "classes-by-position", "attnbench/data/matching.py",
        "table = np.array([position.get(name, -1) for name in names], dtype=np.int64)",
        "table = np.arange(len(names))",
        [ELSEWHERE + "renamed_classes_are_refused_by_name_and_with_a_map_nothing_changes"],
    ),
    Mutation(
        "network-chooses-among-all", "attnbench/runs/evaluate.py",
        "if opened.matched.answers is not None:\n        network",
        "if False:\n        network",
        [ELSEWHERE + "a_subset_as_imagenet_a_and_r_is_evaluated_on_its_classes_if_asked_to"],
    ),
    Mutation(
        "picture-of-c-by-its-first-folder", "attnbench/data/image_folders/alone.py",
        "labels = [number[parts[-2]] for parts, _ in found]",
        "labels = [number.get(parts[0], 0) for parts, _ in found]",
        [ELSEWHERE + "corruptions_as_in_imagenet_c_are_evaluated_together_and_listed"],
    ),
    Mutation(
        "predictions-in-the-order-of-processes", "attnbench/training/metrics/answers.py",
        'order = np.argsort(samples, kind="stable")',
        "order = np.arange(len(samples))",
        [ANSWERS + "answers_of_several_processes_are_in_the_order_of_samples"],
    ),
    Mutation(
        "no-predictions-after-the-last-evaluation", "attnbench/training/engine.py",
        "    if found is None:\n        evaluate()",
        "    if False:\n        evaluate()",
        ["tests/runs/test_predictions.py::"
         "test_a_killed_run_leaves_the_same_file_also_if_the_last_evaluation_was_before_the_kill"],
    ),
    Mutation(
        "calibration-without-the-shares-of-bins", "attnbench/training/metrics/answers.py",
        "one.pictures * abs(one.accuracy - one.confidence)",
        "abs(one.accuracy - one.confidence)",
        [ANSWERS + "the_calibration_error_is_that_of_a_hand_computation"],
    ),
    Mutation(
        "bootstrap-of-one-run", "attnbench/reports/paired_tests.py",
        "measures[0](weights) - measures[1](weights)",
        "measures[0](weights) - measures[1](np.ones_like(weights))",
        [PAIRED + "a_bootstrap_gives_the_interval_of_the_difference"],
    ),
    Mutation(
        "mcnemar-on-all-pictures", "attnbench/reports/paired_tests.py",
        "mcnemar(counts[1], counts[2])",
        "mcnemar(counts[0], counts[2])",
        [PAIRED + "two_settings_are_compared_seed_by_seed"],
    ),
    Mutation(
        "runs-on-other-data-are-compared", "attnbench/reports/paired_tests.py",
        "(difference := records[0].difference(records[1]))",
        '(difference := "")',
        [PAIRED + "runs_that_do_not_belong_together_are_refused_in_a_line"],
    ),
    Mutation(
        "predict-through-a-link", "attnbench/runs/pictures.py",
        "if _place(path) in self.real or _identity(path) in self.real:",
        "if path in self.inputs:",
        [PREDICT + "a_drawn_picture_that_is_an_input_is_kept"],
    ),
    Mutation(
        "mask-beside-its-object", "attnbench/models/detection/pasting.py",
        "moved = box - box.new_tensor([left, top, left, top])",
        "moved = box - box.new_tensor([left, top, left, top]) + 1",
        [PREDICT + "masks_are_pasted_as_torchvision_pastes_them"],
    ),
    Mutation(
        "predict-without-the-mean", "attnbench/runs/preprocessing.py",
        "return (images.float() / 255 - mean) / std",
        "return images.float() / 255 / std",
        [PREDICT + "the_classes_are_those_of_the_evaluation"],
    ),
    # Shards, published data, parquet files
    Mutation(
        "shard-checksum-ignored", "attnbench/data/image_folders/shards.py",
        "if zlib.crc32(data) != self.checksums[index]:", "if False:",
        [SHARDS + "every_flipped_bit_of_a_picture_is_found"],
    ),
    Mutation(
        "shard-names-unchecked", "attnbench/data/image_folders/tar_shards.py",
        "not isinstance(name, str) or not SAFE.fullmatch(name)", "False",
        ["tests/data/test_shards.py::test_a_damaged_data_set_is_refused_before_it_is_used"],
    ),
    Mutation(
        "shard-suffix-as-named", "attnbench/data/image_folders/tar_shards.py",
        "return SUFFIX.get(suffix, suffix)", "return suffix",
        [SHARDS + "timm_reads_every_split"],
    ),
    Mutation(
        "transfer-hash-ignored", "attnbench/data/fetching/transfer.py",
        "raise _Wrong(different)", "pass",
        [FETCH + "after_twenty_broken_transfers_the_right_file_is_there"],
    ),
    Mutation(
        "transfer-starts-anew", "attnbench/data/fetching/transfer.py",
        'request.add_header("Range", f"bytes={have}-")', "pass",
        [FETCH + "only_what_is_missing_is_transferred"],
    ),
    Mutation(
        "unpack-links", "attnbench/data/fetching/unpack.py",
        "if not one.isreg():", "if False:",
        [FETCH + "archives_do_nothing_outside_their_folder"],
    ),
    Mutation(
        "imagenet-label-of-the-neighbour", "attnbench/data/fetching/imagenet.py",
        "wnids[number - 1]", "wnids[number - 2]",
        [FETCH + "the_official_archives_of_imagenet_are_prepared"],
    ),
    Mutation(
        "parquet-page-checksums-ignored", "attnbench/data/image_folders/parquet.py",
        "page_checksum_verification=True", "page_checksum_verification=False",
        [PARQUET + "a_flipped_bit_is_found_where_pages_have_checksums"],
    ),
]  # fmt: skip


def mutated(text: str, mutation: Mutation) -> str:
    """The text of a mutation's file with the mistake in it.

    Raises:
        SystemExit: the right code is not there exactly once, so that the list has to be brought up to date.
    """
    if (count := text.count(mutation.old)) != 1:
        what = f"{mutation.name}: {mutation.file} has {count} times, not once: {mutation.old!r}"
        sys.exit(f"error: {what}; bring MUTATIONS up to date")
    return text.replace(mutation.old, mutation.new)


def copy_checkout(folder: Path) -> None:
    """Copy the files that git tracks, as they are now, into an empty folder."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


@contextmanager
def applied(mutation: Mutation, folder: Path) -> Iterator[None]:
    """Put a mistake into a copy of the checkout, and remove it at the end."""
    path = folder / mutation.file
    before = path.read_text(encoding="utf-8")
    path.write_text(mutated(before, mutation), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(before, encoding="utf-8")


def run_tests(tests: Sequence[str], folder: Path, seconds: float) -> tuple[int | None, str]:
    """Run tests of a copy; returns pytest's exit code, or None if it took too long, and its output."""
    arguments = ["-q", "-x", "-p", "no:cacheprovider", f"--basetemp={folder}/.pytest"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *arguments, *tests],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        return None, f"not done after {seconds:.0f} s"
    finally:
        with suppress(ProcessLookupError):  # processes that a test started and did not end
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def environment(folder: Path) -> dict[str, str]:
    """Variables that make tests import the copy, leave no compiled files of a mistake, and find no sample images."""
    return os.environ | {
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "ATTNBENCH_SAMPLES": str(folder / "no-samples"),
        "ATTNBENCH_PAPERS": str(folder / "no-papers"),
    }


def verdict(code: int | None) -> str:
    """The verdict on a mistake from pytest's exit code; 1 means that tests ran and some failed."""
    return {0: "SURVIVED", 1: "caught"}.get(code if code is not None else -1, "error")


def check_unchanged(mutations: Sequence[Mutation], folder: Path, seconds: float) -> None:
    """Run all selected tests on the unchanged copy.

    Raises:
        SystemExit: one of them fails.
    """
    tests = list(dict.fromkeys(test for mutation in mutations for test in mutation.tests))
    print(f"unchanged: {len(tests)} tests ...", flush=True)
    began = time.monotonic()
    code, output = run_tests(tests, folder, seconds)
    if code != 0:
        sys.exit(f"{output}\nerror: the tests do not pass on the unchanged code; repair them first")
    print(f"unchanged: all pass ({time.monotonic() - began:.0f} s)", flush=True)


def check(mutation: Mutation, folder: Path, seconds: float) -> tuple[str, str]:
    """The verdict on a mistake, and the output of its tests."""
    with applied(mutation, folder):
        code, output = run_tests(mutation.tests, folder, seconds)
    return verdict(code), output


def check_all(mutations: Sequence[Mutation], folder: Path, seconds: float) -> int:
    """Copy the checkout into an empty folder, check mutations there, and return how many are caught.

    Args:
        seconds: time limit for the tests of a mutation.
    """
    copy_checkout(folder)
    for mutation in mutations:  # all of them, before the first test runs
        mutated((folder / mutation.file).read_text(encoding="utf-8"), mutation)
    check_unchanged(mutations, folder, 10 * seconds)
    verdicts: Counter[str] = Counter()
    for number, mutation in enumerate(mutations, start=1):
        began = time.monotonic()
        found, output = check(mutation, folder, seconds)
        verdicts[found] += 1
        took = f"{time.monotonic() - began:.0f} s"
        print(f"{number:3}/{len(mutations)}  {found:8}  {mutation.name}  ({took})", flush=True)
        if found == "error":
            print(output, flush=True)
    return verdicts["caught"]


def chosen(names: Sequence[str]) -> list[Mutation]:
    """The mutations whose names begin with one of some words; all if there are none.

    Raises:
        SystemExit: no mutation has such a name.
    """
    for name in names:
        if not any(mutation.name.startswith(name) for mutation in MUTATIONS):
            sys.exit(f"error: no mutation {name}; --list has them")
    return [m for m in MUTATIONS if not names or m.name.startswith(tuple(names))]


def main() -> None:
    """Check the chosen mutations one after the other."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="the beginning of names (default: all)")
    parser.add_argument("--list", action="store_true", help="print the mutations and run nothing")
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="S", help="seconds for each mutation (default: 120)"
    )
    options = parser.parse_args()
    mutations = chosen(options.names)
    if options.list:
        for mutation in mutations:
            print(f"{mutation.name}  ({mutation.file})  {' '.join(mutation.tests)}")
        return
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda number, frame: sys.exit(128 + number))  # an exception, so that the copy is removed
    with tempfile.TemporaryDirectory(prefix="mutations-") as name:
        caught = check_all(mutations, Path(name), options.timeout)
    print(f"{caught} of {len(mutations)} caught")
    sys.exit(0 if caught == len(mutations) else 1)


if __name__ == "__main__":
    main()
