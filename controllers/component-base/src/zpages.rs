//! Pages for people who debug: what a process was told. Upstream: k8s.io/component-base/configz, k8s.io/apiserver's flagz.

use axum::Router;
use axum::routing::get;
use serde_json::{Value, json};

use crate::flags::Flags;

/// `/flagz`: every flag of `component` with its value, and `/configz`: its configuration under the name of its API group.
pub fn router(component: &str, flags: &Flags, group: &str, config: Value) -> Router {
    let text = flagz(component, flags);
    let config = json!({ group: config });
    Router::new()
        .route("/flagz", get(move || async move { text }))
        .route("/configz", get(move || async move { axum::Json(config) }))
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
