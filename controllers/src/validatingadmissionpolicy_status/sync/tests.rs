use serde_json::{Value, from_value};

use super::*;
use crate::discovery::Discovered;

fn policy(spec: Value) -> ValidatingAdmissionPolicy {
    from_value(json!({ "metadata": { "name": "p", "generation": 2 }, "spec": spec })).unwrap()
}

fn rule(groups: &[&str], versions: &[&str], resources: &[&str]) -> Value {
    json!({ "apiGroups": groups, "apiVersions": versions, "resources": resources, "operations": ["*"] })
}

fn known() -> ApiResources {
    let one = |group: &str, plural: &str, kind: &str| Discovered {
        resource: controller_runtime::Resource {
            group: group.to_owned().into(),
            version: "v1".into(),
            kind: kind.to_owned().into(),
            plural: plural.to_owned().into(),
        },
        namespaced: true,
        verbs: Vec::new(),
        preferred: true,
        subresources: Vec::new(),
    };
    ApiResources {
        resources: vec![
            one("apps", "deployments", "Deployment"),
            one("", "pods", "Pod"),
        ],
        failed: Vec::new(),
    }
}

fn check_kinds(rules: Value, expect: &[&str], expect_known: bool) {
    let policy = policy(json!({ "matchConstraints": { "resourceRules": rules } }));
    let (found, known) = kinds_to_check(&policy, &known());
    let shown: Vec<String> = found.iter().map(GroupVersionKind::shown).collect();
    assert_eq!(shown, expect);
    assert_eq!(known, expect_known);
}

#[test]
fn which_kinds_are_checked() {
    let deployment = "apps/v1, Kind=Deployment";
    let deployments = || rule(&["apps"], &["v1"], &["deployments"]);
    check_kinds(json!([]), &[], true);
    check_kinds(json!([deployments()]), &[deployment], true);
    let pods = rule(&[""], &["v1"], &["pods"]);
    check_kinds(
        json!([deployments(), pods]),
        &["/v1, Kind=Pod", deployment],
        true,
    );
    check_kinds(json!([rule(&["apps"], &["v1"], &["*"])]), &[], true);
    check_kinds(json!([rule(&["apps"], &["v1"], &["pods/*"])]), &[], true);
    let any_version = rule(&["apps"], &["*"], &["deployments"]);
    check_kinds(json!([deployments(), any_version]), &[deployment], true);
    check_kinds(json!([rule(&["g"], &["v1"], &["things"])]), &[], false);
}

fn deployment(fields: &[(&str, Type)]) -> (GroupVersionKind, Type) {
    let gvk = GroupVersionKind {
        group: "apps".into(),
        version: "v1".into(),
        kind: "Deployment".into(),
    };
    (gvk, object("Deployment", fields))
}

fn check_warnings(spec: Value, foo: Type, expect: &[(&str, &str)]) {
    let objects = [deployment(&[("foo", foo.clone())])];
    let params = object("Params", &[("foo", foo)]);
    let found = warnings(&policy(spec.clone()), &objects, Some(params));
    assert_eq!(found.len(), expect.len(), "{spec}: {found:?}");
    for (warning, (field, part)) in found.iter().zip(expect) {
        assert_eq!(warning.field_ref, *field);
        assert!(warning.warning.contains(part), "{}", warning.warning);
    }
}

#[test]
fn what_is_warned_of() {
    let of = |expressions: &[&str]| {
        let list = expressions.iter().map(|e| json!({ "expression": e }));
        json!({ "validations": list.collect::<Value>() })
    };
    let first = "spec.validations[0].expression";
    check_warnings(of(&[]), Type::String, &[]);
    check_warnings(of(&["object.foo == 'bar'"]), Type::String, &[]);
    check_warnings(
        of(&["object.foo == 'bar'"]),
        Type::Int,
        &[(first, "found no matching overload for '_==_'")],
    );
    check_warnings(
        of(&["object.foo == 'bar'", "object.bar == 'foo'"]),
        Type::String,
        &[("spec.validations[1].expression", "undefined field 'bar'")],
    );
    let message = json!({ "validations": [{ "expression": "true", "messageExpression": "object.foo + 114514" }] });
    check_warnings(
        message,
        Type::String,
        &[("spec.validations[0].messageExpression", "'(string, int)'")],
    );
    let mut with_params = of(&["object.foo == params.bar"]);
    with_params["paramKind"] = json!({ "apiVersion": "v1", "kind": "DoesNotMatter" });
    check_warnings(
        with_params,
        Type::String,
        &[(first, "undefined field 'bar'")],
    );
    check_warnings(
        of(&["authorizer.group('').resource('a').check('b').allowed()"]),
        Type::String,
        &[],
    );
    check_warnings(
        of(&["authorizer.allowed()"]),
        Type::String,
        &[(first, "applied to 'kubernetes.authorization.Authorizer.()'")],
    );
    check_warnings(
        of(&["request.userInfo.groups.exists(g, g == 'a') && request.operation == 'CREATE'"]),
        Type::String,
        &[],
    );
    check_warnings(
        of(&["namespaceObject.metadata.labels.a == 'b'"]),
        Type::String,
        &[],
    );
    check_warnings(
        of(&["request.usrInfo.name == ''"]),
        Type::String,
        &[(first, "undefined field 'usrInfo'")],
    );
    let mut with_variables = of(&[
        "variables.works",
        "variables.gone",
        "variables.text + 1 > 2",
        "variables.next == 2",
    ]);
    with_variables["variables"] = json!([
        { "name": "works", "expression": "true" },
        { "name": "text", "expression": "object.foo" },
        { "name": "number", "expression": "1" },
        { "name": "next", "expression": "variables.number + 1" },
    ]);
    check_warnings(
        with_variables,
        Type::String,
        &[
            ("spec.validations[1].expression", "undefined field 'gone'"),
            (
                "spec.validations[2].expression",
                "'_+_' applied to '(string, int)'",
            ),
        ],
    );
}

#[test]
fn a_warning_reads_as_upstreams() {
    let objects = [deployment(&[("foo", Type::Int)])];
    let policy = policy(json!({ "validations": [{ "expression": "object.foo > '1'" }] }));
    let found = warnings(&policy, &objects, None);
    assert_eq!(
        found[0].warning,
        "apps/v1, Kind=Deployment: ERROR: <input>:1:12: found no matching overload for '_>_' applied to '(int, string)'\n | object.foo > '1'\n | ...........^\n"
    );
    assert!(is_due(&policy));
    let Action::Patch {
        target,
        kind,
        patch,
    } = apply_status(&policy, &found)
    else {
        panic!("a patch")
    };
    assert_eq!(
        (target.subresource, kind),
        ("status", PatchKind::Apply(FIELD_MANAGER))
    );
    assert_eq!(patch["status"]["observedGeneration"], 2);
    assert_eq!(
        patch["status"]["typeChecking"]["expressionWarnings"][0]["fieldRef"],
        "spec.validations[0].expression"
    );
    let Action::Patch { patch, .. } = apply_status(&policy, &[]) else {
        panic!("a patch")
    };
    assert_eq!(patch["status"]["typeChecking"], json!({}));
}

#[test]
fn what_the_status_knows_is_not_done_again() {
    let mut policy = policy(json!({}));
    policy.status = Some(from_value(json!({ "observedGeneration": 1 })).unwrap());
    assert!(is_due(&policy));
    policy.status = Some(from_value(json!({ "observedGeneration": 2 })).unwrap());
    assert!(!is_due(&policy));
}
