"""The cloud policies, decided as the cloud decides: who may read patients, who may not, and no way around it."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
BUCKET = "arn:aws:s3:::example-hospital"
ROLE = "arn:aws:iam::111122223333:role/"
# What S3 keeps of the store: `private/`, and the custodian's files at its top.
CLOSED = ("private/ingest/ab12/records.parquet", "private/key", "report.html", "summary.json", "tune/explorer.html")
OPEN = ("releasable/filter/ab12/kept.parquet", "releasable/work/distill-ab12/state")
OBJECT_ACTIONS = ("GetObject", "GetObjectVersion", "PutObject", "DeleteObject", "GetObjectAcl", "RestoreObject")
# No prefix is also what HeadBucket asks with.
CLOSED_PREFIXES = (None, "", "p", "pd", "pd/", "pd/private", "pd/private/", "pd/private/ingest/", "pd/rel", "pd/t")


def policy(name: str, role: str = "pd-private") -> list[dict[str, Any]]:
    """Statements of a policy file, for the roles of one cluster."""
    text = (ROOT / "cloud" / f"aws-{name}.json").read_text()
    return json.loads(text if name == "bucket-policy" else text.replace("pd-private", role))["Statement"]


ATTACHED = {
    "pd-private": [*policy("policy-private")],
    "pd-private-head": [*policy("policy-private"), *policy("policy-head")],
    "pd-releasable": [*policy("policy-releasable")],
    "pd-releasable-head": [*policy("policy-releasable"), *policy("policy-head", "pd-releasable")],
    "somebody": [{"Effect": "Allow", "Action": ["*"], "Resource": ["*"]}],
}


def allowed(role: str, action: str, resource: str, **context: str) -> bool:
    """AWS's rule within one account: something allows it, and neither role nor bucket denies it."""
    keys = {"aws:PrincipalArn": ROLE + role, "aws:SecureTransport": "true", **context}
    effects = {
        statement["Effect"]
        for statement in [*ATTACHED[role], *policy("bucket-policy")]
        if _any(action, statement["Action"])
        and _any(resource, statement["Resource"])
        and _holds(statement.get("Condition", {}), keys)
    }
    return effects == {"Allow"}


def may_list(role: str, prefix: str | None) -> bool:
    context = {} if prefix is None else {"s3:prefix": prefix}
    return any(
        allowed(role, action, BUCKET, **context)
        for action in ("s3:ListBucket", "s3:ListBucketVersions", "s3:ListBucketMultipartUploads")
    )


def _any(value: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(value, pattern) for pattern in patterns)


def _holds(condition: dict[str, dict[str, list[str]]], keys: dict[str, str]) -> bool:
    tests = {
        "StringEquals": lambda value, wanted: value in wanted,
        "StringLike": lambda value, wanted: value is not None and _any(value, wanted),
        "StringLikeIfExists": lambda value, wanted: value is None or _any(value, wanted),
        "StringNotLike": lambda value, wanted: value is None or not _any(value, wanted),
        "ArnNotLike": lambda value, wanted: value is None or not _any(value, wanted),
        "Bool": lambda value, wanted: value in wanted,
    }
    return all(
        tests[operator](keys.get(key), wanted) for operator, by in condition.items() for key, wanted in by.items()
    )


@pytest.mark.parametrize("role", ["pd-releasable", "pd-releasable-head", "somebody"])
@pytest.mark.parametrize("action", OBJECT_ACTIONS)
def test_only_the_private_roles_open_what_is_private(role: str, action: str) -> None:
    for key in CLOSED:
        assert not allowed(role, f"s3:{action}", f"{BUCKET}/pd/{key}"), key


@pytest.mark.parametrize("role", ["pd-releasable", "pd-releasable-head", "somebody"])
def test_only_the_private_roles_see_what_private_things_are_called(role: str) -> None:
    """A fingerprint chains to the private table: who knows all of it but a patient could try both ways."""
    assert not [prefix for prefix in CLOSED_PREFIXES if may_list(role, prefix)]


def test_no_statement_gives_the_releasable_role_anything_but_releasable() -> None:
    for statement in policy("policy-releasable"):
        if statement["Effect"] == "Deny":
            continue
        for resource in statement["Resource"]:
            if resource == BUCKET:
                assert statement["Action"] == ["s3:ListBucket"]
                assert list(statement["Condition"]) == ["StringLike"]
                prefixes = statement["Condition"]["StringLike"]["s3:prefix"]
                assert all(prefix.startswith("pd/releasable/") for prefix in prefixes)
            else:
                assert resource.startswith(f"{BUCKET}/pd/releasable/")


@pytest.mark.parametrize("extra", [{"Effect": "Allow", "Action": ["s3:*"], "Resource": ["*"]}])
def test_private_stays_closed_to_the_releasable_role_whatever_else_it_is_given(
    monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any]
) -> None:
    monkeypatch.setitem(ATTACHED, "pd-releasable", [*ATTACHED["pd-releasable"], extra])
    assert allowed("pd-releasable", "s3:GetObject", f"{BUCKET}/another/key")
    assert not any(allowed("pd-releasable", "s3:GetObject", f"{BUCKET}/pd/{key}") for key in CLOSED)
    assert not any(may_list("pd-releasable", prefix) for prefix in CLOSED_PREFIXES)


@pytest.mark.parametrize("role", ["pd-releasable", "pd-releasable-head"])
def test_the_releasable_roles_read_and_write_releasable(role: str) -> None:
    for action in ("GetObject", "PutObject", "DeleteObject", "AbortMultipartUpload"):
        assert all(allowed(role, f"s3:{action}", f"{BUCKET}/pd/{key}") for key in OPEN), action
    assert allowed(role, "s3:ListBucket", BUCKET, **{"s3:prefix": "pd/releasable/filter/"})


@pytest.mark.parametrize("role", ["pd-private", "pd-private-head"])
def test_the_private_roles_read_and_write_the_whole_store_and_no_other(role: str) -> None:
    for action in ("GetObject", "PutObject", "DeleteObject", "AbortMultipartUpload"):
        assert all(allowed(role, f"s3:{action}", f"{BUCKET}/pd/{key}") for key in (*OPEN, *CLOSED)), action
        assert not allowed(role, f"s3:{action}", f"{BUCKET}/another/key")
    for prefix in (None, "pd/private/ingest/"):  # without a prefix: pyarrow asks whether the bucket is there
        assert may_list(role, prefix)
    assert not may_list(role, "another/")


@pytest.mark.parametrize("role", ["pd-private", "pd-releasable", "somebody"])
def test_nothing_travels_in_clear(role: str) -> None:
    key = f"{BUCKET}/pd/releasable/filter/ab12/kept.parquet"
    assert not allowed(role, "s3:GetObject", key, **{"aws:SecureTransport": "false"})


def test_a_head_gives_new_nodes_its_own_cluster_s_role_only() -> None:
    """Else a head that may not read patients could launch a node that may."""
    for own, other in (("pd-private", "pd-releasable"), ("pd-releasable", "pd-private")):
        to_ec2 = {"iam:PassedToService": "ec2.amazonaws.com"}
        assert allowed(f"{own}-head", "iam:PassRole", ROLE + own, **to_ec2)
        for role in (other, f"{other}-head", f"{own}-head"):
            assert not allowed(f"{own}-head", "iam:PassRole", ROLE + role, **to_ec2)
        assert not allowed(own, "iam:PassRole", ROLE + own, **to_ec2)


def test_a_head_ends_and_renames_nodes_of_its_own_cluster_only() -> None:
    machine = "arn:aws:ec2:us-west-2:111122223333:instance/i-0"
    own, other = ({"aws:ResourceTag/ray-cluster-name": name} for name in ("pd-releasable", "pd-private"))
    for action in ("ec2:TerminateInstances", "ec2:CreateTags"):
        assert allowed("pd-releasable-head", action, machine, **own)
        assert not allowed("pd-releasable-head", action, machine, **other)
        assert not allowed("pd-releasable-head", action, machine)


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster-gcp.yaml", "rayjob.yaml"])
def test_one_word_changed_makes_a_manifest_the_one_of_the_releasable_role(name: str) -> None:
    text = (ROOT / name).read_text().replace("pd-private", "pd-releasable")
    identities = [identity for document in yaml.safe_load_all(text) for identity in _identities(document)]
    assert identities and all(identity.startswith("pd-releasable") for identity in identities)


def _identities(node: Any) -> list[str]:
    """Roles and accounts named anywhere in a manifest."""
    if isinstance(node, list):
        return [found for child in node for found in _identities(child)]
    if not isinstance(node, dict):
        return []
    named = [
        *([node["IamInstanceProfile"]["Name"]] if "IamInstanceProfile" in node else []),
        *([node["email"]] if "email" in node else []),
        *([node["serviceAccountName"]] if "serviceAccountName" in node else []),
        *([arn.rpartition("/")[2] for key, arn in node.items() if key == "eks.amazonaws.com/role-arn"]),
    ]
    return named + [found for child in node.values() for found in _identities(child)]


def test_every_node_of_a_cluster_has_a_role_and_only_the_head_has_the_head_s() -> None:
    aws = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    gcp = yaml.safe_load((ROOT / "cluster-gcp.yaml").read_text())["available_node_types"]
    for group in aws:
        expected = "pd-private-head" if group == "head" else "pd-private"
        assert aws[group]["node_config"]["IamInstanceProfile"] == {"Name": expected}
        (account,) = gcp[group]["node_config"]["serviceAccounts"]
        assert account["email"].partition("@")[0] == expected


def test_on_google_cloud_the_releasable_accounts_reach_releasable_and_nothing_else() -> None:
    bindings = json.loads((ROOT / "cloud" / "gcp-bucket-policy.json").read_text())["bindings"]
    private, releasable = bindings
    assert {member.partition("@")[0] for member in private["members"]} == {
        "serviceAccount:pd-private",
        "serviceAccount:pd-private-head",
    }
    assert all(member.startswith("serviceAccount:pd-releasable") for member in releasable["members"])
    of_object, of_list = releasable["condition"]["expression"].split(" || ")
    store = "projects/_/buckets/example-hospital/objects/pd/releasable/"
    assert of_object == f"resource.name.startsWith('{store}')"
    assert of_list.startswith("(resource.type == 'storage.googleapis.com/Bucket' && ")
    assert of_list.endswith("objectListPrefix', '').startsWith('pd/releasable/'))")
