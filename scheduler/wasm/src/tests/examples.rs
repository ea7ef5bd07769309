//! The examples in other languages (`scheduler/examples/wasm-*`), which need toolchains that not every machine has: built as their READMEs say, they are run here.
//!
//! `cargo test --release -p wasm-plugins -- --ignored --nocapture greenest`

use std::path::Path;

use framework::{Normalize, Sign};

use super::*;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");

/// What both examples do.
#[track_caller]
fn check_greenest(component: &[u8]) {
    let label = "example.com/grams";
    let args = json!({"args": {"label": label, "most": 400}, "fuelPerCall": 4_000_000_000_i64});
    let plugin = plugin_with(component, args).expect("it is a plugin");
    let plugin = &*plugin;
    let nodes = [
        ("a", Some("100")),
        ("b", Some("401")),
        ("c", None),
        ("d", Some("400")),
    ];
    let nodes = nodes.map(|(name, grams)| {
        let node = make_node(name);
        match grams {
            Some(grams) => node.label(label, grams).build(),
            None => node.build(),
        }
    });
    let snapshot = snapshot(nodes, []);
    assert_forms_agree(plugin, &pod(0), &snapshot);
    assert_eq!(
        scores(plugin, &pod(0), &snapshot),
        Some(vec![100, 401, 1000, 400])
    );
    let score = plugin.as_score().expect("it scores");
    assert_eq!(score.normalize(), Normalize::ByMax { reverse: true });
    let verdicts = verdicts(plugin, &pod(0), &snapshot).expect("judged");
    assert_eq!(verdicts.feasible().iter().collect::<Vec<_>>(), [0, 3]);
    let reason = "node(s) had power that is not clean enough";
    assert_eq!(verdicts.status(2), Some(&Status::unresolvable(reason)));
    // All pods are alike for it.
    let sign = plugin.sign(&pod(0), &snapshot);
    assert_eq!(sign, Some(Sign::node(framework::Fragments::NONE)));
    for (args, words) in [
        (json!({"most": -1}), "most: Invalid value: -1"),
        (json!({"colour": "green"}), "unknown arguments: colour"),
    ] {
        let refused = plugin_with(component, json!({ "args": args }));
        let error = refused.err().expect("refused").to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[track_caller]
fn built(file: &str) -> Vec<u8> {
    let path = Path::new(EXAMPLES).join(file);
    std::fs::read(&path).unwrap_or_else(|error| {
        panic!(
            "{}: {error}: build it first, as its README says",
            path.display()
        )
    })
}

#[test]
#[ignore = "needs Node.js: scheduler/examples/wasm-javascript/README.md"]
fn greenest_in_javascript() {
    check_greenest(&built("wasm-javascript/greenest.wasm"));
}

#[test]
#[ignore = "needs Rust for wasm32: scheduler/examples/wasm-rust/README.md"]
fn greenest_in_rust() {
    let module = built("wasm-rust/target/wasm32-unknown-unknown/release/greenest.wasm");
    let encoder = ComponentEncoder::default().module(&module).expect("fits");
    let component = encoder.validate(true).encode().expect("encodes");
    check_greenest(&component);
}
