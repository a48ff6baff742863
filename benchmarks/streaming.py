"""What an exact global selection and reset cost on a model of a billion weights, beside a copy and mergekit's merges.

    python benchmarks/streaming.py [--size full|triple|seven|third|tiny] [--mergekit PYTHON] [--folder DIR] [--json]

Base, suspect (its drift is noise) and a curvature file, sharded Llama in bfloat16, are made in a temporary folder. Each
job is a process of its own, its memory read from /proc every 20 ms: anonymous (its own) and resident (with mapped
files). ``--mergekit`` names the python of an environment that has mergekit, which pins other versions than ours.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

SIZES = {
    # TinyLlama's shape, 1.1 billion weights.
    "full": {
        "hidden": 2048,
        "layers": 22,
        "inner": 5632,
        "key_value": 256,
        "head": 64,
        "vocabulary": 32000,
        "shard": 500 << 20,
    },
    # The shape of a model of 3 billion weights.
    "triple": {
        "hidden": 3072,
        "layers": 28,
        "inner": 8192,
        "key_value": 1024,
        "head": 128,
        "vocabulary": 32000,
        "shard": 2 << 30,
    },
    # Llama 2's of 7 billion: base, suspect, curvature and what comes out take 70 GB.
    "seven": {
        "hidden": 4096,
        "layers": 32,
        "inner": 11008,
        "key_value": 4096,
        "head": 128,
        "vocabulary": 32000,
        "shard": 4 << 30,
    },
    "third": {
        "hidden": 2048,
        "layers": 6,
        "inner": 5632,
        "key_value": 256,
        "head": 64,
        "vocabulary": 32000,
        "shard": 200 << 20,
    },
    "tiny": {"hidden": 64, "layers": 2, "inner": 128, "key_value": 16, "head": 16, "vocabulary": 200, "shard": 1 << 17},
}
GIB = 1 << 30


def shapes(size: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """The tensors of a causal Llama."""
    hidden, inner, small = size["hidden"], size["inner"], size["key_value"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (size["vocabulary"], hidden)}
    for i in range(size["layers"]):
        layer = {"self_attn.q_proj": (hidden, hidden), "self_attn.o_proj": (hidden, hidden)}
        layer |= {"self_attn.k_proj": (small, hidden), "self_attn.v_proj": (small, hidden)}
        layer |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
        norms = {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in (layer | norms).items()}
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (size["vocabulary"], hidden)}


def config(size: dict[str, int]) -> dict[str, Any]:
    """The config of the model that has these tensors."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": size["hidden"],
        "intermediate_size": size["inner"],
        "num_hidden_layers": size["layers"],
        "num_attention_heads": size["hidden"] // size["head"],
        "num_key_value_heads": size["key_value"] // size["head"],
        "head_dim": size["head"],
        "vocab_size": size["vocabulary"],
        "torch_dtype": "bfloat16",
    }


def make(folder: Path, size: dict[str, int]) -> int:
    """Write ``base``, ``suspect`` and ``curvature.safetensors``; the number of weights."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    total, written = 0, 0
    curvature, shard = {}, {}
    weight_map: dict[str, str] = {}
    for model in ("base", "suspect"):
        (folder / model).mkdir()
        (folder / model / "config.json").write_text(json.dumps(config(size)))

    for name, shape in shapes(size).items():
        base = torch.randn(shape, generator=generator).mul_(0.02)
        suspect = (base + torch.randn(shape, generator=generator).mul_(1e-3)).bfloat16()
        curvature[name] = torch.rand(shape, generator=generator).pow_(8).bfloat16()
        shard[name] = {"base": base.bfloat16(), "suspect": suspect}
        total += base.numel()
        if 2 * (total - written) > size["shard"] or name == "lm_head.weight":
            file, written = f"model-{len(set(weight_map.values())) + 1:05}.safetensors", total
            for model in ("base", "suspect"):
                save_file({key: both[model] for key, both in shard.items()}, folder / model / file, {"format": "pt"})
            weight_map |= dict.fromkeys(shard, file)
            shard = {}
    index = json.dumps({"metadata": {"total_size": 2 * total}, "weight_map": weight_map})
    for model in ("base", "suspect"):
        (folder / model / "model.safetensors.index.json").write_text(index)
    save_file(curvature, folder / "curvature.safetensors")
    return total


def ours(folder: Path, scorer: str) -> dict[str, float]:
    """Score, select half of the eligible weights of the whole model exactly, and reset them; seconds by part."""
    import torch  # noqa: F401 - so that its import counts in no part

    from defensekit.defense import purification
    from defensekit.defense.scoring import Views, score
    from defensekit.defense.selection import select, summary
    from defensekit.models.checkpoint import Checkpoint, read_tensor
    from defensekit.models.pair import Pair
    from defensekit_baselines.scorers import Magnitude
    from defensekit_finepurifying.purifiers import Reset
    from defensekit_finepurifying.scorers import Diffusion
    from defensekit_finepurifying.selectors import Fraction

    pair = Pair(Checkpoint(folder / "base"), Checkpoint(folder / "suspect"))
    begun = time.perf_counter()
    if scorer == "diffusion":
        curvature = partial(read_tensor, folder / "curvature.safetensors")
        scores = score(Views(pair, 0, {"curvature": curvature}), Diffusion())
    else:
        scores = score(Views(pair, 0), Magnitude())
    selection = select(scores, Fraction(fraction=0.5))
    selected = time.perf_counter()
    steps = [Reset()]
    purification.purify(
        pair, selection, steps, [], folder / "out", max_length=8, precision="float32", seed=0, report=lambda d, t: None
    )
    written = time.perf_counter()
    facts = summary(selection)
    described = time.perf_counter()
    assert facts["selected"] == round(0.5 * facts["eligible"])
    return {"select": selected - begun, "reset": written - selected, "describe": described - written}


def merge(folder: Path, method: str) -> Path:
    """A configuration for mergekit."""
    models: list[dict[str, Any]] = [{"model": str(folder / "suspect"), "parameters": {"weight": 0.5, "density": 0.5}}]
    config: dict[str, Any] = {"merge_method": method, "dtype": "bfloat16", "models": models}
    if method != "ties":
        models[0]["parameters"].pop("density")
    if method == "linear":
        models.append({"model": str(folder / "base"), "parameters": {"weight": 0.5}})
    else:
        config["base_model"] = str(folder / "base")
    path = folder / f"{method}.yml"
    path.write_text(json.dumps(config))
    return path


def watched(command: list[str]) -> dict[str, Any]:
    """Run a command; its seconds, by the clock and of the processors, and the highest its memory stood, in GiB."""
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        own = resident = 0
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            status = Path(f"/proc/{process.pid}/status").read_text()
            sizes = {line.split()[0]: int(line.split()[1]) for line in status.splitlines() if "kB" in line}
            own, resident = max(own, sizes.get("RssAnon:", 0)), max(resident, sizes.get("VmRSS:", 0))
            time.sleep(0.02)
        seconds = time.perf_counter() - begun
        said.seek(0)
        text = said.read().decode(errors="replace")
    process.returncode = os.waitstatus_to_exitcode(ended[1])
    if process.returncode:
        how = "was killed, perhaps for memory" if process.returncode == -signal.SIGKILL else "failed"
        raise SystemExit(f"{' '.join(command)} {how}; it held {own * 1024 / GIB:.1f} GiB of its own:\n{text[-2000:]}")
    used = ended[2].ru_utime + ended[2].ru_stime
    out: dict[str, Any] = {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used, 1),
        "own_gib": round(own * 1024 / GIB, 2),
        "gib": round(resident * 1024 / GIB, 2),
    }
    last = text.strip().splitlines()[-1] if text.strip() else ""
    if last.startswith("{"):
        out["parts"] = {name: round(value, 1) for name, value in json.loads(last).items()}
    return out


def measure(size: str, folder: Path, mergekit: str | None) -> dict[str, Any]:
    """Make the models, and run every job once, each from the files as the one before left the page cache."""
    parameters = make(folder, SIZES[size])
    jobs: dict[str, list[str]] = {
        "copy": ["cp", "-r", str(folder / "suspect"), str(folder / "out")],
        **{
            name: [sys.executable, __file__, "--job", name, "--folder", str(folder)]
            for name in ("magnitude", "diffusion")
        },
    }
    if mergekit:
        for method in ("linear", "task_arithmetic", "ties"):
            script = [mergekit, "-m", "mergekit.scripts.run_yaml", str(merge(folder, method)), str(folder / "out")]
            jobs[f"mergekit {method}"] = [*script, "--no-copy-tokenizer"]
    result = {}
    for name, command in jobs.items():
        result[name] = watched(command)
        sys.stderr.write(f"{name}: {result[name]}\n")
        shutil.rmtree(folder / "out")
    return {"parameters": parameters, "cpus": os.cpu_count(), "load": os.getloadavg()[0], "jobs": result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--mergekit", metavar="PYTHON", help="the python of an environment with mergekit")
    parser.add_argument("--folder", type=Path, help="where to make the models (a temporary folder)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--job", choices=["magnitude", "diffusion"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        print(json.dumps(ours(given.folder, given.job)))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        measured = measure(given.size, Path(folder), given.mergekit)
    if given.json:
        print(json.dumps(measured))
        return
    print(f"{measured['parameters']:,} weights, {measured['cpus']} processors, load {measured['load']:.1f}")
    print("| job | seconds | of the processors | own memory, GiB | with mapped files, GiB |\n|---|---|---|---|---|")
    for name, job in measured["jobs"].items():
        print(f"| {name} | {job['seconds']} | {job['cpu_seconds']} | {job['own_gib']} | {job['gib']} |")


if __name__ == "__main__":
    main()
