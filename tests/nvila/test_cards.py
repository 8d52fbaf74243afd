from lumen_hpc.nvila.cards import cards, count_parameters


def test_parameter_counts_are_the_published_ones():
    assert count_parameters(cards()["NVILA-8B"]) == {
        "vision_tower": 413_327_088,
        "projector": 62_425_088,
        "llm": 7_612_656_128,
    }
    assert count_parameters(cards()["NVILA-Lite-8B"])["projector"] == 61_101_440
