import torch


def test_it_keeps_everything_and_owns_nothing(make_model, make_inputs):
    model = make_model("Dense")
    _, record = model.trace(make_inputs(model))
    assert torch.equal(record.multiply_adds(), record.dense_multiply_adds())
    assert torch.equal(record.least_multiply_adds(), record.dense_multiply_adds())
    assert not record.heads() and not model.policy.state_dict() and model.policy.knob is None
