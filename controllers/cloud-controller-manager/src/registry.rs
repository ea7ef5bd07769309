//! The one list of controllers. Upstream: k8s.io/cloud-provider/names, v0.37.

use component_base::config::FieldError;
use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::context::{Context, Running, StartError};

/// Builds a controller; the future it returns runs it until shutdown.
pub type Constructor = fn(Context) -> BoxFuture<'static, Result<Running, StartError>>;

/// One controller; all are on by default.
#[derive(Clone, Copy)]
pub struct Descriptor {
    /// The canonical name.
    pub name: &'static str,
    /// The old name.
    pub alias: &'static str,
    /// Builds it.
    pub constructor: Constructor,
}

/// All of them, in the order they start.
pub const CONTROLLERS: &[Descriptor] = &[
    Descriptor {
        name: "cloud-node-controller",
        alias: "cloud-node",
        constructor: |c| crate::node::start(c).boxed(),
    },
    Descriptor {
        name: "cloud-node-lifecycle-controller",
        alias: "cloud-node-lifecycle",
        constructor: |c| crate::node_lifecycle::start(c).boxed(),
    },
    Descriptor {
        name: "service-lb-controller",
        alias: "service",
        constructor: |c| crate::service_lb::start(c).boxed(),
    },
    Descriptor {
        name: "node-route-controller",
        alias: "route",
        constructor: |c| crate::node_route::start(c).boxed(),
    },
];

fn is(descriptor: &Descriptor, name: &str) -> bool {
    descriptor.name == name || descriptor.alias == name
}

/// What is wrong with `--controllers`.
pub fn validate(selection: &[String]) -> Vec<FieldError> {
    let names = selection
        .iter()
        .map(|item| item.strip_prefix('-').unwrap_or(item));
    let unknown = names.filter(|name| *name != "*" && !CONTROLLERS.iter().any(|d| is(d, name)));
    unknown
        .map(|name| {
            let reason = "not in the list of known controllers";
            FieldError::invalid("controllers", name, reason)
        })
        .collect()
}

/// Whether `--controllers` wants a controller: its own entry first, then `*`.
pub fn is_enabled(descriptor: &Descriptor, selection: &[String]) -> bool {
    let own = selection
        .iter()
        .find_map(|item| match item.strip_prefix('-') {
            Some(name) => is(descriptor, name).then_some(false),
            None => is(descriptor, item).then_some(true),
        });
    own.unwrap_or_else(|| selection.iter().any(|item| item == "*"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selection() {
        let enabled = |items: &[&str]| -> Vec<&str> {
            let items: Vec<_> = items.iter().map(ToString::to_string).collect();
            let enabled = CONTROLLERS.iter().filter(|d| is_enabled(d, &items));
            enabled.map(|d| d.alias).collect()
        };
        assert_eq!(enabled(&["*"]).len(), 4);
        assert_eq!(
            enabled(&["*", "-service", "-node-route-controller"]),
            ["cloud-node", "cloud-node-lifecycle"]
        );
        assert_eq!(enabled(&["route"]), ["route"]);
        // The first entry of a controller counts.
        assert_eq!(enabled(&["-route", "route"]), [""; 0]);
        assert_eq!(
            validate(&[
                "*".into(),
                "-service".into(),
                "nobody".into(),
                "-none".into()
            ])
            .len(),
            2
        );
    }
}
