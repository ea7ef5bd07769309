//! No field does nothing in silence: each is acted on, warned of by name, or refused.

use std::collections::BTreeMap;
use std::path::Path;

use component_base::config::audit;
use serde_json::{Value, json};

use super::load::load;
use super::*;

/// Refused for any value but upstream's default.
const REFUSED: &[(&str, fn() -> Value)] = &[
    ("cgroupsPerQOS", || json!(false)),
    ("defaultPodSysctls", || json!({"net.ipv4.ip_forward": "1"})),
    ("enableSystemLogQuery", || json!(true)),
    ("memorySwap", || json!({"swapBehavior": "LimitedSwap"})),
    ("runOnce", || json!(true)),
];

/// Read by a function of [`KubeletConfiguration`], which is called instead.
const BY_FUNCTION: &[(&str, &str)] = &[
    ("serializeImagePulls", "parallel_image_pulls"),
    ("maxParallelImagePulls", "parallel_image_pulls"),
    ("mergeDefaultEvictionSettings", "eviction_hard"),
    ("evictionHard", "eviction_hard"),
    ("enforceNodeAllocatable", "enforce_node_allocatable"),
    ("crashLoopBackOff", "max_container_restart_period"),
    ("userNamespaces", "ids_per_pod"),
];

/// Read before there is a configuration: by [`load`] itself.
const BY_LOAD: &[&str] = &[];

/// Field of Rust by field of the file.
fn declared() -> BTreeMap<String, String> {
    let text = include_str!("../configuration.rs");
    let body = text
        .split_once("pub struct KubeletConfiguration {")
        .unwrap()
        .1;
    let body = body.split_once("\n}").unwrap().0;
    let mut rename = None;
    let mut all = BTreeMap::new();
    for line in body.lines().map(str::trim) {
        if let Some((_, name)) = line.split_once("rename = \"") {
            rename = name.split('"').next().map(str::to_owned);
        }
        let Some((field, _)) = line.strip_prefix("pub ").and_then(|l| l.split_once(':')) else {
            continue;
        };
        let mut words = field.split('_');
        let first = words.next().unwrap_or_default().to_owned();
        let camel = words.fold(first, |name, word| {
            name + &word[..1].to_uppercase() + &word[1..]
        });
        all.insert(rename.take().unwrap_or(camel), field.to_owned());
    }
    all
}

#[test]
fn every_field_is_acted_on_or_warned_of_or_refused() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let sources = audit::sources(&root, &["configuration"]);
    let fields = declared();
    let serialized = serde_json::to_value(KubeletConfiguration::default()).unwrap();
    for name in serialized.as_object().unwrap().keys() {
        assert!(
            fields.contains_key(name),
            "{name} is not parsed by this test"
        );
    }
    let mut silent = vec![];
    for (name, field) in &fields {
        let refused = REFUSED.iter().any(|(n, _)| n == name);
        let warned = UNUSED_FIELDS.contains(&name.as_str());
        let function = BY_FUNCTION.iter().find(|(n, _)| n == name);
        let acted = match function {
            Some((_, function)) => sources.contains(&format!(".{function}(")),
            None => audit::is_read(&sources, field) || BY_LOAD.contains(&name.as_str()),
        };
        match (refused, warned, acted) {
            (true, false, _) | (false, true, _) | (false, false, true) => {}
            outcome => silent.push(format!("{name}: {outcome:?}")),
        }
    }
    assert!(
        silent.is_empty(),
        "(refused, warned, acted on): {silent:#?}"
    );
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    for (name, value) in REFUSED {
        let given = json!({ *name: value() });
        let error = load(None, None, given.as_object().unwrap().clone())
            .err()
            .unwrap_or_else(|| panic!("{name} is taken"))
            .to_string();
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn what_has_no_effect_is_warned_of_by_name() {
    let default = serde_json::to_value(KubeletConfiguration::default()).unwrap();
    for name in UNUSED_FIELDS {
        let mut value = default[name].clone();
        if value.is_null() {
            // Something that it can be.
            value = match *name {
                "memoryThrottlingFactor" => json!(0.9),
                _ => json!({}),
            };
        }
        let given = json!({ *name: value });
        let loaded = load(None, None, given.as_object().unwrap().clone())
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(loaded.unused, [name.to_string()]);
    }
    let given = json!({"logging": {"verbosity": 4, "flushFrequency": "5s", "options": {}}});
    let loaded =
        load(None, None, given.as_object().unwrap().clone()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(loaded.unused, ["logging.flushFrequency"]);
    assert_eq!(loaded.config.logging.verbosity, 4);
}

#[test]
fn every_flag_of_the_command_line_alone_is_read() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let sources = audit::sources(&root, &["options.rs"]);
    let unread: Vec<_> = audit::fields(include_str!("../options.rs"), "Options")
        .into_iter()
        .filter(|field| !audit::is_read(&sources, field))
        .collect();
    assert!(unread.is_empty(), "{unread:?}");
}
