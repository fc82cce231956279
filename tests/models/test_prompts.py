"""Prompts against their equations, written out sample by sample, and where they act in a transformer."""

import math
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from timm.layers.attention import Attention
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from clbench.compose import compose
from clbench.conf_files import conf_dir
from clbench.models.continual import ContinualModel
from clbench.models.prompt_pools import PromptComponents, PromptPool, TaskPrompts, orthogonal_to
from clbench.models.prompts import Prefix, PromptedTransformer, attend
from clbench.models.small_vit import SmallViT, SmallViTConfig
from clbench.models.timm_backbone import TimmBackbone
from clbench.options import to_dataclass
from clbench.registry import STRATEGIES

WIDTH, BATCH = 12, 5


@pytest.fixture(autouse=True)
def fixed_draws():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def small_vit() -> SmallViT:
    config = SmallViTConfig(kind="small_vit", name="", patch_size=4, width=WIDTH, depth=3, heads=3, image_size=8)
    return SmallViT(config, (1, 8, 8)).eval()


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def cosine(a, b) -> torch.Tensor:
    return (a * b).sum() / (a.norm() * b.norm())


# ---- attention ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("shape", [(4, WIDTH), (BATCH, 4, WIDTH)])
def test_attention_to_prompts_by_hand(shape, fused):
    """Per sample and head: softmax(q [P_K; k]ᵀ / √d) [P_V; v], where P_K and P_V are not projected."""
    attention = small_vit().network.blocks[0].attn
    attention.fused_attn = fused
    x, keys, values = torch.randn(BATCH, 7, WIDTH), torch.randn(shape), torch.randn(shape)
    w_q, w_k, w_v = attention.qkv.weight.chunk(3)
    b_q, b_k, b_v = attention.qkv.bias.chunk(3)
    rows = []
    for sample in range(BATCH):
        own_keys, own_values = (p if len(shape) == 2 else p[sample] for p in (keys, values))
        q = x[sample] @ w_q.T + b_q
        k = torch.cat([own_keys, x[sample] @ w_k.T + b_k])
        v = torch.cat([own_values, x[sample] @ w_v.T + b_v])
        heads = []
        for head in range(3):
            part = slice(4 * head, 4 * head + 4)
            heads.append((q[:, part] @ k[:, part].T / math.sqrt(4)).softmax(-1) @ v[:, part])
        rows.append(torch.cat(heads, 1) @ attention.proj.weight.T + attention.proj.bias)
    torch.testing.assert_close(attend(attention, x, keys, values), torch.stack(rows))


def test_attention_to_no_prompts_is_timms():
    attention = small_vit().network.blocks[0].attn
    x, none = torch.randn(BATCH, 7, WIDTH), torch.empty(0, WIDTH)
    torch.testing.assert_close(attend(attention, x, none, none), attention(x))


def test_norms_of_queries_and_keys_leave_prompts_as_they_are():
    attention = Attention(WIDTH, num_heads=3, qk_norm=True, norm_layer=nn.LayerNorm).eval()
    x, none, keys = torch.randn(BATCH, 7, WIDTH), torch.empty(0, WIDTH), torch.randn(4, WIDTH)
    torch.testing.assert_close(attend(attention, x, none, none), attention(x))
    larger = attend(attention, x, 3 * keys, keys)
    assert not torch.allclose(larger, attend(attention, x, keys, keys), atol=1e-4)


def test_a_transformer_takes_the_prompts_that_its_own_features_find():
    """The query is what the network without prompts makes of the image."""
    vit = small_vit()
    prompted = PromptedTransformer(vit, {1: PromptPool(6, 4, WIDTH, top_k=2)}).eval()
    x = torch.randn(BATCH, 1, 8, 8)
    tokens = vit.network.blocks[0](vit.embed(x))
    block, pool = vit.network.blocks[1], prompted.prompts["1"]
    rows = []
    for sample, query in enumerate(vit(x)):
        nearest = sorted(range(6), key=lambda m: -cosine(query, pool.keys[m]))[:2]
        keys, values = (torch.cat([half[m] for m in nearest]) for half in (pool.vectors[:, :2], pool.vectors[:, 2:]))
        h = tokens[sample : sample + 1]
        h = h + attend(block.attn, block.norm1(h), keys, values)
        rows.append(h + block.mlp(block.norm2(h)))
    torch.testing.assert_close(prompted(x), vit.pool(vit.network.blocks[2](torch.cat(rows))))


def test_prefix_is_halved():
    prefix = Prefix(6, WIDTH)
    keys, values = prefix.keys_and_values(None)
    assert torch.equal(keys, prefix.vectors[:3])
    assert torch.equal(values, prefix.vectors[3:])
    assert prefix.vectors.min() >= 0
    assert prefix.vectors.max() <= 1


# ---- the transformer with prompts -----------------------------------------------------------------------------------


def test_prompts_act_at_their_blocks_alone():
    """The forward pass of timm's blocks with one attention replaced; the others are timm's."""
    backbone, prefix = small_vit(), Prefix(4, WIDTH)
    prompted, x = PromptedTransformer(backbone, {1: prefix}), torch.randn(BATCH, 1, 8, 8)
    h = backbone.embed(x)
    for index, block in enumerate(backbone.network.blocks):
        if index == 1:
            h = h + attend(block.attn, block.norm1(h), *prefix.keys_and_values(None))
            h = h + block.mlp(block.norm2(h))
        else:
            h = block(h)
    torch.testing.assert_close(prompted(x), backbone.pool(h))
    assert (prompted(x) - backbone(x)).abs().max() > 1e-3


PROMPTS = {
    "prefix": lambda: Prefix(4, WIDTH),
    "pool": lambda: PromptPool(6, 4, WIDTH, 2),
    "tasks": lambda: TaskPrompts(3, 4, WIDTH),
    "components": lambda: PromptComponents(6, 4, WIDTH, 3),
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_query_is_what_an_evaluation_computes_once(kind):
    """prefix(x, 1) and after_prefix give forward's logits bit for bit, and the first stage has no trained part."""
    model = ContinualModel(small_vit(), [[0, 1], [2, 3]], "class")
    model.backbone = PromptedTransformer(model.backbone, {0: PROMPTS[kind](), 2: PROMPTS[kind]()})
    model.train()
    assert model.frozen_prefix() == 1
    model.eval()
    x = torch.randn(BATCH, 1, 8, 8)
    with torch.no_grad():
        h = model.prefix(x, 1)
        assert h.shape == (BATCH, 5 + (kind != "prefix"), WIDTH)
        with model.after_prefix(1):
            after = model(h)
        assert torch.equal(after, model(x))


def test_query_is_the_features_without_prompts():
    backbone = small_vit()
    prompted, x = PromptedTransformer(backbone, {0: PromptPool(6, 4, WIDTH, 2)}), torch.randn(BATCH, 1, 8, 8)
    prompted(x)
    torch.testing.assert_close(prompted.query, backbone(x))
    assert not prompted.query.requires_grad


def test_the_transformer_is_frozen_and_in_evaluation_mode():
    prompted = PromptedTransformer(small_vit(), {0: TaskPrompts(3, 4, WIDTH)}).train()
    assert {name for name, p in prompted.named_parameters() if p.requires_grad} == {
        "prompts.0.vectors",
        "prompts.0.keys",
    }
    assert prompted.prompts["0"].training
    assert not any(module.training for module in prompted.backbone.modules())


def test_matching_loss_is_a_mean_over_blocks_with_keys():
    pools = PromptPool(6, 4, WIDTH, 2), PromptPool(6, 4, WIDTH, 2)
    prompted = PromptedTransformer(small_vit(), {0: Prefix(4, WIDTH), 1: pools[0], 2: pools[1]})
    prompted(torch.randn(BATCH, 1, 8, 8))
    expected = (pools[0].matching_loss(prompted.query) + pools[1].matching_loss(prompted.query)) / 2
    torch.testing.assert_close(prompted.matching_loss(), expected)


# ---- L2P ------------------------------------------------------------------------------------------------------------


def test_pool_sample_by_sample():
    pool, query = PromptPool(6, 4, WIDTH, 2), torch.randn(BATCH, WIDTH)
    keys, values = pool.keys_and_values(query)
    losses = []
    for sample in range(BATCH):
        similarity = [float(cosine(query[sample], key)) for key in pool.keys.detach()]
        nearest = sorted(range(6), key=lambda m: -similarity[m])[:2]
        torch.testing.assert_close(keys[sample], torch.cat([pool.vectors[m, :2] for m in nearest]))
        torch.testing.assert_close(values[sample], torch.cat([pool.vectors[m, 2:] for m in nearest]))
        losses += [1 - similarity[m] for m in nearest]
    torch.testing.assert_close(pool.matching_loss(query), torch.tensor(losses).mean())


def test_pool_does_not_look_at_the_rest_of_the_batch():
    pool, query = PromptPool(20, 4, WIDTH, 5), torch.randn(30, WIDTH)
    together = pool.keys_and_values(query)
    order = torch.randperm(30)
    for whole, shuffled, alone in zip(
        together, pool.keys_and_values(query[order]), pool.keys_and_values(query[3:4]), strict=True
    ):
        assert torch.equal(whole[order], shuffled)
        assert torch.equal(whole[3:4], alone)


def test_matching_loss_pulls_only_the_keys_that_a_sample_has_chosen():
    """Each query near a key of its own: no key is pulled to the other query, as it is where a batch shares its choices."""
    pool = PromptPool(3, 4, 3, 1)
    query = torch.tensor([[1.0, 0.1, 0.0], [0.1, 0.0, 1.0]])
    with torch.no_grad():
        pool.keys.copy_(torch.eye(3))
    pool.matching_loss(query).backward()
    alone = [torch.autograd.grad(pool.matching_loss(q[None]), pool.keys)[0] for q in query]
    torch.testing.assert_close(pool.keys.grad, (alone[0] + alone[1]) / 2)
    assert pool.keys.grad[1].eq(0).all()
    assert pool.keys.grad[0, 2] == 0  # not pulled to the second query, which has an entry there


# ---- DualPrompt -----------------------------------------------------------------------------------------------------


def test_prompts_of_tasks_in_training():
    """The current task's, whatever the query is; nothing else gets a gradient."""
    prompts, query = TaskPrompts(4, 6, WIDTH), torch.randn(BATCH, WIDTH)
    prompts.begin_task(2, generator())
    keys, values = prompts.train().keys_and_values(query)
    assert torch.equal(keys, prompts.vectors[2, :3])
    assert torch.equal(values, prompts.vectors[2, 3:])
    loss = prompts.matching_loss(query)
    torch.testing.assert_close(loss, torch.stack([1 - cosine(q, prompts.keys[2]) for q in query]).mean())
    (loss + keys.square().sum() + values.square().sum()).backward()
    for gradient in (prompts.vectors.grad, prompts.keys.grad):
        assert gradient[2].ne(0).all()
        assert gradient[[0, 1, 3]].eq(0).all()


def test_prompts_of_tasks_in_evaluation():
    """The nearest key's among the tasks so far, sample by sample; the key of a task to come does not compete."""
    prompts, query = TaskPrompts(4, 6, WIDTH).eval(), torch.randn(BATCH, WIDTH)
    prompts.begin_task(2, generator())
    with torch.no_grad():
        prompts.keys.copy_(torch.randn(4, WIDTH))
        prompts.keys[3] = query[0]
    keys, values = prompts.keys_and_values(query)
    chosen = [max(range(3), key=lambda t: float(cosine(q, prompts.keys[t].detach()))) for q in query]
    assert len(set(chosen)) > 1
    assert torch.equal(keys, prompts.vectors[chosen, :3])
    assert torch.equal(values, prompts.vectors[chosen, 3:])


# ---- CODA-Prompt ----------------------------------------------------------------------------------------------------


def components_in_task(task: int) -> PromptComponents:
    components = PromptComponents(6, 4, WIDTH, 3)
    for earlier in range(task + 1):
        components.begin_task(earlier, generator().manual_seed(earlier))
        with torch.no_grad():  # training moves them, and they are not orthogonal any more
            for tensor in components.parameters():
                tensor[2 * earlier : 2 * earlier + 2] += 0.3 * torch.rand_like(tensor[:2])
    return components


@pytest.mark.parametrize("training", [True, False])
def test_components_sample_by_sample(training):
    components, query = components_in_task(1).train(training), torch.randn(BATCH, WIDTH)
    with torch.no_grad():  # those of the task to come have no part
        for tensor in components.parameters():
            tensor[4:] = torch.randn_like(tensor[4:])
    keys, values = components.keys_and_values(query)
    for sample in range(BATCH):
        prompt = sum(
            cosine(query[sample] * components.attention[m], components.keys[m]) * components.vectors[m]
            for m in range(4)
        )
        torch.testing.assert_close(keys[sample], prompt[:2])
        torch.testing.assert_close(values[sample], prompt[2:])


def test_only_the_current_tasks_components_get_a_gradient():
    components, query = components_in_task(1).train(), torch.randn(BATCH, WIDTH)
    keys, values = components.keys_and_values(query)
    (keys.square().sum() + values.sum() + components.orthogonality_loss()).backward()
    for tensor in components.parameters():
        assert tensor.grad[2:4].ne(0).all()
        assert tensor.grad[[0, 1, 4, 5]].eq(0).all()


def test_orthogonality_loss_entry_by_entry():
    components = components_in_task(1)
    expected = 0.0
    for tensor in components.parameters():
        for i in range(4):
            for j in range(4):
                expected += (float((tensor[i] * tensor[j]).detach().sum()) - (i == j)) ** 2
    torch.testing.assert_close(components.orthogonality_loss(), torch.tensor(expected))


def test_components_are_divided_among_tasks():
    assert PromptComponents(100, 2, 2, 10).task_of.bincount().tolist() == [10] * 10
    assert PromptComponents(5, 2, 2, 3).task_of.tolist() == [0, 0, 1, 1, 2]


def test_new_components_are_gram_schmidts():
    """What Gram-Schmidt leaves of the draws, one after another, against the earlier ones, which are not orthogonal."""
    earlier = torch.randn(3, 9, dtype=torch.float64)
    basis: list[torch.Tensor] = []
    for v in [*earlier, *torch.randn(4, 9, dtype=torch.float64, generator=generator())]:
        rest = v - sum((v @ u) * u for u in basis) if basis else v
        basis.append(rest / rest.norm())
    torch.testing.assert_close(orthogonal_to(earlier, 4, generator()), torch.stack(basis[3:]))


def test_new_components_where_no_direction_is_left():
    """Two of three fit beside three earlier ones in five dimensions; the third is a unit vector all the same."""
    earlier = torch.randn(3, 5)
    new = orthogonal_to(earlier, 3, generator())
    torch.testing.assert_close(new[:2] @ new[:2].T, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(new[:2] @ earlier.double().T, torch.zeros(2, 3, dtype=torch.float64))
    torch.testing.assert_close(new.norm(dim=1), torch.ones(3, dtype=torch.float64))


def test_a_task_draws_its_components_and_leaves_the_earlier_ones():
    components = components_in_task(0)
    before = {name: tensor[:2].clone() for name, tensor in components.named_parameters()}
    components.begin_task(1, generator())
    for name, tensor in components.named_parameters():
        rows = tensor[:4].detach().flatten(1)
        assert torch.equal(tensor[:2], before[name])
        torch.testing.assert_close(rows[2:] @ rows[2:].T, torch.eye(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(rows[2:] @ rows[:2].T, torch.zeros(2, 2), atol=1e-5, rtol=0)
        assert tensor[4:].eq(0).all()


# ---- sizes at ViT-B/16 ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vit_b16():
    """The network of model=vit_b16 without memory for its weights."""
    config = to_dataclass(compose(["model=timm", "model.name=vit_base_patch16_224"])).model
    with torch.device("meta"):
        return TimmBackbone(config, (3, 224, 224))


def with_prompts(name, changes, backbone):
    """The method with its options in conf/strategy/, for ten tasks of CIFAR-100 and without memory for its weights."""
    values = OmegaConf.load(conf_dir() / "strategy" / f"{name}.yaml")
    values.pop("defaults")
    options = to_dataclass(OmegaConf.merge(OmegaConf.structured(STRATEGIES[name].config), values, changes))
    tasks = [list(range(10 * t, 10 * t + 10)) for t in range(10)]
    with torch.device("meta"):
        model = ContinualModel(backbone, tasks, "class")
        return STRATEGIES[name](options, model, SimpleNamespace(n_tasks=10, name="cifar100"))


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("oneprompt", {}, 107_520),
        ("l2p", {}, 483_840),
        ("l2p", {"blocks": [0, 1, 2, 3, 4]}, 2_419_200),
        ("dualprompt", {}, 960_000),
        ("dualprompt", {"expert_length": 20, "general_length": 6}, 493_056),
        ("coda_prompt", {}, 3_840_000),
    ],
)
def test_number_of_parameters(name, changes, expected, vit_b16):
    """Those of the released codes; beside them the head alone is trained, 100 · (768 + 1)."""
    strategy = with_prompts(name, changes, vit_b16)
    assert [(m.quantity, m.value) for m in strategy.measurements()] == [("prompt_parameters", expected)]
    assert sum(p.numel() for p in strategy.model.trained().values()) == expected + 76_900


def test_a_query_costs_a_second_pass(vit_b16):
    """The advantage that OnePrompt is about. Third-party notes: 16.8 against 33.7 billion multiplications for an image."""
    multiplications = {}
    for name in ("oneprompt", "dualprompt", "coda_prompt"):
        model = with_prompts(name, {}, vit_b16).model.eval()
        with FlopCounterMode(display=False) as flops:
            model(torch.empty(1, 3, 224, 224, device="meta"))
        multiplications[name] = flops.get_total_flops() / 2e9
    assert multiplications["oneprompt"] == pytest.approx(16.8, rel=0.06)
    assert multiplications["dualprompt"] / multiplications["oneprompt"] == pytest.approx(2, abs=0.02)
    assert multiplications["coda_prompt"] / multiplications["oneprompt"] == pytest.approx(2, abs=0.02)


@pytest.mark.parametrize("name", ["vit_base_patch16_rpn_224", "vit_small_patch16_18x2_224"])
def test_blocks_of_another_kind_are_no_place_for_prompts(name):
    """timm builds them into the same class of network: norms come after attention, or a block has two of everything."""
    config = to_dataclass(compose(["model=timm", "model.name=vit_base_patch16_224"])).model
    config.name = name
    with torch.device("meta"):
        assert TimmBackbone(config, (3, 224, 224)).transformer is None
