#!/usr/bin/env bash
# dattri 0.3.0, torch 2.13.0.
#
# dattri's TRAKAttributor keeps its projector_kwargs in a dictionary that all attributors of the class share: it is the
# module's own table of defaults, and each constructor writes into it. So an attributor that was made, and whose
# training features are cached, projects its queries with the settings of whichever was made last. Making one for each
# of several seeds and then asking them, as one does for an ensemble, compares training features in one random
# basis with queries in another: the scores have the right shape, no warning comes, and they are noise. And an
# attributor without projector_kwargs does not get the documented default of 512 numbers but what was set last.
# TracInAttributor does the same; DVEmbAttributor copies its defaults.
#
# Output seen (5 classes, 1,000 training examples; the middle line asks the very same attributor again):
#   first attributor, alone: 0.77 of its ten best training examples have the query's class
#   first attributor, after a second was made: 0.22 of its ten best training examples have the query's class
#   correlation of its scores with those before: -0.06
#   a third, made without settings, projects to 128 numbers with seed 1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
env -u PIP_NO_INDEX "$work/venv/bin/python" -m pip install -q --no-compile --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 scipy==1.17.1 tqdm==4.70.1 pyyaml==6.0.4
env -u PIP_NO_INDEX "$work/venv/bin/python" -m pip install -q --no-compile --disable-pip-version-check \
    --no-deps dattri==0.3.0
export PIP_NO_INDEX=1 OMP_NUM_THREADS=1 TQDM_DISABLE=1
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from dattri.algorithm.trak import TRAKAttributor
from dattri.task import AttributionTask
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
N_CLASSES, WIDTH, N = 5, 20, 1000
centres = torch.randn(N_CLASSES, WIDTH)


def draw(n):
    labels = torch.arange(n) % N_CLASSES
    return TensorDataset(centres[labels] + torch.randn(n, WIDTH), labels)


data, queries = draw(N), draw(50)
model = torch.nn.Sequential(torch.nn.Linear(WIDTH, 32), torch.nn.ReLU(), torch.nn.Linear(32, N_CLASSES))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(20):
    optimizer.zero_grad()
    cross_entropy(model(data.tensors[0]), data.tensors[1]).backward()
    optimizer.step()


def loss(parameters, example):
    return cross_entropy(torch.func.functional_call(model, parameters, example[0][None]), example[1][None])


def probability(parameters, example):
    return torch.exp(-loss(parameters, example))


task = AttributionTask(loss, model, model.state_dict())
train, asked = DataLoader(data, batch_size=500), DataLoader(queries, batch_size=50)


def attributor(**projector_kwargs):
    made = TRAKAttributor(task, probability, projector_kwargs=projector_kwargs or None, regularization=0.1)
    if projector_kwargs:
        made.cache(train)
    return made


def report(what, scores):
    best = data.tensors[1][scores.topk(10, dim=0).indices]
    share = float((best == queries.tensors[1]).double().mean())
    print(f"{what}: {share:.2f} of its ten best training examples have the query's class")
    return share


first = attributor(proj_seed=0, proj_dim=128)
alone = first.attribute(asked)
before = report("first attributor, alone", alone)
assert torch.equal(first.attribute(asked), alone)  # asked again it says the same
second = attributor(proj_seed=1, proj_dim=128)
later = first.attribute(asked)
after = report("first attributor, after a second was made", later)
correlation = float(torch.corrcoef(torch.stack([alone.flatten(), later.flatten()]))[0, 1])
print(f"correlation of its scores with those before: {correlation:.2f}")
third = attributor()
print(f"a third, made without settings, projects to {third.projector_kwargs['proj_dim']} numbers "
      f"with seed {third.projector_kwargs['proj_seed']}")
assert before > after + 0.15 and after < 0.4 and correlation < 0.5, (before, after, correlation)
assert third.projector_kwargs is first.projector_kwargs and third.projector_kwargs["proj_dim"] == 128
PYTHON
