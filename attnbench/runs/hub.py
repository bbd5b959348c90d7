"""A trained network as a folder for the Hugging Face Hub: model card, weights and configuration.

If timm has the network, the folder is one of timm's, and ``timm.create_model("local-dir:FOLDER", pretrained=True)``
loads it. Otherwise the weights and the configuration are attnbench's own. Nothing is uploaded.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from attnbench.base import files
from attnbench.base.errors import ConfigError, StorageError
from attnbench.base.escape import markdown
from attnbench.models.checkpoint import Which
from attnbench.runs.export import about, image_size, plain, safetensors
from attnbench.runs.load import Trained, load_run
from attnbench.runs.stock_networks import TimmNetwork, timm_network

log = logging.getLogger("attnbench")

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"

# What result.json may hold, what the Hub calls it, and what the card says about it. Values are in percent.
METRICS = {
    "top1": ("accuracy", "top-1, last epoch", "last"),
    "best_top1": ("accuracy", "top-1, best epoch", "best"),
    "top5": ("accuracy", "top-5, last epoch", "last"),
    "AP": ("mean_average_precision", "AP, last epoch", "last"),
    "best_AP": ("mean_average_precision", "AP, best epoch", "best"),
    "mask_AP": ("mean_average_precision", "mask AP, last epoch", "last"),
}
CHOSEN = "chosen on the validation images, so it is too high"


def write_hub_folder(run: Path, folder: Path, which: Which = "last") -> Path:
    """Write a run's network as a folder for the Hub; returns the folder, which is complete or not there.

    Args:
        folder: must not exist, or be empty.

    Raises:
        StorageError: the folder is not empty, or the run's or this one cannot be read or written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError("there is something in this folder already", folder, "give a new folder")
    trained = load_run(run, which)
    theirs = _as_timm(trained)
    facts = about(trained)
    files.make_folder(folder.parent)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        made.chmod(0o755)
        if theirs is None:
            files.write(made / WEIGHTS, lambda file: file.write(safetensors(trained)))
            files.write_json(made / CONFIG, {"library_name": "attnbench", **facts})
        else:
            _write_timm(made, theirs, facts)
        text = card(trained, facts, theirs, files.read_object(run / "env.json"))
        files.write(made / CARD, lambda file: file.write(text.encode()))
        made.replace(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return folder


def _as_timm(trained: Trained) -> TimmNetwork | None:
    """The network as timm's; None, with the reason in the log, if timm cannot hold it."""
    try:
        return timm_network(trained, image_size(trained))
    except ConfigError as error:
        log.warning("the folder is in attnbench's own form: %s", error.what)
        return None


def _write_timm(folder: Path, theirs: TimmNetwork, facts: dict[str, Any]) -> None:
    from timm.models import save_for_hf

    model, given = theirs.model, theirs.model.pretrained_cfg
    assert isinstance(given, dict)
    kept = {key: given[key] for key in ("first_conv", "classifier") if key in given}
    model.pretrained_cfg = {"architecture": theirs.architecture, **kept, **_timm_input(facts)}  # type: ignore[assignment]
    model.load_state_dict(plain(model.state_dict()))
    config = {"label_names": facts["classes"]}
    save_for_hf(model, str(folder), model_config=config, model_args=theirs.arguments, safe_serialization=True)


def _timm_input(facts: dict[str, Any]) -> dict[str, Any]:
    """The preprocessing as timm describes it; ImageNet's usual one, as timm assumes, if it is not known."""
    common = {"num_classes": len(facts["classes"]), "fixed_input_size": False, "interpolation": "bilinear"}
    if "crop" not in facts:
        return common
    size, resize = facts["size"], facts["crop"]["resize"]
    square = isinstance(resize, list)
    return common | {
        "input_size": (3, size, size),
        "crop_pct": size / (resize[0] if square else resize),
        "crop_mode": "squash" if square else "center",
        "mean": tuple(facts["mean"]),
        "std": tuple(facts["std"]),
    }


def card(trained: Trained, facts: dict[str, Any], theirs: TimmNetwork | None, environment: dict[str, Any]) -> str:
    """The model card, with the results of the run's record and how they came about.

    Args:
        facts: what the exported file says; see ``export.about``.
        environment: the contents of env.json.
    """
    config, result = trained.config, trained.about.get("result") or {}
    name = f"{config.choices['backbone']}-{config.choices['attention']}-{config.dataset_name}".replace("/", "-")
    lines = ["---", _front_matter(trained, name, result, theirs), "---", "", f"# {markdown(name)}", "", _what(trained)]
    lines += ["", "## Results", "", *_results(trained, result), "", "## Use", "", *_use(theirs)]
    lines += ["", "## Training", "", *_training(trained, result, environment), ""]
    lines += ["This card was written from the run's record. It names no licence: add one before you publish it.", ""]
    return "\n".join(lines)


def _front_matter(trained: Trained, name: str, result: dict[str, Any], theirs: TimmNetwork | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    config = trained.config
    task = "object-detection" if "detector" in config.tree else "image-classification"
    source = str((result.get("data") or {}).get("source") or config.dataset_name)
    results = [
        EvalResult(
            task_type=task,
            dataset_type=config.dataset_name,
            dataset_name=source,
            dataset_split="validation",
            metric_type=kind,
            metric_name=f"{title} ({CHOSEN})" if epoch == "best" else title,
            metric_value=round(float(result[key]) / 100, 6),
        )
        for key, (kind, title, epoch) in METRICS.items()
        if result.get(key) is not None
    ]
    tags = [task, "attnbench", "channel-attention", config.choices["attention"]]
    data = ModelCardData(
        library_name="timm" if theirs else "attnbench",
        pipeline_tag=task,
        tags=tags,
        model_name=name,
        eval_results=results or None,
    )
    return data.to_yaml().strip()


def _what(trained: Trained) -> str:
    choices = trained.config.choices
    attention = "no attention" if choices["attention"] == "none" else f"attention `{choices['attention']}`"
    kind = f"A `{choices['detector']}` detector on" if "detector" in trained.config.tree else "A classifier:"
    names = ", ".join(map(markdown, trained.classes[:20])) + (", …" if len(trained.classes) > 20 else "")
    return f"{kind} `{choices['backbone']}` with {attention}, {len(trained.classes)} classes: {names}."


def _results(trained: Trained, result: dict[str, Any]) -> list[str]:
    if not result:
        epoch = trained.about["checkpoint"]["epoch"]
        return [f"The run is not finished: these are its weights after epoch {epoch}. It has no result."]
    which = trained.about["checkpoint"]["which"]
    rows = [
        f"| {title} | {float(result[key]):.2f} % | {'yes' if epoch == which else 'no'} | {note(epoch, result)} |"
        for key, (_, title, epoch) in METRICS.items()
        if result.get(key) is not None
    ]
    head = ["| on the validation images | value | these weights | |", "| --- | ---: | --- | --- |"]
    return [*head, *rows, "", f"One run, with seed {result.get('seed')}. Runs with other seeds differ from it."]


def note(epoch: str, result: dict[str, Any]) -> str:
    """A remark on a result: that of the best epoch was chosen on the images on which it is reported."""
    return f"epoch {result.get('best_epoch')}, {CHOSEN}" if epoch == "best" else f"epoch {result.get('epochs')}"


def _use(theirs: TimmNetwork | None) -> list[str]:
    own = ["from pathlib import Path", "from attnbench.runs.export import load_exported", ""]
    own += [f'network = load_exported(Path("{WEIGHTS}"))']
    timms = ["import timm", "", 'network = timm.create_model("local-dir:FOLDER", pretrained=True).eval()']
    timms += ["transform = timm.data.create_transform(**timm.data.resolve_data_config(model=network))"]
    return ["```python", *(own if theirs is None else timms), "```"]


def _training(trained: Trained, result: dict[str, Any], environment: dict[str, Any]) -> list[str]:
    config, data = trained.config, result.get("data") or {}
    changed = [f"`{key}={value}`" for key, value in config.changes.items()]
    facts = {
        "data": data.get("source") or config.dataset_name,
        "SHA-256 of the data": data.get("fingerprint"),
        "epochs": result.get("epochs"),
        "changed options": ", ".join(changed) or "none",
        "parameters": f"{result['params']:,}" if "params" in result else None,
        "multiply-adds": f"{result['macs']:,} an image" if "macs" in result else None,
        "initial weights": config.weights or None,
        "device": environment.get("device"),
        "torch": environment.get("torch"),
        "attnbench": environment.get("commit") or environment.get("attnbench"),
        "run": config.hash,
    }
    return [f"- {key}: {markdown(str(value))}" for key, value in facts.items() if value is not None]
