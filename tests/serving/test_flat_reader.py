"""The exported folder, read by code that knows transformers and the layout's names alone, nothing of this package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from lumen_hpc import nvila
from lumen_hpc.serving.export import export

QUESTION = "Is there a pneumothorax?"


@pytest.fixture
def flat(folders, tmp_path) -> Path:
    export(folders["resize"], tmp_path / "flat", "# A card\n")
    return tmp_path / "flat"


class PlainReader:
    """One picture of one tile and one question, by the names of SGLang's and the hub's code."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        weights = {key: tensor for file in set(index.values()) for key, tensor in load_file(folder / file).items()}
        assert set(weights) == set(index)

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {key.removeprefix(prefix): t for key, t in weights.items() if key.startswith(prefix)}

        self.llm = Qwen2ForCausalLM(Qwen2Config(**config["text_config"])).eval()
        self.llm.load_state_dict(part("llm."))
        self.tower = SiglipVisionModel(SiglipVisionConfig(**config["vision_config"])).eval()
        tower = getattr(self.tower, "vision_model", self.tower)  # transformers 5 has the tower's parts at the top
        tower.load_state_dict(part("vision_tower.vision_model."))
        self.projector = part("mm_projector.layers.")
        self.layer, self.image_token = config["mm_vision_select_layer"], config["image_token_id"]
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        self.template = (folder / "chat_template.jinja").read_text()
        self.preprocessing = json.loads((folder / "preprocessor_config.json").read_text())

    def picture(self, image: Image.Image) -> torch.Tensor:
        """[tokens, hidden size]: the tower's features, 2 x 2 of them joined, through the projector."""
        p = self.preprocessing  # PIL's resampling, as transformers 4 and the official code have it
        sized = image.convert("RGB").resize((p["size"]["width"], p["size"]["height"]), p["resample"])
        scaled = torch.from_numpy(np.array(sized)).permute(2, 0, 1) * p["rescale_factor"]
        mean, std = (torch.tensor(p[key])[:, None, None] for key in ("image_mean", "image_std"))
        pixels = ((scaled - mean) / std)[None].float()
        x = self.tower(pixels, output_hidden_states=True).hidden_states[self.layer]
        side = int(x.shape[1] ** 0.5)
        x = x.view(1, side // 2, 2, side // 2, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape((side // 2) ** 2, -1)
        w = self.projector
        x = F.linear(nn.functional.layer_norm(x, x.shape[-1:], w["1.weight"], w["1.bias"]), w["2.weight"], w["2.bias"])
        return F.linear(F.gelu(x), w["4.weight"], w["4.bias"])

    @torch.inference_mode()
    def answer(self, image: Image.Image, question: str, tokens: int) -> list[int]:
        """Greedy ids, without any cache."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        ids = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], chat_template=self.template, add_generation_prompt=True,
            return_dict=False,
        )  # fmt: skip
        assert ids.count(self.image_token) == 1
        place = ids.index(self.image_token)
        embed = self.llm.get_input_embeddings()
        newline = self.tokenizer.encode("\n", add_special_tokens=False)
        before, after = (embed(torch.tensor(part)) for part in (ids[:place], newline + ids[place + 1 :]))
        row = torch.cat([before, self.picture(image), after])[None]
        answer_ids: list[int] = []
        for _ in range(tokens):
            answer_ids.append(int(self.llm(inputs_embeds=row).logits[0, -1].argmax()))
            row = torch.cat([row, embed(torch.tensor([[answer_ids[-1]]]))], dim=1)
        return answer_ids


def test_a_plain_reader_gives_the_same_answer(folders, flat):
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (70, 50), dtype=np.uint8))
    model = nvila.load(folders["resize"])
    record = {"images": [image], "conversations": [{"from": "human", "value": f"<image>{QUESTION}"}]}
    [expected] = model.generate([record], max_new_tokens=8)  # one picture in front, in either form
    reader = PlainReader(flat)
    inputs = model.preprocess([record], generation=True, inline=True)
    with torch.inference_mode():
        ours, theirs = model(inputs, keep=True).proj_out[0], reader.picture(image)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    assert reader.answer(image, QUESTION, len(expected.ids)) == expected.ids
