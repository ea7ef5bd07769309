//! What a policy's status says. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use component_base::informer::ObjectKey;
use controller_runtime::executor::{Action, PatchKind, Target};
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use serde_json::json;

use super::cel::{self, Type};
use crate::discovery::ApiResources;

/// The field manager of the status. Upstream: `ControllerName`.
pub const FIELD_MANAGER: &str = "validatingadmissionpolicy-status";
/// A policy is checked for so many kinds. Upstream: `maxTypesToCheck`.
const MAX_TYPES: usize = 10;

/// A kind in a version of a group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupVersionKind {
    pub group: String,
    pub version: String,
    pub kind: String,
}

impl GroupVersionKind {
    /// Where the API server has the document of its group and version.
    pub fn document_path(&self) -> String {
        match self.group.as_str() {
            "" => format!("/openapi/v3/api/{}", self.version),
            group => format!("/openapi/v3/apis/{group}/{}", self.version),
        }
    }

    /// As upstream prints it in a warning.
    fn shown(&self) -> String {
        format!("{}/{}, Kind={}", self.group, self.version, self.kind)
    }
}

/// Whether the status is older than the policy.
pub fn is_due(policy: &ValidatingAdmissionPolicy) -> bool {
    let observed = policy.status.as_ref().and_then(|s| s.observed_generation);
    policy.metadata.generation.unwrap_or_default() > observed.unwrap_or_default()
}

/// The kind of the policy's parameters.
pub fn params_kind(policy: &ValidatingAdmissionPolicy) -> Option<GroupVersionKind> {
    let kind = policy.spec.as_ref()?.param_kind.as_ref()?;
    let api_version = kind.api_version.as_deref().unwrap_or_default();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    Some(GroupVersionKind {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: kind.kind.clone().unwrap_or_default(),
    })
}

/// The kinds a policy matches, as far as its rules name them without `*`, in order; and whether some resource is not known.
pub fn kinds_to_check(
    policy: &ValidatingAdmissionPolicy,
    known: &ApiResources,
) -> (Vec<GroupVersionKind>, bool) {
    let (mut found, mut all_known) = (BTreeSet::new(), true);
    let constraints = policy
        .spec
        .as_ref()
        .and_then(|s| s.match_constraints.as_ref());
    let rules = constraints.and_then(|c| c.resource_rules.as_ref());
    for rule in rules.into_iter().flatten() {
        // A list with `*` is given up.
        let named = |list: &Option<Vec<String>>| {
            let mut list = list.clone().unwrap_or_default();
            if list.iter().any(|item| item.contains('*')) {
                list.clear();
            }
            list.sort();
            list
        };
        let (groups, versions) = (named(&rule.api_groups), named(&rule.api_versions));
        let mut resources = rule.resources.clone().unwrap_or_default();
        resources.retain(|resource| !resource.contains(['*', '/']));
        resources.sort();
        let mut count = 0;
        for (group, version, resource) in triples(&groups, &versions, &resources) {
            let kinds = kinds_for(known, group, version, resource);
            all_known &= !kinds.is_empty();
            for kind in kinds {
                found.insert(kind);
                count += 1;
                if count == MAX_TYPES {
                    return (found.into_iter().collect(), all_known);
                }
            }
        }
    }
    (found.into_iter().collect(), all_known)
}

fn triples<'a>(
    groups: &'a [String],
    versions: &'a [String],
    resources: &'a [String],
) -> impl Iterator<Item = (&'a str, &'a str, &'a str)> {
    groups.iter().flat_map(move |group| {
        versions.iter().flat_map(move |version| {
            let resources = resources.iter();
            resources.map(move |resource| (group.as_str(), version.as_str(), resource.as_str()))
        })
    })
}

/// As upstream's mapper, which takes an empty group for any.
fn kinds_for(
    known: &ApiResources,
    group: &str,
    version: &str,
    resource: &str,
) -> Vec<GroupVersionKind> {
    let is_it = |r: &&controller_runtime::Resource| {
        (group.is_empty() || r.group == group) && r.version == version && r.plural == resource
    };
    let found = known.resources.iter().map(|d| &d.resource).filter(is_it);
    found
        .map(|r| GroupVersionKind {
            group: r.group.to_string(),
            version: r.version.to_string(),
            kind: r.kind.to_string(),
        })
        .collect()
}

/// A warning of the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    pub field_ref: String,
    pub warning: String,
}

/// What is wrong with a policy's expressions for objects of these types. `params` is `None` if nothing is known of the type.
pub fn warnings(
    policy: &ValidatingAdmissionPolicy,
    objects: &[(GroupVersionKind, Type)],
    params: Option<Type>,
) -> Vec<Warning> {
    let Some(spec) = &policy.spec else {
        return Vec::new();
    };
    let has_params = spec.param_kind.is_some();
    let environments: Vec<(&GroupVersionKind, HashMap<String, Type>)> = objects
        .iter()
        .map(|(gvk, object)| {
            let mut names = environment(object.clone());
            if has_params {
                names.insert("params".into(), params.clone().unwrap_or(Type::Dyn));
            }
            add_variables(&mut names, policy);
            (gvk, names)
        })
        .collect();
    let mut found = Vec::new();
    for (i, validation) in spec.validations.iter().flatten().enumerate() {
        let message = validation.message_expression.as_deref().unwrap_or_default();
        let expressions = [
            ("expression", validation.expression.as_str()),
            ("messageExpression", message),
        ];
        for (field, text) in expressions {
            if field == "messageExpression" && text.is_empty() {
                continue;
            }
            let warning = warning(text, &environments);
            if !warning.is_empty() {
                let field_ref = format!("spec.validations[{i}].{field}");
                found.push(Warning { field_ref, warning });
            }
        }
    }
    found
}

/// Upstream: `TypeCheckingResults.String`; each result ends with a new line, and the next begins after one more.
fn warning(text: &str, environments: &[(&GroupVersionKind, HashMap<String, Type>)]) -> String {
    let mut results = Vec::new();
    for (gvk, names) in environments {
        match cel::check(text, names) {
            Ok((_, issues)) if issues.is_empty() => {}
            Ok((_, issues)) => {
                let shown = cel::display(text, &issues);
                results.push(format!("{}: {shown}\n", gvk.shown()));
            }
            // The API server took it, so it is right and only not known here.
            Err(error) => {
                tracing::info!(expression = text, %error, "An expression's types are not checked")
            }
        }
    }
    results.join("\n")
}

/// The types of `variables.NAME`; one may use those before it.
fn add_variables(names: &mut HashMap<String, Type>, policy: &ValidatingAdmissionPolicy) {
    let variables = policy.spec.as_ref().and_then(|s| s.variables.as_ref());
    let mut fields: BTreeMap<String, Type> = BTreeMap::new();
    let object =
        |fields: &BTreeMap<String, Type>| Type::object("kubernetes.variables", fields.clone());
    names.insert("variables".into(), object(&fields));
    for variable in variables.into_iter().flatten() {
        let of = match cel::check(&variable.expression, names) {
            Ok((of, issues)) if issues.is_empty() => of,
            _ => Type::Dyn,
        };
        fields.insert(variable.name.clone(), of);
        names.insert("variables".into(), object(&fields));
    }
}

fn object(name: &str, fields: &[(&str, Type)]) -> Type {
    let fields = fields.iter().map(|(n, t)| ((*n).to_owned(), t.clone()));
    Type::object(name, fields.collect())
}

/// What every expression knows. Upstream: `BuildRequestType`, `BuildNamespaceType`.
fn environment(of: Type) -> HashMap<String, Type> {
    use Type::{Bool, Dyn, Int, String as Text, Timestamp};
    let texts = || Type::list(Text);
    let labels = || Type::map(Text, Text);
    let kind = object(
        "kubernetes.GroupVersionKind",
        &[("group", Text), ("version", Text), ("kind", Text)],
    );
    let resource = object(
        "kubernetes.GroupVersionResource",
        &[("group", Text), ("version", Text), ("resource", Text)],
    );
    let user = object(
        "kubernetes.UserInfo",
        &[
            ("username", Text),
            ("uid", Text),
            ("groups", texts()),
            ("extra", Type::map(Text, texts())),
        ],
    );
    let request = object(
        "kubernetes.AdmissionRequest",
        &[
            ("kind", kind.clone()),
            ("resource", resource.clone()),
            ("subResource", Text),
            ("requestKind", kind),
            ("requestResource", resource),
            ("requestSubResource", Text),
            ("name", Text),
            ("namespace", Text),
            ("operation", Text),
            ("userInfo", user),
            ("dryRun", Bool),
            ("options", Dyn),
        ],
    );
    let condition = object(
        "kubernetes.NamespaceCondition",
        &[
            ("status", Text),
            ("type", Text),
            ("lastTransitionTime", Timestamp),
            ("message", Text),
            ("reason", Text),
        ],
    );
    let metadata = object(
        "kubernetes.NamespaceMetadata",
        &[
            ("name", Text),
            ("generateName", Text),
            ("namespace", Text),
            ("labels", labels()),
            ("annotations", labels()),
            ("UID", Text),
            ("creationTimestamp", Timestamp),
            ("deletionGracePeriodSeconds", Int),
            ("deletionTimestamp", Timestamp),
            ("generation", Int),
            ("resourceVersion", Text),
            ("finalizers", texts()),
        ],
    );
    let spec = object("kubernetes.NamespaceSpec", &[("finalizers", texts())]);
    let status = object(
        "kubernetes.NamespaceStatus",
        &[("conditions", Type::list(condition)), ("phase", Text)],
    );
    let namespace = object(
        "kubernetes.Namespace",
        &[("metadata", metadata), ("spec", spec), ("status", status)],
    );
    let authorizer = Type::opaque("kubernetes.authorization.Authorizer");
    HashMap::from([
        ("object".to_owned(), of.clone()),
        ("oldObject".to_owned(), of),
        ("request".to_owned(), request),
        ("namespaceObject".to_owned(), namespace),
        ("authorizer".to_owned(), authorizer),
    ])
}

/// Writes what was found.
pub fn apply_status(policy: &ValidatingAdmissionPolicy, warnings: &[Warning]) -> Action {
    let name = policy.metadata.name.as_deref().unwrap_or_default();
    let mut type_checking = json!({});
    if !warnings.is_empty() {
        let list = warnings
            .iter()
            .map(|w| json!({ "fieldRef": w.field_ref, "warning": w.warning }));
        type_checking["expressionWarnings"] = list.collect();
    }
    let target = Target::of::<ValidatingAdmissionPolicy>("", name).subresource("status");
    Action::Patch {
        target: Target {
            key: ObjectKey::new("", name),
            ..target
        },
        kind: PatchKind::Apply(FIELD_MANAGER),
        patch: json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicy",
            "metadata": { "name": name },
            "status": {
                "observedGeneration": policy.metadata.generation,
                "typeChecking": type_checking,
            },
        }),
    }
}

#[cfg(test)]
mod tests;
