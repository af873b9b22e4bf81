"""The engine against `torch.nn` on packed sequences, and against the output recurrence written out as a loop."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from modeling_rnnsent import RNNSentRecurrence
from modeling_rnnsent.layout_rnnsent import BatchLayout

INPUT_SIZE, HIDDEN_SIZE = 5, 7
CELLS = [("rnn", "tanh"), ("rnn", "relu"), ("lstm", "tanh"), ("gru", "tanh")]
LENGTHS = [[9, 4, 1, 9, 6], [3, 3, 3], [1], [1, 1], [2, 8], [12, 11, 10, 9, 8, 7]]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def torch_layer(cell_type, nonlinearity, **settings):
    if cell_type == "rnn":
        return nn.RNN(INPUT_SIZE, HIDDEN_SIZE, nonlinearity=nonlinearity, batch_first=True, **settings)
    return {"lstm": nn.LSTM, "gru": nn.GRU}[cell_type](INPUT_SIZE, HIDDEN_SIZE, batch_first=True, **settings)


def run_packed(layer, input, lengths, state):
    packed = pack_padded_sequence(input, lengths, batch_first=True, enforce_sorted=False)
    output, final = layer(packed, state if len(state) == 2 else state[0])
    output, _ = pad_packed_sequence(output, batch_first=True, total_length=input.shape[1])
    return output, final if isinstance(final, tuple) else (final,)


def gradients(output, final, weights, leaves):
    # A different weight for every number, so that no two errors cancel.
    loss = sum((part * weight).sum() for part, weight in zip((output, *final), weights))
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_equals_packed_torch_in_outputs_states_and_gradients(cell, num_layers, bidirectional, dtype):
    cell_type, nonlinearity = cell
    torch.manual_seed(0)
    settings = {"num_layers": num_layers, "bidirectional": bidirectional}
    expected_layer = torch_layer(cell_type, nonlinearity, **settings).to(dtype)
    layer = RNNSentRecurrence(INPUT_SIZE, HIDDEN_SIZE, cell_type=cell_type, nonlinearity=nonlinearity, **settings)
    layer.to(dtype).load_state_dict(expected_layer.state_dict())
    num_states = num_layers * (1 + bidirectional)
    for lengths, padding in itertools.product(LENGTHS, (0, 2)):
        lengths = torch.tensor(lengths)
        input = torch.randn(len(lengths), int(lengths.max()) + padding, INPUT_SIZE, dtype=dtype, requires_grad=True)
        state = tuple(
            torch.randn(num_states, len(lengths), HIDDEN_SIZE, dtype=dtype, requires_grad=True)
            for _ in range(2 if cell_type == "lstm" else 1)
        )
        expected, expected_final = run_packed(expected_layer, input, lengths, state)
        outputs, final_hidden, final = layer(input, lengths, state)
        tolerance = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
        torch.testing.assert_close(outputs[-1], expected, **tolerance)
        torch.testing.assert_close(final, tuple(expected_final), **tolerance)
        torch.testing.assert_close(final_hidden, expected_final[0], **tolerance)

        weights = [torch.randn_like(part) for part in (expected, *expected_final)]
        actual_gradients = gradients(outputs[-1], final, weights, [input, *state, *layer.parameters()])
        expected_gradients = gradients(expected, expected_final, weights, [input, *state, *expected_layer.parameters()])
        # float32 sums over a batch carry an error in proportion to their size, which the relative part allows for
        torch.testing.assert_close(actual_gradients, expected_gradients, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_batch_cut_into_segments_equals_packed_torch(cell, bidirectional, dtype):
    # Sizes and lengths at which cutting the batch in time pays, several times over.
    cell_type, nonlinearity = cell
    torch.manual_seed(1)
    lengths = torch.tensor([300, 17, 64, 300, 65, 128, 1, 33, 250, 48, 16, 90])
    kind = getattr(nn, cell_type.upper())
    options = {"nonlinearity": nonlinearity} if cell_type == "rnn" else {}
    expected_layer = kind(20, 60, 2, batch_first=True, bidirectional=bidirectional, **options).to(dtype)
    layer = RNNSentRecurrence(20, 60, 2, cell_type, nonlinearity, bidirectional=bidirectional).to(dtype)
    layer.load_state_dict(expected_layer.state_dict())
    input = torch.randn(len(lengths), 300, 20, dtype=dtype, requires_grad=True)
    state = tuple(
        torch.randn(2 * (1 + bidirectional), len(lengths), 60, dtype=dtype, requires_grad=True)
        for _ in range(2 if cell_type == "lstm" else 1)
    )
    expected, expected_final = run_packed(expected_layer, input, lengths, state)
    outputs, _, final = layer(input, lengths, state)
    tolerance = {"atol": 10 * TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}  # many steps add up
    torch.testing.assert_close((outputs[-1], *final), (expected, *expected_final), **tolerance)
    weights = [torch.randn_like(part) for part in (expected, *expected_final)]
    torch.testing.assert_close(
        gradients(outputs[-1], final, weights, [input, *state, *layer.parameters()]),
        gradients(expected, expected_final, weights, [input, *state, *expected_layer.parameters()]),
        **tolerance,
    )
    with torch.no_grad():
        outputs, _, final = layer(input, lengths, state)
        torch.testing.assert_close((outputs[-1], *final), (expected, *expected_final), **tolerance)
        without_state, hidden, _ = layer(input, lengths, state, return_state=False)
        torch.testing.assert_close((without_state[-1], hidden), (expected, expected_final[0]), **tolerance)


@pytest.mark.parametrize("segment_cost", [0, 1, 30, 200, 10000])
def test_layout_is_the_cheapest_and_brings_every_row_back(segment_cost):
    lengths = torch.tensor([70, 3, 0, 70, 33, 16, 1, 50])
    layout = BatchLayout(lengths, 75, segment_cost)

    def cost(cuts):
        edges = [0, *cuts, 70]
        spans = zip(edges, edges[1:])
        return sum((end - start) * rows_at(start) + segment_cost for start, end in spans)

    def rows_at(start):
        return -(-int((lengths > start).sum()) // multiple) * multiple

    grain, multiple = (16, 4) if segment_cost else (1, 1)
    ends = sorted({min(70, -(-length // grain) * grain) for length in lengths.tolist()} - {0, 70})
    cheapest = min(cost(cuts) for size in range(len(ends) + 1) for cuts in itertools.combinations(ends, size))
    assert sum(steps * rows + segment_cost for steps, rows in layout.segments) == cheapest
    assert [rows for steps, rows in layout.segments for _ in range(steps)] == layout.counts

    input = torch.arange(1, 8 * 75 * 2 + 1).view(8, 75, 2).float()
    mask = (torch.arange(75) < lengths.unsqueeze(1)).unsqueeze(-1)
    for reverse in (False, True):
        rows = layout.gather(input, reverse)
        torch.testing.assert_close(layout.scatter(rows, reverse), input * mask, rtol=0, atol=0)
        first = rows[: layout.counts[0]][layout.rank[0]]
        torch.testing.assert_close(first, input[0, 69 if reverse else 0], rtol=0, atol=0)


@pytest.mark.parametrize("cell_type", ["rnn", "gru"])
def test_own_cells_are_refused_a_second_derivative(cell_type):
    layer = RNNSentRecurrence(INPUT_SIZE, HIDDEN_SIZE, cell_type=cell_type)
    input = torch.randn(2, 3, INPUT_SIZE, requires_grad=True)
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(layer(input)[0][-1].sum(), input, create_graph=True)


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_without_lengths_equals_plain_torch(cell):
    expected_layer = torch_layer(*cell, num_layers=2, bidirectional=True).double()
    layer = RNNSentRecurrence(
        INPUT_SIZE, HIDDEN_SIZE, 2, cell_type=cell[0], nonlinearity=cell[1], bidirectional=True
    ).double()
    layer.load_state_dict(expected_layer.state_dict())
    input = torch.randn(3, 6, INPUT_SIZE, dtype=torch.float64)
    expected, expected_final = expected_layer(input)
    outputs, _, final = layer(input)
    torch.testing.assert_close(outputs[-1], expected)
    torch.testing.assert_close(final, expected_final if cell[0] == "lstm" else (expected_final,))


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_state_dict_moves_both_ways(cell):
    expected_layer = torch_layer(*cell, num_layers=2, bidirectional=True)
    layer = RNNSentRecurrence(INPUT_SIZE, HIDDEN_SIZE, 2, cell_type=cell[0], bidirectional=True)
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == {
        name: tuple(value.shape) for name, value in expected_layer.state_dict().items()
    }
    expected_layer.load_state_dict(layer.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(expected_layer.parameters(), layer.parameters()))


@pytest.mark.parametrize("merge_mode", ["sum", "mul", "mean", "concat"])
def test_merge_modes_apply_after_every_layer(merge_mode):
    torch.manual_seed(1)
    layer = RNNSentRecurrence(INPUT_SIZE, HIDDEN_SIZE, 2, bidirectional=True, merge_mode=merge_mode).double()
    lengths = torch.tensor([6, 2, 4])
    input = torch.randn(3, 6, INPUT_SIZE, dtype=torch.float64)
    merge = {
        "sum": lambda a, b: a + b,
        "mul": lambda a, b: a * b,
        "mean": lambda a, b: (a + b) / 2,
        "concat": lambda a, b: torch.cat((a, b), -1),
    }[merge_mode]
    expected = input
    for index in range(2):
        directions = []
        for suffix in ("", "_reverse"):
            single = nn.LSTM(expected.shape[-1], HIDDEN_SIZE, batch_first=True).double()
            single.load_state_dict(
                {name: getattr(layer, f"{name[:-3]}_l{index}{suffix}") for name in single.state_dict()}
            )
            # one text at a time, reversed by hand: no padding, no lengths
            rows = []
            for row, length in zip(expected, lengths):
                text = row[:length].flip(0) if suffix else row[:length]
                out = single(text.unsqueeze(0))[0][0]
                rows.append(out.flip(0) if suffix else out)
            directions.append(nn.utils.rnn.pad_sequence(rows, batch_first=True))
        expected = merge(*directions)
        mask = torch.arange(6) < lengths.unsqueeze(1)
        expected = expected * mask.unsqueeze(-1)
    torch.testing.assert_close(layer(input, lengths)[0][-1], expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_output_recurrence_equals_its_formula_step_by_step(nonlinearity, bidirectional):
    torch.manual_seed(2)
    layer = RNNSentRecurrence(
        INPUT_SIZE,
        HIDDEN_SIZE,
        cell_type="rnn",
        recurrence="output",
        nonlinearity=nonlinearity,
        bidirectional=bidirectional,
    ).double()
    f = torch.tanh if nonlinearity == "tanh" else torch.relu
    lengths = [5, 1, 3]
    input = torch.randn(3, 5, INPUT_SIZE, dtype=torch.float64, requires_grad=True)
    initial = torch.randn(1 + bidirectional, 3, HIDDEN_SIZE, dtype=torch.float64)
    outputs, final_hidden, _ = layer(input, torch.tensor(lengths), (initial,))
    expected = torch.zeros_like(outputs[-1])
    for direction, suffix in enumerate(["_l0", "_l0_reverse"][: 1 + bidirectional]):
        w = {name: getattr(layer, name + suffix) for name in ("weight_ih", "weight_oh", "weight_ho")}
        b_h, b_o = getattr(layer, "bias_ih" + suffix), getattr(layer, "bias_ho" + suffix)
        for row, length in enumerate(lengths):
            o = initial[direction, row]
            for step in range(length):
                position = length - 1 - step if direction else step
                h = f(w["weight_ih"] @ input[row, position] + w["weight_oh"] @ o + b_h)
                o = f(w["weight_ho"] @ h + b_o)
                expected[row, position, direction * HIDDEN_SIZE : (direction + 1) * HIDDEN_SIZE] = o
            torch.testing.assert_close(final_hidden[direction, row], o, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(outputs[-1], expected, atol=1e-10, rtol=1e-10)
    leaves = [input, *layer.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(outputs[-1].square().sum(), leaves, retain_graph=True),
        torch.autograd.grad(expected.square().sum(), leaves),
        atol=1e-10,
        rtol=1e-10,
    )


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_ids_stand_for_one_hot_vectors(cell, bidirectional):
    layer = RNNSentRecurrence(
        11, HIDDEN_SIZE, 2, cell_type=cell[0], nonlinearity=cell[1], bidirectional=bidirectional
    ).double()
    ids = torch.randint(11, (3, 6))
    one_hot = nn.functional.one_hot(ids, 11).double()
    for lengths in (None, torch.tensor([6, 1, 4])):
        from_ids, from_vectors = layer(ids, lengths), layer(one_hot, lengths)
        torch.testing.assert_close(from_ids, from_vectors, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(
            torch.autograd.grad(from_ids[0][-1].square().sum(), list(layer.parameters())),
            torch.autograd.grad(from_vectors[0][-1].square().sum(), list(layer.parameters())),
            atol=1e-10,
            rtol=1e-10,
        )


@pytest.mark.parametrize("cell_type", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_sequence_of_no_tokens_keeps_the_initial_state(cell_type, bidirectional):
    layer = RNNSentRecurrence(INPUT_SIZE, HIDDEN_SIZE, 2, cell_type=cell_type, bidirectional=bidirectional)
    directions = 1 + bidirectional
    state = tuple(torch.randn(2 * directions, 2, HIDDEN_SIZE) for _ in range(2 if cell_type == "lstm" else 1))
    input = torch.randn(2, 4, INPUT_SIZE)
    outputs, final_hidden, final = layer(input, torch.tensor([0, 4]), state)
    assert not outputs[-1][0].any()
    for part, initial in zip(final, state):
        torch.testing.assert_close(part[:, 0], initial[:, 0])
    empty_outputs, _, empty_final = layer(input[:, :0], torch.tensor([0, 0]), state)
    assert empty_outputs[-1].shape == (2, 0, HIDDEN_SIZE * directions)
    torch.testing.assert_close(empty_final, state)


@pytest.mark.parametrize("cell_type", ["rnn", "lstm", "gru"])
def test_state_carries_over_chunks(cell_type):
    layer = RNNSentRecurrence(INPUT_SIZE, HIDDEN_SIZE, 2, cell_type=cell_type).double()
    input = torch.randn(2, 10, INPUT_SIZE, dtype=torch.float64)
    whole, _, final = layer(input)
    first, _, state = layer(input[:, :4])
    second, _, state = layer(input[:, 4:], state=state)
    torch.testing.assert_close(torch.cat((first[-1], second[-1]), 1), whole[-1])
    torch.testing.assert_close(state, final)


def test_weight_dropout_drops_recurrent_weights_in_training_only():
    torch.manual_seed(3)
    layer = RNNSentRecurrence(INPUT_SIZE, HIDDEN_SIZE, weight_dropout=0.5)
    expected = nn.LSTM(INPUT_SIZE, HIDDEN_SIZE, batch_first=True)
    expected.load_state_dict(layer.state_dict())
    input = torch.randn(2, 6, INPUT_SIZE)
    layer.eval()
    torch.testing.assert_close(layer(input)[0][-1], expected(input)[0])
    layer.train()
    assert not torch.allclose(layer(input)[0][-1], expected(input)[0])
    # the first step starts from a zero state, which no recurrent weight touches
    torch.testing.assert_close(layer(input)[0][-1][:, 0], expected(input)[0][:, 0])
