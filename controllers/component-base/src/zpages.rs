//! Pages for people who debug: what a process was told. Upstream: k8s.io/component-base/configz, k8s.io/apiserver's flagz.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use serde_json::{Value, json};

use crate::flags::Flags;

/// `/flagz`: every flag of `component` with its value, and `/configz`: its configuration under the name of its API group.
pub fn router(component: &str, flags: &Flags, group: &str, config: Value) -> Router {
    live_router(component, flags, group, move || config.clone())
}

/// The same for a configuration that may change while the process runs.
pub fn live_router(
    component: &str,
    flags: &Flags,
    group: &str,
    config: impl Fn() -> Value + Send + Sync + 'static,
) -> Router {
    let text = flagz(component, flags);
    let (group, config) = (group.to_owned(), Arc::new(config));
    let configz = move || {
        let shown = json!({ group.as_str(): config() });
        async move { axum::Json(shown) }
    };
    Router::new()
        .route("/flagz", get(move || async move { text }))
        .route("/configz", get(configz))
}

fn flagz(component: &str, flags: &Flags) -> String {
    let mut text = format!(
        "\n{component} flagz\nWarning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.\n"
    );
    for (name, value) in flags.all() {
        text += &format!("{name}={value}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::flags::FlagSet;

    #[test]
    fn flags_are_shown_as_they_are_written() {
        let mut set = FlagSet::new("kube-test", "tests");
        set.bool("leader-elect", true, "");
        set.duration("period", Duration::from_secs(90), "");
        set.list("controllers", &["*", "-a"], "");
        let flags = set.parse(["--leader-elect=false".to_owned()]).unwrap();
        let text = flagz("kube-test", &flags);
        assert!(text.starts_with("\nkube-test flagz\nWarning: "));
        for line in [
            "leader-elect=false\n",
            "period=1m30s\n",
            "controllers=*,-a\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
