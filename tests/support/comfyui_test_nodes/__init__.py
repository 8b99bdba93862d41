"""Nodes of the tests' own in a real ComfyUI: text encoders there are known at full size only.

Loaded by ComfyUI, in its environment, as a custom node pack.
"""

import hashlib
import json

import comfy.model_sampling
import torch
from comfy_api.latest import ComfyExtension, io
from safetensors.torch import load_file


class Conditioning(io.ComfyNode):
    """An encoded prompt from a file."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestConditioning",
            category="test",
            inputs=[io.String.Input("path"), io.Float.Input("guidance", default=3.5)],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, path, guidance):
        tensors = load_file(path)
        more = {"pooled_output": tensors["pooled"], "guidance": guidance}
        return io.NodeOutput([[tensors["embeds"], more]])


class Sigmas(io.ComfyNode):
    """A schedule as it is written."""

    @classmethod
    def define_schema(cls):
        inputs = [io.String.Input("sigmas")]
        return io.Schema(node_id="TestSigmas", category="test", inputs=inputs, outputs=[io.Sigmas.Output()])

    @classmethod
    def execute(cls, sigmas):
        return io.NodeOutput(torch.tensor(json.loads(sigmas), dtype=torch.float32))


class Probe(io.ComfyNode):
    """What must be as before: torch's random state, the upscale model, the model's own weights and options."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestProbe",
            category="test",
            is_output_node=True,
            not_idempotent=True,
            inputs=[
                io.Image.Input("image"),
                io.Model.Input("model"),
                io.UpscaleModel.Input("upscale_model"),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, image, model, upscale_model):
        network, patcher = upscale_model.model, model
        seen = {
            "random": _digest(torch.get_rng_state()),
            "upscaler": [str(upscale_model.dtype), str(upscale_model.device), _weights(network)],
            "model": [_weights(patcher.model.diffusion_model), sorted(patcher.patches)],
            "options": str(patcher.model_options),
            "objects": sorted(patcher.object_patches),
        }
        return io.NodeOutput(image, ui={"seen": [json.dumps(seen)]})


class SamplingLaw(io.ComfyNode):
    """A model that says it predicts noise, as SDXL does, or velocity; what it paints means nothing."""

    @classmethod
    def define_schema(cls):
        inputs = [io.Model.Input("model"), io.Combo.Input("law", options=["EPS", "V_PREDICTION"])]
        return io.Schema(node_id="TestLaw", category="test", inputs=inputs, outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, law):
        kind = getattr(comfy.model_sampling, law)
        changed = model.clone()
        sampling = type("Law", (comfy.model_sampling.ModelSamplingDiscrete, kind), {})
        changed.add_object_patch("model_sampling", sampling(model.model.model_config))
        return io.NodeOutput(changed)


class Extension(ComfyExtension):
    async def get_node_list(self):
        return [Conditioning, Sigmas, Probe, SamplingLaw]


async def comfy_entrypoint():
    return Extension()


def _digest(tensor):
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _weights(network):
    return [_digest(value.detach().cpu()) for value in list(network.parameters())[:8]]
