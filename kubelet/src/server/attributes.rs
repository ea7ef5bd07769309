//! What a request means to authorization: a subresource of this node.
//!
//! Upstream: `pkg/kubelet/server/auth.go`, with `KubeletFineGrainedAuthz` on.

use component_base::serving::Attributes;
use http::Method;

/// The attributes of a request; one that is allowed is enough.
pub fn attributes(node_name: &str, method: &Method, path: &str) -> Vec<Attributes> {
    let verb = match *method {
        Method::POST => "create",
        Method::GET => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    };
    subresources(path)
        .into_iter()
        .map(|subresource| Attributes::Resource {
            verb: verb.to_owned(),
            group: String::new(),
            version: "v1".to_owned(),
            resource: "nodes".to_owned(),
            subresource: subresource.to_owned(),
            namespace: String::new(),
            name: node_name.to_owned(),
        })
        .collect()
}

fn subresources(path: &str) -> Vec<&'static str> {
    let below = |root: &str| {
        path.strip_prefix(root)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    for (root, fine) in [
        ("/pods", "pods"),
        ("/healthz", "healthz"),
        ("/configz", "configz"),
        ("/runningpods", "pods"),
    ] {
        if below(root) {
            return vec![fine, "proxy"];
        }
    }
    for (root, subresource) in [
        ("/stats", "stats"),
        ("/metrics", "metrics"),
        ("/logs", "log"),
        ("/checkpoint", "checkpoint"),
        ("/statusz", "statusz"),
        ("/flagz", "configz"),
    ] {
        if below(root) {
            return vec![subresource];
        }
    }
    vec!["proxy"]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let check = |path: &str, expect: &[&str]| assert_eq!(subresources(path), expect, "{path}");
        check("/pods", &["pods", "proxy"]);
        check("/pods/", &["pods", "proxy"]);
        check("/runningpods/", &["pods", "proxy"]);
        check("/healthz/syncloop", &["healthz", "proxy"]);
        check("/configz", &["configz", "proxy"]);
        check("/stats/summary", &["stats"]);
        check("/metrics/cadvisor", &["metrics"]);
        check("/metricsfoo", &["proxy"]);
        check("/logs/", &["log"]);
        check("/exec/a/b/c", &["proxy"]);
        check("/checkpoint/a/b/c", &["checkpoint"]);
        check("/", &["proxy"]);
    }

    #[test]
    fn verbs() {
        let verb = |method: Method| match &attributes("n", &method, "/exec/a/b/c")[0] {
            Attributes::Resource { verb, name, .. } => {
                assert_eq!(name, "n");
                verb.clone()
            }
            Attributes::NonResource { .. } => panic!("a node's subresource was expected"),
        };
        assert_eq!(verb(Method::POST), "create");
        assert_eq!(verb(Method::GET), "get");
    }
}
