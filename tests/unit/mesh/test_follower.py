"""Following a policy file: edits are taken or refused while the mesh is open."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil

import pytest

import dpmesh
from dpmesh.accounting import AMOUNT
from dpmesh.errors import AnnotationError, ConfigError, DpmeshError, PolicyUnavailableError, ProtectionError
from dpmesh.policy import loaded_types
from dpmesh.rollout.file_source import FileSource
from dpmesh.rollout.last_good import LastGood
from tests.support.mutual_tls import until
from tests.support.protos import compiled

TYPES = compiled(
    """message Report { string id = 1 [(dpmesh.v1.field).unit = {}];
    double a = 2 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 1 output: IN_RANGE}]; }"""
)
NAME = TYPES.Report.DESCRIPTOR.full_name
BUDGET = {"name": "unit", "epsilon": 1000.0, "accounting": "pure", "window": "lifetime"}


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """A swap looks at all loaded types, and other tests of this process load dearer ones."""
    monkeypatch.setattr(loaded_types, "_imported", lambda: iter(()))


def policy(epsilon=1.0, more=""):
    rule = f"{{numeric: {{lower: 0, upper: 1, epsilon: {epsilon}, output: IN_RANGE}}}}"
    return f"{more}fields:\n  {NAME}.a: {rule}\n...\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(policy())
    return path


def settings(followed, **more):
    return {
        "ledger": {"url": "memory:"},
        "budget": [BUDGET],
        "policy": {"source": str(followed), "poll": "0.1s", "cache": f"{followed}.cache", **more},
    }


def replace(file, text):
    other = file.with_suffix(".new")
    other.write_text(text)
    other.replace(file)


async def cost(mesh):
    return (await mesh.release(TYPES.Report(id="a", a=1))).epsilon


async def test_an_edit_is_taken_while_the_mesh_is_open(file):
    async with dpmesh.open(settings(file)) as mesh:
        assert await cost(mesh) == 1
        before = mesh.snapshot
        replace(file, policy(0.25))
        await until(lambda: mesh.snapshot is not before)
        assert (await cost(mesh), mesh.policy_status.refused) == (0.25, "")
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "dpmesh policy"]
    before = mesh.snapshot
    replace(file, policy(2))
    await asyncio.sleep(0.3)
    assert mesh.snapshot is before


async def test_a_link_that_leads_to_another_file_is_an_edit(tmp_path, file):
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    async with dpmesh.open(settings(link)) as mesh:
        other = tmp_path / "other.yaml"
        other.write_text(policy(0.5))
        new = tmp_path / "new"
        new.symlink_to(other)
        new.replace(link)
        await until(lambda: mesh.policy.document.fields[f"{NAME}.a"].numeric.epsilon == 0.5)


BAD = {
    "fields: {\n...": "not YAML or JSON",
    "": "does not end with a line of three dots",
    "{}\n...x": "not YAML or JSON",
    "colour: blue\n...": "colour: is not known here",
    "fields: {acme.No.such: {public: {}}}\n...": "no loaded proto has acme.No.such",
    policy(-1): "epsilon",
    policy(more="mode: OBSERVE\n"): "from enforce to observe",
    policy(more="budgets: [{name: unit, epsilon: 9, delta: 1e-6}]\n"): "policy: budget.accounting",
    "version: " + "a" * 256_000: "is larger than 256 kB",
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
async def test_whatever_is_wrong_with_an_edit_the_policy_in_force_stays(file, caplog, text):
    async with dpmesh.open(settings(file)) as mesh:
        before = mesh.snapshot
        replace(file, text)
        await until(lambda: mesh.policy_status.refused)
        assert BAD[text] in mesh.policy_status.refused
        assert mesh.snapshot is before
        assert await cost(mesh) == 1
        await asyncio.sleep(0.3)
        assert sum("the policy in force stays" in record.message for record in caplog.records) == 1
        replace(file, policy(0.5))
        await until(lambda: mesh.snapshot is not before)
        assert (await cost(mesh), mesh.policy_status.refused) == (0.5, "")


WHOLE = f"""# Comments may hold {{ and ...
epoch: 3
fields:
  {NAME}.id: {{unit: {{}}}}
  {NAME}.a: {{suppress: {{}}}}
messages:
  {NAME}: {{unannotated: SUPPRESS}}
"""


@pytest.mark.parametrize(
    "whole", [WHOLE + "...\n", json.dumps({"epoch": 3, "fields": {f"{NAME}.id": {"unit": {}}}}, indent=1)]
)
def test_no_part_of_a_policy_is_taken_for_the_whole(file, whole):
    """Every cut, also those after a whole line, where what is left would be a policy."""
    source = FileSource(file)
    file.write_text(whole)
    (taken,) = source.first()
    for end in range(len(whole.rstrip())):
        file.write_text(whole[:end])
        with pytest.raises(PolicyUnavailableError):
            source.first()
    for end in range(len(whole.rstrip()), len(whole) + 1):
        file.write_text(whole[:end])
        assert [offer.document for offer in source.first()] == [taken.document]


async def test_half_of_a_policy_that_is_written_in_place_is_refused_until_the_rest_is_there(file):
    async with dpmesh.open(settings(file)) as mesh:
        before = mesh.snapshot
        with file.open("w") as writing:
            writing.write(WHOLE.partition(f"  {NAME}.a")[0])
            writing.flush()
            await until(lambda: mesh.policy_status.refused)
            assert "does not end with a line of three dots" in mesh.policy_status.refused
            await asyncio.sleep(0.3)
            assert mesh.snapshot is before
            writing.write(f"  {NAME}.a: {{suppress: {{}}}}\n...\n")
        await until(lambda: mesh.snapshot is not before)
        assert (mesh.policy_status.refused, await cost(mesh)) == ("", 0)


async def test_a_named_pipe_is_refused_and_a_file_in_its_place_is_taken(file):
    async with dpmesh.open(settings(file)) as mesh:
        before = mesh.snapshot
        file.unlink()
        os.mkfifo(file)
        await until(lambda: mesh.policy_status.refused)
        assert "is no regular file" in mesh.policy_status.refused
        replace(file, policy(0.5))
        await until(lambda: mesh.snapshot is not before)
        assert mesh.policy_status.refused == ""


async def test_a_file_that_is_gone_is_tried_again(file, caplog):
    caplog.set_level(logging.INFO)
    async with dpmesh.open(settings(file)) as mesh:
        before = mesh.snapshot
        file.unlink()
        await until(lambda: mesh.policy_status.refused)
        assert "can't be read (No such file or directory)" in mesh.policy_status.refused
        assert await cost(mesh) == 1
        file.write_text(policy())
        await until(lambda: not mesh.policy_status.refused)
        assert mesh.snapshot is before
        assert f"the policy of {file} is in force" in caplog.text


async def test_a_policy_that_was_published_before_is_refused(file):
    file.write_text(policy(1, "epoch: 5\n"))
    async with dpmesh.open(settings(file)) as mesh:
        for more in ("epoch: 4\n", "epoch: 5\n", ""):
            replace(file, policy(0.5, more))
            await until(lambda: mesh.policy_status.refused)
            assert "is not larger than 5" in mesh.policy_status.refused
            assert await cost(mesh) == 1
            replace(file, policy(1, "epoch: 5\n"))
            await until(lambda: not mesh.policy_status.refused)
        replace(file, policy(0.5, "epoch: 6\n"))
        await until(lambda: mesh.policy.document.epoch == 6)
        assert await cost(mesh) == 0.5


async def test_an_error_of_dpmesh_itself_does_not_end_following_and_quotes_nothing(file, caplog, monkeypatch):
    async with dpmesh.open(settings(file)) as mesh:
        replacing, failed = mesh._replace, []

        async def failing(document, *steps):
            if not failed:
                failed.append(document)
                raise RuntimeError("41.77777777")
            await replacing(document, *steps)

        monkeypatch.setattr(mesh, "_replace", failing)
        replace(file, policy(0.5))
        await until(lambda: mesh.policy_status.refused)
        assert "RuntimeError in dpmesh" in mesh.policy_status.refused
        assert "41.7" not in mesh.policy_status.refused + caplog.text
        assert sum("the policy in force stays" in record.message for record in caplog.records) == 1
        await until(
            lambda: not mesh.policy_status.refused
        )  # It may have been want of memory, so it is tried again.
        assert await cost(mesh) == 0.5


def test_a_mesh_does_not_start_without_its_policy(file):
    file.unlink()
    with pytest.raises(ConfigError, match="can't be read"):
        dpmesh.open(settings(file))


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"poll": "0.01s"}, "policy.poll: '0.01s': allowed: a length from \"0.1s\" on"),
        ({"poll": "lifetime"}, "policy.poll: 'lifetime': allowed"),
        ({"poll": "soon"}, "policy.poll: 'soon': allowed"),
        ({"max_offline": "soon"}, "policy.max_offline: 'soon': allowed: \"never\""),
        ({"source": "https://a"}, "policy.source: 'https://a': allowed: the path of a file"),
        ({"source": ""}, "policy.source"),
    ],
)
def test_mistakes_in_the_configuration_are_named(file, more, text):
    with pytest.raises(ConfigError) as caught:
        dpmesh.open(settings(file, **more))
    assert text in str(caught.value)


async def test_a_restart_with_an_older_file_goes_on_with_the_policy_that_was_taken_last(file, caplog):
    async with dpmesh.open(settings(file)) as mesh:
        replace(file, policy(0.5, "epoch: 6\n"))
        await until(lambda: mesh.policy.document.epoch == 6)
    for older in (policy(1, "epoch: 5\n"), policy(1), policy(1, "epoch: 6\n")):
        replace(file, older)
        async with dpmesh.open(settings(file)) as mesh:
            assert "is not larger than 6" in caplog.text
            assert await cost(mesh) == 0.5
            await until(lambda: "is not larger than 6" in mesh.policy_status.refused)
        caplog.clear()
    replace(file, policy(0.25, "epoch: 7\n"))
    async with dpmesh.open(settings(file)) as mesh:
        assert await cost(mesh) == 0.25


@pytest.mark.parametrize(
    "left", [None, "fields: {\n...", policy(-1), policy(1, "epoch: 1\n").removesuffix("...\n")]
)
async def test_a_restart_without_a_fit_file_goes_on_with_the_policy_that_was_taken_last(file, left):
    async with dpmesh.open(settings(file)) as mesh:
        replace(file, policy(0.5))
        await until(lambda: mesh.policy.document.fields[f"{NAME}.a"].numeric.epsilon == 0.5)
        await until(lambda: mesh.policy_status.refused == "")
    if left is None:
        file.unlink()
    else:
        replace(file, left)
    async with dpmesh.open(settings(file)) as mesh:
        assert await cost(mesh) == 0.5
        await until(lambda: mesh.policy_status.refused)
        assert mesh.policy_status.state == ("fresh" if left else "stale")
        replace(file, policy(0.25))
        await until(lambda: mesh.policy_status.refused == "")
        assert await cost(mesh) == 0.25


async def test_the_image_s_policy_is_used_without_a_source_and_is_the_floor(tmp_path, file, caplog):
    image = tmp_path / "image.yaml"
    image.write_text(policy(0.125, "epoch: 5\n"))
    source = file.read_text()
    file.unlink()
    async with dpmesh.open(settings(file, file=str(image))) as mesh:
        assert "image.yaml is used" in caplog.text
        assert await cost(mesh) == 0.125
        file.write_text(source)
        await until(lambda: "epoch: 0 is not larger than 5" in mesh.policy_status.refused)
        replace(file, policy(0.5, "epoch: 6\n"))
        await until(lambda: mesh.policy_status.refused == "")
        assert await cost(mesh) == 0.5
    async with dpmesh.open(settings(file, file=str(image))) as mesh:  # The image stays.
        assert await cost(mesh) == 0.5
    image.write_text(policy(0.25, "epoch: 7\n"))
    async with dpmesh.open(
        settings(file, file=str(image))
    ) as mesh:  # Another image is newer than the source.
        assert await cost(mesh) == 0.25


async def test_a_disk_that_can_not_keep_a_policy_keeps_the_old_one_in_force(tmp_path, file):
    cache = tmp_path / "cache"
    async with dpmesh.open(settings(file, cache=str(cache))) as mesh:
        assert any(cache.glob("*.policy"))
        shutil.rmtree(cache)
        cache.write_text("")
        before = mesh.snapshot
        replace(file, policy(0.5))
        await until(lambda: "can't be" in mesh.policy_status.refused)
        assert (mesh.snapshot, await cost(mesh)) == (before, 1)
        cache.unlink()
        await until(lambda: mesh.policy_status.refused == "")
        assert await cost(mesh) == 0.5


async def test_without_a_cache_the_policy_is_followed_all_the_same(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with dpmesh.open(settings(file, cache="memory:")) as mesh:
        replace(file, policy(0.5))
        await until(lambda: mesh.policy.document.fields[f"{NAME}.a"].numeric.epsilon == 0.5)
    assert not (tmp_path / ".dpmesh").exists()


async def test_nothing_leaves_under_an_expired_policy(file, caplog):
    async with dpmesh.open(settings(file, max_offline="1s")) as mesh:
        assert await cost(mesh) == 1
        file.unlink()
        await until(lambda: mesh.policy_status.state == "stale")
        assert await cost(mesh) == 1
        await until(lambda: mesh.policy_status.state == "expired")
        assert "nothing may leave" in caplog.text
        for release in (mesh.release, mesh.stream(method="/a.B/C").release):
            with pytest.raises(ProtectionError) as caught:
                await release(TYPES.Report(id="a", a=1))
            assert (caught.value.reason, caught.value.field) == ("POLICY_EXPIRED", NAME)
        assert mesh.release_now(TYPES.Report(id="a", a=1)) is None
        (spent,) = await mesh.ledger.accounts()
        assert spent.spent == 2 * AMOUNT
    async with dpmesh.open(
        settings(file, max_offline="1s")
    ) as mesh:  # A restart does not begin to count anew.
        with pytest.raises(ProtectionError, match="POLICY_EXPIRED"):
            await cost(mesh)
        file.write_text(policy())
        await until(lambda: mesh.policy_status.state == "fresh")
        assert await cost(mesh) == 1


async def test_in_observe_mode_messages_leave_under_an_expired_policy(file):
    async with dpmesh.open({**settings(file, max_offline="0.1s"), "mode": "observe"}) as mesh:
        file.unlink()
        await until(lambda: mesh.policy_status.state == "expired")
        assert (await mesh.release(TYPES.Report(id="a", a=1))).message.a == 1


async def test_a_policy_may_name_types_of_other_versions_of_the_software_if_it_says_so(file):
    async with dpmesh.open(settings(file)) as mesh:
        missing = "  acme.v2.Report.a: {public: {}}\n  acme.v2.Report.b.c: {suppress: {}}\n...\n"
        replace(file, policy(0.5).replace("...\n", missing))
        await until(lambda: "no loaded proto has acme.v2.Report.a" in mesh.policy_status.refused)
        replace(file, policy(0.5, "may_be_missing: [acme.v2.*]\n").replace("...\n", missing))
        await until(lambda: mesh.policy_status.refused == "")
        assert await cost(mesh) == 0.5
        replace(file, policy(0.25, "may_be_missing: [acme.v2.*]\n").replace(f"{NAME}.a", f"{NAME}.aa"))
        await until(lambda: f"no loaded proto has {NAME}.aa" in mesh.policy_status.refused)


async def test_a_mesh_does_not_start_if_its_policy_can_not_be_kept(tmp_path, file):
    cache = tmp_path / "cache"
    mesh = dpmesh.open(settings(file, cache=str(cache)))
    cache.write_text("")
    with pytest.raises(DpmeshError, match=r"policy\.cache: .* can't be"):
        await mesh.__aenter__()


async def test_a_device_never_goes_back_behind_a_policy_that_it_had_in_force(tmp_path, file):
    image = tmp_path / "image.yaml"
    image.write_text(policy(0.125, "epoch: 3\n"))
    replace(file, policy(0.5, "epoch: 7\n"))
    async with dpmesh.open(settings(file, file=str(image))) as mesh:
        assert await cost(mesh) == 0.5
    (kept,) = (file.parent / f"{file.name}.cache").glob("*.policy")
    LastGood(kept).store(7, policy(-1, "epoch: 7\n").encode())  # As if the software no longer took it.
    file.unlink()
    with pytest.raises(AnnotationError, match="epsilon"):
        await dpmesh.open(settings(file, file=str(image))).__aenter__()
    replace(file, policy(0.25, "epoch: 8\n"))
    async with dpmesh.open(settings(file, file=str(image))) as mesh:
        assert await cost(mesh) == 0.25
