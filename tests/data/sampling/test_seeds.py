from trl_rlp.data.sampling.seeds import derive_seed


def test_seeds_depend_on_every_number_and_have_the_asked_size():
    seeds = {derive_seed(*numbers) for numbers in [(0, 0), (0, 1), (1, 0), (0, 0, 1), (7, 1_000_000)]}
    assert len(seeds) == 5 and all(0 <= seed < 2**62 for seed in seeds)
    assert all(0 <= derive_seed(3, row, bits=31) < 2**31 for row in range(100))
    assert derive_seed(3, 4) == derive_seed(3, 4)
