import json

import pytest

from lumen_hpc.errors import UserError
from lumen_hpc.nvila.config_files import read_config


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint folder at .*nowhere"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config\.json is missing"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read as json"):
        read_config(tmp_path)
    for broken in (b"\xff\xfe{}", b"[1, 2]"):
        (tmp_path / "config.json").write_bytes(broken)
        with pytest.raises(UserError, match=r"config\.json cannot be read as json"):
            read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"image_aspect_ratio": "resize"}))
    with pytest.raises(UserError, match=r"llm/config\.json is missing"):
        read_config(tmp_path)
