"""The forward context of real models: what hooks on the root give to the layers inside."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

import libmoe
from libmoe.core.context import ForwardContext, LayerContext, current, install, options, use
from libmoe.core.site import Site


class Recorder:
    """What the layers saw, call by call."""

    def __init__(self) -> None:
        self.contexts: list[LayerContext] = []

    def __call__(self, ctx: LayerContext, routing: libmoe.Routing) -> None:
        self.contexts.append(ctx)

    def of(self, index: int) -> LayerContext:
        return [ctx for ctx in self.contexts if ctx.index == index][-1]


def record(model: nn.Module, *args: object, **kwargs: object) -> Recorder:
    recorder = Recorder()
    with options(recorders=[recorder]):
        model(*args, **kwargs)
    return recorder


IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def test_layers_see_ids_mask_and_positions_of_the_call(llama: Callable) -> None:
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    positions = torch.tensor([[0, 1, 2, 3], [0, 0, 1, 2]])
    recorder = record(llama(), input_ids=IDS, attention_mask=mask, position_ids=positions)
    assert [ctx.index for ctx in recorder.contexts] == [0, 1]
    for ctx in recorder.contexts:
        assert ctx.batch_shape == (2, 4)
        assert ctx.token_ids_T.tolist() == IDS.flatten().tolist()
        assert ctx.mask_T.tolist() == mask.flatten().bool().tolist()
        assert ctx.position_T.tolist() == positions.flatten().tolist()
    assert current() is None


def test_positional_arguments_are_seen_too(llama: Callable) -> None:
    recorder = record(llama(), IDS, torch.ones_like(IDS))
    assert recorder.of(1).token_ids_T.tolist() == IDS.flatten().tolist()
    assert recorder.of(1).mask_T.all()


def test_the_base_model_called_by_itself_is_a_root_too(llama: Callable) -> None:
    recorder = record(llama().model, input_ids=IDS)
    assert recorder.of(0).token_ids_T.tolist() == IDS.flatten().tolist()
    assert current() is None


def test_generation_with_a_cache_sees_the_new_tokens(llama: Callable) -> None:
    model = llama().eval()
    padded = torch.tensor([[0, 0, 7, 8], [9, 10, 11, 12]])
    mask = (padded != 0).long()
    recorder = Recorder()
    with options(recorders=[recorder]):
        out = model.generate(
            padded, attention_mask=mask, max_new_tokens=3, do_sample=False, eos_token_id=None
        )
    prefill, *steps = [ctx for ctx in recorder.contexts if ctx.index == 0]
    assert prefill.mask_T.tolist() == mask.flatten().bool().tolist()
    assert prefill.sequence_T.view(2, 4)[:, 2:].unique(dim=1).shape[1] == 1
    for place, ctx in enumerate(steps, start=4):
        assert ctx.batch_shape == (2, 1)
        assert ctx.token_ids_T.tolist() == out[:, place].tolist()
        assert ctx.mask_T is None or ctx.mask_T.all()
    assert len(steps) == 2


def test_generation_equals_running_the_whole_text(llama: Callable) -> None:
    model = llama().eval()
    out = model.generate(
        IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=4, do_sample=False, eos_token_id=None
    )
    with torch.no_grad():
        logits = model(out[:, :-1]).logits
    assert torch.equal(logits[:, 3:].argmax(-1), out[:, 4:])


def test_packed_documents_are_separate_sequences(llama: Callable) -> None:
    positions = torch.tensor([[0, 1, 0, 1], [0, 1, 2, 0]])
    recorder = record(llama(), input_ids=IDS, position_ids=positions)
    assert recorder.of(1).sequence_T.tolist() == [0, 0, 1, 1, 2, 2, 2, 3]


def test_one_forward_is_one_context_and_two_are_two(llama: Callable) -> None:
    model = llama()
    first, second = record(model, IDS), record(model, IDS)
    assert first.of(0).forward is first.of(1).forward
    assert first.of(0).forward is not second.of(0).forward


def test_later_layers_see_the_routing_before_them(llama: Callable) -> None:
    recorder = record(llama(layers=3), IDS)
    forward = recorder.of(0).forward
    assert recorder.of(0).previous is None
    assert recorder.of(2).previous is forward.routings[1]
    assert sorted(forward.routings) == [0, 1, 2]


@pytest.mark.parametrize("where", ["in a layer", "in the root", "in an earlier hook"])
def test_the_context_closes_after_an_exception(llama: Callable, where: str) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("planned")

    model = llama()
    modules = {
        "in a layer": model.model.layers[1].mlp,
        "in the root": model.lm_head,
        "in an earlier hook": model,
    }
    handle = modules[where].register_forward_pre_hook(fail, prepend=True)
    with pytest.raises(RuntimeError, match="planned"):
        model(IDS)
    assert current() is None
    handle.remove()
    assert record(model, IDS).of(0).token_ids_T.tolist() == IDS.flatten().tolist()


def test_a_failing_inner_model_leaves_the_outer_context_in_order(llama: Callable) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = llama()

        def forward(self, input_ids: Tensor) -> Tensor:
            try:
                self.inner(input_ids[:, :2])
            except RuntimeError:
                assert current().tokens.ids is input_ids
            return self.inner(input_ids).logits

    outer = Outer()
    install(outer)
    fails = iter([True, False])

    def fail(*_: object) -> None:
        if next(fails):
            raise RuntimeError

    outer.inner.lm_head.register_forward_pre_hook(fail)
    outer(IDS)
    assert current() is None


def test_hooks_can_be_removed(llama: Callable) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = llama().model.layers[0].mlp

        def forward(self, x: Tensor) -> Tensor:
            assert (current() is not None) == self.expected
            return self.layer(x)

    model = Plain()
    handles = install(model)
    model.expected = True
    model(torch.randn(1, 2, 16))
    for handle in handles:
        handle.remove()
    model.expected = False
    model(torch.randn(1, 2, 16))


def test_a_copied_model_has_contexts_of_its_own(llama: Callable) -> None:
    model = llama()
    other = copy.deepcopy(model)
    assert record(other, IDS).of(0).forward is not record(model, IDS).of(0).forward
    assert current() is None


def test_threads_do_not_share_contexts(llama: Callable) -> None:
    model = llama().eval()
    batches = [torch.randint(1, 60, (2, 3 + i % 5)) for i in range(16)]

    def serve(ids: Tensor) -> bool:
        with torch.no_grad():
            return (
                all(record(model, ids).of(0).token_ids_T.tolist() == ids.flatten().tolist() for _ in range(3))
                and current() is None
            )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(serve, batches))


def test_a_context_given_by_hand_is_used_by_models_inside_it(llama: Callable) -> None:
    model, recorder = llama(), Recorder()
    with options(recorders=[recorder]), use(ForwardContext({"input_ids": IDS})) as context:
        model(IDS[:1])
        assert current() is context
    assert recorder.of(0).forward is context
    assert recorder.of(0).token_ids_T.tolist() == IDS[0].tolist()


def test_forward_contexts_are_freed(llama: Callable) -> None:
    """They hold routings with graphs: a reference cycle through autograd would leak every batch."""
    model = llama(noise="gaussian")
    recorder = record(model, IDS, labels=IDS)
    context = weakref.ref(recorder.of(0).forward)
    recorder.contexts.clear()
    del recorder
    gc.collect()
    assert context() is None


@pytest.fixture
def t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=61, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    model = T5ForConditionalGeneration(config)
    method = libmoe.create("smoe", num_experts=4)
    for index, block in enumerate([*model.encoder.block, *model.decoder.block]):
        block.layer[-1].DenseReluDense = method.build_layer(Site(16, 32, index=index, count=4))
    install(model)
    return model


SOURCE = torch.tensor([[5, 6, 7, 8, 9, 3], [9, 10, 3, 0, 0, 0]])
TARGET = torch.tensor([[0, 21, 22, 23], [0, 31, 32, 33]])


def test_encoder_and_decoder_layers_see_their_own_tokens(t5: nn.Module) -> None:
    mask, target_mask = (SOURCE != 0).long(), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    for decoder_mask in (target_mask, None):
        recorder = record(
            t5,
            input_ids=SOURCE,
            attention_mask=mask,
            decoder_input_ids=TARGET,
            decoder_attention_mask=decoder_mask,
        )
        for index in (0, 1):
            assert recorder.of(index).token_ids_T.tolist() == SOURCE.flatten().tolist()
            assert recorder.of(index).mask_T.tolist() == mask.flatten().bool().tolist()
        for index in (2, 3):
            assert recorder.of(index).token_ids_T.tolist() == TARGET.flatten().tolist()
            if decoder_mask is None:
                assert (
                    recorder.of(index).mask_T is None
                )  # the encoder's mask is as wide but says nothing here
            else:
                assert recorder.of(index).mask_T.tolist() == decoder_mask.flatten().bool().tolist()


def test_the_first_decoder_layer_has_no_previous_layer(t5: nn.Module) -> None:
    recorder = record(t5, input_ids=SOURCE, decoder_input_ids=TARGET)
    assert recorder.of(1).previous is recorder.of(1).forward.routings[0]
    assert recorder.of(2).previous is None  # the encoder's routing is about other tokens
    assert recorder.of(3).previous is recorder.of(3).forward.routings[2]


def test_labels_alone_give_the_decoder_its_ids(t5: nn.Module) -> None:
    recorder = record(t5, input_ids=SOURCE, labels=TARGET)
    assert recorder.of(2).token_ids_T.view(2, 4)[:, 1:].tolist() == TARGET[:, :-1].tolist()


def test_an_encoder_called_by_generate_sees_its_mask(t5: nn.Module) -> None:
    recorder, mask = Recorder(), (SOURCE != 0).long()
    with options(recorders=[recorder]):
        t5.eval().generate(SOURCE, attention_mask=mask, max_new_tokens=3, do_sample=False)
    assert recorder.of(0).mask_T.tolist() == mask.flatten().bool().tolist()
    assert recorder.of(2).batch_shape == (2, 1)
    assert recorder.of(2).mask_T is None


class Tower(nn.Module):
    """A submodel as transformers builds them: it names its main input."""

    def __init__(self, main_input_name: str, layer: nn.Module) -> None:
        super().__init__()
        self.main_input_name, self.layer = main_input_name, layer


class Vision(Tower):
    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.layer(pixel_values)


class Language(Tower):
    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.layer(inputs_embeds)


class VisionLanguage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        method = libmoe.create("smoe", num_experts=4)
        layers = [method.build_layer(Site(8, 16, index=index, count=2)) for index in range(2)]
        self.vision, self.language = Vision("pixel_values", layers[0]), Language("input_ids", layers[1])

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> Tensor:
        image = self.vision(pixel_values)
        return self.language(image[:, :1].expand(*input_ids.shape, -1), attention_mask=attention_mask)


def test_text_says_nothing_about_the_tokens_of_an_image() -> None:
    model = VisionLanguage()
    install(model)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    recorder = record(model, input_ids=IDS, attention_mask=mask, pixel_values=torch.randn(2, 3, 8))
    assert recorder.of(0).mask_T is None
    with pytest.raises(libmoe.LibMoEError, match="input_ids"):
        _ = recorder.of(0).token_ids_T
    assert recorder.of(1).mask_T.tolist() == mask.flatten().bool().tolist()
    assert recorder.of(1).token_ids_T.tolist() == IDS.flatten().tolist()
    assert recorder.of(1).previous is None
